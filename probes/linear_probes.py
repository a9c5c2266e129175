"""Cross-validated probes of any sites on one data set: what they reach, beside control labels, and their directions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from interp.runs import Run, load_run, save_run
from interp.tables import in_notebook
from interp.tasks.labelled import LabelledTexts
from interp.tracing.model import Model
from probes.activations import Activations
from probes.controls import control_labels
from probes.cross_validation import cross_validate, prepared
from probes.directions import Directions, fit_directions, packed, unpacked
from probes.linear import STANDARD, ProbeSpec
from probes.reading import Reading, examples, of_model, read_text

if TYPE_CHECKING:
    import plotly.graph_objects as go

KIND = "linear-probes"
PROBE, CONTROL = "label", "control"
"""The label sets: the given labels, and labels drawn at random once a key."""


@dataclass(frozen=True, eq=False, repr=False)
class LinearProbes:
    """`frame`: one row a site, label set and metric, with intervals over examples.

    `scores[labels]` `[site example class]` are out of fold, `labels[labels]` `[example]` class numbers, `fold`
    `[example]`. `directions` are the probes of both label sets, fitted to all examples.
    """

    frame: pd.DataFrame
    scores: Mapping[str, np.ndarray]
    labels: Mapping[str, np.ndarray]
    fold: np.ndarray
    directions: tuple[Directions, ...]
    parameters: Mapping[str, Any]
    model: Mapping[str, Any]
    seed: int = 0

    def __repr__(self) -> str:
        return f"LinearProbes({self.frame.site.nunique()} sites of {self.model['name']}, {len(self.fold)} examples)"

    def _repr_html_(self) -> str:
        return in_notebook(self, self.frame)

    def plot(self, metric: str = "accuracy") -> go.Figure:
        """A metric of every site with its interval, the control labels beside."""
        from interp.plots.probes import by_site

        return by_site(self.frame[self.frame.metric == metric], metric)

    def read(self, model: Model, text: str, dataset: str) -> Reading:
        """What the probes say of a text at every site. Raises BadInput for another model, and where none are kept."""
        chosen = of_model(model, self.directions, dataset, {str(self.model["name"]): self.model})
        return read_text(model, text, chosen, self.parameters["at"], self.parameters["probe"])

    def save(self, path: str | Path, started: datetime | None = None) -> Run:
        """Write a run folder. Raises UnwritableOutput."""
        records, weights = packed(self.directions)
        scores = {f"scores.{name}": values for name, values in self.scores.items()}
        labels = {f"labels.{name}": values for name, values in self.labels.items()}
        return save_run(
            path,
            kind=KIND,
            parameters={**self.parameters, "directions": records},
            model=self.model,
            seed=self.seed,
            frame=self.frame,
            arrays={**weights, **scores, **labels, "fold": self.fold},
            started=started,
        )

    @classmethod
    def load(cls, path: str | Path) -> LinearProbes:
        """Read what `save` wrote. Raises UnreadableFile, BadInput for a run of another kind."""
        run = load_run(path, KIND)
        fold = run.array("fold", None)
        sets, sites = list(dict.fromkeys(run.frame.labels)), run.frame.site.nunique()
        parameters = dict(run.record.parameters)
        parameters.pop("directions", None)
        return cls(
            run.frame,
            {name: run.array(f"scores.{name}", sites, len(fold), None) for name in sets},
            {name: run.array(f"labels.{name}", len(fold)) for name in sets},
            fold,
            unpacked(run),
            parameters,
            run.record.model,
            run.record.seed,
        )


def linear_probes(
    activations: Activations,
    data: LabelledTexts,
    spec: ProbeSpec = STANDARD,
    *,
    control: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> LinearProbes:
    """Probe the activations of `data` at every site they were collected at, `control` labels beside its own.

    Raises BadInput as `cross_validate` does.
    """
    labels = label_sets(data, spec, control)
    judged = cross_validate(activations, labels, spec, groups=data.groups or None, progress=progress)
    fitted = {name: fit_directions(activations, given, judged, name) for name, given in labels.items()}
    series = {PROBE: "probe", CONTROL: "control"}
    name = str(activations.model["name"])
    directions = [Directions(name, data.name, series[of], found) for of, found in fitted.items() if found]
    parameters = {
        "data": {data.name: dict(data.parameters)},
        "at": activations.at,
        "sites": list(activations),
        "probe": spec.as_dict(),
        "classes": [str(each) for each in judged.classes[PROBE]],
        "examples": {data.name: examples(data)},
        "unsolved": judged.unsolved,
    }
    model = dict(activations.model)
    return LinearProbes(
        judged.frame, judged.scores, judged.labels, judged.fold, tuple(directions), parameters, model, spec.seed
    )


def label_sets(data: LabelledTexts, spec: ProbeSpec, control: bool) -> dict[str, Any]:
    """The labels, and the control's. Raises BadInput for what no activations would make possible."""
    labels: dict[str, Any] = {PROBE: data.labels}
    if control:
        least = 3 * spec.folds
        labels[CONTROL] = control_labels(data.labels, data.keys or data.texts, spec.seed, least)
    prepared(labels, spec, data.groups or None)
    return labels
