"""Probes of every site, fold, strength and label set, fitted at once and judged on what they did not see."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from interp.errors import BadInput, choose
from interp.stats import Interval
from probes.folds import Folds, class_indices, make_folds
from probes.linear import STANDARD, ProbeSpec, checked, deviations, loss_of, scores_of, targets_of, weights_of
from probes.metrics import METRICS, PROBABILISTIC, interval, resamples
from probes.solver import solve

if TYPE_CHECKING:
    import plotly.graph_objects as go

TOGETHER = 2**22
"""Sites of the same width are solved together up to this many activations."""


@dataclass(frozen=True, eq=False, repr=False)
class CrossValidation:
    """Out-of-fold predictions of the probes of every site for every label set.

    `scores[labels]` `[site example class]`: each example is scored by the probe that did not see it; probabilities,
    unless `probabilistic` is False. `labels[name]` `[example]` are class numbers, `classes[name]` what they stand for,
    `chosen[name]` `[site fold]` the strength that was used (NaN for a given estimator), `fold` `[example]`.
    `unsolved` counts problems whose gradient stayed above the tolerance.
    """

    sites: tuple[str, ...]
    labels: Mapping[str, np.ndarray]
    classes: Mapping[str, np.ndarray]
    scores: Mapping[str, np.ndarray]
    chosen: Mapping[str, np.ndarray]
    fold: np.ndarray
    spec: ProbeSpec
    unsolved: int = 0
    probabilistic: bool = True

    def __repr__(self) -> str:
        return f"CrossValidation({len(self.sites)} sites, {', '.join(self.labels)}: {len(self.fold)} examples)"

    @cached_property
    def counts(self) -> np.ndarray:
        """The bootstrap samples that every interval of this result is taken over, so that differences are paired."""
        return resamples(len(self.fold), seed=self.spec.seed)

    def metric(self, name: str, labels: str, site: str) -> Interval:
        """One metric of one site's probe, with its bootstrap interval over examples. Raises BadInput."""
        scores = self._of(labels, site)
        if name in PROBABILISTIC and not self.probabilistic:
            raise BadInput(f"{name} needs probabilities, and these probes give none")
        return interval(name, scores, self.labels[labels], self.counts)

    def correct(self, labels: str, site: str) -> np.ndarray:
        """Which examples were classified rightly, `[example]`, 0 or 1."""
        return (self._of(labels, site).argmax(1) == self.labels[labels]).astype(float)

    def strength(self, labels: str, site: str) -> float:
        """The strength that most folds chose, of equals the most regularised. Raises BadInput."""
        self._of(labels, site)
        values, counts = np.unique(self.chosen[labels][self.sites.index(site)], return_counts=True)
        return float(values[counts.argmax()])

    @cached_property
    def frame(self) -> pd.DataFrame:
        """One row a site, label set and metric."""
        names = [name for name in METRICS if self.probabilistic or name not in PROBABILISTIC]
        rows = []
        for labels in self.labels:
            for site in self.sites:
                for name in names:
                    found = self.metric(name, labels, site)
                    rows.append({"site": site, "labels": labels, "metric": name, **_row(found)})
        return pd.DataFrame(rows)

    def plot(self, metric: str = "accuracy") -> go.Figure:
        """A metric of every site, one line a label set."""
        from interp.plots.probes import by_site

        return by_site(self.frame[self.frame.metric == metric], metric)

    def _of(self, labels: str, site: str) -> np.ndarray:
        if labels not in self.scores:
            raise BadInput(f"there is no label set {labels!r}; {choose(labels, self.scores)}")
        if site not in self.sites:
            raise BadInput(f"there is no site {site!r} here; {choose(site, self.sites)}")
        return self.scores[labels][self.sites.index(site)]


