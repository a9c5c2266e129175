"""PyTorch's fused attention, cut into pieces, computes what the reference computes."""

from __future__ import annotations

import pytest
import torch

from kernels.backends import rowwise, sdpa
from tests.kernels.cases import CASES, EVERYTHING, LONG, Case
from tests.kernels.compare import same


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_case_equals_the_reference(case: Case, dtype: torch.dtype) -> None:
    same("sdpa", case.request(dtype, capture=EVERYTHING))


@pytest.mark.parametrize("case", LONG, ids=lambda case: case.name)
def test_stretches_of_any_size_make_the_same_whole(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    request = case.request(torch.float32, capture=EVERYTHING)
    same("sdpa", request)
    monkeypatch.setattr(sdpa, "MASK_ENTRIES", 300 * 37)
    monkeypatch.setattr(rowwise, "WORKSPACE", 300 * 29)
    got, _ = same("sdpa", request)
    assert got.flops == sdpa.predict(request).flops
