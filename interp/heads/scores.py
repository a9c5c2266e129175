"""HeadScores: one result type for every way of scoring attention heads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from interp.errors import BadInput, NoTestPassed
from interp.heads.mask import HeadMask
from interp.runs import Run, load_run, save_run
from interp.stats import bootstrap_means
from interp.tables import in_notebook

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from interp.tracing.model import Model

RETRIEVAL_HEAD = 0.1
"""Mean score from which Wu et al. (2024) call a head a retrieval head; 0.5 and more is a strong one."""


def model_record(model: Model) -> dict[str, Any]:
    """What a result says about its model: shape, family, attention implementation and fingerprint."""
    return {**model.spec.as_dict(), "fingerprint": model.fingerprint, "attention": model.attention}


@dataclass(frozen=True, eq=False, repr=False)
class HeadScores:
    """Scores of every query head.

    `samples` `[test layer head]` one score a test that counts (for the published retrieval score: that passed the
    recall gate); `tests` has one row for every test that ran. `components` are further arrays `[layer head]` of the
    method. `model` holds at least name, family, fingerprint and kv_heads.
    """

    method: str
    samples: np.ndarray
    tests: pd.DataFrame
    model: Mapping[str, Any]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    components: Mapping[str, np.ndarray] = field(default_factory=dict)
    seed: int = 0

    def __repr__(self) -> str:
        n, layers, heads = self.samples.shape
        kept = f"{n} of {len(self.tests)} tests"
        return f"HeadScores({self.method} on {self.model['name']}: {layers} x {heads} heads, {kept})"

    def require_samples(self) -> HeadScores:
        """Itself, or NoTestPassed when there is nothing to average."""
        if len(self.samples) == 0:
            recall = self.tests.get("recall", pd.Series(dtype=float))
            best = f"; best recall {recall.max():.2f}" if len(recall) else ""
            raise NoTestPassed(
                f"none of {len(self.tests)} tests passed the gate on {self.model['name']}{best}, so no head has a "
                "score: this model does not solve the task (try shorter contexts or another task), or the prompt does "
                "not suit it"
            )
        return self

    @property
    def scores(self) -> np.ndarray:
        """Mean score of each head, `[layer head]`; raises NoTestPassed when no test counted."""
        return self.require_samples().samples.mean(0)

    @property
    def activation_frequency(self) -> np.ndarray:
        """Fraction of tests in which the head scored at all, `[layer head]`."""
        return (self.require_samples().samples > 0).mean(0)

    @property
    def frame(self) -> pd.DataFrame:
        """One row a head, best first: layer, head, score with its bootstrap interval, activation frequency, n."""
        n, layers, heads = self.require_samples().samples.shape
        low, high = bootstrap_means(self.samples.reshape(n, -1), seed=self.seed)
        layer, head = np.divmod(np.arange(layers * heads), heads)
        columns = {
            "layer": layer,
            "head": head,
            "score": self.scores.ravel(),
            "low": low,
            "high": high,
            "activation_frequency": self.activation_frequency.ravel(),
            "n": n,
        }
        columns |= {name: array.ravel() for name, array in self.components.items()}
        frame = pd.DataFrame(columns)
        return frame.sort_values(["score", "layer", "head"], ascending=[False, True, True], ignore_index=True)

    def top(self, k: int) -> list[tuple[int, int]]:
        """The k best heads as (layer, head), best first."""
        if not 1 <= k <= self.scores.size:
            raise BadInput(f"top {k} of {self.scores.size} heads cannot be taken")
        best = self.frame.head(k)
        return list(zip(best.layer.tolist(), best["head"].tolist(), strict=True))

    def above(self, threshold: float = RETRIEVAL_HEAD) -> list[tuple[int, int]]:
        """Heads whose mean score is at least `threshold`, best first."""
        best = self.frame[self.frame.score >= threshold]
        return list(zip(best.layer.tolist(), best["head"].tolist(), strict=True))

    def mask(self) -> HeadMask:
        """The scores as a mask, with nothing selected yet."""
        return HeadMask(
            scores=self.scores,
            method=self.method,
            model=str(self.model["name"]),
            family=str(self.model["family"]),
            fingerprint=str(self.model["fingerprint"]),
            kv_heads=int(self.model["kv_heads"]),
            samples=self.samples,
        )

    def plot(self) -> go.Figure:
        """Heat map of the mean scores, layers by heads."""
        from interp.plots.heads import head_map

        return head_map(self.scores, title=f"{self.method} score on {self.model['name']}")

    def _repr_html_(self) -> str:
        return in_notebook(self, self.frame)

    def save(self, path: str | Path, started: datetime | None = None, **files: Any) -> Run:
        """Write a run folder: the table of heads, all samples, the table of tests. Raises UnwritableOutput."""
        arrays = {"samples": self.samples, **{f"component.{k}": v for k, v in self.components.items()}}
        return save_run(
            path,
            kind="head-scores",
            parameters={"method": self.method, **self.parameters},
            model=self.model,
            seed=self.seed,
            frame=self.frame if len(self.samples) else pd.DataFrame({"layer": [], "head": [], "score": []}),
            arrays=arrays,
            files={"tests.parquet": self.tests.to_parquet, **files},
            started=started,
        )

    @classmethod
    def load(cls, path: str | Path) -> HeadScores:
        """Read what `save` wrote. Raises UnreadableFile, BadInput for a run of another kind."""
        run = load_run(path, "head-scores")
        parameters = dict(run.record.parameters)
        return cls(
            method=parameters.pop("method"),
            samples=run.array("samples", None, *run.heads),
            tests=run.table("tests"),
            model=run.record.model,
            parameters=parameters,
            components={
                name.removeprefix("component."): array
                for name, array in run.arrays.items()
                if name.startswith("component.")
            },
            seed=run.record.seed,
        )


def agreement(a: HeadScores, b: HeadScores) -> dict[str, float]:
    """How far two scorings of the same heads agree: Pearson r, largest difference, shared heads above the threshold."""
    if a.scores.shape != b.scores.shape:
        raise BadInput(f"{a!r} and {b!r} have different heads")
    x, y = a.scores.ravel(), b.scores.ravel()
    varied = x.std() > 0 and y.std() > 0
    first, second = set(a.above()), set(b.above())
    return {
        "pearson": float(np.corrcoef(x, y)[0, 1]) if varied else float("nan"),
        "max_difference": float(np.abs(x - y).max()),
        "jaccard": len(first & second) / len(first | second) if first | second else 1.0,
        "n_a": float(len(a.samples)),
        "n_b": float(len(b.samples)),
    }
