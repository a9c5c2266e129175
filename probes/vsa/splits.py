"""Who trains, who chooses when to stop, who tests: no pair on two sides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from interp.errors import BadInput, choose
from interp.tasks.analogies import Structure

By = Literal["pair", "combination"]
"""What is held out: the asked pair, bound together in no training prompt, or only the combination of pairs."""
SHARES = (0.8, 0.1, 0.1)
"""Of training, validation and test in the paper."""


@dataclass(frozen=True, eq=False, repr=False)
class Split:
    """Rows of the prompts. Those that would carry a held-out pair into training are `dropped`."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    dropped: int

    def __repr__(self) -> str:
        sizes = f"{len(self.train)} training, {len(self.validation)} validation, {len(self.test)} test prompts"
        return f"Split({sizes}; {self.dropped} dropped)"


def split(structures: Sequence[Structure], by: By = "pair", seed: int = 0) -> Split:
    """80/10/10 of the asked pairs (or of the combinations of pairs), in no order of the two.

    By pair, whoever asks for a test pair tests, and a training or validation prompt in which one occurs in any role is
    dropped; then the same for validation pairs. Raises BadInput where a side would be empty.
    """
    if by not in ("pair", "combination"):
        raise BadInput(f"prompts are split by 'pair' or by 'combination', not {by!r}; {choose(by, get_args(By))}")
    units = [each.asked if by == "pair" else each.pairs for each in structures]
    order = sorted(set(units), key=lambda unit: sorted(map(sorted, unit)) if by == "combination" else sorted(unit))
    np.random.default_rng(seed).shuffle(order)
    ends = np.round(np.cumsum(SHARES) * len(order)).astype(int)
    side = {unit: int(np.searchsorted(ends, i, side="right")) for i, unit in enumerate(order)}
    own = np.array([side[unit] for unit in units])
    if by == "pair":
        latest = np.array([max((side.get(pair, 0) for pair in each.pairs), default=0) for each in structures])
        keep = latest <= own
    else:
        keep = np.ones(len(own), dtype=bool)
    rows = [np.flatnonzero((own == i) & keep) for i in range(3)]
    if min(map(len, rows)) == 0:
        sizes = ", ".join(
            f"{len(each)} {name}" for each, name in zip(rows, ("training", "validation", "test"), strict=True)
        )
        raise BadInput(f"split by {by}, {len(order)} different units leave {sizes} prompts; give more prompts")
    train, validation, test = rows
    return Split(train, validation, test, dropped=int((~keep).sum()))
