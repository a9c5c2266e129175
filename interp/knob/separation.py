"""How far a subspace parts answers that agree with the context from those that ignore it, against accuracy.

Minder et al. 2025 find that models do better at following instructions, the more distinctly this subspace separates the
two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
from scipy import stats
from torch import Tensor

from interp.errors import BadInput
from interp.knob.knob import coordinates
from interp.knob.pairs import Pairs
from interp.stats import Interval, bootstrap_interval

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from interp.knob.result import KnobResult

Over = Literal["layers", "models"]


def separation(pairs: Pairs, layer: int, basis: Tensor, indices: np.ndarray) -> float:
    """Distance between the mean coordinates of prompts answered from the context and of those answered from memory.

    In standard deviations within the two groups: d', or Mahalanobis' distance for a rank above 1.
    Answers are the model's own, whatever it was asked for; NaN where one kind has fewer than two prompts.
    """
    rows = pairs.rows(indices)
    values = coordinates(basis, pairs.resid(layer, indices)).flatten(0, 1).double().cpu().numpy()
    predicted = pairs.base.logits.argmax(-1).cpu()[rows]
    answers, others = pairs.answers.cpu()[rows], pairs.others.cpu()[rows]
    instructed_context = rows % 2 == 0
    context = np.asarray((predicted == answers) & instructed_context | (predicted == others) & ~instructed_context)
    prior = np.asarray((predicted == answers) & ~instructed_context | (predicted == others) & instructed_context)
    return distance(values[context], values[prior])


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Mahalanobis' distance between the means of two groups `[sample rank]`; NaN for groups of one."""
    if min(len(a), len(b)) < 2:
        return float("nan")
    within = np.concatenate([a - a.mean(0), b - b.mean(0)])
    covariance = within.T @ within / (len(within) - 2)
    gap = a.mean(0) - b.mean(0)
    return float(np.sqrt(gap @ np.linalg.pinv(covariance) @ gap))


@dataclass(frozen=True, eq=False, repr=False)
class Correlation:
    """Separation against accuracy, one point a layer or model."""

    points: pd.DataFrame
    over: Over
    seed: int = 0

    @cached_property
    def pearson(self) -> Interval:
        """Pearson's correlation with a 95 % bootstrap interval over points."""
        return bootstrap_interval(self._values, _pearson, seed=self.seed)

    @cached_property
    def spearman(self) -> Interval:
        """Spearman's rank correlation with a 95 % bootstrap interval over points."""
        return bootstrap_interval(stats.rankdata(self._values, axis=0), _pearson, seed=self.seed)

    @property
    def _values(self) -> np.ndarray:
        return self.points[["separation", "accuracy"]].to_numpy()

    def __repr__(self) -> str:
        return f"Correlation(over {self.over}: Pearson {self.pearson}, Spearman {self.spearman})"

    def plot(self) -> go.Figure:
        """Accuracy against separation."""
        from interp.plots.knob import separation_scatter

        return separation_scatter(self)


def correlation(results: Sequence[KnobResult], over: Over = "layers", seed: int = 0) -> Correlation:
    """Separation in the fitted subspace against accuracy.

    over: `"layers"` takes every layer of every result and its interchange accuracy; `"models"` one point a result, the
    separation after its best layer against the pair accuracy of the model as instructed. Points without a separation
    are left out. Raises BadInput for fewer than three points.
    """
    rows = [row for result in results for row in (_by_layer(result) if over == "layers" else _by_model(result))]
    points = pd.DataFrame(rows, columns=["model", "layer", "separation", "accuracy"]).dropna()
    if len(points) < 3:
        raise BadInput(f"a correlation needs at least three points; {len(points)} of {len(rows)} have a separation")
    return Correlation(points.reset_index(drop=True), over, seed)


def _by_layer(result: KnobResult) -> list[tuple[str, int, float, float]]:
    frame = result.fitted
    name = result.model["name"]
    return list(zip([name] * len(frame), frame.layer, frame.separation, frame.accuracy, strict=True))


def _by_model(result: KnobResult) -> list[tuple[str, int, float, float]]:
    best = result.fitted.set_index("layer").loc[result.knob.layer]
    return [(result.model["name"], result.knob.layer, best.separation, result.parameters["base_accuracy"])]


def _pearson(values: np.ndarray) -> np.floating:
    """Of `values` `[point 2]`; 0 where one of them does not vary, as happens in a resample."""
    if (values.std(0) == 0).any():
        return np.float64(0.0)
    return np.float64(np.corrcoef(values.T)[0, 1])
