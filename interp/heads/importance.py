"""Importance of heads from gradients, and how far it agrees with ablating each head (Michel et al. 2019, "Are Sixteen
Heads Really Better than One?").

Every head's output is thought of as multiplied by a gate of 1; the gradient of a metric with respect to the gates
estimates, to first order, what is lost where the head is removed. One backward pass gives the gates of all heads. How
the gradients of tests and tokens become one number is a choice that changes the ranking, so all are reported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pandas as pd
import torch
from scipy import stats

from interp.errors import BadInput, choose
from interp.heads.ablation import Head, check_heads
from interp.heads.answers import Metric, by_length, check_metric, equal_answers, metric_of
from interp.heads.effects import HeadEffects, ablation_effects
from interp.heads.fed import Fed
from interp.runs import Run, load_run, save_run
from interp.stats import bootstrap_interval
from interp.tables import in_notebook
from interp.tasks.prompts import PromptSet
from interp.tracing.edits import zero
from interp.tracing.model import Model

if TYPE_CHECKING:
    import plotly.graph_objects as go

Order = Literal["signed", "abs-of-mean", "mean-of-abs", "tokens"]
ORDERS: Mapping[Order, str] = {
    "signed": "mean over tests of the gradient: the first-order estimate of what zero ablation loses",
    "abs-of-mean": "absolute value of that mean",
    "mean-of-abs": "mean over tests of the absolute gradient: the formula of the paper",
    "tokens": "mean over tests of absolute values summed over tokens: what the authors' code computes",
}
"""Where the absolute value is taken."""

GRADIENT_BATCH = 4
RESAMPLES = 200
"""Bootstrap samples of a rank correlation."""


@dataclass(frozen=True, eq=False)
class GateGradients:
    """Gradients of a metric with respect to every head's gate, at 1.

    `tests` `[test layer head]` of each test; `tokens`, the same with the absolute value taken at each token before
    summing.
    """

    tests: np.ndarray
    tokens: np.ndarray

    def importance(self, order: Order, *, by_layer: bool = False) -> np.ndarray:
        """One number a head, `[layer head]`; `by_layer` divides by the Euclidean norm of its layer.

        Raises BadInput for an unknown order.
        """
        if order not in get_args(Order):
            raise BadInput(f"there is no order {order!r}; {choose(order, ORDERS)}")
        if order == "tokens":
            value = self.tokens.mean(0)
        elif order == "mean-of-abs":
            value = np.abs(self.tests).mean(0)
        else:
            value = self.tests.mean(0)
            value = np.abs(value) if order == "abs-of-mean" else value
        return value / (np.linalg.norm(value, axis=1, keepdims=True) + 1e-20) if by_layer else value

    def of_tests(self, tests: np.ndarray) -> GateGradients:
        """The gradients of these tests alone."""
        return GateGradients(self.tests[tests], self.tokens[tests])


def gate_gradients(
    model: Model,
    prompts: PromptSet,
    *,
    metric: Metric = "log-probability",
    removed: Sequence[Head] = (),
    batch_size: int = GRADIENT_BATCH,
) -> GateGradients:
    """Gradient of each test's metric with respect to a gate on every head, in one backward pass a batch.

    A gate multiplies z, so its gradient is the sum over tokens and features of z times the gradient at z. `removed`
    heads are zero and have gradient 0. Raises BadInput for recall, which has no gradient, and prompts without answers.
    """
    check_metric(metric, prompts)
    if metric == "recall":
        raise BadInput("recall has no gradient; valid: log-probability, logit-difference")
    fed = Fed.answering(prompts)
    edits = [zero(f"z.{layer}.{head}") for layer, head in check_heads(model, removed)]
    shape = (len(fed), model.spec.layers, model.spec.heads)
    gradients = GateGradients(np.zeros(shape), np.zeros(shape))
    for batch in by_length(fed, batch_size):
        for group in equal_answers(fed, batch):
            wanted = list(range(-fed.decoded[group[0]], 0))
            trace = model.run(fed.rows(group), read="z", edits=edits, logits=wanted, grad=True)
            metric_of(metric, trace.logits, prompts, group).sum().backward()
            for layer in range(model.spec.layers):
                z, slope = trace[f"z.{layer}"].detach(), trace.grad(f"z.{layer}")
                gates = torch.einsum("b t h d, b t h d -> b t h", z.double(), slope.double())
                gradients.tests[group, layer] = gates.sum(1).cpu().numpy()
                gradients.tokens[group, layer] = gates.abs().sum(1).cpu().numpy()
    return gradients


@dataclass(frozen=True, eq=False, repr=False)
class HeadImportance:
    """Gradients of all gates beside the exact effects of ablation, taken on the same tests."""

    gradients: GateGradients
    exact: HeadEffects

    @property
    def frame(self) -> pd.DataFrame:
        """A row a head, most needed first: the exact effect with its interval, and its importance in every order."""
        frame = self.exact.frame
        for order in get_args(Order):
            for by_layer in (False, True):
                values = self.gradients.importance(order, by_layer=by_layer)
                name = order.replace("-", "_") + ("_by_layer" if by_layer else "")
                frame[name] = values[frame.layer, frame["head"]]
        return frame

    @cached_property
    def agreement(self) -> pd.DataFrame:
        """Rank correlation of each order of importance with the exact effects, with bootstrap intervals over the tests.

        Signed gradients are compared with effects, the others with the effects' absolute values.
        """
        rows = []
        for order in get_args(Order):
            for by_layer in (False, True):
                row: dict[str, Any] = {"order": order, "by_layer": by_layer}
                for name, coefficient in (("spearman", stats.spearmanr), ("kendall", stats.kendalltau)):

                    def statistic(tests: np.ndarray, correlate: Any = coefficient) -> np.floating:
                        chosen = tests.astype(int)
                        gradient = self.gradients.of_tests(chosen).importance(order, by_layer=by_layer)  # noqa: B023
                        effect = self.exact.samples[chosen].mean(0)
                        effect = effect if order == "signed" else np.abs(effect)  # noqa: B023
                        return np.float64(correlate(gradient.ravel(), effect.ravel()).statistic)

                    n = len(self.exact.samples)
                    interval = bootstrap_interval(np.arange(n), statistic, resamples=RESAMPLES, seed=self.exact.seed)
                    row |= {name: interval.estimate, f"{name}_low": interval.low, f"{name}_high": interval.high}
                about = {"metric": self.exact.metric, "ablation": self.exact.ablation}
                rows.append({**row, **about, "attention": self.exact.model["attention"], "n": n})
        return pd.DataFrame(rows)

    def plot(self) -> go.Figure:
        """Importance against the exact effect, a point a head."""
        from interp.plots.ablation import importance_scatter

        title = f"{self.exact.model['name']}: importance of every head"
        return importance_scatter(self.frame, self.agreement, title=title)

    def save(self, path: str | Path, started: datetime | None = None, **files: Any) -> Run:
        """Write a run folder: the table of heads, gradients and effects of every test. Raises UnwritableOutput."""
        return save_run(
            path,
            kind="head-importance",
            parameters={"metric": self.exact.metric, "ablation": self.exact.ablation, **self.exact.parameters},
            model=self.exact.model,
            seed=self.exact.seed,
            frame=self.frame,
            arrays={
                "gradients": self.gradients.tests,
                "gradients_tokens": self.gradients.tokens,
                "samples": self.exact.samples,
                "baseline": self.exact.baseline,
            },
            files={"agreement.parquet": self.agreement.to_parquet, **files},
            started=started,
        )

    @classmethod
    def load(cls, path: str | Path) -> HeadImportance:
        """Read what `save` wrote. Raises UnreadableFile, BadInput for a run of another kind."""
        run = load_run(path, "head-importance")
        exact = HeadEffects.of_run(run)
        gradients = (run.array(name, *exact.samples.shape) for name in ("gradients", "gradients_tokens"))
        found = cls(GateGradients(*gradients), exact)
        found.__dict__["agreement"] = run.table("agreement")  # seconds of resampling, done when it was saved
        return found

    def __repr__(self) -> str:
        n, layers, heads = self.exact.samples.shape
        return f"HeadImportance({self.exact.metric} on {self.exact.model['name']}: {layers} x {heads} heads, {n} tests)"

    def _repr_html_(self) -> str:
        return in_notebook(self, self.agreement)


def head_importance(
    model: Model,
    prompts: PromptSet,
    *,
    metric: Metric = "log-probability",
    ablation: str = "zero",
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> HeadImportance:
    """Gradient importance of every head, and beside it what exact ablation says of the same heads on the same tests.

    A gate of 0 is zero ablation, so that is the one gradients estimate; others may be compared too. Raises as
    `ablation_effects` and `gate_gradients` do.
    """
    gradients = gate_gradients(model, prompts, metric=metric)
    exact = ablation_effects(model, prompts, ablation=ablation, metric=metric, seed=seed, progress=progress)
    return HeadImportance(gradients, exact)
