"""How good predictions are, for all resamples of a bootstrap at once.

Every metric takes predictions, labels and example weights `[resample example]`, and returns `[resample]`: weights of
one give the metric itself, the multinomial counts of a bootstrap its distribution.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from interp.errors import BadInput, choose
from interp.stats import Interval

Metric = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""(scores `[example class]`, labels `[example]`, weights `[resample example]`) -> `[resample]`."""

CALIBRATION_BINS = 10
"""Equal-width bins of confidence in the expected calibration error (Guo et al. 2017 use 10 to 15)."""


def accuracy(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Share of examples whose class scores highest."""
    return _share(weights @ (scores.argmax(1) == labels), weights.sum(1))


def balanced_accuracy(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean recall of the classes that occur."""
    right, true, _ = _counts(scores, labels, weights)
    occurs = true > 0
    return _share(np.divide(right, true, out=np.zeros_like(right), where=occurs).sum(1), occurs.sum(1))


def f1(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """F1 of class 1 where there are two, else the unweighted mean of the classes' F1."""
    right, true, said = _counts(scores, labels, weights)
    whole = true + said
    each = np.divide(2 * right, whole, out=np.zeros_like(right), where=whole > 0)
    return each[:, 1] if scores.shape[1] == 2 else each.mean(1)


def auc(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Area under the ROC curve, ties counted half; of several classes the mean of each against the rest.

    NaN where a resample holds one class only.
    """
    classes = [1] if scores.shape[1] == 2 else range(scores.shape[1])
    ranked = scores[:, 1:] - scores[:, :1] if scores.shape[1] == 2 else scores
    return np.mean([_binary_auc(ranked[:, i], labels == k, weights) for i, k in enumerate(classes)], axis=0)


def log_loss(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean negative log-probability of the true class, in nats."""
    surprise = -np.log(np.clip(scores[np.arange(len(labels)), labels], np.finfo(float).tiny, 1))
    return _share(weights @ surprise, weights.sum(1))


def ece(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Expected calibration error: |accuracy - confidence| of equal-width bins, weighted by how full they are."""
    confidence = scores.max(1)
    inside = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gap = (scores.argmax(1) == labels) - confidence
    summed = weights @ (np.eye(CALIBRATION_BINS)[inside] * gap[:, None])
    return _share(np.abs(summed).sum(1), weights.sum(1))


METRICS: Mapping[str, Metric] = {
    "accuracy": accuracy,
    "balanced_accuracy": balanced_accuracy,
    "f1": f1,
    "auc": auc,
    "log_loss": log_loss,
    "ece": ece,
}
PROBABILISTIC = frozenset({"log_loss", "ece"})
"""Metrics of probabilities; scores that are none (ridge, margins) have no such value."""


def metric(name: str) -> Metric:
    """A metric by name; raises BadInput naming the valid ones."""
    if name not in METRICS:
        raise BadInput(f"there is no metric {name!r}; {choose(name, METRICS)}")
    return METRICS[name]


def resamples(n: int, count: int = 2_000, seed: int = 0) -> np.ndarray:
    """How often each of `n` examples occurs in each bootstrap sample, `[resample example]`."""
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=count).astype(float)


def interval(name: str, scores: np.ndarray, labels: np.ndarray, counts: np.ndarray, level: float = 0.95) -> Interval:
    """A metric with its percentile bootstrap interval over examples; `counts` as `resamples` draws them.

    The probes are not fitted anew: the interval says how far other test examples would have moved the number.
    """
    measure = metric(name)
    estimate = float(measure(scores, labels, np.ones((1, len(labels))))[0])
    drawn = measure(scores, labels, counts)
    tail = 100 * (1 - level) / 2
    low, high = np.nanpercentile(drawn, [tail, 100 - tail]) if not np.isnan(drawn).all() else (np.nan, np.nan)
    return Interval(estimate, float(low), float(high), len(labels))


def _counts(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, ...]:
    """Of every class `[resample class]`: predicted rightly, truly there, predicted."""
    identity = np.eye(scores.shape[1])
    true, said = identity[labels], identity[scores.argmax(1)]
    return weights @ (true * said), weights @ true, weights @ said


def _binary_auc(ranked: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mann-Whitney: how often a positive example outranks a negative one."""
    values, place = np.unique(ranked, return_inverse=True)
    order = np.argsort(place, kind="stable")
    starts = np.searchsorted(place[order], np.arange(len(values)))
    by_value = np.add.reduceat((weights * positive)[:, order], starts, axis=1)
    negative = np.add.reduceat((weights * ~positive)[:, order], starts, axis=1)
    below = np.cumsum(negative, axis=1) - negative / 2
    return _share((by_value * below).sum(1), by_value.sum(1) * negative.sum(1))


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0)
