"""Cached decoding under edits is what recomputing the whole text at every step would give."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import interp
from interp.errors import BadInput, PromptTooLong, SiteUnavailable
from interp.tracing.generation import Generation
from tests.families import CONTEXT, DECODERS, SDPA, prompts, ragged
from tests.tracing.test_reads import close, tensors

NEW = 6


def step_by_step(model: interp.Model, row: list[int], edits: list[interp.Edit]) -> tuple[list[int], list[float]]:
    """Greedy decoding without a cache: one full forward pass a token, and the log-probability of each."""
    text, log_probabilities = list(row), []
    for _ in range(NEW):
        reachable = [
            edit.at(positions=[p for p in edit.positions if p < len(text)])
            if isinstance(edit.positions, tuple)
            else edit
            for edit in edits
        ]
        scores = model.run([text], edits=reachable).logits[0].log_softmax(-1)
        text.append(int(scores.argmax()))
        log_probabilities.append(float(scores.max()))
    return text[len(row) :], log_probabilities


def assert_same(generation: Generation, wanted: tuple[list[int], list[float]]) -> None:
    assert list(generation.tokens[0]) == wanted[0]
    torch.testing.assert_close(list(generation.log_probabilities[0]), wanted[1], rtol=1e-3, atol=1e-4)


@pytest.fixture(autouse=True)
def never_ends(model_of: Callable[..., interp.Model]) -> None:
    """Random models reach the end-of-text token by chance; these tests decide for themselves when rows end."""
    for family in DECODERS:
        model_of(family, "sdpa" if family in SDPA else "eager").hf.generation_config.eos_token_id = None


@pytest.fixture(params=DECODERS)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def fast(family: str, model_of: Callable[..., interp.Model]) -> interp.Model:
    return model_of(family, "sdpa" if family in SDPA else "eager")


def test_greedy_generation_equals_that_of_transformers(fast: interp.Model) -> None:
    ids = prompts(3)
    fast.hf.generation_config.eos_token_id = None
    wanted = fast.hf.generate(ids, max_new_tokens=NEW, do_sample=False, pad_token_id=0)
    assert fast.generate(ids, max_new_tokens=NEW).tokens == tuple(map(tuple, wanted[:, 12:].tolist()))


def generation_edits(model: interp.Model, new_token: int = 14) -> list[interp.Edit]:
    """Edits that do not depend on where the prompt ends, of every kind of site that a cache could get wrong."""
    kv = torch.randn(1, 9, model.spec.kv_heads, 32, generator=torch.Generator().manual_seed(1))
    edits = [
        interp.scale("z.0.1", -2.0),
        interp.scale(f"v.1.{model.spec.kv_heads - 1}", 1.5),
        interp.patch("k.0", kv).at(positions=[1, 8]),
        interp.add(
            "resid_mid.1" if "resid_mid" not in model.parts.refusals else "resid_post.0", torch.ones(model.spec.width)
        ),
        interp.zero("mlp_out.0" if "mlp_post" in model.parts.refusals else "mlp_post.0").at(positions=slice(5, 15)),
    ]
    if "pattern" not in model.parts.refusals:
        edits += [interp.attend("pattern.1.0", "uniform"), interp.attend("pattern.0.3", 4)]
    if "k_rot" not in model.parts.refusals:
        edits += [
            interp.scale("k_rot.0.1", 1.3),
            interp.zero("k_rot.1").at(positions=[2, new_token]),
            interp.scale("q_rot.1.2", -1.0),
        ]
    return edits


def test_generation_under_edits_equals_recomputing_every_step(fast: interp.Model) -> None:
    row = prompts(1)[0].tolist()
    edits = generation_edits(fast)
    fast.hf.generation_config.eos_token_id = None
    edited = fast.generate([row], max_new_tokens=NEW, edits=edits)
    assert_same(edited, step_by_step(fast, row, edits))
    plain = fast.generate([row], max_new_tokens=NEW)
    assert max(abs(a - b) for a, b in zip(edited.log_probabilities[0], plain.log_probabilities[0], strict=True)) > 1e-2


def test_generation_of_a_batch_equals_each_prompt_alone(fast: interp.Model) -> None:
    rows = ragged()
    fast.hf.generation_config.eos_token_id = None
    edits = [*generation_edits(fast, new_token=11), interp.scale("resid_post.0", 0.5).at(positions=-1)]
    read = ["resid_post.1", "z.0"]
    read += [] if "attention_stats" in fast.parts.refusals else ["attention_stats.1"]
    edits = [edit for edit in edits if edit.positions != (1, 8)]
    for keep in (None, slice(-1, None)):
        together = fast.generate(rows, max_new_tokens=NEW, edits=edits, read=read, positions=keep)
        assert together.trace is not None
        assert together.trace.tokens.shape[1] == max(map(len, rows)) + NEW - 1
        for i, row in enumerate(rows):
            alone = fast.generate([row], max_new_tokens=NEW, edits=edits, read=read, positions=keep)
            assert alone.tokens[0] == together.tokens[i]
            torch.testing.assert_close(together.log_probabilities[i], alone.log_probabilities[0], rtol=1e-3, atol=1e-3)
            n = len(row) + NEW - 1 if keep is None else NEW
            assert alone.trace is not None
            for site in ("resid_post.1", "z.0"):
                close(together.trace[site][i, :n], alone.trace[site][0], site)
            if "attention_stats.1" in read:
                stats = together.trace["attention_stats.1"], alone.trace["attention_stats.1"]
                assert torch.equal(stats[0].argmax[i, :, :n], stats[1].argmax[0])


def test_reads_during_generation_equal_one_pass_over_the_text(fast: interp.Model) -> None:
    row = prompts(1)[0].tolist()
    edits = generation_edits(fast)
    wanted = ["resid_pre.1", "k.0", "z.1", "attention_stats", "mlp_post.1", "k_rot.1", "q_rot.0"]
    read = [site for site in wanted if site.split(".")[0] not in fast.parts.refusals]
    fast.hf.generation_config.eos_token_id = None
    generation = fast.generate([row], max_new_tokens=NEW, edits=edits, read=read)
    text = [*row, *generation.tokens[0][:-1]]
    whole = fast.run([text], read=read, edits=edits, logits="all")
    assert generation.trace is not None
    assert generation.trace.tokens.tolist() == [text]
    for site in whole:
        got, wanted = generation.trace[site], whole[site]
        for a, b in zip(tensors(got), tensors(wanted), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4, msg=lambda m, s=site: f"{s}: {m}")
    chosen = whole.logits.log_softmax(-1)[0, len(row) - 1 :].gather(1, torch.tensor(generation.tokens[0])[:, None])
    torch.testing.assert_close(torch.tensor(generation.log_probabilities[0]), chosen[:, 0], rtol=1e-4, atol=1e-4)


def test_edits_and_reads_of_the_logits_work_while_generating(llama: interp.Model) -> None:
    ban = torch.zeros(199)
    ban[list(llama.generate(prompts(1), max_new_tokens=3).tokens[0])] = -100.0
    generation = llama.generate(prompts(1), max_new_tokens=3, edits=interp.add("logits", ban), read="logits")
    assert not set(generation.tokens[0]) & set(ban.nonzero()[:, 0].tolist())
    assert generation.trace is not None
    assert generation.trace["logits"].shape == (1, 14, 199)


def test_negative_positions_stay_with_the_prompt_while_tokens_follow(llama: interp.Model) -> None:
    """`positions=-1` is the prompt's last token at every step; `slice(-1, None)` is that and everything after."""
    row = prompts(1)[0].tolist()
    vector = torch.full((64,), 3.0)
    for positions, absolute in ((-1, 11), (slice(-1, None), slice(11, None)), ((-1, -3), (11, 9))):
        edit = interp.add("resid_post.0", vector).at(positions=positions)
        fixed = interp.add("resid_post.0", vector).at(positions=absolute)
        assert_same(llama.generate([row], max_new_tokens=NEW, edits=edit), step_by_step(llama, row, [fixed]))


