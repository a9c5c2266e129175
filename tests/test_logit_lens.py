"""What a model would say after each layer, what it says next, and where its heads look."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import interp
from interp.attention_summary import STATISTICS, attention_summary
from interp.errors import BadInput, SiteUnavailable, UnreadableFile
from interp.logit_lens import LogitLens, logit_lens
from interp.next_token import next_token
from interp.plots.attention import pattern_map
from interp.runs import save_run
from tests.families import build, prompts, word_tokenizer

FINAL = {
    "llama": lambda hf, x: hf.lm_head(hf.model.norm(x)),
    "gpt2": lambda hf, x: hf.lm_head(hf.transformer.ln_f(x)),
    "gemma2": lambda hf, x: 8.0 * torch.tanh(hf.lm_head(hf.model.norm(x)) / 8.0),
    "cohere": lambda hf, x: hf.config.logit_scale * hf.lm_head(hf.model.norm(x)),
    "opt_post_norm": lambda hf, x: hf.lm_head(hf.model.decoder.project_out(x)),
}
"""The head of each family, written out by hand."""


def blocks_of(hf):
    base = hf.base_model
    return getattr(base, "h", None) or getattr(base, "layers", None) or base.decoder.layers


def streams(hf, ids):
    """The residual stream entering the first block and leaving each, by plain hooks."""
    found = []
    first, *_ = blocks_of(hf)
    hooks = [first.register_forward_pre_hook(lambda _m, args, kwargs: found.append(args[0]), with_kwargs=True)]
    for block in blocks_of(hf):
        keep = lambda _m, _a, output: found.append(output[0] if isinstance(output, tuple) else output)  # noqa: E731
        hooks.append(block.register_forward_hook(keep))
    with torch.no_grad():
        logits = hf(ids).logits
    for hook in hooks:
        hook.remove()
    return found, logits


@pytest.mark.parametrize("family", FINAL)
def test_a_lens_is_the_models_own_head_on_every_residual_stream(family):
    hf, ids = build(family), prompts(1, 9)
    lens = logit_lens(interp.wrap(hf), ids, top=4)
    found, logits = streams(hf, ids)
    with torch.no_grad():
        wanted = [FINAL[family](hf, stream)[0].double().log_softmax(-1) for stream in found]
    own = logits[0].double().log_softmax(-1)
    np.testing.assert_allclose(wanted[-1], own, atol=1e-5)  # the heads written by hand are right
    assert lens.sites == ("resid_pre.0", *(f"resid_post.{i}" for i in range(len(found) - 1)))
    for i, logs in enumerate(wanted):
        best = logs.topk(4)
        assert lens.ids[i].tolist() == best.indices.tolist()
        np.testing.assert_allclose(lens.log_probabilities[i], best.values, atol=1e-4)
        np.testing.assert_allclose(lens.entropy[i], torch.distributions.Categorical(logits=logs).entropy(), atol=1e-4)
        kl = torch.nn.functional.kl_div(logs, own, log_target=True, reduction="none").sum(-1)
        np.testing.assert_allclose(lens.kl[i], kl, atol=1e-4)
        np.testing.assert_allclose(lens.following[i, :-1], logs[range(8), ids[0, 1:]], atol=1e-4)
    assert np.isnan(lens.following[:, -1]).all()
    assert np.abs(lens.kl[0]).max() > 0.01 > np.abs(lens.kl[-1]).max()


@pytest.fixture(scope="module")
def llama():
    return interp.wrap(build("llama", attention="sdpa"), tokenizer=word_tokenizer())


TEXT = "w5 w9 w17 w5 w9"


def test_a_lens_saves_loads_and_draws_the_same(llama, tmp_path):
    lens = logit_lens(llama, TEXT)
    lens.save(tmp_path / "lens")
    again = LogitLens.load(tmp_path / "lens")
    assert again.plot().to_json() == lens.plot().to_json()
    assert again.frame.equals(lens.frame)
    assert again.top("resid_post.1").equals(lens.top("resid_post.1"))
    save_run(tmp_path / "other", kind="other", parameters={}, model={}, seed=0, frame=lens.frame)
    with pytest.raises(BadInput, match="kind 'other'"):
        LogitLens.load(tmp_path / "other")
    with pytest.raises(UnreadableFile):
        LogitLens.load(tmp_path)


def test_figures_show_markup_as_text(llama):
    lens = logit_lens(llama, TEXT)
    marked = LogitLens(("<b>x</b>", *lens.tokens[1:]), *(getattr(lens, name) for name in list(vars(lens))[1:10]))
    assert "<b>" not in marked.plot().to_json()
    assert "&lt;b&gt;x&lt;/b&gt;" in marked.plot().layout.xaxis.ticktext[0]


def test_a_lens_of_the_last_positions_is_the_end_of_the_whole_one(llama):
    whole, end = logit_lens(llama, TEXT), logit_lens(llama, TEXT, last=2)
    assert end.tokens == whole.tokens[-2:]
    np.testing.assert_allclose(end.kl, whole.kl[:, -2:], atol=1e-6)
    np.testing.assert_array_equal(end.ids, whole.ids[:, -2:])
    assert sorted(set(end.frame.position)) == [3, 4]
    assert end.plot().layout.xaxis.ticktext[0].startswith("3 ")
    assert logit_lens(llama, TEXT, last=50).tokens == whole.tokens


def test_what_cannot_be_lensed_is_refused(llama):
    with pytest.raises(BadInput, match="one prompt"):
        logit_lens(llama, [TEXT, TEXT])
    with pytest.raises(BadInput, match="top=0"):
        logit_lens(llama, TEXT, top=0)
    with pytest.raises(BadInput, match="last=0"):
        logit_lens(llama, TEXT, last=0)
    with pytest.raises(BadInput, match=r"no resid_post\.9"):
        logit_lens(llama, TEXT).top("resid_post.9")
    with pytest.raises(SiteUnavailable, match="no language-model head"):
        logit_lens(interp.wrap(build("llama").model), prompts(1, 5))


def test_the_next_token_is_the_models_and_an_edit_changes_it(llama):
    ids = llama.tokenizer(TEXT, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        own = llama.hf(ids).logits[0, -1].double().log_softmax(-1)
        changed = llama.run(TEXT, edits=interp.zero("attn_out.1"), logits="last").logits[0].double().log_softmax(-1)
    plain, edited = next_token(llama, TEXT, top=3), next_token(llama, TEXT, edits=interp.zero("attn_out.1"), top=3)
    assert plain.ids == tuple(own.topk(3).indices.tolist())
    np.testing.assert_allclose(plain.log_probabilities, own.topk(3).values, atol=1e-5)
    assert set(edited.ids) == {*own.topk(3).indices.tolist(), *changed.topk(3).indices.tolist()}
    np.testing.assert_allclose(edited.frame.change, (changed - own)[list(edited.ids)], atol=1e-5)
    assert np.abs(edited.frame.change).max() > 0.01
    assert len(plain.plot().data) == 1
    assert len(edited.plot().data) == 2


def test_a_summary_of_attention_agrees_with_the_whole_matrix(llama):
    summary = attention_summary(llama, TEXT)
    trace = llama.run(TEXT, read="pattern", logits="all")
    patterns = torch.stack([trace[f"pattern.{layer}"][0] for layer in range(2)])
    best = patterns.max(-1)
    np.testing.assert_array_equal(summary.argmax, best.indices)
    np.testing.assert_allclose(summary.probability, best.values, atol=1e-5)
    entropy = torch.special.entr(patterns).sum(-1)
    np.testing.assert_allclose(summary.entropy, entropy, atol=1e-5)
    distance = (torch.arange(5) - best.indices).double().mean(-1)
    np.testing.assert_allclose(summary.statistic("distance"), distance)
    ids = llama.tokenizer(TEXT)["input_ids"]
    says = trace.logits[0].argmax(-1)
    copied = torch.tensor(ids)[best.indices] == says
    np.testing.assert_array_equal(summary.copied, copied)
    assert summary.head(1, 2)["copied"].tolist() == copied[1, 2].tolist()
    assert list(summary.frame.columns) == ["layer", "head", *STATISTICS, "n"]
    for name in STATISTICS:
        np.testing.assert_allclose(summary.plot(name).data[0].z, summary.statistic(name))
    for refused in (lambda: summary.statistic("mood"), lambda: summary.head(2, 0)):
        with pytest.raises(BadInput, match="there is no"):
            refused()


def test_a_pattern_is_drawn_without_its_future(llama):
    pattern = llama.run(TEXT, read="pattern.0")["pattern.0"][0, 1].numpy()
    drawn = np.array(pattern_map(pattern, ["<i>", "b", "c", "d", "e"]).data[0].z, dtype=float)
    assert np.isnan(drawn[np.triu_indices(5, 1)]).all()
    np.testing.assert_allclose(drawn[np.tril_indices(5)], pattern[np.tril_indices(5)])
