"""Where in a model are syntax trees, in how large a subspace, and how much of that is the model's doing?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from interp.heads.scores import model_record
from interp.tracing.model import Model
from probes.ast.corpus import Split
from probes.ast.decode import recovered, shaped
from probes.ast.leaves import Alignment, LeafStates, leaf_states
from probes.ast.metrics import METRICS, by_type
from probes.ast.probe import AstProbe
from probes.ast.result import FOLLOWING, PROBE, SHAPES, SHIFTED, UNTRAINED, AstStudy, bootstrap_over_files
from probes.ast.training import PAPER, Settings, fit
from probes.ast.tree import TreeTuple
from probes.controls import untrained

JUDGED = ("valid", "test")
PARTS = ("train", *JUDGED)

States = dict[str, LeafStates]
"""Leaf states of the parts of the split."""


def ast_study(
    model: Model,
    split: Split,
    *,
    settings: Settings = PAPER,
    ranks: Sequence[int] = (),
    alignment: Alignment = "offsets",
    controls: bool = True,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> AstStudy:
    """Probe every layer at the rank of `settings`, the best one at further `ranks`, and the controls.

    The states of a model are read once and serve all layers and ranks. Controls: the embedding (a site of its own), an
    untrained model of the same shape, leaves with the states of others (`LeafStates.shifted`), trees of a fixed shape
    under the probe's labels, and for a causal model leaves that include the token after them, which has seen more of
    their right context. Raises BadInput for a rank above the model's width, PromptTooLong as `leaf_states`.
    """
    others = [replace(settings, rank=rank) for rank in dict.fromkeys(ranks) if rank != settings.rank]
    for each in (settings, *others):
        each.require_width(model.spec.width)
    causal = model.parts.architecture.causal
    steps = 2 + len(others) + ((3 + 2 * causal) if controls else 0)
    work = _Work(split, seed, steps, progress)

    states = work.read(model, alignment)
    tied = states["test"].tied
    probes = work.fit(states, settings)
    predicted = {site: work.judge(PROBE, probe, states) for site, probe in probes.items()}
    best = max(probes, key=work.validated)
    types = by_type(zip(map(recovered, predicted[best]), (s.constituents for s in split.test), strict=True))
    for each in others:
        work.judge(PROBE, work.fit(states, each, [best])[best], states)
    kept: dict[str, str] = {}
    if controls:
        for site, probe in probes.items():
            for name, shape in SHAPES.items():
                work.note(name, probe, "test", shaped(predicted[site], shape))
        states = {part: each.shifted() for part, each in states.items()}
        work.control(SHIFTED, states, settings)
        fresh = untrained(model, seed)
        states = work.read(fresh, alignment)
        work.control(UNTRAINED, states, settings)
        kept = {"untrained": fresh.fingerprint}
        if causal:
            states = work.read(model, alignment, following=True)
            work.control(FOLLOWING, states, settings)
    parameters = {
        "settings": settings.as_dict(),
        "ranks": [settings.rank, *(each.rank for each in others)],
        "alignment": alignment,
        "tied": tied,
        "controls": controls,
        "language": split.language,
        "source": split.source,
        "functions": {part: len(getattr(split, part)) for part in PARTS},
        "leaves": {part: sum(len(s.leaves) for s in getattr(split, part)) for part in PARTS},
        "files": {part: len({s.file for s in getattr(split, part)}) for part in PARTS},
        "split_seed": split.seed,
        "seed": seed,
        **kept,
    }
    curves = pd.DataFrame(work.curves)
    return AstStudy(
        pd.DataFrame(work.rows),
        types,
        np.array(work.f1),
        curves,
        work.files("test"),
        probes,
        model_record(model),
        parameters,
        work.controls,
    )


@dataclass
class _Work:
    """A study on its way: the table so far."""

    split: Split
    seed: int
    steps: int
    progress: Callable[[int, int], None] | None
    rows: list[dict[str, Any]] = field(default_factory=list)
    curves: list[dict[str, Any]] = field(default_factory=list)
    f1: list[np.ndarray] = field(default_factory=list)
    controls: dict[str, AstProbe] = field(default_factory=dict)
    done: int = 0

    def read(self, model: Model, alignment: Alignment, following: bool = False) -> States:
        states = {
            p: leaf_states(model, getattr(self.split, p), alignment=alignment, following=following) for p in PARTS
        }
        self._step()
        return states

    def fit(self, states: States, settings: Settings, sites: Sequence[str] | None = None) -> dict[str, AstProbe]:
        train, valid = ((states[part], [s.vectors for s in getattr(self.split, part)]) for part in ("train", "valid"))
        probes = fit(train, valid, settings, sites)
        self._step()
        return probes

    def control(self, series: str, states: States, settings: Settings) -> None:
        probes = self.fit(states, settings)
        for probe in probes.values():
            self.judge(series, probe, states)
        self.controls[series] = max(probes.values(), key=lambda probe: self.validated(probe.site, series))

    def judge(self, series: str, probe: AstProbe, states: States) -> list[TreeTuple]:
        """Note how good a probe is, and return what it says of the test functions."""
        predicted: list[TreeTuple] = []
        for part in JUDGED:
            predicted = probe.predict(states[part].of(probe.site), states[part].lengths)
            self.note(series, probe, part, predicted)
        return predicted

    def note(self, series: str, probe: AstProbe, part: str, predicted: Sequence[TreeTuple]) -> None:
        """Every metric of predicted trees, and for the test functions their F1 one by one."""
        pairs = [(recovered(p), s.constituents) for p, s in zip(predicted, getattr(self.split, part), strict=True)]
        about = {"series": series, "site": probe.site, "rank": probe.rank}
        for name, metric in METRICS.items():
            scores = [metric(said, true) for said, true in pairs]
            values = np.array([score.f1 for score in scores])
            low, high = bootstrap_over_files(values, self.files(part), self.seed)
            self.rows.append(
                {
                    **about,
                    "split": part,
                    "metric": name,
                    "value": values.mean(),
                    "low": low,
                    "high": high,
                    "precision": np.mean([score.precision for score in scores]),
                    "recall": np.mean([score.recall for score in scores]),
                    "functions": len(values),
                }
            )
            if name == "f1" and part == "test":
                self.curves.append(about)
                self.f1.append(values)

    def validated(self, site: str, series: str = PROBE) -> float:
        """F1 of the site's first probe on the validation functions."""
        wanted = (series, site, "valid", "f1")
        return float(next(r["value"] for r in self.rows if (r["series"], r["site"], r["split"], r["metric"]) == wanted))

    def files(self, part: str) -> tuple[str, ...]:
        return tuple(snippet.file for snippet in getattr(self.split, part))

    def _step(self) -> None:
        self.done += 1
        if self.progress:
            self.progress(self.done, self.steps)
