"""What must hold whatever the numbers: of gates, plans, statistics, and of the work that is not done."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels.attention import choose, explain, head_attention
from kernels.patterns import HeadKind, Pattern, full, pruned, streaming
from kernels.request import Request
from kernels.types import CaptureSpec, HeadGates, HeadPlan, MaskSpec
from tests.kernels.cases import CASES, Case, compute, left_padding, mixed
from tests.kernels.compare import same
from tests.kernels.oracle import random, sees

BACKENDS = ["reference", "sdpa"]

EVERYTHING = CaptureSpec(entropy=True, column_sums=True)


def attend(case: Case, backend: str, dtype: torch.dtype = torch.float64, **others: Any) -> tuple[Tensor, Any]:
    arguments: dict[str, Any] = {"mask": case.mask, "gates": case.gates, "plan": case.plan, **others}
    return head_attention(*case.tensors(dtype), backend=backend, allow_dense=backend == "reference", **arguments)


@st.composite
def plans(draw: st.DrawFn) -> Case:
    """Any mixture of patterns in every batch row, over any mask, at any place of the text."""
    block = draw(st.sampled_from([1, 4, 7, 64]))
    kv_offset, cached, queries = draw(st.integers(0, 9)), draw(st.integers(0, 20)), draw(st.integers(1, 30))
    end = kv_offset + cached + queries
    count = -(-end // block)
    keys = st.integers(0, end + 3)
    blocks = st.lists(st.lists(st.integers(0, count), max_size=4), min_size=count, max_size=count)

    def head() -> Pattern:
        kind = draw(st.sampled_from(list(HeadKind)))
        if kind is not HeadKind.SPARSE:
            return Pattern(kind)
        return Pattern(
            kind,
            sinks=draw(st.integers(0, 5)),
            window=draw(st.integers(1, 12)),
            blocks=tuple(map(tuple, draw(blocks))) if draw(st.booleans()) else (),
            tokens=tuple(draw(st.lists(keys, max_size=5))),
            block=block,
        )

    heads, batch = draw(st.sampled_from([1, 2, 4])), draw(st.sampled_from([1, 2]))
    starts = torch.tensor(draw(st.lists(st.integers(0, end), min_size=batch, max_size=batch)))
    mask = MaskSpec(
        kv_offset=kv_offset,
        window=draw(st.none() | st.integers(1, 12)),
        starts=starts if draw(st.booleans()) else None,
        key_mask=random(batch, cached + queries, seed=draw(st.integers(0, 99))) > -1 if draw(st.booleans()) else None,
    )
    plan = HeadPlan.of([[head() for _ in range(4)] for _ in range(batch)])
    return Case("drawn", 4, heads, queries, cached + queries, dim=16, batch=batch, mask=mask, plan=plan)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(case=plans())
def test_any_plan_is_computed_exactly(case: Case) -> None:
    got, _ = same("sdpa", case.request(capture=EVERYTHING))
    assert got.flops == _predicted(case.request(capture=EVERYTHING), "sdpa")


@settings(max_examples=40, deadline=None, derandomize=True)
@given(case=plans())
def test_every_query_sees_what_its_pattern_lists_and_nothing_twice(case: Case) -> None:
    """With values that name the keys and equal scores, the output says which keys were seen, and how often."""
    _, k, _ = case.tensors()
    names = torch.eye(case.keys).expand(case.batch, case.kv_heads, -1, -1).double()
    q = torch.zeros(case.batch, case.heads, case.queries, case.dim).double()
    out, _ = head_attention(q, k, names, mask=case.mask, plan=case.plan, backend="sdpa")
    assert case.plan is not None
    offset = case.mask.kv_offset + case.keys - case.queries
    for b, h, t in torch.cartesian_prod(*map(torch.arange, (case.batch, case.heads, case.queries))).tolist():
        pattern = case.plan.patterns[b][h]
        seen = torch.tensor([sees(case.mask, pattern, b, t, s, offset) for s in range(case.keys)])
        torch.testing.assert_close(out[b, t, h], seen.double() / max(1, int(seen.sum())))


@given(case=plans())
@settings(max_examples=40, deadline=None, derandomize=True)
def test_a_plan_gives_its_patterns_back_and_is_cut_by_head(case: Case) -> None:
    plan = case.plan
    assert plan is not None
    again = HeadPlan.of(plan.patterns)
    assert again.patterns == plan.patterns
    assert plan.heads([2, 0]).patterns == [[row[2], row[0]] for row in plan.patterns]


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_a_pruned_or_silenced_head_holds_never_reaches_the_output(backend: str) -> None:
    case = Case("poison", heads=4, kv_heads=2, queries=40, keys=40)
    q, k, v = case.tensors()
    plan = HeadPlan.of([[pruned(), pruned(), full(), streaming(1, 3)], [full(), pruned(), pruned(), pruned()]])
    gates = HeadGates(gate=torch.tensor([[1.0, 1, 1, 0], [0.0, 1, 1, 1]]), add=random(2, 4, 32, seed=1))
    for capture in (None, EVERYTHING):
        # Only gates 0 that are not measured are never computed; a plan prunes whatever is measured.
        gate = gates if capture is None else None
        clean, stats = head_attention(
            q, k, v, plan=plan, gates=gate, capture=capture, backend=backend, allow_dense=backend == "reference"
        )
        dirty = [x.clone() for x in (q, k, v)]
        dirty[0][0, :2], dirty[0][1, 1:] = math.nan, math.nan
        if capture is None:
            dirty[0][0, 3], dirty[0][1, 0] = math.nan, math.nan
        for x in dirty[1:]:
            x[0, 0], x[1, 1] = math.nan, math.nan  # no head that is computed shares these
        out, again = head_attention(
            *dirty, plan=plan, gates=gate, capture=capture, backend=backend, allow_dense=backend == "reference"
        )
        assert torch.equal(out, clean)
        if stats is not None and again is not None:
            assert all(torch.equal(value, again.measured[name]) for name, value in stats.measured.items())
            assert stats.argmax is not None
            assert (stats.argmax[0, :2] == -1).all()


def test_a_gate_of_zero_stops_nan_even_where_the_head_is_measured() -> None:
    case = Case("measured")
    q, k, v = case.tensors()
    v[:, 0] = math.nan
    gates = HeadGates.zero([0, 1], n_heads=4)
    for backend in BACKENDS:
        out, stats = head_attention(
            q, k, v, gates=gates, capture=CaptureSpec(), backend=backend, allow_dense=backend == "reference"
        )
        assert torch.isfinite(out).all()
        assert stats is not None
        assert stats.argmax is not None
        assert (stats.argmax >= 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_work_done_is_the_work_predicted(case: Case, backend: str) -> None:
    for capture in (None, replace(EVERYTHING, rows=torch.tensor([0, case.queries - 1]))):
        request = case.request(torch.float32, capture=capture, allow_dense=backend == "reference")
        assert compute(request, backend).flops == _predicted(request, backend)


def _predicted(request: Request, backend: str) -> int:
    return choose(request, backend)[1].predict(request).flops


def test_the_work_is_what_the_patterns_need() -> None:
    q, k, v = Case("work", heads=8, kv_heads=8, queries=1024, keys=1024, batch=1).tensors(torch.float32)

    def flops(**others: Any) -> int:
        return explain(q, k, v, backend="sdpa", **others).flops

    pairs = 1024 * 1025 // 2
    assert flops() == 8 * pairs * 4 * 32
    assert flops(plan=HeadPlan.of([pruned()] * 6 + [full()] * 2)) == 2 * pairs * 4 * 32
    assert flops(gates=HeadGates.zero(range(4), n_heads=8)) == 4 * pairs * 4 * 32
    assert flops(plan=HeadPlan.of([pruned()] * 8)) == 0
    assert flops(plan=HeadPlan.of([streaming(4, 64)] * 8)) < 0.3 * flops()
    few = flops(capture=CaptureSpec(rows=torch.arange(1016, 1024))) - flops()
    assert few == 8 * 8 * 1024 * 2 * 32


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_head_per_batch_row_equals_separate_runs(backend: str) -> None:
    case = Case("sweep", batch=4, queries=40, keys=40)
    one = [x[:1].expand(4, -1, -1, -1) for x in case.tensors()]
    dense = {"backend": backend, "allow_dense": backend == "reference"}
    plans = [mixed(40).heads([i, (i + 1) % 8, (i + 2) % 8, (i + 3) % 8]).patterns[0] for i in range(4)]
    together, _ = head_attention(*one, gates=HeadGates.one_per_row(range(4), n_heads=4), **dense)  # type: ignore[arg-type]
    planned, _ = head_attention(*one, plan=HeadPlan.of(plans), **dense)  # type: ignore[arg-type]
    whole, _ = head_attention(*one, **dense)  # type: ignore[arg-type]
    for head in range(4):
        alone, _ = head_attention(*(x[:1] for x in one), gates=HeadGates.zero([head], n_heads=4), **dense)  # type: ignore[arg-type]
        torch.testing.assert_close(together[head : head + 1], alone, rtol=1e-12, atol=1e-14)
        assert not torch.allclose(together[head], whole[head])
        alone, _ = head_attention(*(x[:1] for x in one), plan=HeadPlan.of(plans[head]), **dense)  # type: ignore[arg-type]
        torch.testing.assert_close(planned[head : head + 1], alone, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_statistics_obey_their_identities(case: Case, backend: str) -> None:
    first, last = case.mask.kv_offset, case.mask.kv_offset + case.keys
    cut = first + case.keys // 2
    capture = CaptureSpec(
        entropy=True, column_sums=True, spans=torch.tensor([[[first, cut], [cut, last], [cut, cut], [0, 4000]]])
    )
    _, stats = attend(case, backend, capture=capture)
    mass, live = stats.mass, stats.argmax >= 0
    torch.testing.assert_close(mass[..., 0] + mass[..., 1], mass[..., 3])
    assert (mass[..., 2] == 0).all()
    torch.testing.assert_close(stats.column_sums.sum(-1), mass[..., 3].sum(-1))
    if case.mask.sinks is None and (case.plan is None or case.plan.extra is None):
        torch.testing.assert_close(mass[..., 3], live.double())
        assert torch.equal(live, stats.log_sum_exp > -math.inf)
        assert (stats.entropy <= math.log(case.keys) + 1e-9).all()
        assert (stats.probability[live] >= 1 / case.keys - 1e-12).all()
    assert (stats.entropy >= -1e-12).all()
    assert (stats.probability <= 1 + 1e-12).all()
    for value in (stats.probability, stats.entropy, mass[..., 3]):
        assert (value[~live] == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_chosen_rows_are_the_rows_of_all(backend: str) -> None:
    case = Case("rows", heads=8, kv_heads=4, queries=40, keys=40, plan=mixed(40), mask=left_padding([40, 23], 40))
    _, every = attend(case, backend, capture=EVERYTHING)
    _, last = attend(case, backend, capture=replace(EVERYTHING, rows="last"))
    for rows in (torch.tensor([39, 0, 7, 7]), torch.tensor([[1, 30], [39, 2]])):
        _, some = attend(case, backend, capture=replace(EVERYTHING, rows=rows))
        for name in ("argmax", "probability", "entropy", "log_sum_exp"):
            for b in range(2):
                wanted = getattr(every, name)[b][:, rows[b] if rows.ndim == 2 else rows]
                torch.testing.assert_close(getattr(some, name)[b], wanted)
            torch.testing.assert_close(getattr(last, name), getattr(every, name)[:, :, -1:])
    # Column sums are over the captured rows: any division of the rows gives the sum of all.
    parts = [
        attend(case, backend, capture=replace(EVERYTHING, rows=rows))[1] for rows in torch.arange(40).split([1, 22, 17])
    ]
    torch.testing.assert_close(sum(part.column_sums for part in parts), every.column_sums)


@pytest.mark.parametrize("backend", BACKENDS)
def test_equal_scores_have_the_first_key_as_argmax(backend: str) -> None:
    # Small whole numbers and a scale of 1/4: every score is exact, however it is summed, and many are equal.
    q, k, v = (x.round() for x in Case("ties", queries=300, keys=300, dim=16, batch=1).tensors())
    _, stats = head_attention(q, k, v, capture=CaptureSpec(), backend=backend, allow_dense=backend == "reference")
    assert stats is not None
    assert stats.argmax is not None
    scores = torch.einsum("bgrtd,bgsd->bgrts", q.unflatten(1, (2, 2)), k).flatten(1, 2)
    ties = 0
    for h in range(4):
        for t in range(300):
            row = scores[0, h, t, : t + 1].tolist()
            ties += row.count(max(row)) > 1
            assert stats.argmax[0, h, t] == row.index(max(row))
    assert ties > 100


@pytest.mark.parametrize("backend", BACKENDS)
def test_uniform_attention_is_the_causal_mean_of_the_values(backend: str) -> None:
    case = Case("uniform", kv_heads=4, mask=MaskSpec(alibi=torch.ones(4), softcap=2.0))
    _, _, v = case.tensors()
    out, stats = attend(case, backend, gates=HeadGates.uniform([1], n_heads=4), capture=EVERYTHING)
    count = torch.arange(1.0, 18).double()
    torch.testing.assert_close(out[:, :, 1], v[:, 1].cumsum(1) / count[:, None])
    torch.testing.assert_close(stats.entropy[:, 1], count.log().expand(2, -1))
    assert not torch.allclose(out[:, :, 0], v[:, 0].cumsum(1) / count[:, None])


@pytest.mark.parametrize("backend", BACKENDS)
def test_gates_of_one_phase_leave_the_other_alone(backend: str) -> None:
    prefill, decode = Case("prefill"), Case("decode", queries=1, keys=23)
    for case, phase, other in ((prefill, "prefill", "decode"), (decode, "decode", "prefill")):
        plain, _ = attend(case, backend)
        both, _ = attend(case, backend, gates=HeadGates.zero([1], n_heads=4))
        there, _ = attend(case, backend, gates=HeadGates.zero([1], n_heads=4, phase=phase))
        elsewhere, _ = attend(case, backend, gates=HeadGates.zero([1], n_heads=4, phase=other))
        assert torch.equal(elsewhere, plain)
        assert torch.equal(there, both)
        assert (there[:, :, 1] == 0).all()
        torch.testing.assert_close(there[:, :, 2], plain[:, :, 2])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_prefill_in_chunks_and_then_decoding_is_the_whole(backend: str) -> None:
    case = Case("chunks", heads=8, kv_heads=4, queries=40, keys=40, plan=mixed(40), mask=left_padding([40, 23], 40))
    q, k, v = case.tensors()
    whole, stats = attend(case, backend, capture=EVERYTHING)
    outs, parts = [], []
    for first, last in ((0, 13), (13, 14), (14, 37), (37, 38), (38, 39), (39, 40)):
        mask = replace(case.mask, q_offset=first)
        out, part = head_attention(
            q[:, :, first:last], k[:, :, :last], v[:, :, :last], mask=mask, plan=case.plan, capture=EVERYTHING,
            backend=backend, allow_dense=backend == "reference",
        )  # fmt: skip
        outs.append(out)
        parts.append(part)
    torch.testing.assert_close(torch.cat(outs, dim=1), whole)
    joined = type(stats).cat(parts)
    for name, value in stats.measured.items():
        torch.testing.assert_close(joined.measured[name], value)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_window_needs_only_the_cache_of_its_width(backend: str) -> None:
    case = Case("sliding", queries=40, keys=40, mask=MaskSpec(window=7))
    q, k, v = case.tensors()
    whole, stats = attend(case, backend, capture=EVERYTHING)
    for position in (20, 39):
        mask = MaskSpec(window=7, q_offset=position, kv_offset=position - 6)
        keys = slice(position - 6, position + 1)
        out, part = head_attention(
            q[:, :, [position]], k[:, :, keys], v[:, :, keys], mask=mask, capture=EVERYTHING,
            backend=backend, allow_dense=backend == "reference",
        )  # fmt: skip
        torch.testing.assert_close(out, whole[:, [position]])
        assert part is not None
        assert torch.equal(part.argmax, stats.argmax[:, :, [position]])
        torch.testing.assert_close(part.entropy, stats.entropy[:, :, [position]])


@pytest.mark.parametrize("backend", BACKENDS)
def test_packed_sequences_are_what_they_are_alone(backend: str) -> None:
    plan = HeadPlan.of([full(), streaming(2, 3), streaming(1, 1), full()])
    case = Case("packed", queries=30, keys=30, plan=plan, mask=MaskSpec.packed([11, 4, 15]))
    q, k, v = case.tensors()
    whole, _ = attend(case, backend)
    for part in (slice(0, 11), slice(11, 15), slice(15, 30)):
        alone, _ = head_attention(
            q[:, :, part], k[:, :, part], v[:, :, part], plan=plan, backend=backend, allow_dense=backend == "reference"
        )
        torch.testing.assert_close(whole[:, part], alone)


@pytest.mark.parametrize("backend", BACKENDS)
def test_adding_to_all_keys_moves_the_log_sum_exp_and_nothing_else(backend: str) -> None:
    case = Case("shift", plan=HeadPlan.of([full(), streaming(1, 3), pruned(), full()]))
    q, k, v = case.tensors()
    shift = random(1, 1, 1, 32, seed=40)
    dense = {"plan": case.plan, "capture": EVERYTHING, "backend": backend, "allow_dense": backend == "reference"}
    out, stats = head_attention(q, k, v, **dense)  # type: ignore[arg-type]
    moved, other = head_attention(q, k + shift, v, **dense)  # type: ignore[arg-type]
    assert stats is not None
    assert other is not None
    torch.testing.assert_close(moved, out)
    torch.testing.assert_close(other.entropy, stats.entropy)
    by = (q * shift).sum(-1) / math.sqrt(32)
    by[:, 2] = 0
    torch.testing.assert_close(other.log_sum_exp, stats.log_sum_exp + by)