def cross_validate(
    features: Mapping[str, np.ndarray],
    labels: Mapping[str, Sequence[Any] | np.ndarray],
    spec: ProbeSpec = STANDARD,
    *,
    groups: Sequence[Any] | np.ndarray | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> CrossValidation:
    """Fit and judge the probes of every site `[example feature]` for every label set.

    All label sets share the folds, which are stratified by the first one; examples of one group stay together.
    Raises BadInput on one class only, fewer examples of a class than folds, labels that do not fit the activations,
    and activations that are not finite.
    """
    if not features:
        raise BadInput("there is nothing to probe: give activations")
    numbers, classes, folds = prepared(labels, spec, groups)
    n = len(folds.number)
    fit = _fit_batched if spec.estimator is None else _fit_estimator
    scores = {name: np.zeros((len(features), n, len(values))) for name, values in classes.items()}
    chosen = {name: np.full((len(features), spec.folds), np.nan) for name in classes}
    unsolved, done, sites = 0, 0, tuple(features)
    for chunk in _together(sites, features, n):
        x = np.stack([checked(site, features[site], n) for site in chunk])
        for names in _same_classes(classes):
            found, strengths, failed = fit(x, {name: numbers[name] for name in names}, folds, spec)
            for i, name in enumerate(names):
                scores[name][done : done + len(chunk)] = found[:, i]
                chosen[name][done : done + len(chunk)] = strengths[:, i]
            unsolved += failed
        done += len(chunk)
        if progress:
            progress(done, len(sites))
    probabilistic = spec.kind == "logistic" if spec.estimator is None else hasattr(spec.estimator, "predict_proba")
    return CrossValidation(sites, numbers, classes, scores, chosen, folds.number, spec, unsolved, probabilistic)


def prepared(
    labels: Mapping[str, Sequence[Any] | np.ndarray], spec: ProbeSpec, groups: Sequence[Any] | np.ndarray | None = None
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], Folds]:
    """Class numbers and classes of every label set, and the folds: all that can be refused without activations.

    Raises BadInput.
    """
    if not labels:
        raise BadInput("there is nothing to probe: give labels")
    coded = {name: class_indices(name, given) for name, given in labels.items()}
    numbers = {name: indices for name, (indices, _) in coded.items()}
    classes = {name: values for name, (_, values) in coded.items()}
    first, n = next((name, len(given)) for name, given in numbers.items())
    for name, given in numbers.items():
        if len(given) != n:
            raise BadInput(f"the label set {name!r} has {len(given)} labels, {first!r} has {n}")
    return (
        numbers,
        classes,
        make_folds(numbers, spec.folds, spec.inner_folds if _nested(spec) else 0, spec.seed, groups),
    )


def _fit_batched(
    x: np.ndarray, labels: Mapping[str, np.ndarray], folds: Folds, spec: ProbeSpec
) -> tuple[np.ndarray, np.ndarray, int]:
    """Out-of-fold scores `[site labels example class]`, strengths `[site labels fold]`, how many did not converge."""
    numbers = np.stack(list(labels.values()))
    classes = int(numbers.max()) + 1
    place = {"dtype": getattr(torch, spec.dtype), "device": spec.device}
    activations = torch.tensor(x, **place)
    train = torch.tensor(folds.train, device=spec.device)
    scale = deviations(activations, train) if spec.standardize else None
    targets = np.stack([targets_of(each, classes, spec) for each in numbers])
    found = solve(
        activations,
        torch.tensor(targets, **place),
        torch.tensor(weights_of(numbers, folds.train, spec), **place),
        torch.tensor(spec.strengths, **place),
        loss=loss_of(classes, spec),
        scale=scale,
        tolerance=spec.tolerance,
        max_iter=spec.max_iter,
    )
    raw = found.coefficients
    raw = raw if scale is None else raw / scale[:, None, :, None, None]
    z = (raw.flatten(1, -2) @ activations.mT).unflatten(1, raw.shape[1:-1]) + found.intercepts[..., None]
    scores = scores_of(z, spec).cpu().numpy()  # site labels fold strength class example
    pick = _choose(scores, numbers, folds, spec)
    out = np.zeros((len(x), len(numbers), x.shape[1], scores.shape[-2]))
    for s, t, f in np.ndindex(pick.shape):
        rows = folds.number == f
        out[s, t, rows] = scores[s, t, f, pick[s, t, f]][:, rows].T
    return out, np.asarray(spec.strengths)[pick], int((~found.converged).sum())


