"""The C++ backend against the float64 oracle, and everything it promises beside: skipping, identities, its cache."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from kernels import attention
from kernels.attention import head_attention
from kernels.backends import compiled, cpu, reference
from kernels.errors import UnsupportedRequest
from kernels.patterns import (
    Pattern,
    a_shape,
    block_sparse,
    full,
    pruned,
    streaming,
    strided,
    tokens,
    vertical_slash,
)
from kernels.request import Output, Request
from kernels.types import CaptureSpec, HeadGates, HeadPlan, MaskSpec
from tests.kernels.cases import CASES, EVERYTHING, Case
from tests.kernels.compare import same
from tests.kernels.test_properties import plans

if isinstance(cpu.library(), str):
    pytest.skip(f"no cpu kernel here: {cpu.library()}", allow_module_level=True)

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def tensors(
    shape: tuple[int, int, int, int, int, int], dtype: torch.dtype = torch.float32, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v of B, H, K, T, S, D, large enough for peaked rows."""
    batch, heads, kv_heads, queries, keys, dim = shape
    random = torch.Generator().manual_seed(seed)
    q = 2 * torch.randn(batch, heads, queries, dim, generator=random)
    k, v = (torch.randn(batch, kv_heads, keys, dim, generator=random) for _ in "kv")
    return q.to(dtype), k.to(dtype), v.to(dtype)


def agree(request: Request) -> Output:
    """The kernel's result, after everything in it was found to be the reference's and its work the predicted one."""
    done, _ = same("cpu", request)
    assert done.flops == cpu.predict(request).flops
    return done


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_case_equals_the_reference(case: Case, dtype: torch.dtype) -> None:
    agree(case.request(dtype, capture=EVERYTHING))
    agree(case.request(dtype))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(case=plans())
def test_any_plan_is_computed_exactly(case: Case) -> None:
    agree(case.request(torch.float32, capture=EVERYTHING))


SHAPES = {
    "one token": (1, 1, 1, 1, 1, 16),
    "odd": (2, 3, 3, 17, 17, 32),
    "grouped": (2, 4, 2, 200, 200, 64),
    "multi-query": (1, 6, 1, 70, 70, 128),
    "longer than an item": (1, 2, 2, 450, 450, 64),
    "chunk of a cached sequence": (1, 4, 2, 32, 190, 64),
    "decode, grouped": (2, 8, 2, 1, 333, 128),
    "decode, one head a key": (1, 3, 3, 1, 65, 64),
    "few rows": (1, 2, 1, 2, 100, 48),
    "width not of sixteen": (1, 2, 1, 40, 40, 20),
}

