"""PyTorch's fused attention, cut into pieces, computes what the reference computes."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.cases import CASES, EVERYTHING, Case
from tests.kernels.compare import same


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_case_equals_the_reference(case: Case, dtype: torch.dtype) -> None:
    same("sdpa", case.request(dtype, capture=EVERYTHING))
