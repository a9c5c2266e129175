"""PyTorch's fused attention, cut into pieces, computes what the reference computes."""

from __future__ import annotations

import pytest
import torch

from kernels.backends import rowwise, sdpa
from kernels.types import CaptureSpec
from tests.kernels.cases import CASES, EVERYTHING, LONG, Case, reference
from tests.kernels.compare import same, same_statistics


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_case_equals_the_reference(case: Case, dtype: torch.dtype) -> None:
    same("sdpa", case.request(dtype, capture=EVERYTHING))


@pytest.mark.parametrize("case", LONG, ids=lambda case: case.name)
def test_stretches_of_any_size_make_the_same_whole(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    request = case.request(torch.float32, capture=EVERYTHING)
    same("sdpa", request)
    monkeypatch.setattr(sdpa, "MASK_ENTRIES", 300 * 37)
    monkeypatch.setattr(sdpa, "SCORE_ENTRIES", 300 * 82)
    monkeypatch.setattr(rowwise, "WORKSPACE", 300 * 29)
    got, _ = same("sdpa", request)
    assert got.flops == sdpa.predict(request).flops


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_statistics_need_no_log_sum_exp_of_a_kernel(case: Case) -> None:
    """Not every fused kernel returns it."""
    request = case.request(torch.float32, capture=EVERYTHING)
    same_statistics(request, rowwise.measure(request, None)[0], reference(request).stats)


def test_top_keys_are_those_of_the_reference() -> None:
    case = next(case for case in LONG if case.name == "plan")
    assert case.plan is not None
    capture = CaptureSpec(rows=torch.tensor([[0, 299, 150], [223, 230, 299]]), topk=6)
    request = case.request(capture=capture)
    got, wanted = same("sdpa", request)
    assert got.stats is not None
    assert wanted.stats is not None
    assert got.stats.topk is not None
    assert torch.equal(got.stats.topk, wanted.stats.measured["topk"])
    assert (got.stats.topk == -1).any()
