"""Metrics of many resamples at once are scikit-learn's, resample by resample."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from sklearn import metrics as sk

from interp.errors import BadInput
from probes.metrics import METRICS, interval, metric, resamples


def predictions(classes: int, n: int = 120, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities with ties, and labels that follow them."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    scores = rng.dirichlet(np.ones(classes), n) + 0.5 * np.eye(classes)[labels]
    scores = np.round(scores / scores.sum(1, keepdims=True), 2)
    return scores / scores.sum(1, keepdims=True), labels


def oracle_ece(scores: np.ndarray, labels: np.ndarray) -> float:
    """The definition, bin by bin."""
    confidence, right = scores.max(1), scores.argmax(1) == labels
    total = 0.0
    for b in range(10):
        inside = (confidence >= b / 10) & ((confidence < (b + 1) / 10) | (b == 9))
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return total


BINARY: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": lambda s, y: sk.accuracy_score(y, s.argmax(1)),
    "balanced_accuracy": lambda s, y: sk.balanced_accuracy_score(y, s.argmax(1)),
    "f1": lambda s, y: sk.f1_score(y, s.argmax(1)),
    "auc": lambda s, y: sk.roc_auc_score(y, s[:, 1]),
    "log_loss": lambda s, y: sk.log_loss(y, s),
    "ece": oracle_ece,
}
SEVERAL = BINARY | {
    "f1": lambda s, y: sk.f1_score(y, s.argmax(1), average="macro"),
    "auc": lambda s, y: sk.roc_auc_score(y, s, multi_class="ovr"),
}


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("name", METRICS)
def test_each_resample_has_the_value_of_its_examples(name: str, classes: int) -> None:
    scores, labels = predictions(classes)
    oracle = (BINARY if classes == 2 else SEVERAL)[name]
    counts = resamples(len(labels), 20, seed=3)
    ours = metric(name)(scores, labels, counts)
    for value, count in zip(ours, counts.astype(int), strict=True):
        rows = np.repeat(np.arange(len(labels)), count)
        assert value == pytest.approx(oracle(scores[rows], labels[rows]), abs=1e-9)
    found = interval(name, scores, labels, counts)
    assert found.estimate == pytest.approx(oracle(scores, labels), abs=1e-9)
    assert found.low <= found.high
    assert found.n == len(labels)


def test_a_resample_of_one_class_has_no_auc() -> None:
    scores, labels = predictions(2)
    assert np.isnan(metric("auc")(scores, labels, (labels == 1).astype(float)[None])[0])


def test_an_unknown_metric_is_refused_with_the_known_ones() -> None:
    with pytest.raises(BadInput, match="did you mean 'accuracy'"):
        metric("acuracy")