def _choose(scores: np.ndarray, numbers: np.ndarray, folds: Folds, spec: ProbeSpec) -> np.ndarray:
    """Which strength each training fold takes, `[site labels fold]`; of equals the most regularised."""
    sites, sets, _, strengths = scores.shape[:4]
    if strengths == 1:
        return np.zeros((sites, sets, spec.folds), dtype=int)
    order = np.argsort(spec.strengths, kind="stable")
    pick = np.zeros((sites, sets, spec.folds), dtype=int)
    for t, f in np.ndindex(sets, spec.folds):
        cost = np.zeros((sites, strengths))
        for inner, rows in folds.validation(f):
            said, true = scores[:, t, inner][..., rows], numbers[t, rows]
            if spec.kind == "logistic":
                right = np.take_along_axis(said, true[None, None, None], axis=2)[:, :, 0]
                cost -= np.log(np.maximum(right, np.finfo(float).tiny)).mean(-1)
            else:
                cost -= (said.argmax(2) == true).mean(-1)
        pick[:, t, f] = order[cost[:, order].argmin(1)]
    return pick


def _fit_estimator(
    x: np.ndarray, labels: Mapping[str, np.ndarray], folds: Folds, spec: ProbeSpec
) -> tuple[np.ndarray, np.ndarray, int]:
    """The same from scikit-learn's side: a fresh copy of the estimator for every problem."""
    from sklearn.base import clone
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    numbers = list(labels.values())
    classes = int(max(each.max() for each in numbers)) + 1
    out = np.zeros((len(x), len(numbers), x.shape[1], classes))
    for s, t, f in np.ndindex(len(x), len(numbers), spec.folds):
        held, y = folds.number == f, numbers[t]
        steps = [StandardScaler()] if spec.standardize else []
        fitted = make_pipeline(*steps, clone(spec.estimator)).fit(x[s][~held], y[~held])
        out[s, t, held] = _estimated(fitted, x[s][held], classes)
    return out, np.full((len(x), len(numbers), spec.folds), np.nan), 0


def _estimated(fitted: Any, x: np.ndarray, classes: int) -> np.ndarray:
    """Scores `[example class]` of whatever kind the estimator gives: probabilities, margins, or its choice alone."""
    if hasattr(fitted, "predict_proba"):
        return fitted.predict_proba(x)
    if hasattr(fitted, "decision_function"):
        z = fitted.decision_function(x)
        return np.stack([-z, z], 1) if z.ndim == 1 else z
    return np.eye(classes)[fitted.predict(x)]


def _nested(spec: ProbeSpec) -> bool:
    return spec.estimator is None and len(spec.strengths) > 1


def _together(sites: Sequence[str], features: Mapping[str, np.ndarray], n: int) -> Iterator[list[str]]:
    """Runs of sites of one width, small enough to be solved together."""
    chunk: list[str] = []
    width = -1
    for site in sites:
        own = features[site].shape[-1]
        if chunk and (own != width or (len(chunk) + 1) * n * own > TOGETHER):
            yield chunk
            chunk = []
        chunk, width = [*chunk, site], own
    yield chunk


def _same_classes(classes: Mapping[str, np.ndarray]) -> list[list[str]]:
    """Label sets by their number of classes, as those of one number are one solve."""
    by_count: dict[int, list[str]] = {}
    for name, values in classes.items():
        by_count.setdefault(len(values), []).append(name)
    return list(by_count.values())


def _row(found: Interval) -> dict[str, float]:
    return {"value": found.estimate, "low": found.low, "high": found.high, "n": found.n}
