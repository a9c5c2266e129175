"""Whether a model is right as often as it is sure: expected calibration error and reliability.

Confidence is the probability of the chosen label among the labels; a bin's gap is its mean confidence less its accuracy
(Naeini et al. 2015, Guo et al. 2017; bins of equal mass: Nixon et al. 2019).
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.special import softmax

from interp.errors import BadInput, choose

Binning = Literal["width", "mass"]


def confidences(logits: ArrayLike) -> np.ndarray:
    """The probability of the most probable label of each example, `[example]`, of logits `[example label]`."""
    return np.asarray(softmax(np.asarray(logits, dtype=float), axis=1).max(1))


def reliability(confidence: ArrayLike, correct: ArrayLike, bins: int = 10, binning: Binning = "width") -> pd.DataFrame:
    """One row a bin that holds anything: low, high, n, confidence, accuracy, gap.

    Bins of equal `width` are `(0, 1/bins]`, …, or of equal `mass`: as many examples in each, to within one, least
    confident first. Raises BadInput on fewer than one bin or example, and on confidences that are no probabilities.
    """
    sure, right = np.asarray(confidence, dtype=float), np.asarray(correct, dtype=float)
    _check(sure, right, bins, binning)
    if binning == "width":
        place = np.clip(np.ceil(sure * bins).astype(int) - 1, 0, bins - 1)
        groups = [np.flatnonzero(place == b) for b in range(bins)]
    else:
        groups = np.array_split(np.argsort(sure, kind="stable"), bins)
    rows = []
    for number, group in enumerate(groups):
        if len(group):
            edges = (number / bins, (number + 1) / bins) if binning == "width" else (sure[group[0]], sure[group[-1]])
            mean, accuracy = sure[group].mean(), right[group].mean()
            rows.append((*edges, len(group), mean, accuracy, mean - accuracy))
    return pd.DataFrame(rows, columns=["low", "high", "n", "confidence", "accuracy", "gap"])


def expected_calibration_error(
    confidence: ArrayLike, correct: ArrayLike, bins: int = 10, binning: Binning = "width"
) -> float:
    """The mean absolute gap over all examples, in [0, 1]. Raises BadInput as `reliability`."""
    table = reliability(confidence, correct, bins, binning)
    return float((table.n * table.gap.abs()).sum() / table.n.sum())


def _check(confidence: np.ndarray, correct: np.ndarray, bins: int, binning: str) -> None:
    if binning not in get_args(Binning):
        raise BadInput(f"there are no bins of equal {binning!r}; {choose(binning, get_args(Binning))}")
    if bins < 1 or confidence.ndim != 1 or confidence.shape != correct.shape or len(confidence) == 0:
        raise BadInput(
            f"calibration takes one confidence and one outcome an example and at least one bin, not "
            f"{confidence.shape}, {correct.shape} and {bins} bins"
        )
    if not ((confidence >= 0) & (confidence <= 1)).all():
        raise BadInput("a confidence is a probability; some of these lie outside 0 to 1")
