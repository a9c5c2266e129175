"""Is a trace right? What distances to the centroids say of questions not learned from, beside length and confidence.

Samples of one question are alike, so intervals are bootstrapped over questions, each with all its samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from interp.errors import BadInput, UnreadableFile, choose
from interp.runs import Run, load_run, save_run
from interp.stats import Interval
from interp.tables import in_notebook
from probes.clue import Scored
from probes.metrics import auc, resamples

AT_ONCE = 2**22
"""Numbers that one step of a bootstrap holds."""

KIND = "clue-verification"
MARGIN = "clue margin"
"""The score whose sign is CLUE's verdict."""

Statistic = Callable[[np.ndarray], np.ndarray]
"""Weights `[resample trace]` -> `[resample]`."""


@dataclass(frozen=True, eq=False, repr=False)
class Verification:
    """`frame`: one row a score and metric, with intervals over questions. `layers`: one row a layer.

    `against`: one row a baseline and metric, how much higher CLUE's margin is, paired. `scored`: the traces themselves.
    """

    frame: pd.DataFrame
    layers: pd.DataFrame
    against: pd.DataFrame
    scored: Scored
    parameters: Mapping[str, Any]

    @property
    def model(self) -> Mapping[str, Any]:
        return self.scored.centroids.model

    @property
    def verdict(self) -> str:
        """One sentence: which baselines CLUE's margin orders traces better than, and which not."""
        own = self.value(MARGIN, "auc")
        rows = self.against[self.against.metric == "auc"]
        return f"CLUE's margin has AUC {own}. {compared(dict(zip(rows.score, _intervals(rows), strict=True)))}"

    def value(self, score: str, metric: str) -> Interval:
        """One number of the table, such as `("clue margin", "auc")`."""
        (row,) = self.frame[(self.frame.score == score) & (self.frame.metric == metric)].itertuples()
        return Interval(row.value, row.low, row.high, row.questions)

    plots = ("aucs", "clusters", "margins", "layers")
    """What `plot` can draw."""

    def plot(self, what: str = "aucs") -> Any:
        """AUC of every score with its interval, over all traces and within questions.

        Or `"clusters"`, the traces around the centroids; `"margins"`, how much nearer to one of them; `"layers"`.
        """
        from interp.plots.clue import aucs, by_depth, margins

        if what not in self.plots:
            raise BadInput(f"there is nothing to plot as {what!r}; {choose(what, self.plots)}")
        if what in ("clusters", "margins"):
            return self.scored.plot() if what == "clusters" else margins(self.scored)
        return aucs(self) if what == "aucs" else by_depth(self)

    def save(self, path: str | Path, started: datetime | None = None) -> Run:
        """Write a run folder, with the centroids and the traces' distances in it. Raises UnwritableOutput."""
        tables = {"layers.parquet": self.layers.to_parquet, "against.parquet": self.against.to_parquet}
        return save_run(
            path,
            kind=KIND,
            parameters=self.parameters,
            model=self.model,
            seed=int(self.parameters["seed"]),
            frame=self.frame,
            arrays=self.scored.arrays(),
            files={**tables, **self.scored.files()},
            started=started,
        )

    @classmethod
    def load(cls, path: str | Path) -> Verification:
        """Read what `save` wrote. Raises UnreadableFile, BadInput for a run of another kind."""
        run = load_run(path, KIND)
        scored, layers = Scored.of_run(run), run.table("layers")
        if len(layers) != len(scored.centroids.success):
            raise UnreadableFile(f"{path} has {len(layers)} rows of layers for {len(scored.centroids.success)} layers")
        return cls(run.frame, layers, run.table("against"), scored, run.record.parameters)

    def __repr__(self) -> str:
        return f"Verification({self.model['name']}, {len(self.scored)} traces: {self.verdict})"

    def _repr_html_(self) -> str:
        return in_notebook(self, self.frame)


