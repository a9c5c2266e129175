"""One text read with the probes of a run: what they say of it at every site, beside probes of random labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from interp.errors import BadInput, choose
from interp.tables import in_notebook
from interp.tasks.labelled import LabelledTexts
from interp.tracing.model import Model
from interp.tracing.sites import Site
from probes.activations import At, collect
from probes.directions import Directions

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True, eq=False, repr=False)
class Reading:
    """`frame`: one row a probe and class: `name` and `layer` of the site, `series`, `class`, `probability`.

    One text has no interval; what a control probe says of it is what an answer looks like that means nothing.
    """

    frame: pd.DataFrame
    text: str
    tokens: tuple[int, ...]
    at: At
    dataset: str
    model: str

    def __repr__(self) -> str:
        return f"Reading({self.dataset} of {self.text!r} by {self.model})"

    def _repr_html_(self) -> str:
        return in_notebook(self, self.frame)

    def plot(self, name: str | None = None) -> go.Figure:
        """Probability of a class by layer, of the probes and of the controls; `name` is a site's, such as `mlp_in`."""
        from interp.plots.probes import reading

        return reading(self, name)


def read_text(model: Model, text: str, directions: Sequence[Directions], at: At, probe: dict[str, Any]) -> Reading:
    """What the probes of one data set say of `text`; `probe` is the record of how they were fitted.

    Raises BadInput for an empty text, for none and for probes that give no probabilities, PromptTooLong.
    """
    if not text.strip():
        raise BadInput("there is no text to read: write one")
    if not directions:
        raise BadInput("the run keeps no probes to read a text with: make it again with linear probes")
    if probe.get("kind") != "logistic":
        raise BadInput(f"the run's probes are {probe.get('kind')} probes, which give no probabilities")
    sites = list(dict.fromkeys(site for each in directions for site in each.probes))
    found = collect(model, [text], sites, at=at)
    rows = []
    for each in directions:
        for name, fitted in each.probes.items():
            site = Site.parse(name)
            if found[name].shape[1] != fitted.weight.shape[1]:
                raise BadInput(f"{name} has {found[name].shape[1]} features here, the probe {fitted.weight.shape[1]}")
            for label, probability in zip(fitted.classes, fitted.probabilities(found[name])[0], strict=True):
                about = {"site": name, "name": site.name, "layer": -1 if site.layer is None else site.layer}
                rows.append({**about, "series": each.series, "class": str(label), "probability": float(probability)})
    return Reading(pd.DataFrame(rows), text, found.tokens[0], at, directions[0].dataset, model.spec.name)


def of_model(
    model: Model, directions: Sequence[Directions], dataset: str, models: Mapping[str, Mapping[str, Any]]
) -> tuple[Directions, ...]:
    """The directions of one data set on this model; `models` are the run's records of models, by name.

    Raises BadInput where they are of other models, and for no such data set.
    """
    own = [each for each in directions if models.get(each.model, {}).get("fingerprint") == model.fingerprint]
    if directions and not own:
        raise BadInput(f"the run's probes are of {', '.join(models)}, not of {model.spec.name} ({model.fingerprint})")
    names = list(dict.fromkeys(each.dataset for each in own))
    if own and dataset not in names:
        raise BadInput(f"there are no probes of {dataset!r} here; {choose(dataset, names)}")
    return tuple(each for each in own if each.dataset == dataset)


def examples(data: LabelledTexts) -> dict[str, str]:
    """The shortest text of every class: what the probes were fitted to looks like it."""
    longest_first = sorted(zip(data.texts, data.labels, strict=True), key=lambda pair: -len(pair[0]))
    return {str(label): text for text, label in longest_first}
