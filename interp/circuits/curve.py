"""Faithfulness over circuit size: the curves CPR and CMD of the Mechanistic Interpretability Benchmark (Mueller et al.
2025, arXiv:2504.13151), of heads where the benchmark has edges.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.integrate import trapezoid

from interp.circuits.circuit import all_heads, without
from interp.circuits.knockout import Knockout
from interp.errors import BadInput
from interp.heads.ablation import Head
from interp.heads.scores import model_record
from interp.patching.effects import fraction_columns
from interp.tables import in_notebook

if TYPE_CHECKING:
    import plotly.graph_objects as go

EVERY_SIZE = 64
"""Heads up to which a curve has a point for every number of them."""
MIB_FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Sizes at which the benchmark evaluates, as fractions of all components."""


@dataclass(frozen=True, eq=False, repr=False)
class FaithfulnessCurve:
    """Faithfulness `f` of the best `sizes` heads of a ranking, with the prompts' logit differences `[size prompt]`.

    f = (F(C_k) - F(0)) / (F(M) - F(0)) on the share k of heads that is kept.
    """

    sizes: tuple[int, ...]
    values: np.ndarray
    ranking: tuple[Head, ...]
    model: Mapping[str, Any]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0

    def __repr__(self) -> str:
        return f"FaithfulnessCurve({self.model['name']}: CPR {self.cpr:.3f}, CMD {self.cmd:.3f})"

    @property
    def share(self) -> np.ndarray:
        """Of all heads, the share that is kept at every size."""
        return np.array(self.sizes) / len(self.ranking)

    @property
    def faithfulness(self) -> np.ndarray:
        """f at every size."""
        means = self.values.mean(1)
        return (means - means[0]) / (means[-1] - means[0])

    @property
    def cpr(self) -> float:
        """Circuit performance ratio: the area under f; higher is better."""
        return float(trapezoid(self.faithfulness, self.share))

    @property
    def cmd(self) -> float:
        """Circuit-model distance: the area between f and 1; lower is better."""
        return float(trapezoid(np.abs(1 - self.faithfulness), self.share))

    @property
    def frame(self) -> pd.DataFrame:
        """One row a size: heads, share, logit difference, faithfulness with its interval over prompts, n."""
        f = fraction_columns("f", self.values, self.values[0], self.values[-1], self.seed)
        return pd.DataFrame(
            {
                "heads": self.sizes,
                "share": self.share,
                "logit_difference": self.values.mean(1),
                "faithfulness": self.faithfulness,
                "low": f["f_ratio_of_means_low"],
                "high": f["f_ratio_of_means_high"],
                "n": self.values.shape[1],
            }
        )

    def plot(self) -> go.Figure:
        """f over the share of heads, with 1 as the aim."""
        from interp.plots.circuits import faithfulness_plot

        return faithfulness_plot(self)

    def _repr_html_(self) -> str:
        return in_notebook(self, self.frame)


def faithfulness_curve(
    knockout: Knockout,
    scores: np.ndarray,
    *,
    absolute: bool = False,
    fractions: Sequence[float] = (),
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> FaithfulnessCurve:
    """Faithfulness of the heads with the highest `scores` `[layer head]`, more and more of them.

    Signed scores are for CPR, `absolute` ones for CMD, as the benchmark has it; there components are edges, here heads.
    `fractions` default to every number of heads in models of up to EVERY_SIZE, else to the benchmark's; 0 and 1 are
    always there, where the benchmark's integral begins at its smallest size. Raises BadInput for scores of another
    shape and where the heads make no difference at all.
    """
    heads = all_heads(knockout.model)
    shape = (knockout.model.spec.layers, knockout.model.spec.heads)
    if np.shape(scores) != shape:
        raise BadInput(f"scores have shape {np.shape(scores)}; the model's heads are {shape}")
    if not np.isfinite(scores).all() or not all(0 <= fraction <= 1 for fraction in fractions):
        raise BadInput("a curve needs finite scores, and fractions between 0 and 1")
    keys = np.abs(scores).ravel() if absolute else np.asarray(scores, dtype=float).ravel()
    ranking = tuple(heads[i] for i in np.argsort(-keys, kind="stable"))
    chosen = fractions or ([] if len(heads) <= EVERY_SIZE else MIB_FRACTIONS)
    every = range(len(heads) + 1) if not chosen else (round(f * len(heads)) for f in chosen)
    sizes = tuple(sorted({0, *every, len(heads)}))
    values = knockout.measure([without(heads, ranking[:size]) for size in sizes], progress=progress)
    if values[-1].mean() == values[0].mean():
        raise BadInput("the model's logit difference is the same without any head, so no faithfulness is defined")
    return FaithfulnessCurve(
        sizes=sizes,
        values=values,
        ranking=ranking,
        model=model_record(knockout.model),
        parameters={
            "absolute": absolute,
            "at": "everywhere" if knockout.at is None else knockout.at,
            "reference": knockout.reference,
            "prompts": knockout.prompts.hash,
        },
        seed=seed,
    )
