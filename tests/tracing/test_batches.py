"""Padding, batching, chosen positions and chosen logits change nothing about the numbers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import interp
from interp.errors import BadInput, PromptTooLong, UnknownSite
from interp.tasks.prompts import PromptSet
from interp.tracing.frame import Positions
from interp.tracing.sites import SITES
from kernels.types import AttentionStats
from tests.families import CONTEXT, NO_SDPA, OWN_ATTENTION, REPRESENTATIVES, SDPA, prompts, ragged
from tests.tracing.test_reads import REFUSED, close, tensors


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_padded_prompts_read_what_each_reads_alone(
    family: str, side: str, attention: str, model_of: Callable[..., interp.Model]
) -> None:
    if attention == "sdpa" and family not in SDPA:
        pytest.skip(NO_SDPA[family])
    model, rows = model_of(family, attention), ragged()
    names = [n for n in SITES if n not in REFUSED.get(family, ())]
    edits = [interp.scale("z.0.1", -2.0)]
    if "pattern" in names:
        edits += [interp.attend("pattern.0.0", "uniform"), interp.attend("pattern.1.2", -2)]
    together = model.run(rows, read=names, edits=edits, logits="all", padding_side=side)  # type: ignore[arg-type]
    assert together.lengths.tolist() == [len(row) for row in rows]
    for i, row in enumerate(rows):
        n = len(row)
        assert together.tokens[i, :n].tolist() == row
        alone = model.run([row], read=names, edits=edits, logits="all")
        close(together.logits[i, :n], alone.logits[0], "logits")
        for site in alone:
            for a, b in zip(tensors(together[site]), tensors(alone[site]), strict=True):
                close(_real(a[i], site.name, n), b[0], site)


def _real(value: Tensor, name: str, n: int) -> Tensor:
    """The real tokens of one prompt of a batch."""
    if name == "pattern":
        assert (value[:, :n, n:] == 0).all(), "padding is attended to"
        return value[:, :n, :n]
    return value[:, :n] if name == "attention_stats" else value[:n]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    ("logits", "columns"),
    [("last", [-1]), (-2, [-2]), ([0, -1], [0, -1]), ((3, 1), [1, 3]), (slice(-3, None), [-3, -2, -1])],
)
def test_kept_logits_are_those_of_the_positions_asked_for(
    llama: interp.Model, side: str, logits: Positions, columns: list[int]
) -> None:
    rows = ragged()
    trace = llama.run(rows, logits=logits, padding_side=side)  # type: ignore[arg-type]
    for i, row in enumerate(rows):
        with torch.no_grad():
            wanted = llama.hf(torch.tensor([row])).logits[0, columns]
        close(trace.logits[i], wanted[0] if logits == "last" else wanted)


def test_only_the_kept_logits_are_computed(llama: interp.Model) -> None:
    seen: list[torch.Size] = []
    handle = llama.hf.lm_head.register_forward_hook(lambda _m, args, _out: seen.append(args[0].shape))
    try:
        llama.run(ragged())
        llama.run(ragged(), logits=[0, -1])
        llama.run(ragged(), logits="all")
    finally:
        handle.remove()
    assert [shape[1] for shape in seen] == [1, 2, 12]


def test_edited_logits_are_kept_edited(model: interp.Model) -> None:
    rows = ragged()
    for logits in ("last", "all", [0, -1]):
        plain = model.run(rows, logits=logits)
        trace = model.run(rows, read="logits", edits=interp.scale("logits", -2.0), logits=logits)
        for i, row in enumerate(rows):
            own = slice(None, len(row) if logits == "all" else None)
            close(trace.logits[i, own], -2.0 * plain.logits[i, own])
        assert trace["logits"].shape == (3, 12, model.spec.vocab)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("positions", [2, -1, (0, -2), slice(-3, None), "S2"])
@pytest.mark.parametrize("family", REPRESENTATIVES, indirect=True)
def test_reads_at_positions_are_slices_of_the_whole(model: interp.Model, family: str, side: str, positions) -> None:
    rows = ragged()
    texts = tuple(" ".join(f"w{t}" for t in row) for row in rows)
    asked = PromptSet(texts=texts, tokens=tuple(map(tuple, rows)), spans={"S2": ((3, 5), (0, 2), (4, 6))})
    wanted = {2: [[2]] * 3, -1: [[-1]] * 3, (0, -2): [[0, -2]] * 3, "S2": [[3, 4], [0, 1], [4, 5]]}
    columns = wanted.get(positions, [[-3, -2, -1]] * 3) if not isinstance(positions, slice) else [[-3, -2, -1]] * 3
    names = [n for n in SITES if n not in REFUSED.get(family, ())]
    trace = model.run(asked, read=names, positions=positions, padding_side=side)  # type: ignore[arg-type]
    for i, row in enumerate(rows):
        alone = model.run([row], read=names)
        assert trace.positions[i].tolist() == [c % len(row) for c in columns[i]]
        for site in alone:
            for a, b in zip(tensors(trace[site]), tensors(alone[site]), strict=True):
                by_query = site.name in ("pattern", "attention_stats")
                value = a[i, ..., : len(row)] if site.name == "pattern" else a[i]
                close(value, b[0][:, columns[i]] if by_query else b[0][columns[i]], site)


def test_positions_that_differ_in_number_between_prompts_are_refused(llama: interp.Model) -> None:
    with pytest.raises(BadInput, match="between 3 and 8 tokens a prompt"):
        llama.run(ragged(), read="z.0", positions=slice(4, None))
    with pytest.raises(BadInput, match="between 3 and 8 tokens a prompt"):
        llama.run(ragged(), logits=slice(4, None))


def test_text_ids_and_prompt_sets_are_the_same_prompts(llama: interp.Model) -> None:
    rows = ragged()
    texts = [" ".join(f"w{t}" for t in row) for row in rows]
    wanted = llama.run(rows).logits
    asked = PromptSet(texts=tuple(texts), tokens=tuple(map(tuple, rows)))
    for prompt in (texts, asked, [torch.tensor(row) for row in rows]):
        assert torch.equal(llama.run(prompt).logits, wanted)  # type: ignore[arg-type]
    for one in (texts[0], rows[0], torch.tensor(rows[0]), torch.tensor(rows[:1]), torch.tensor(rows[0]).numpy()):
        close(llama.run(one).logits[0], wanted[0])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("prompts_", "message"),
    [
        ([], "nothing to run"),
        ("", "nothing to run"),
        ([[3, 4], []], "nothing to run"),
        ([[3, 199]], "token id 199 does not exist; the vocabulary has 199"),
        ([[3, -1]], "token id -1 does not exist"),
        ([[3, 4.5]], "a text or a list of token ids"),
        (7, "texts or lists of token ids"),
        ({"input_ids": [[3, 4]]}, "not a mapping"),
    ],
)
def test_prompts_that_cannot_be_run_are_refused(llama: interp.Model, prompts_: object, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        llama.run(prompts_)  # type: ignore[arg-type]


def test_a_prompt_longer_than_the_context_is_refused_with_both_numbers(model: interp.Model, family: str) -> None:
    model.run(prompts(1, CONTEXT))
    if family == "bloom":
        assert model.spec.context is None
        model.run(prompts(1, CONTEXT + 1))
        return
    with pytest.raises(PromptTooLong, match=f"{CONTEXT + 1} tokens is longer than the model's context of {CONTEXT}"):
        model.run(prompts(1, CONTEXT + 1))


def test_text_without_a_tokenizer_is_refused(llama: interp.Model) -> None:
    with pytest.raises(BadInput, match="needs a tokenizer"):
        interp.wrap(llama.hf).run("w3 w4")


def test_a_trace_gives_heads_stacks_and_membership(llama: interp.Model) -> None:
    ids = prompts()
    trace = llama.run(ids, read=["z", "pattern.1", "attention_stats.0", "resid_post.1"])
    assert torch.equal(trace["z.1.2"], trace["z.1"][:, :, 2])
    assert torch.equal(trace["pattern.1.2"], trace["pattern.1"][:, 2])
    assert torch.equal(trace["attention_stats.0.3"].argmax, trace["attention_stats.0"].argmax[:, 3])
    assert trace.stack("z").shape == (2, 2, 12, 4, 32)
    assert isinstance(trace["attention_stats.0"], AttentionStats)
    assert "z.1.2" in trace
    assert "resid_post.0" not in trace
    assert trace in [trace]
    assert len({trace}) == 1
    with pytest.raises(UnknownSite, match=r"did not read resid_post.0; did you mean 'resid_post.1'"):
        trace["resid_post.0"]
    with pytest.raises(BadInput, match="kept no logits and stopped after"):
        trace.logits  # noqa: B018


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", [f for f in REPRESENTATIVES if f not in OWN_ATTENTION], indirect=True)
def test_folds_reduce_dense_patterns_whatever_the_block_size(
    model: interp.Model, side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = ragged()
    dense = model.run(rows, read="pattern", padding_side=side)  # type: ignore[arg-type]
    asked: list[int] = []

    def received(rows_: object, positions: Tensor, layer: int) -> Tensor:
        """Attention each key receives from the real queries of each prompt."""
        asked.append(positions.shape[1])
        return torch.einsum("bhqk,bq->bhk", rows_.pattern, (positions >= 0).float())  # type: ignore[attr-defined]

    monkeypatch.setattr("interp.tracing.attention.ROW_BLOCK_ELEMENTS", 3 * 4 * 12 * 5)
    total = interp.RowFold("received", received)
    peak = interp.RowFold("peak", lambda r, _positions, _layer: r.pattern.amax(-1), join="cat")
    last = model.run(rows, read=[total, peak], positions=slice(-4, None), padding_side=side)  # type: ignore[arg-type]
    trace = model.run(rows, read=[total, peak], padding_side=side)  # type: ignore[arg-type]
    assert asked == [4, 4, 5, 5, 2, 5, 5, 2]
    for layer in (0, 1):
        for i, row in enumerate(rows):
            n = len(row)
            pattern = dense[f"pattern.{layer}"][i, :, :n]
            close(trace.folds["received"][layer][i], pattern.sum(1))
            close(last.folds["received"][layer][i], pattern[:, -4:].sum(1))
            close(last.folds["peak"][layer][i], pattern[:, -4:].amax(-1))


def test_two_folds_of_one_name_are_refused(llama: interp.Model) -> None:
    fold = interp.RowFold("mass", lambda rows, _positions, _layer: rows.pattern.sum(2))
    with pytest.raises(BadInput, match="same name"):
        llama.run(prompts(), read=[fold, fold])
