"""Budgets are exact, also where scores are equal."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from interp.errors import BadInput
from interp.skills.selection import budget, largest


@pytest.mark.parametrize("k", [1, 2, 5, 17, 63, 119, 120])
@pytest.mark.parametrize("levels", [1, 3, 10_000])
def test_exactly_the_k_largest_are_taken_and_of_equal_ones_the_first(k: int, levels: int) -> None:
    generator = torch.Generator().manual_seed(levels)
    values = torch.randint(levels, (120,), generator=generator).float() / 7
    tensors = {"a": values[:50].view(5, 10), "b": values[50:53], "c": values[53:]}
    chosen = largest(tensors.items, k)
    flat = torch.cat([chosen.get(name, torch.empty(0, dtype=torch.long)) + start for name, start in
                      (("a", 0), ("b", 50), ("c", 53))])  # fmt: skip
    order = np.argsort(-values.numpy(), kind="stable")[:k]
    assert flat.tolist() == sorted(order.tolist())


def test_scores_far_apart_and_tiny_are_ordered() -> None:
    values = torch.tensor([0.0, 1e-45, 1e-38, 1e-7, 1.0, 1.0 + 2**-23, 3e38])
    for k in range(1, 8):
        assert largest({"x": values}.items, k)["x"].tolist() == list(range(7 - k, 7))


@pytest.mark.parametrize(("values", "k"), [([-1.0, 2.0], 1), ([float("nan"), 2.0], 1), ([1.0], 2), ([1.0], 0)])
def test_what_cannot_be_ranked_is_refused(values: list[float], k: int) -> None:
    with pytest.raises(BadInput):
        largest({"x": torch.tensor(values)}.items, k)


def test_a_budget_rounds_down_and_is_at_least_one() -> None:
    assert [budget(share, 100) for share in (0.29, 0.57, 0.019, 1.0)] == [29, 57, 1, 100]
    with pytest.raises(BadInput, match="less than one of 100"):
        budget(0.009, 100)
