"""The five properties Wu et al. (2024) report of retrieval heads, each a function, and one report of all.

Universal: every model has some. Sparse: few heads of a model. Intrinsic: two checkpoints of one model share them.
Dynamic: some act on every test, others only in some contexts. Causal: without them, recall collapses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from interp.errors import BadInput
from interp.heads.causal import AblationReport
from interp.heads.scores import RETRIEVAL_HEAD, HeadScores
from interp.stats import bootstrap_interval

STRONG = 0.5


def universal(scores: Mapping[str, HeadScores]) -> pd.DataFrame:
    """One row a model: how many heads reach the threshold, and the best score."""
    rows = []
    for name, result in scores.items():
        found = len(result.above())
        rows.append(
            {"model": name, "retrieval_heads": found, "best": float(result.scores.max()), "has_some": found > 0}
        )
    return pd.DataFrame(rows)


def sparse(scores: HeadScores) -> dict[str, float]:
    """Fractions of heads at least 0.1, at least 0.5, and exactly 0."""
    values = scores.scores
    return {
        "heads": float(values.size),
        "retrieval": float((values >= RETRIEVAL_HEAD).mean()),
        "strong": float((values >= STRONG).mean()),
        "zero": float((values == 0).mean()),
    }


def intrinsic(earlier: HeadScores, later: HeadScores, seed: int = 0) -> dict[str, float]:
    """Pearson correlation of the head scores of two checkpoints, with a bootstrap interval over heads."""
    if earlier.scores.shape != later.scores.shape:
        raise BadInput("intrinsic compares two checkpoints of one architecture; these have different heads")
    pairs = np.stack([earlier.scores.ravel(), later.scores.ravel()], axis=1)
    if not pairs.std(0).all():
        raise BadInput("all heads of a checkpoint have the same score, so no correlation is defined")
    interval = bootstrap_interval(pairs, _pearson, seed=seed)
    return {"pearson": interval.estimate, "low": interval.low, "high": interval.high, "n": float(interval.n)}


def dynamic(scores: HeadScores, by: str | None = "length") -> pd.DataFrame:
    """Activation frequency of every retrieval head, over all tests and within each value of the test column `by`."""
    passed = scores.tests[scores.tests.passed].reset_index(drop=True)
    groups: dict[str, np.ndarray] = {"all": np.arange(len(passed))}
    if by is not None and by in passed:
        groups |= {f"{by}={value}": part.index.to_numpy() for value, part in passed.groupby(by)}
    rows: list[dict[str, Any]] = []
    for layer, head in scores.above():
        active = scores.samples[:, layer, head] > 0
        row = {"layer": layer, "head": head, "score": float(scores.scores[layer, head])}
        rows.append(row | {name: float(active[index].mean()) for name, index in groups.items()})
    return pd.DataFrame(rows)


def causal(report: AblationReport) -> pd.DataFrame:
    """Recall kept without the heads and without random heads of the same layers, one row an ablation."""
    return report.summary()


@dataclass(frozen=True, eq=False)
class PropertiesReport:
    """The five properties of a model's retrieval heads; `intrinsic` and `causal` are None if not measured."""

    universal: pd.DataFrame
    sparse: Mapping[str, float]
    dynamic: pd.DataFrame
    intrinsic: Mapping[str, float] | None = None
    causal: pd.DataFrame | None = None

    def __str__(self) -> str:
        share = {name: f"{value:.1%}" for name, value in self.sparse.items()}
        lines = [
            "universal:\n" + self.universal.to_string(index=False),
            f"sparse: {share['retrieval']} of heads >= 0.1, {share['strong']} >= 0.5, {share['zero']} at 0",
            "dynamic (activation frequency):\n" + self.dynamic.to_string(index=False),
        ]
        if self.intrinsic is not None:
            i = self.intrinsic
            lines.insert(
                2, f"intrinsic: r = {i['pearson']:.2f} [{i['low']:.2f}, {i['high']:.2f}] over {i['n']:.0f} heads"
            )
        if self.causal is not None:
            lines.append("causal:\n" + self.causal.to_string(index=False))
        return "\n".join(lines)


def properties_report(
    scores: HeadScores,
    *,
    earlier: HeadScores | None = None,
    ablation: AblationReport | None = None,
    others: Sequence[HeadScores] = (),
) -> PropertiesReport:
    """All five properties; `earlier` is another checkpoint of the model, `others` further models."""
    every = {str(s.model["name"]): s for s in (scores, *others, *([earlier] if earlier else []))}
    return PropertiesReport(
        universal=universal(every),
        sparse=sparse(scores),
        dynamic=dynamic(scores),
        intrinsic=intrinsic(earlier, scores) if earlier else None,
        causal=causal(ablation) if ablation else None,
    )


def _pearson(pairs: np.ndarray) -> np.floating:
    """Correlation of two columns; 0 when a resample left one of them constant."""
    return np.corrcoef(pairs.T)[0, 1] if pairs.std(0).all() else np.float64(0)
