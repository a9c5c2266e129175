"""The k largest of very many scores, exactly k also where scores are equal, one tensor in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from interp.errors import BadInput

Scores = Callable[[], Iterable[tuple[str, Tensor]]]
"""Gives every parameter's scores, non-negative, by name; called several times, always to give the same."""

HALF = 16
BUCKETS = 1 << HALF
INFINITY = 0x7F800000
"""Its bits; those of NaN are larger."""


def budget(sparsity: float, size: int) -> int:
    """How many of `size` parameters a share of them is. Raises BadInput unless 0 < sparsity <= 1 and it is one or more.

    As in Panigrahi et al. (2023) fractions are rounded down.
    """
    check_share(sparsity)
    k = int(sparsity * size + 1e-6)  # 0.29 * 100 is 28.999…
    if k == 0:
        raise BadInput(f"a budget of {sparsity:g} is less than one of {size:,} parameters")
    return k


def check_share(sparsity: float) -> None:
    """Raise BadInput unless 0 < sparsity <= 1."""
    if not 0 < sparsity <= 1:
        raise BadInput(f"a budget of {sparsity:g} is no share of the parameters: it goes from above 0 to 1")


def largest(scores: Scores, k: int) -> dict[str, Tensor]:
    """Flat indices of the `k` largest scores by parameter; of equal ones those that come first.

    A radix selection on the bits of float32, which for non-negative numbers are ordered as the numbers are: two
    histograms find the k-th largest, a last pass takes what lies above it and as many of its equals as are missing.
    Raises BadInput where there are fewer than k scores, or one is negative or no number.
    """
    high, above = _bucket(_histogram(scores, lambda bits: bits >> HALF), k)
    low, above_low = _bucket(_histogram(scores, lambda bits: bits[bits >> HALF == high] & (BUCKETS - 1)), k - above)
    least, ties = high << HALF | low, k - above - above_low
    chosen = {}
    for name, values in scores():
        bits = _bits(values)
        equal = (bits == least).nonzero().flatten()[:ties]
        ties -= len(equal)
        chosen[name] = torch.cat([(bits > least).nonzero().flatten(), equal]).sort().values.cpu()
    return {name: indices for name, indices in chosen.items() if len(indices)}


def movement(pre: Mapping[str, Tensor], ft: Mapping[str, Tensor]) -> Scores:
    """How far fine-tuning moved each parameter, |ft - pre|."""
    return lambda: ((name, (ft[name].detach().float() - pre[name].detach().float()).abs()) for name in pre)


def _bits(values: Tensor) -> Tensor:
    bits = values.detach().flatten().to(torch.float32).contiguous().view(torch.int32)
    if len(bits) and not 0 <= int(bits.min()) <= int(bits.max()) <= INFINITY:
        raise BadInput("parameters are ranked by scores that are numbers and not negative; some of these are not")
    return bits


def _histogram(scores: Scores, digit: Callable[[Tensor], Tensor]) -> Tensor:
    counts = torch.zeros(BUCKETS, dtype=torch.long)
    for _, values in scores():
        counts += torch.bincount(digit(_bits(values)), minlength=BUCKETS).cpu()
    return counts


def _bucket(counts: Tensor, k: int) -> tuple[int, int]:
    """The bucket that holds the k-th largest, and how many lie in the buckets above it."""
    from_above = counts.flip(0).cumsum(0)
    if not 1 <= k <= int(from_above[-1]):
        raise BadInput(f"the {k:,} largest of {int(from_above[-1]):,} parameters cannot be taken")
    place = int(torch.searchsorted(from_above, torch.tensor(k)))
    return BUCKETS - 1 - place, int(from_above[place - 1]) if place else 0
