"""A backend against the reference, to the precision that the dtype of the inputs allows."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from kernels.request import Output, Request
from kernels.types import AttentionStats, CaptureSpec
from tests.kernels.cases import compute, reference

TOLERANCE = {torch.float64: 1e-10, torch.float32: 5e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}
"""Largest error of outputs of size about 1."""

STATISTICS = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 1e-3, torch.float16: 1e-4}
"""Of statistics, which are computed in float32 or better from the same inputs."""


def same(backend: str, request: Request) -> tuple[Output, Output]:
    """Both outputs, after checking that the backend's equals the reference's on the same inputs."""
    got, wanted = compute(request, backend), reference(request)
    dtype = request.q.dtype
    assert got.out.dtype == dtype
    assert torch.isfinite(got.out).all()
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(got.out.double(), wanted.out, rtol=tolerance, atol=tolerance)
    if request.capture is None:
        assert got.stats is None
        return got, wanted
    same_statistics(request, got.stats, wanted.stats)
    return got, wanted


def same_statistics(request: Request, got: AttentionStats | None, wanted: AttentionStats | None) -> None:
    assert got is not None
    assert wanted is not None
    assert got.measured.keys() == wanted.measured.keys()
    for name, value in got.measured.items():
        other = wanted.measured[name]
        if name == "argmax":
            same_keys(request, value, other)
        elif name != "topk":
            assert value.dtype == request.precise, name
            near = STATISTICS[request.q.dtype] * (request.queries if name == "column_sums" else 1)
            torch.testing.assert_close(value.double(), other, rtol=near, atol=near, msg=lambda m, n=name: f"{n}: {m}")


def same_keys(request: Request, got: Tensor, wanted: Tensor) -> None:
    """The same most probable keys; where the two best are equal but for rounding, either of them."""
    assert got.dtype == torch.int64
    assert torch.equal(got < 0, wanted < 0)
    if torch.equal(got, wanted):
        return
    assert request.rows is not None
    best = reference(replace(request, capture=CaptureSpec(rows=request.rows, topk=2))).stats
    assert best is not None
    assert best.topk is not None
    assert best.topk_probability is not None
    first, second = best.topk_probability.unbind(-1)
    tied = first.log() - second.log() < STATISTICS[request.q.dtype]
    other = got != wanted
    assert (tied & (got == best.topk[..., 1]))[other].all(), f"argmax differs at {other.nonzero().tolist()}"
