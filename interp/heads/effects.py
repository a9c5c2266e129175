"""The exact effect of ablating every head of a model alone: how much of a metric is lost without it.

One head per batch row: a batch holds one prompt many times, and each row loses another head. That equals ablating the
heads one run at a time, by test.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from interp.errors import BadInput
from interp.heads.ablation import Ablation, FittedAblation, Head, check_heads, fit
from interp.heads.answers import UNITS, Metric, Recall, check_metric, scored
from interp.heads.fed import Fed
from interp.heads.scores import model_record
from interp.runs import Journal, Run, load_run, save_run
from interp.stats import bootstrap_means
from interp.tables import in_notebook
from interp.tasks.prompts import PromptSet
from interp.tracing.model import Model

if TYPE_CHECKING:
    import plotly.graph_objects as go

CHUNK = 16
"""Heads ablated in one batch."""


@dataclass(frozen=True, eq=False, repr=False)
class HeadEffects:
    """What is lost of a metric without each head: `samples` `[test layer head]`, positive where the head was needed.

    `baseline` `[test]` is the metric with all heads. Heads that were ablated throughout are NaN.
    """

    samples: np.ndarray
    baseline: np.ndarray
    metric: Metric
    ablation: str
    model: Mapping[str, Any]
    parameters: Mapping[str, Any]
    seed: int = 0

    @property
    def effects(self) -> np.ndarray:
        """Mean effect of each head, `[layer head]`."""
        return self.samples.mean(0)

    @property
    def frame(self) -> pd.DataFrame:
        """A row a head, the most needed first, with a bootstrap interval of the mean over the tests."""
        n, layers, heads = self.samples.shape
        low, high = bootstrap_means(self.samples.reshape(n, -1), seed=self.seed)
        layer, head = np.divmod(np.arange(layers * heads), heads)
        columns: dict[str, Any] = {"layer": layer, "head": head, "effect": self.effects.ravel()}
        columns |= {
            "low": low,
            "high": high,
            "metric": self.metric,
            "ablation": self.ablation,
            "attention": self.model["attention"],
            "n": n,
        }
        frame = pd.DataFrame(columns)
        return frame.sort_values(["effect", "layer", "head"], ascending=[False, True, True], ignore_index=True)

    def plot(self) -> go.Figure:
        """Heat map, layers by heads, diverging around 0."""
        from interp.plots.ablation import effect_map

        title = f"{self.model['name']}: {self.ablation} ablation of every head alone, n = {len(self.samples)}"
        return effect_map(self.frame, f"{self.metric} lost ({UNITS[self.metric]})", title)

    def save(self, path: str | Path, started: datetime | None = None, **files: Any) -> Run:
        """Write a run folder: the table of heads and all samples. Raises UnwritableOutput."""
        return save_run(
            path,
            kind="head-effects",
            parameters={"metric": self.metric, "ablation": self.ablation, **self.parameters},
            model=self.model,
            seed=self.seed,
            frame=self.frame,
            arrays={"samples": self.samples, "baseline": self.baseline},
            files=files,
            started=started,
        )

    @classmethod
    def load(cls, path: str | Path) -> HeadEffects:
        """Read what `save` wrote. Raises UnreadableFile, BadInput for a run of another kind."""
        return cls.of_run(load_run(path, "head-effects"))

    @classmethod
    def of_run(cls, run: Run) -> HeadEffects:
        """The effects that a run holds, alone or beside gradients. Raises UnreadableFile."""
        parameters = dict(run.record.parameters)
        metric, ablation = (parameters.pop(name) for name in ("metric", "ablation"))
        samples = run.array("samples", None, *run.heads)
        baseline = run.array("baseline", len(samples))
        return cls(samples, baseline, metric, ablation, run.record.model, parameters, run.record.seed)

    def __repr__(self) -> str:
        n, layers, heads = self.samples.shape
        what = f"{self.metric} by {self.ablation} ablation on {self.model['name']}"
        return f"HeadEffects({what}: {layers} x {heads} heads, {n} tests)"

    def _repr_html_(self) -> str:
        return in_notebook(self, self.frame)


def ablation_effects(
    model: Model,
    prompts: PromptSet,
    *,
    ablation: str | Ablation = "mean",
    metric: Metric = "log-probability",
    removed: Sequence[Head] = (),
    chunk: int = CHUNK,
    seed: int = 0,
    journal: Journal | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> HeadEffects:
    """Ablate every head alone, on every prompt; `removed` heads are ablated throughout, in the baseline too.

    `chunk` heads share a batch. `journal` keeps finished prompts, and those it already holds are not run again.
    Raises BadInput for an unknown metric or ablation, prompts without answers (or distractors, where the metric needs
    them), and heads that do not exist.
    """
    check_metric(metric, prompts)
    if chunk < 1:
        raise BadInput(f"chunk={chunk}: a batch holds at least one head")
    fed, removed = Fed.answering(prompts), check_heads(model, removed)
    fitted = fit(model, ablation, fed, range(model.spec.layers))
    heads = [head for head in np.ndindex(model.spec.layers, model.spec.heads) if head not in set(removed)]
    done = {} if journal is None else {int(key): value for key, value in journal.done.items()}
    for i in range(len(prompts)):
        if i not in done:
            parts = [heads[start : start + chunk] for start in range(0, len(heads), chunk)]
            alone = [value for part in parts for value in _metric_without(fitted, prompts, i, part, removed, metric)]
            done[i] = [*_metric_without(fitted, prompts, i, [None], removed, metric), *alone]
            if journal is not None:
                journal.append(str(i), done[i])
        if progress:
            progress(i + 1, len(prompts))
    measured = np.array([done[i] for i in range(len(prompts))])
    samples = np.full((len(prompts), model.spec.layers, model.spec.heads), np.nan)
    samples[:, [layer for layer, _ in heads], [head for _, head in heads]] = measured[:, :1] - measured[:, 1:]
    parameters = {"prompts": prompts.hash, "removed": list(removed)}
    return HeadEffects(samples, measured[:, 0], metric, str(fitted.ablation), model_record(model), parameters, seed)


def _metric_without(
    fitted: FittedAblation,
    prompts: PromptSet,
    test: int,
    alone: Sequence[Head | None],
    removed: Sequence[Head],
    metric: Metric,
) -> list[float]:
    """The metric of one prompt without each of these heads (None: with it), every one in a batch row of its own."""
    model, fed = fitted.model, fitted.fed
    edits = fitted.edits(removed, [test])
    heads = {row: head for row, head in enumerate(alone) if head is not None}
    each = fitted.edits(list(heads.values()), [test])
    edits += [edit.at(rows=row) for row, edit in zip(heads, each, strict=True)]
    rows = [test] * len(alone)
    count, tokens = fed.decoded[test], fed.tokens[test]
    spared = fitted.ablation.spares_prompts and len(tokens) > count
    prefix = model.prefill(list(tokens[:-count])) if spared else None
    logits = model.run(fed.rows(rows), edits=edits, logits=list(range(-count, 0)), prefix=prefix).logits
    return [float(value) for value in Recall(*scored(logits, prompts, rows).double().cpu().numpy().T).metric(metric)]
