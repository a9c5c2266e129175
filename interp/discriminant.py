"""How well labels are told from a few coordinates: a linear discriminant in cross-validation, beside its controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from interp.directions import random_directions
from interp.stats import wilson_interval

DRAWS = 20
"""Shuffles of the labels, and draws of random directions, that accuracies are held against."""
FOLDS = 5

Folds = Sequence[tuple[np.ndarray, np.ndarray]]
"""Indices to fit on and to judge on."""


def separation(
    coordinates: np.ndarray,
    sets: Mapping[str, Sequence[int]],
    states: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    seed: int = 0,
) -> pd.DataFrame:
    """How well labels are told along sets of the columns of `coordinates` `[text axis]`, one row a set.

    `accuracy` with its 95 % Wilson interval over texts; `shuffled` and `random`, its mean over shuffles of the labels
    and over as many random directions of `states` `[text width]`, with the bounds of 95 % of them; n texts. NaN where a
    label is in fewer than two groups.
    """
    rng = np.random.default_rng(seed)
    shuffles = [rng.permutation(labels) for _ in range(DRAWS)]
    folds = label_folds(labels, groups, seed)
    rows = []
    for name, columns in sets.items():
        own = coordinates[:, list(columns)]
        drawn = [states @ random_directions(states.shape[1], len(columns), seed + 1 + i).T for i in range(DRAWS)]
        row: dict[str, Any] = {"axis": name, **_share(told(own, labels, folds))}
        row |= _over_draws("shuffled", [told(own, shuffle, folds).mean() for shuffle in shuffles])
        row |= _over_draws("random", [told(some, labels, folds).mean() for some in drawn])
        rows.append({**row, "n": len(labels)})
    return pd.DataFrame(rows)


def label_folds(labels: np.ndarray, groups: np.ndarray, seed: int = 0) -> Folds:
    """Folds with the labels in about equal shares that share no group; none where a label is in only one group."""
    from sklearn.model_selection import StratifiedGroupKFold

    fewest = min(len(set(groups[labels == label])) for label in set(labels))
    if fewest < 2:
        return ()
    folds = StratifiedGroupKFold(min(FOLDS, fewest), shuffle=True, random_state=seed)
    return tuple(folds.split(labels, labels, groups))


def told(coordinates: np.ndarray, labels: np.ndarray, folds: Folds) -> np.ndarray:
    """Points `[text axis]` whose label a linear discriminant tells that was not fitted on them, `[text]` of 0 and 1.

    NaN without folds.
    """
    kinds, numbers = np.unique(labels, return_inverse=True)
    right = np.full(len(labels), np.nan)
    for train, test in folds:
        right[test] = discriminated(coordinates[train], numbers[train], coordinates[test], len(kinds)) == numbers[test]
    return right


def discriminated(known: np.ndarray, labels: np.ndarray, points: np.ndarray, kinds: int) -> np.ndarray:
    """The most probable label of each of `points` `[point axis]`, `[point]` of 0 to `kinds` - 1.

    Fisher's linear discriminant (1936): every label is a Gaussian around its mean in `known` `[text axis]`, all with
    the same covariance, and as frequent as there. A label that is not there is never told.
    """
    hot = np.eye(kinds)[labels]
    count = hot.sum(0)
    means = hot.T @ known / np.maximum(count, 1)[:, None]
    within = known - means[labels]
    precision = np.linalg.pinv(within.T @ within / len(known), hermitian=True)
    with np.errstate(divide="ignore"):
        frequency = np.log(count / len(known))
    scores = points @ precision @ means.T - 0.5 * np.einsum("k a, a b, k b -> k", means, precision, means) + frequency
    most: np.ndarray = scores.argmax(1)
    return most


def _share(right: np.ndarray) -> dict[str, float]:
    if not np.isfinite(right).all():
        return dict.fromkeys(("accuracy", "accuracy_low", "accuracy_high"), float("nan"))
    share = wilson_interval(int(right.sum()), len(right))
    return {"accuracy": share.estimate, "accuracy_low": share.low, "accuracy_high": share.high}


def _over_draws(name: str, values: Sequence[float]) -> dict[str, float]:
    low, high = np.quantile(values, [0.025, 0.975])
    return {name: float(np.mean(values)), f"{name}_low": float(low), f"{name}_high": float(high)}