def scores(scored: Scored) -> dict[str, np.ndarray]:
    """Every score of every trace, `[trace]`, higher for those taken to be better; NaN columns are left out.

    `"clue margin"` d(delta, failure) - d(delta, success), whose sign is the verdict of CLUE; `"clue"` -d(delta,
    success), by which CLUE ranks; `"log-probability"` and `"self-certainty"` of the response; `"length"` of the
    response, in the direction in which right and wrong traces differed; `"usual length"`, how near the length is to the
    mean of right traces. All but "clue" and "usual length" are 0 halfway between the two classes.
    """
    frame, means = scored.frame, scored.centroids.baselines
    right, wrong = means["tokens"]
    towards = 1.0 if right >= wrong else -1.0
    found = {
        MARGIN: frame.to_failure - frame.to_success,
        "clue": -frame.to_success,
        "length": towards * (frame.tokens - (right + wrong) / 2),
        "usual length": -(frame.tokens - right).abs(),
        "log-probability": frame.log_probability - sum(means["log_probability"]) / 2,
        "self-certainty": frame.self_certainty - sum(means["self_certainty"]) / 2,
    }
    return {name: values.to_numpy(dtype=float) for name, values in found.items() if values.notna().all()}


BASELINES = ("length", "usual length", "log-probability", "self-certainty")
"""Scores that look at no hidden state."""
WITHOUT_VERDICT = ("clue", "usual length")
"""Scores that order traces and do not say where right ends."""


def verify(scored: Scored, resamples: int = 1_000, level: float = 0.95, seed: int = 0) -> Verification:
    """Accuracy, TPR, TNR and AUC of every score, AUC within questions, and which layers separate.

    TPR is the share of right traces taken for right, TNR of wrong ones taken for wrong. `within` is the mean AUC inside
    a question that has both, which difficulty alone cannot raise. Raises BadInput where all traces are alike.
    """
    correct = scored.correct
    if correct.all() or not correct.any():
        raise BadInput(f"all {len(correct)} traces are {'right' if correct[0] else 'wrong'}: nothing is told apart")
    bootstrap = OverQuestions(scored.groups, resamples, level, seed)
    rows, against = [], []
    found = scores(scored)
    own = within_questions(found[MARGIN], correct, scored.groups)
    for name, values in found.items():
        metrics: dict[str, Statistic] = {"auc": partial(_auc, values, correct)}
        if name not in WITHOUT_VERDICT:
            metrics |= _verdicts(values > 0, correct)
        rows += [_row(name, metric, bootstrap.interval(statistic)) for metric, statistic in metrics.items()]
        within = within_questions(values, correct, scored.groups)
        rows.append(_row(name, "within", bootstrap.mean(within)))
        if name in BASELINES:
            more = partial(_auc_difference, found[MARGIN], values, correct)
            against.append(_row(name, "auc", bootstrap.interval(more)))
            against.append(_row(name, "within", bootstrap.mean(own - within)))
    centroids = scored.centroids
    parameters = {
        "resamples": resamples,
        "level": level,
        "seed": seed,
        "found": dict(scored.places),
        "missing": centroids.missing,
        "delimiters": centroids.delimiters,
        "learned": dict(centroids.parameters),
        "counts": list(centroids.counts),
    }
    layers = _layers(scored, correct, bootstrap)
    return Verification(pd.DataFrame(rows), layers, pd.DataFrame(against), scored, parameters)


def compared(differences: Mapping[str, Interval]) -> str:
    """What CLUE is better than, worse than and not told apart from, by the intervals of its paired differences."""
    found: dict[str, list[str]] = {"better than": [], "worse than": [], "not told apart from": []}
    for name, each in differences.items():
        kind = "better than" if each.low > 0 else "worse than" if each.high < 0 else "not told apart from"
        found[kind].append(f"{name} ({each.estimate:+.3f} [{each.low:+.3f}, {each.high:+.3f}])")
    return " ".join(f"{kind.capitalize()}: {', '.join(names) or 'nothing'}." for kind, names in found.items())


def _intervals(rows: pd.DataFrame) -> list[Interval]:
    return [Interval(row.value, row.low, row.high, row.questions) for row in rows.itertuples()]


