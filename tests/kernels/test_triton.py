"""The Triton kernels, in Triton's interpreter, against the float64 oracle, and what they promise beside.

The interpreter is chosen before Python starts: `test_triton_compiled` runs this file so.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

pytest.importorskip("triton")

from kernels.attention import explain, head_attention
from kernels.backends import triton, triton_call
from kernels.backends.triton_call import Call
from kernels.backends.triton_kernels import INTERPRETED
from kernels.patterns import block_sparse, full, pruned, streaming, strided, tokens
from kernels.request import Output, Request
from kernels.types import CaptureSpec, HeadGates, HeadPlan, MaskSpec
from tests.kernels.cases import CASES, EVERYTHING, Case, compensation, left_padding, mixed, reference
from tests.kernels.compare import TOLERANCE, same, same_statistics
from tests.kernels.oracle import random
from tests.kernels.test_properties import plans

if not INTERPRETED:
    pytest.skip("TRITON_INTERPRET=1 must be set before Python starts", allow_module_level=True)

EVERY_PATTERN = HeadPlan.of(mixed(100, block=16).patterns[0])
GROUP_PLAN = HeadPlan.of([streaming(40, 30), tokens(range(3, 260, 7)), full(), strided(3, 1, 1, length=260, block=32)])
_slopes, _sinks = random(4, seed=51).abs(), random(4, seed=50)
LONG = [
    Case("causal", 1, 1, 150, 150, 16, batch=1),
    Case("not causal, chunk", 1, 1, 70, 150, 16, batch=1, mask=MaskSpec(causal=False)),
    Case("window, left padding", 1, 1, 100, 100, 16, mask=left_padding([100, 77], 100, window=40)),
    Case("holes", 1, 1, 100, 100, 16, batch=1, mask=MaskSpec.padded(random(1, 100, seed=60) > 0)),
    Case("packed", 1, 1, 150, 150, 16, batch=1, mask=MaskSpec.packed([70, 7, 73])),
    Case("packed streams", 2, 1, 150, 150, 16, batch=1, mask=MaskSpec.packed([70, 7, 73]),
         plan=HeadPlan.of([streaming(3, 10), streaming(40, 70)])),
    Case("every pattern", 8, 4, 100, 100, 16, batch=1, plan=EVERY_PATTERN),
    Case("lists of a chunk", 4, 4, 70, 100, 16, batch=1, plan=GROUP_PLAN, mask=MaskSpec(kv_offset=37, window=90)),
]  # fmt: skip
"""Several blocks of queries and tiles of keys long."""

FEW_QUERIES = [
    Case("decode, sinks", 4, 2, 1, 260, 16, batch=1, mask=MaskSpec(sinks=_sinks)),
    Case("decode, patterns of a group, padding", 4, 1, 1, 260, 16, plan=GROUP_PLAN, mask=left_padding([260, 77], 260)),
    Case("chunk, alibi, compensation", 4, 2, 5, 260, 16, batch=1, mask=MaskSpec(alibi=_slopes),
         plan=HeadPlan.of([full()] * 4, extra=compensation(4, 2, 16))),
    Case("gates", 2, 2, 20, 260, 16, batch=1, gates=HeadGates(random(1, 2, 20, seed=1), random(1, 2, 16, seed=2))),
]  # fmt: skip

HALF = {
    torch.bfloat16: ("grouped", "soft-cap and window", "gates of every query", "plan, decode"),
    torch.float16: ("wide values", "compensation, sinks", "plan, padding, window"),
}


def agree(request: Request) -> Output:
    """The kernels' result, after it was found to be the reference's, and what they visited the predicted work."""
    call, wanted = Call(request).count().make(), reference(request)
    done = Output(call.out, call.stats(), call.flops)
    near = TOLERANCE[request.q.dtype]
    torch.testing.assert_close(done.out.double(), wanted.out, rtol=near, atol=near)
    same_statistics(request, done.stats, wanted.stats)
    assert done.flops == triton.predict(request).flops
    for name, lists in (("attend", call.lists), ("columns", call.column_lists)):
        visited = call.visited[name]
        assert lists is None or (visited is not None and int(visited.sum()) == lists.tiles), name
    return done


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_case_equals_the_reference(case: Case) -> None:
    # Column sums are a kernel of their own, which the other tests have in them: the interpreter takes its time.
    capture = CaptureSpec(entropy=True, spans=torch.tensor([[[2, 9]]]))
    same("triton", case.request(torch.float32, capture=capture))


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_half_precision_is_measured_in_float32(dtype: torch.dtype) -> None:
    for case in CASES:
        if case.name in HALF[dtype]:
            same("triton", case.request(dtype, capture=EVERYTHING))


@pytest.mark.parametrize("case", LONG, ids=lambda case: case.name)
def test_many_tiles_are_one_softmax(case: Case) -> None:
    agree(case.request(torch.float32, capture=EVERYTHING))


@settings(max_examples=6, deadline=None, derandomize=True)
@given(case=plans())
def test_any_plan_is_computed_exactly(case: Case) -> None:
    agree(case.request(torch.float32, capture=EVERYTHING))


@pytest.mark.parametrize("case", FEW_QUERIES, ids=lambda case: case.name)
def test_keys_shared_out_to_many_programs_give_the_same(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    request = case.request(torch.float32, capture=EVERYTHING)
    whole = agree(request)
    monkeypatch.setattr(triton_call, "processors", lambda device: 32)
    assert Call(request).cut.splits > 1
    shared = agree(request)
    torch.testing.assert_close(shared.out, whole.out, atol=2e-6, rtol=2e-6)


# ---------------------------------------------------------------------------------------------------- statistics


def tensors(heads: int, kv_heads: int, length: int, dim: int = 16, batch: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    return Case("", heads, kv_heads, length, length, dim, batch=batch).tensors(torch.float32)


@pytest.mark.parametrize("rows", ["last", torch.tensor([7, 3, 120, 7]), torch.tensor([[0, 1], [120, 4]])])
def test_chosen_rows_and_their_best_keys(rows: Any) -> None:
    q, k, v = tensors(1, 1, 130, batch=2)
    spans = torch.tensor([[[2, 90]], [[0, 1]]])
    capture = CaptureSpec(rows, entropy=True, column_sums=True, topk=3, spans=spans)
    stats = agree(Request.of(q, k, v, capture=capture)).stats
    assert stats is not None
    assert stats.topk is not None
    assert torch.equal(stats.topk[..., 0], stats.argmax)


def test_of_equal_keys_the_first_is_the_argmax() -> None:
    q, k, v = tensors(2, 2, 150)
    k = k[:, :, :50].repeat(1, 1, 3, 1)
    lists = block_sparse(torch.ones(5, 5).bool().tril(), block=32)
    for plan in (None, HeadPlan.of([streaming(60, 70), lists])):
        stats = agree(Request.of(q, k, v, plan=plan, capture=CaptureSpec())).stats
        assert stats is not None
        assert stats.argmax is not None
        assert plan is not None or (stats.argmax < 50).all()


def test_statistics_fit_together() -> None:
    n = 100
    q, k, v = tensors(2, 1, n)
    spans = torch.tensor([[[0, 1], [1, 70], [70, n]]])
    everything = CaptureSpec(entropy=True, spans=spans, column_sums=True)
    stats = head_attention(q, k, v, capture=everything, backend="triton")[1]
    assert stats is not None
    ones = torch.ones(1, 2, n)
    torch.testing.assert_close(stats.mass.sum(-1), ones, atol=2e-6, rtol=0)
    torch.testing.assert_close(stats.column_sums.sum(-1), ones.sum(-1), atol=1e-3, rtol=0)
    assert (stats.entropy <= torch.arange(1, n + 1).log() + 1e-5).all()
    assert (stats.entropy >= -1e-6).all()
    best = k.expand(1, 2, n, 16).gather(2, stats.argmax[..., None].expand_as(q))
    scores = (q * best).sum(-1) / 4
    torch.testing.assert_close(stats.probability, (scores - stats.log_sum_exp).exp(), atol=1e-5, rtol=1e-5)
    shifted = head_attention(q, k + 0.5, v, capture=CaptureSpec(), backend="triton")[1]
    assert shifted is not None
    moved = stats.log_sum_exp + 0.5 * q.sum(-1) / 4
    torch.testing.assert_close(shifted.log_sum_exp, moved, atol=2e-5, rtol=1e-5)


def test_only_what_is_asked_for_is_measured() -> None:
    q, k, v = tensors(1, 1, 20)
    for name in ("argmax", "probability", "log_sum_exp", "entropy", "column_sums"):
        nothing = {"argmax": False, "probability": False, "log_sum_exp": False}
        stats = same("triton", Request.of(q, k, v, capture=CaptureSpec(**{**nothing, name: True})))[0].stats
        assert stats is not None
        assert set(stats.measured) == {name}


def test_rows_that_see_nothing() -> None:
    q, k, v = tensors(2, 2, 80)
    done = agree(Request.of(q, k, v, mask=MaskSpec(starts=torch.tensor([70])), capture=EVERYTHING))
    assert done.stats is not None
    assert (done.out[:, :70] == 0).all()
    assert (done.stats.log_sum_exp[:, :, :70] == -math.inf).all()
    assert (done.stats.argmax[:, :, :70] == -1).all()


# -------------------------------------------------------------------------------------------------- what it saves


def test_removed_heads_are_never_read() -> None:
    q, k, v = tensors(6, 3, 40)
    whole = triton.run(Request.of(q, k, v))
    for x in (k, v):
        x[:, 1] = math.nan
    q[:, 2:4] = math.nan
    keep = [0, 1, 4, 5]
    by_plan = Request.of(q, k, v, plan=HeadPlan.of([full(), full(), pruned(), pruned(), full(), full()]))
    by_gate = Request.of(q, k, v, gates=HeadGates.zero([2, 3], n_heads=6))
    for request in (by_plan, by_gate):
        done = triton.run(request)
        assert torch.equal(done.out[:, :, keep], whole.out[:, :, keep])
        assert (done.out[:, :, 2:4] == 0).all()
        assert done.flops == whole.flops * 4 // 6
        assert len(Call(request).lists.items) == 4


def test_a_pruned_head_in_an_item_with_others_is_not_read() -> None:
    q, k, v = Case("", 4, 1, 1, 40, 16, batch=1).tensors(torch.float32)
    plan = HeadPlan.of([full(), pruned(), streaming(1, 3), full()])
    assert Call(Request.of(q, k, v, plan=plan)).cut.pack == 4
    clean = triton.run(Request.of(q, k, v, plan=plan)).out
    q[:, 1] = math.nan
    assert torch.equal(triton.run(Request.of(q, k, v, plan=plan)).out, clean)


def test_a_gate_of_zero_stops_nan_even_where_the_head_is_measured() -> None:
    q, k, v = tensors(2, 2, 20)
    q[:, 1] = math.nan
    out, stats = head_attention(
        q, k, v, gates=HeadGates.zero([1], n_heads=2), capture=CaptureSpec(), backend="triton"
    )  # fmt: skip
    assert (out[:, :, 1] == 0).all()
    assert stats is not None
    assert stats.log_sum_exp[:, 1].isnan().all()
    assert stats.log_sum_exp[:, 0].isfinite().all()


def test_gates_of_each_row_are_runs_of_their_own() -> None:
    q, k, v = tensors(3, 3, 20)
    sweep = HeadGates.one_per_row([0, 1, 2], n_heads=3)
    out, _ = head_attention(*(x.expand(3, -1, -1, -1) for x in (q, k, v)), gates=sweep, backend="triton")
    plain, _ = head_attention(q, k, v, backend="triton")
    for head in range(3):
        alone, _ = head_attention(q, k, v, gates=HeadGates.zero([head], n_heads=3), backend="triton")
        assert torch.equal(out[[head]], alone)
        assert not torch.equal(alone, plain)


def test_the_work_is_that_of_the_tiles_seen() -> None:
    """Causal attention visits the lower triangle; a streaming head, its window and sinks for every block of queries."""

    def tiles(length: int, *patterns: Any) -> int:
        q, k, v = (torch.empty(1, len(patterns), length, 16).expand(1, -1, -1, -1) for _ in "qkv")
        return Call(Request.of(q, k, v, plan=HeadPlan.of(patterns))).lists.tiles

    rows, width = 64, 32
    cut = Call(Request.of(*tensors(1, 1, 1024))).cut
    assert (cut.rows, cut.width) == (rows, width)
    assert tiles(1024, full()) == sum((block + 1) * rows // width for block in range(1024 // rows))
    each = (4 + 96 + rows) // width + 2
    for length in (1024, 4096):
        assert tiles(length, streaming(4, 96)) <= length // rows * each
    assert tiles(1024, full(), pruned()) == tiles(1024, full())
    assert tiles(1024, pruned(), pruned()) == 0


# --------------------------------------------------------------------------------------------- what it is given


@pytest.mark.parametrize("order", ["head first", "position first"])
def test_strides_are_followed(order: str) -> None:
    q, k, v = tensors(4, 2, 40, 32, batch=2)
    wanted = triton.run(Request.of(q, k, v)).out
    if order == "position first":
        q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v))
    else:
        q, k, v = (torch.cat([x, x], -1)[..., :32] for x in (q, k, v))
        q = q.transpose(2, 3).contiguous().transpose(2, 3)
    assert torch.equal(triton.run(Request.of(q, k, v)).out, wanted)


def test_what_it_does_not_compute_is_refused_with_the_reason() -> None:
    q, k, v = tensors(2, 2, 20)
    many = torch.arange(33)[None, :, None].expand(1, 33, 2)
    for refused, why in (
        (Request.of(q.double(), k.double(), v.double()), "float64"),
        (Request.of(q.clone().requires_grad_(), k, v), "no gradients"),
        (Request.of(*tensors(1, 1, 4, 300)), "300 dimensions; at most 256"),
        (Request.of(q, k, v, capture=CaptureSpec(spans=many)), "33 spans; at most 32"),
    ):
        assert why in str(triton.supports(refused))
    with torch.no_grad():
        assert triton.supports(Request.of(q.clone().requires_grad_(), k, v)) is None
    assert explain(q, k, v, backend="triton").backend == "triton"
    assert explain(q, k, v).backend != "triton"
