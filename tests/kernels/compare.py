"""A backend against the reference, to the precision that the dtype of the inputs allows."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.request import Output, Request
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
    assert got.stats is not None
    assert wanted.stats is not None
    assert got.stats.measured.keys() == wanted.stats.measured.keys()
    for name, value in got.stats.measured.items():
        other = getattr(wanted.stats, name)
        if name == "argmax":
            same_keys(request, value, other)
        elif name != "topk":
            assert value.dtype == request.precise, name
            near = STATISTICS[dtype] * (request.queries if name == "column_sums" else 1)
            torch.testing.assert_close(value.double(), other, rtol=near, atol=near, msg=lambda m, n=name: f"{n}: {m}")
    return got, wanted


def same_keys(request: Request, got: Tensor, wanted: Tensor) -> None:
    """The same most probable keys, but where the two best scores are closer than rounding."""
    assert got.dtype == torch.int64
    if torch.equal(got, wanted):
        return
    assert request.q.dtype != torch.float64
    assert torch.equal(got < 0, wanted < 0)
    raise AssertionError(f"argmax differs at {(got != wanted).nonzero().tolist()}")