class OverQuestions:
    """A percentile bootstrap that draws questions, each with all its traces; `groups` `[trace]` numbers them."""

    def __init__(self, groups: np.ndarray, count: int = 1_000, level: float = 0.95, seed: int = 0) -> None:
        self.groups = groups
        self.questions = int(groups.max()) + 1
        self.counts = resamples(self.questions, count, seed)
        self.tail = 100 * (1 - level) / 2

    def interval(self, statistic: Statistic) -> Interval:
        """A statistic of weighted traces; resamples for which it is not defined are left out."""
        step = max(1, AT_ONCE // len(self.groups))
        parts = [self.counts[first : first + step] for first in range(0, len(self.counts), step)]
        drawn = np.concatenate([statistic(part[:, self.groups]) for part in parts])
        return self._between(float(statistic(np.ones((1, len(self.groups))))[0]), drawn, self.questions)

    def mean(self, values: np.ndarray) -> Interval:
        """The mean of one value a question `[question]`; NaN ones do not count."""
        known = np.isfinite(values)
        with np.errstate(invalid="ignore"):
            drawn = self.counts[:, known] @ values[known] / self.counts[:, known].sum(1)
        return self._between(float(values[known].mean()) if known.any() else np.nan, drawn, int(known.sum()))

    def _between(self, estimate: float, drawn: np.ndarray, n: int) -> Interval:
        drawn = drawn[np.isfinite(drawn)]
        if n < 2 or not len(drawn):
            return Interval(estimate, np.nan, np.nan, n)
        low, high = np.percentile(drawn, [self.tail, 100 - self.tail])
        return Interval(estimate, float(low), float(high), n)


def within_questions(values: np.ndarray, correct: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """AUC among the traces of each question, `[question]`; NaN where they are all right or all wrong."""
    alone = np.ones((1, len(values)))
    own = [groups == question for question in range(int(groups.max()) + 1)]
    return np.array([_auc(values[each], correct[each], alone[:, each])[0] for each in own])


def _auc(values: np.ndarray, correct: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return auc(np.stack([np.zeros(len(values)), values], axis=1), correct.astype(int), weights)


def _auc_difference(one: np.ndarray, other: np.ndarray, correct: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return _auc(one, correct, weights) - _auc(other, correct, weights)


def _verdicts(said: np.ndarray, correct: np.ndarray) -> dict[str, Statistic]:
    def share(right: np.ndarray, of: np.ndarray) -> Statistic:
        def of_weighted(weights: np.ndarray) -> np.ndarray:
            whole = weights @ of.astype(float)
            return np.divide(weights @ (right & of), whole, out=np.full(len(whole), np.nan), where=whole > 0)

        return of_weighted

    every = np.ones(len(correct), dtype=bool)
    return {
        "accuracy": share(said == correct, every),
        "tpr": share(said, correct),
        "tnr": share(~said, ~correct),
    }


def _layers(scored: Scored, correct: np.ndarray, bootstrap: OverQuestions) -> pd.DataFrame:
    """Of every layer: distance between centroids, the same over the spread within classes, and AUC of its margin."""
    centroids = scored.centroids
    margins = scored.to_failure - scored.to_success
    rows = []
    for layer, gap in enumerate(centroids.gap):
        spread = float(np.sqrt((centroids.spread[:, layer] ** 2).mean()))
        found = bootstrap.interval(partial(_auc, margins[:, layer], correct))
        rows.append(
            {
                "layer": layer,
                "depth": (layer + 1) / len(centroids.gap),
                "distance": float(gap),
                "spread": spread,
                "separation": float(gap) / spread if spread else np.nan,
                "auc": found.estimate,
                "low": found.low,
                "high": found.high,
                "questions": found.n,
            }
        )
    return pd.DataFrame(rows)


def _row(score: str, metric: str, found: Interval) -> dict[str, Any]:
    return {
        "score": score,
        "metric": metric,
        "value": found.estimate,
        "low": found.low,
        "high": found.high,
        "questions": found.n,
    }