MASKS: dict[str, Callable[[int, int, int, int], dict[str, Any]]] = {
    "causal": lambda b, h, t, s: {},
    "bidirectional": lambda b, h, t, s: {"causal": False},
    "window": lambda b, h, t, s: {"window": 19},
    "soft-cap": lambda b, h, t, s: {"softcap": 3.0},
    "alibi": lambda b, h, t, s: {"alibi": torch.linspace(0.01, 0.4, h)},
    "soft-cap, alibi": lambda b, h, t, s: {"softcap": 20.0, "alibi": torch.linspace(0.01, 0.4, h), "scale": 0.3},
    "sinks": lambda b, h, t, s: {"sinks": torch.linspace(-2, 6, h)},
    "left padding": lambda b, h, t, s: {"starts": torch.arange(b) * 5 + 2},
    "right padding": lambda b, h, t, s: {"key_mask": torch.arange(s)[None] < s - torch.arange(b)[:, None] - s // 4},
    "holes": lambda b, h, t, s: {"key_mask": (torch.arange(s) % 5 != 1)[None]},
    "cut cache": lambda b, h, t, s: {"kv_offset": 37, "window": 25},
    "later keys": lambda b, h, t, s: {"q_offset": 0},
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_oracle_agrees(shape: str, mask: str) -> None:
    q, k, v = tensors(SHAPES[shape])
    spec = MaskSpec(**MASKS[mask](q.shape[0], q.shape[1], q.shape[2], k.shape[2]))
    agree(Request.of(q, k, v, mask=spec, capture=EVERYTHING))


def test_packed_sequences_do_not_see_each_other() -> None:
    q, k, v = tensors((1, 2, 2, 300, 300, 32))
    lengths = [1, 70, 129, 100]
    out = agree(Request.of(q, k, v, mask=MaskSpec.packed(lengths), capture=EVERYTHING)).out
    alone = cpu.run(Request.of(*(x[:, :, 71:200] for x in (q, k, v)))).out
    torch.testing.assert_close(out[:, 71:200], alone, atol=1e-6, rtol=1e-6)


PATTERNS: dict[str, Callable[[int], Pattern]] = {
    "streaming": lambda n: streaming(4, 30),
    "window alone": lambda n: streaming(0, 1),
    "a_shape": lambda n: a_shape(70, 20),
    "vertical_slash": lambda n: vertical_slash([0, 7, n // 2], [0, 90], length=n, block=32),
    "block_sparse": lambda n: block_sparse(torch.eye(-(-n // 32)).bool().roll(-1, 0).tril(), block=32),
    "strided": lambda n: strided(3, 1, 1, length=n, block=32),
    "tokens": lambda n: tokens(range(3, n, 7), window=5),
    "pruned": lambda n: pruned(),
    "full": lambda n: full(),
}


@pytest.mark.parametrize(
    ("queries", "keys", "mask"),
    [
        (257, 257, {}),
        (1, 257, {}),
        (40, 257, {}),
        (40, 257, {"starts": torch.tensor([60])}),
        (200, 200, {"kv_offset": 57, "window": 100}),
    ],
)
def test_patterns_mixed_in_one_plan(queries: int, keys: int, mask: dict[str, Any]) -> None:
    heads = [make(257) for make in PATTERNS.values()]
    q, k, v = tensors((1, 18, 9, queries, keys, 32))
    plan = HeadPlan.of([head for head in heads for _ in "ab"])
    agree(Request.of(q, k, v, mask=MaskSpec(**mask), plan=plan, capture=EVERYTHING))


def test_patterns_of_batch_rows() -> None:
    heads = [make(100) for make in PATTERNS.values()]
    q, k, v = tensors((9, 4, 2, 100, 100, 16))
    plan = HeadPlan.of([heads[row:] + heads[:row] for row in range(9)]).heads(slice(0, 4))
    agree(Request.of(q, k, v, plan=plan, capture=EVERYTHING))


def test_packed_sequences_have_first_keys_of_their_own() -> None:
    q, k, v = tensors((1, 2, 1, 300, 300, 16))
    plan = HeadPlan.of([streaming(3, 10)] * 2)
    agree(Request.of(q, k, v, mask=MaskSpec.packed([100, 130, 70]), plan=plan, capture=EVERYTHING))


GATES: dict[str, Callable[[int, int, int, int], HeadGates]] = {
    "zero": lambda b, h, t, d: HeadGates.zero([1], n_heads=h),
    "uniform": lambda b, h, t, d: HeadGates.uniform([0, 2], n_heads=h),
    "one a row": lambda b, h, t, d: HeadGates.one_per_row(list(range(b)), n_heads=h),
    "mean": lambda b, h, t, d: HeadGates(gate=torch.tensor([[1.0, 0.0, 0.5, -2.0]]), add=torch.randn(1, h, d)),
    "positions": lambda b, h, t, d: HeadGates(
        gate=torch.zeros(b, h), logit_scale=torch.zeros(1, h, t), add=torch.randn(b, h, t, d),
        positions=torch.arange(t)[None] % 3 == 0,
    ),
    "scales of queries": lambda b, h, t, d: HeadGates(gate=torch.rand(b, h, t), logit_scale=torch.rand(b, h, t)),
}  # fmt: skip


@pytest.mark.parametrize("softcap", [None, 4.0])
@pytest.mark.parametrize("gates", GATES)
@pytest.mark.parametrize("queries", [1, 80])
def test_gates(gates: str, queries: int, softcap: float | None) -> None:
    torch.manual_seed(0)
    q, k, v = tensors((3, 4, 2, queries, 80, 32))
    spec, mask = GATES[gates](3, 4, queries, 32), MaskSpec(softcap=softcap)
    agree(Request.of(q, k, v, mask=mask, gates=spec))
    out = agree(Request.of(q, k, v, mask=mask, gates=spec, capture=EVERYTHING)).out
    assert (out - cpu.run(Request.of(q, k, v, mask=mask)).out).abs().max() > 1e-2


@pytest.mark.parametrize("rows", ["last", torch.tensor([7, 3, 60, 7]), torch.tensor([[0, 1], [60, 4]])])
def test_chosen_rows_and_their_best_keys(rows: Any) -> None:
    q, k, v = tensors((2, 4, 2, 61, 130, 32))
    capture = CaptureSpec(rows, entropy=True, column_sums=True, topk=9, spans=torch.tensor([[[2, 90]]]))
    agree(Request.of(q, k, v, capture=capture))
    few = agree(Request.of(q[:, :, :1], k[:, :, :3], v[:, :, :3], capture=CaptureSpec("last", topk=5))).stats
    assert few is not None
    assert few.topk is not None
    assert (few.topk[..., 3:] == -1).all()


def test_of_equal_keys_the_first_is_the_argmax() -> None:
    q, k, v = tensors((1, 2, 2, 70, 300, 32))
    k = k[:, :, :50].repeat(1, 1, 6, 1)
    for plan in (None, HeadPlan.of([streaming(60, 100)] * 2), HeadPlan.of([tokens(range(10, 300, 3))] * 2)):
        request = Request.of(q, k, v, plan=plan, capture=CaptureSpec(torch.tensor([69]), topk=4))
        stats = agree(request).stats
        assert stats is not None
        assert stats.argmax is not None
        assert stats.topk is not None
        assert torch.equal(stats.topk[..., 0], stats.argmax)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", ["grouped", "decode, grouped", "chunk of a cached sequence", "width not of sixteen"])
def test_half_precision_is_computed_in_float32(shape: str, dtype: torch.dtype) -> None:
    q, k, v = tensors(SHAPES[shape], dtype)
    gates = HeadGates(add=torch.ones(1, q.shape[1], q.shape[3]))
    out = agree(Request.of(q, k, v, gates=gates, capture=EVERYTHING)).out
    assert out.dtype == dtype


def test_infinity_and_nan_survive_the_rounding_to_bfloat16() -> None:
    q, k, v = tensors((1, 1, 1, 4, 4, 16), torch.bfloat16)
    v[0, 0, 0, :3] = torch.tensor([math.inf, -math.inf, math.nan])
    out = cpu.run(Request.of(q, k, v)).out[0, :, 0]
    assert (out[:, 0] == math.inf).all()
    assert (out[:, 1] == -math.inf).all()
    assert out[:, 2].isnan().all()
    assert out[:, 3:].isfinite().all()


def test_nan_is_not_hidden() -> None:
    q, k, v = tensors((1, 1, 1, 60, 60, 16))
    k[0, 0, 20, 3] = math.nan
    out = cpu.run(Request.of(q, k, v)).out
    assert out[:, :20].isfinite().all()
    assert out[:, 20:].isnan().all()


@pytest.mark.parametrize("order", ["head first", "position first"])
def test_strides_are_followed(order: str) -> None:
    q, k, v = tensors((2, 4, 2, 90, 90, 32))
    wanted = cpu.run(Request.of(q, k, v)).out
    if order == "position first":
        q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v))
    else:
        q, k, v = (torch.cat([x, x], -1)[..., :32] for x in (q, k, v))
        q = q.transpose(2, 3).contiguous().transpose(2, 3)
    assert torch.equal(cpu.run(Request.of(q, k, v)).out, wanted)


def test_rows_that_see_nothing() -> None:
    q, k, v = tensors((1, 2, 2, 80, 80, 16))
    stats = agree(Request.of(q, k, v, mask=MaskSpec(starts=torch.tensor([70])), capture=EVERYTHING)).stats
    assert stats is not None
    out = cpu.run(Request.of(q, k, v, mask=MaskSpec(starts=torch.tensor([70])))).out
    assert (out[:, :70] == 0).all()
    assert (stats.log_sum_exp[:, :, :70] == -math.inf).all()
    assert (stats.argmax[:, :, :70] == -1).all()


# ------------------------------------------------------------------------------------------------------ what it saves


def test_removed_heads_are_never_read() -> None:
    q, k, v = tensors((2, 6, 3, 130, 130, 32))
    whole = cpu.run(Request.of(q, k, v))
    for x in (k, v):
        x[:, 1] = math.nan
    q[:, 2:4] = math.nan
    keep = [0, 1, 4, 5]
    by_plan = Request.of(q, k, v, plan=HeadPlan.of([full(), full(), pruned(), pruned(), full(), full()]))
    by_gate = Request.of(q, k, v, gates=HeadGates.zero([2, 3], n_heads=6))
    for request in (by_plan, by_gate):
        done = cpu.run(request)
        assert torch.equal(done.out[:, :, keep], whole.out[:, :, keep])
        assert (done.out[:, :, 2:4] == 0).all()
        assert done.flops == cpu.predict(request).flops == whole.flops * 4 // 6
    measured = Request.of(q, k, v, gates=HeadGates.zero([2, 3], n_heads=6), capture=CaptureSpec())
    done = cpu.run(measured)
    assert (done.out[:, :, 2:4] == 0).all()
    assert done.stats is not None
    assert done.stats.log_sum_exp[:, 2:4].isnan().all()


def test_work_is_that_of_the_pairs_seen() -> None:
    """Scores come in panels of 16 keys for 6 rows: a row costs at most 16 keys at either end, and 6 rows the same."""
    n, dim = 700, 16
    q, k, v = tensors((1, 1, 1, n, n, dim))
    position = torch.arange(n)
    for pattern, ends in (
        (full(), 1),
        (streaming(4, 50), 2),
        (tokens(range(0, n, 97), window=1), None),
        (block_sparse(torch.eye(11).bool()), 2),
    ):
        request = Request.of(q, k, v, plan=HeadPlan.of([pattern]))
        pairs = cpu.run(request).flops // (4 * dim)
        distance = position[:, None] - position
        seen = (distance >= 0) & (distance < (pattern.window or n) if not pattern.blocks else distance >= 0)
        if pattern.blocks:
            seen &= (position // 64)[:, None] == position // 64
        seen |= (distance >= 0) & ((position < pattern.sinks) | torch.isin(position, torch.tensor(pattern.tokens)))
        visible = int(seen.sum())
        # Lists and windows of the rows of an item are unions: at most 192 more keys a row, and a tile's panel.
        bound = visible + n * (22 if ends == 1 else 22 + 192 + 64)
        assert visible <= pairs <= bound, pattern
    assert (
        cpu.run(Request.of(q, k, v, plan=HeadPlan.of([streaming(4, 50)]))).flops
        < 0.35 * cpu.run(Request.of(q, k, v)).flops
    )


def test_nothing_depends_on_the_number_of_threads() -> None:
    q, k, v = tensors((2, 4, 2, 500, 500, 32))
    plan = HeadPlan.of([full(), streaming(4, 64), tokens(range(0, 500, 9)), strided(2, 1, 0, length=500)])
    request = Request.of(q, k, v, plan=plan, capture=EVERYTHING)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            call = cpu.Call(request)
            call.make()
            assert call.c.team == threads
            results.append((call.out, call.stats()))
    finally:
        torch.set_num_threads(before)
    (out, stats), *others = results
    for other, measured in others:
        assert torch.equal(out, other)
        for name in ("argmax", "probability", "entropy", "log_sum_exp", "mass", "column_sums"):
            assert torch.equal(getattr(stats, name), getattr(measured, name)), name


def test_statistics_fit_together() -> None:
    n = 300
    q, k, v = tensors((1, 2, 1, n, n, 64))
    spans = torch.tensor([[[0, 1], [1, 100], [100, n]]])
    stats = cpu.run(Request.of(q, k, v, capture=CaptureSpec(entropy=True, spans=spans, column_sums=True))).stats
    assert stats is not None
    ones = torch.ones(1, 2, n)
    torch.testing.assert_close(stats.mass.sum(-1), ones, atol=2e-6, rtol=0)
    torch.testing.assert_close(stats.column_sums.sum(-1), ones.sum(-1), atol=1e-3, rtol=0)
    assert (stats.entropy <= torch.arange(1, n + 1).log() + 1e-5).all()
    assert (stats.entropy >= 0).all()
    scores = torch.einsum(
        "bhtd,bhtd->bht", q, k[:, :1].expand(1, 2, n, 64).gather(2, stats.argmax[..., None].expand_as(q))
    )
    torch.testing.assert_close(stats.probability, (scores / 8 - stats.log_sum_exp).exp(), atol=1e-5, rtol=1e-5)
    shifted = cpu.run(Request.of(q, k + 0.5, v, capture=CaptureSpec())).stats
    moved = stats.log_sum_exp + 0.5 * q.sum(-1) / 8
    torch.testing.assert_close(shifted.log_sum_exp, moved, atol=2e-5, rtol=1e-5)


# ------------------------------------------------------------------------------------------------------ the gradients


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kv_heads", [2, 4])
def test_gradients_are_those_of_the_oracle(causal: bool, kv_heads: int) -> None:
    leaves = [x.requires_grad_() for x in tensors((2, 4, kv_heads, 70, 70, 32))]
    random = torch.Generator().manual_seed(1)
    gates = [torch.rand(2, 4, generator=random).requires_grad_(), torch.rand(1, 4, 32, generator=random)]
    scale = torch.tensor([[1.0, 0.0, 0.5, 2.0]], requires_grad=True)
    leaves += [gates[0], gates[1].requires_grad_(), scale]
    weight = torch.randn(2, 70, 4, 32, generator=random)

    def gradients(dtype: torch.dtype, backend: Any) -> tuple[Tensor, ...]:
        q, k, v, gate, add, logit_scale = (x.detach().to(dtype).requires_grad_() for x in leaves)
        request = Request.of(
            q, k, v, mask=MaskSpec(causal=causal), gates=HeadGates(gate, add, logit_scale), allow_dense=True
        )  # fmt: skip
        assert backend.supports(request) is None
        loss = (backend.run(request).out * weight.to(dtype)).sum()
        return torch.autograd.grad(loss, (q, k, v, gate, add, logit_scale))

    for ours, oracle in zip(gradients(torch.float32, cpu), gradients(torch.float64, reference), strict=True):
        torch.testing.assert_close(ours.double(), oracle, atol=2e-4, rtol=2e-5)


def test_statistics_come_with_gradients_or_the_reason_why_not() -> None:
    q, k, v = tensors((1, 2, 2, 40, 40, 16))
    q.requires_grad_()
    done = cpu.run(Request.of(q, k, v, capture=CaptureSpec(entropy=True, log_sum_exp=False)))
    assert done.out.requires_grad
    assert done.stats is not None
    assert done.stats.entropy is not None
    assert done.stats.log_sum_exp is None
    for refused, why in (
        (Request.of(q, k, v, mask=MaskSpec(window=4)), "window"),
        (Request.of(q, k, v, plan=HeadPlan.of([streaming(1, 2), full()])), "HeadPlan"),
        (Request.of(q, k, v, capture=CaptureSpec("last")), "rows"),
        (Request.of(q, k, v, capture=CaptureSpec(torch.tensor([3]))), "rows"),
        (Request.of(q, k, v[..., :8]), "values of 8"),
        (Request.of(q.detach(), k, v, mask=MaskSpec(sinks=torch.zeros(2, requires_grad=True))), "sinks"),
        (Request.of(q, k, v, mask=MaskSpec(q_offset=5)), "first query"),
    ):
        assert why in str(cpu.supports(refused))
        with torch.no_grad():
            assert cpu.supports(refused) is None


# ----------------------------------------------------------------------------------------------------- the library


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache folder, and quick compilations."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(compiled, "FLAGS", ("-O0", *compiled.FLAGS[1:]))
    cpu.library.cache_clear()
    yield tmp_path
    cpu.library.cache_clear()


def test_without_a_compiler_the_reason_is_given(
    fresh: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", str(fresh))
    q, k, v = tensors((1, 1, 1, 3, 3, 16))
    with caplog.at_level(logging.WARNING):
        assert "no C++ compiler" in str(cpu.supports(Request.of(q, k, v)))
        head_attention(q, k, v)
    assert sum("no C++ compiler" in record.getMessage() for record in caplog.records) == 1
    assert attention.explain(q, k, v).backend != "cpu"
    with pytest.raises(UnsupportedRequest, match=r"no C\+\+ compiler"):
        head_attention(q, k, v, backend="cpu")
    assert list(fresh.iterdir()) == []


def test_without_avx2_the_reason_is_given(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    assert "AVX2" in str(cpu.library())


def test_a_folder_that_cannot_be_written_is_named(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (fresh / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(fresh / "file"))
    assert str(fresh / "file") in str(cpu.library())


def test_a_failing_compiler_is_quoted(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "FLAGS", ("-no-such-flag",))
    assert "no-such-flag" in str(cpu.library())


def test_a_damaged_library_is_built_again(fresh: Path) -> None:
    path = compiled.library_path(cpu.SOURCE)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"\x7fELF and then the disk was full")
    assert not isinstance(cpu.library(), str)
    assert compiled.is_whole(path)
    assert [child.name for child in path.parent.iterdir()] == [path.name]
    built = path.stat().st_mtime_ns
    cpu.library.cache_clear()
    assert not isinstance(cpu.library(), str)
    assert path.stat().st_mtime_ns == built


def test_other_flags_are_another_library(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = compiled.library_path(cpu.SOURCE)
    monkeypatch.setattr(compiled, "FLAGS", (*compiled.FLAGS, "-g"))
    assert compiled.library_path(cpu.SOURCE) != before