def test_sampling_is_reproducible_and_follows_its_distribution(llama: interp.Model) -> None:
    ids = prompts(1).expand(400, -1)
    first = llama.generate(ids, max_new_tokens=1, temperature=1.5, seed=7)
    assert llama.generate(ids, max_new_tokens=1, temperature=1.5, seed=7).tokens == first.tokens
    assert llama.generate(ids, max_new_tokens=1, temperature=1.5, seed=8).tokens != first.tokens
    wanted = (llama.run(prompts(1)).logits[0] / 1.5).softmax(-1)
    counts = torch.bincount(torch.tensor(first.tokens)[:, 0], minlength=199) / 400
    assert (counts - wanted).abs().max() < 0.1
    best = wanted.topk(2).indices.tolist()
    top = llama.generate(ids, max_new_tokens=1, temperature=1.5, top_k=2)
    assert {row[0] for row in top.tokens} == set(best)
    nucleus = llama.generate(ids, max_new_tokens=1, temperature=1.5, top_p=float(wanted.max()) / 2)
    assert {row[0] for row in nucleus.tokens} == {best[0]}


@pytest.mark.parametrize(
    "bad", [{"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.5}, {"top_k": 0}, {"max_new_tokens": 0}]
)
def test_sampling_settings_out_of_range_are_refused(llama: interp.Model, bad: dict) -> None:
    with pytest.raises(BadInput):
        llama.generate(prompts(1), **bad)


def test_a_row_ends_at_the_end_of_text_and_the_others_go_on(llama: interp.Model) -> None:
    rows = ragged()
    free = llama.generate(rows, max_new_tokens=NEW)
    end = free.tokens[0][1]
    llama.hf.generation_config.eos_token_id = [end]
    try:
        ended = llama.generate(rows, max_new_tokens=NEW, read="z.0")
    finally:
        llama.hf.generation_config.eos_token_id = None
    for got, wanted in zip(ended.tokens, free.tokens, strict=True):
        length = wanted.index(end) + 1 if end in wanted else NEW
        assert got == wanted[:length]
    assert len(ended.tokens[0]) == 2
    assert ended.trace is not None
    assert ended.trace["z.0"].shape[1] == ended.trace.tokens.shape[1] == max(ended.trace.lengths)
    own = [llama.run([[*row, *new[:-1]]], read="z.0")["z.0"][0] for row, new in zip(rows, ended.tokens, strict=True)]
    close(ended.trace.mean("z.0"), torch.cat(own).mean(0))


def test_a_row_ends_once_its_text_contains_a_stop_string(llama: interp.Model) -> None:
    free = llama.generate(prompts(1), max_new_tokens=NEW)
    words = free.texts[0].split()
    assert words == [f"w{token}" for token in free.tokens[0]]
    for stop in ([words[2]], f"{words[2]}", (f"{words[1]} {words[2]}", "never")):
        ended = llama.generate(prompts(1), max_new_tokens=NEW, stop=stop)
        assert ended.texts[0].split() == words[:3]
    with pytest.raises(BadInput, match="stop"):
        llama.generate(prompts(1), stop=("",))
    with pytest.raises(BadInput, match="tokenizer"):
        interp.wrap(llama.hf).generate(prompts(1), stop="x")


def test_new_tokens_count_towards_the_context(llama: interp.Model) -> None:
    llama.generate(prompts(1, CONTEXT - 4), max_new_tokens=4)
    with pytest.raises(PromptTooLong, match=f"{CONTEXT - 4} tokens and 5 new ones"):
        llama.generate(prompts(1, CONTEXT - 4), max_new_tokens=5)


def test_patterns_are_not_read_while_they_grow(llama: interp.Model) -> None:
    with pytest.raises(SiteUnavailable, match="attention_stats"):
        llama.generate(prompts(1), read="pattern.0")
