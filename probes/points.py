"""Where along its depth a model jumps to a concept, and where it has it.

After Jin et al. (2024): with accuracy α of layer i (of d, counted from 0) and its variation β_i = α_i / α_{i-1},

* the jump point is the first i/d with β_i ≥ `jump`;
* the converging point, by their formula, is the last i/d with |β_i - 1| < `flat`. Read literally it is the last layer
  of every curve that ends flat, and lies before the rise of a curve that rises at its end. What their text means by it
  is the rule `"plateau"`, our default: the first i/d from which on every variation is below `flat`.

A concept that is never read better than `floor` has no plateau. The thresholds are those we could find; treat them as
parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from interp.errors import BadInput

Rule = Literal["plateau", "formula"]
JUMP = 1.1
FLAT = 0.03
MARGIN = 0.05
"""By how much a concept must be read better than the largest class alone to count as found."""


@dataclass(frozen=True)
class Point:
    """A relative depth with its bootstrap interval; NaN where the curve has no such point.

    `defined` is the share of bootstrap samples that have it; the interval is over those.
    """

    estimate: float
    low: float
    high: float
    defined: float


def jump_points(curves: np.ndarray, jump: float = JUMP) -> np.ndarray:
    """The jump point of every curve `[curve layer]`, NaN where nothing jumps."""
    return _first(_variation(curves) >= jump, curves.shape[1], offset=1)


def converging_points(curves: np.ndarray, flat: float = FLAT, floor: float = 0.0, rule: Rule = "plateau") -> np.ndarray:
    """The converging point of every curve `[curve layer]`, NaN where it has none."""
    if rule not in ("plateau", "formula"):
        raise BadInput(f"a converging point is by 'plateau' or by 'formula', not {rule!r}")
    layers = curves.shape[1]
    small = np.abs(_variation(curves) - 1) < flat
    if rule == "formula":
        last = layers - 1 - _first(small[:, ::-1], 1, offset=0)
        return last / layers
    rest = np.concatenate(
        [np.flip(np.logical_and.accumulate(np.flip(small, 1), 1), 1), np.ones((len(curves), 1), bool)], 1
    )
    return _first(rest & (curves >= floor), layers, offset=0)


def with_interval(point: float, points: np.ndarray, level: float = 0.95) -> Point:
    """A point of a curve with the interval of the points of its bootstrap samples `[resample]`."""
    known = points[~np.isnan(points)]
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(known, [tail, 100 - tail]) if len(known) else (np.nan, np.nan)
    return Point(float(point), float(low), float(high), len(known) / max(1, len(points)))


def _variation(curves: np.ndarray) -> np.ndarray:
    return np.divide(curves[:, 1:], curves[:, :-1], out=np.full_like(curves[:, 1:], np.inf), where=curves[:, :-1] > 0)


def _first(holds: np.ndarray, layers: int, offset: int) -> np.ndarray:
    """The first column that holds, plus `offset`, as a share of `layers`; NaN where none does."""
    if holds.shape[1] == 0:
        return np.full(len(holds), np.nan)
    return np.where(holds.any(1), (holds.argmax(1) + offset) / layers, np.nan)
