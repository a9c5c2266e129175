"""Hidden states of labelled texts along a few directions: principal components, a knob, a probe, a difference of means.

    projection = project(model, data.texts, data.labels, "resid_post.2")
    projection.plot()                                  # a point a text, its text on hover
    projection.separation                              # can a label be told there? beside shuffled labels, random axes

Two clouds in a picture say little by themselves: in hundreds of dimensions some direction parts any labels. So a
difference of means is taken of one half of the texts and shown on the other, and every axis comes with the accuracy of
a linear discriminant on coordinates that it was not fitted to, beside the same with shuffled labels and along random
directions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from interp.directions import (
    Direction,
    halves,
    mean_difference_of,
    principal_components,
    random_directions,
    share_of_variance,
)
from interp.discriminant import separation
from interp.errors import BadInput, UnknownSite, UnreadableFile, choose
from interp.heads.scores import model_record
from interp.runs import Run, load_run, save_run
from interp.tables import in_notebook
from interp.tasks.prompts import PromptSet
from interp.tracing.model import Model
from interp.tracing.sites import Site, expand

if TYPE_CHECKING:
    import plotly.graph_objects as go

KIND = "projection"
PCA, MEANS, RANDOM = "PC", "mean difference", "random direction"
TOGETHER = "all axes together"
SEPARATION = "separation"
"""The further table of a run."""
CHUNK = 32
MOST = 5_000
"""Texts of one projection."""


@dataclass(frozen=True, eq=False, repr=False)
class Projection:
    """Hidden states of texts at one site and position, along `axes`.

    `coordinates` `[text axis]` are in the units of the site: along named directions as they are, along principal
    components (`PC 1`, …) less their mean. The last axis is one random direction. `vectors` `[axis width]` are of unit
    length, `norms` `[axis]` the lengths of the vectors that were given. `variance` `[axis]` is the share of the texts'
    variance along each axis. `separation` has a row an axis, and one of all together without the random one:
    `accuracy`, the share of texts whose label a linear discriminant tells in cross-validation, with its 95 % Wilson
    interval; `shuffled` and `random`, its mean over shuffles of the labels and over random directions, with the bounds
    of 95 % of them; n texts.
    """

    coordinates: np.ndarray
    axes: tuple[str, ...]
    vectors: np.ndarray
    norms: np.ndarray
    variance: np.ndarray
    labels: tuple[str, ...]
    texts: tuple[str, ...]
    separation: pd.DataFrame
    model: Mapping[str, Any]
    parameters: Mapping[str, Any]
    seed: int

    def __repr__(self) -> str:
        best = self.separation.iloc[-1]
        told = f"labels told {best.accuracy:.3g} [{best.accuracy_low:.3g}, {best.accuracy_high:.3g}]"
        where = f"{self.site} of {self.model['name']}"
        return f"Projection({len(self.texts)} texts at {where} along {', '.join(self.axes[:-1])}; {told})"

    @property
    def site(self) -> str:
        return str(self.parameters["site"])

    @cached_property
    def frame(self) -> pd.DataFrame:
        """One row a text: its label and its coordinate along every axis."""
        about = pd.DataFrame({"text": self.texts, "label": self.labels})
        return pd.concat([about, pd.DataFrame(self.coordinates, columns=list(self.axes))], axis=1)

    def direction(self, axis: str) -> Direction:
        """The unit vector of an axis. Raises BadInput naming the axes."""
        return Direction(self.vectors[self._place(axis)], self.site, str(self.model["fingerprint"]))

    def _place(self, axis: str) -> int:
        if axis not in self.axes:
            raise BadInput(f"there is no axis {axis!r}; {choose(axis, self.axes)}")
        return self.axes.index(axis)

    def _repr_html_(self) -> str:
        return in_notebook(self, self.separation)

    def plot(self, x: str | None = None, y: str | None = None) -> go.Figure:
        """Scatter of two axes, by default the first two, coloured by label. Raises BadInput for an unknown axis."""
        from interp.plots.projection import projection_scatter

        across, up = self.axes[0] if x is None else x, self.axes[1] if y is None else y
        return projection_scatter(self, self._place(across), self._place(up))

    def save(self, path: str | Path, started: datetime | None = None) -> Run:
        """Write a run folder. Raises UnwritableOutput."""
        arrays = {name: getattr(self, name) for name in ("coordinates", "vectors", "norms", "variance")}
        return save_run(
            path,
            kind=KIND,
            parameters={**self.parameters, "axes": list(self.axes)},
            model=self.model,
            seed=self.seed,
            frame=self.frame,
            arrays=arrays,
            files={f"{SEPARATION}.parquet": lambda file: self.separation.to_parquet(file, index=False)},
            started=started,
        )

    @classmethod
    def load(cls, path: str | Path) -> Projection:
        """Read what `save` wrote. Raises UnreadableFile, BadInput for a run of another kind."""
        run = load_run(path, KIND)
        parameters = dict(run.record.parameters)
        axes = tuple(parameters.pop("axes"))
        if missing := [name for name in ("text", "label", *axes) if name not in run.frame]:
            raise UnreadableFile(f"{path}: its table lacks the columns {', '.join(missing)}")
        about = run.record.model, parameters, run.record.seed
        return cls(
            run.array("coordinates", len(run.frame), len(axes)),
            axes,
            run.array("vectors", len(axes), None),
            run.array("norms", len(axes)),
            run.array("variance", len(axes)),
            tuple(run.frame.label.astype(str)),
            tuple(run.frame.text.astype(str)),
            run.table(SEPARATION),
            *about,
        )


def project(
    model: Model,
    prompts: Sequence[str] | PromptSet,
    labels: Sequence[Any],
    site: str,
    *,
    position: int | str = -1,
    directions: Mapping[str, ArrayLike] | None = None,
    components: int = 2,
    mean_difference: bool = False,
    groups: Sequence[str] = (),
    seed: int = 0,
) -> Projection:
    """Project what one site holds at one position of every text.

    Args:
        position: counted from the start or, negative, from the end of each text; of a PromptSet also a role, such as
            "S2", whose last token counts.
        directions: vectors `[width]` by name; their length is kept in `norms` and otherwise does not matter.
        components: principal components after the named axes.
        mean_difference: also the difference of the means of two labels, taken of a seeded half of the texts. That half
            is not shown, and no component is taken of it.
        groups: what each text belongs to; a group is on one side of every split.

    Raises BadInput, UnknownSite, PromptTooLong.
    """
    given = dict(directions or {})
    names = _checked_labels(prompts, labels, groups, mean_difference)
    where = _one_site(model, site)
    _check_axes(given, components, mean_difference)
    states = hidden_states(model, prompts, where, position)
    for name, vector in given.items():
        _check_direction(name, np.asarray(vector, dtype=float), states.shape[1], where)
    texts = prompts.texts if isinstance(prompts, PromptSet) else tuple(prompts)
    shown = np.arange(len(names))
    belongs = np.asarray(groups if len(groups) else range(len(names)), dtype=object).astype(str)
    if mean_difference:
        fitted, shown = halves(names, belongs, seed)
        given = {MEANS: mean_difference_of(states[fitted], names[fitted]), **given}
    vectors, norms, axes = _vectors(given, states[shown], components, seed)
    centre = np.where([axis.startswith(f"{PCA} ") for axis in axes], vectors @ states[shown].mean(0), 0.0)
    coordinates = states[shown] @ vectors.T - centre
    own = range(len(axes) - 1)
    sets = {axes[i]: [i] for i in own} | ({TOGETHER: list(own)} if len(own) > 1 else {})
    return Projection(
        coordinates=coordinates,
        axes=axes,
        vectors=vectors,
        norms=norms,
        variance=share_of_variance(states[shown], vectors),
        labels=tuple(names[shown].tolist()),
        texts=tuple(texts[i] for i in shown),
        separation=separation(coordinates, sets, states[shown], names[shown], belongs[shown], seed),
        model=model_record(model),
        parameters={
            "site": str(where),
            "position": position,
            "components": components,
            "texts": len(names),
            "fitted_on": len(names) - len(shown),
            "grouped": bool(len(groups)),
        },
        seed=seed,
    )


def hidden_states(
    model: Model, prompts: Sequence[str] | PromptSet, site: Site | str, position: int | str = -1
) -> np.ndarray:
    """What a site holds at one position of every prompt, `[prompt width]` in float64, heads laid out flat."""
    parts = []
    for start in range(0, len(prompts), CHUNK):
        part: Any = prompts[start : start + CHUNK]
        value = model.run(part, read=site, positions=position)[site]
        parts.append(value[:, -1].flatten(1).double().cpu().numpy())
    return np.concatenate(parts)


def _vectors(
    given: Mapping[str, ArrayLike], states: np.ndarray, components: int, seed: int
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Unit vectors, the lengths they were given with, and their names: as given, components, one random."""
    width = states.shape[1]
    rows = [
        *(np.asarray(vector, dtype=float) for vector in given.values()),
        *principal_components(states, components),
        random_directions(width, 1, seed)[0],
    ]
    vectors = np.stack(rows)
    norms = np.linalg.norm(vectors, axis=1)
    names = (*given, *(f"{PCA} {number + 1}" for number in range(components)), RANDOM)
    return vectors / norms[:, None], norms, names


def _checked_labels(
    prompts: Sequence[str] | PromptSet, labels: Sequence[Any], groups: Sequence[str], mean_difference: bool
) -> np.ndarray:
    """The labels as text. Raises BadInput."""
    count = len(prompts)
    if isinstance(prompts, str):
        raise BadInput("a projection is of several texts, not of one")
    if not 3 <= count <= MOST:
        raise BadInput(f"a projection is of 3 to {MOST:,} texts; got {count:,}")
    if len(labels) != count or len(groups) not in (0, count):
        raise BadInput(f"{count} texts have {len(labels)} labels and {len(groups)} groups; give one each, or no groups")
    kinds = sorted({str(label) for label in labels})
    if len(kinds) < 2:
        raise BadInput(f"all texts have the label {kinds[0]!r}; a projection tells labels apart")
    if mean_difference and len(kinds) != 2:
        raise BadInput(f"a mean difference is of two labels, and these are {len(kinds)}: {', '.join(kinds[:8])}")
    return np.array([str(label) for label in labels])


def _check_axes(given: Mapping[str, ArrayLike], components: int, mean_difference: bool) -> None:
    if components < 0 or not (given or components or mean_difference):
        raise BadInput(f"components={components} and no direction leave nothing to project on")
    for name in given:
        if name in (MEANS, RANDOM, TOGETHER, "text", "label") or name.startswith(f"{PCA} "):
            raise BadInput(f"a direction cannot be called {name!r}, as other axes and columns are; name it otherwise")


def _check_direction(name: str, vector: np.ndarray, width: int, site: Site) -> None:
    if vector.shape != (width,):
        raise BadInput(f"the direction {name!r} has shape {vector.shape}, and {site} holds {width} numbers a token")
    if not np.isfinite(vector).all() or not vector.any():
        raise BadInput(f"the direction {name!r} is zero or not finite, so nothing can be projected on it")


def _one_site(model: Model, site: str) -> Site:
    """The site, if it is one and holds a vector a token. Raises UnknownSite, BadInput."""
    sites = expand(site, model.spec.layers)
    if len(sites) != 1:
        raise UnknownSite(f"{site!r} names {len(sites)} sites; a projection is of one, such as {sites[-1]}")
    if not sites[0].spec.shape.startswith("B T"):
        raise BadInput(f"{sites[0]} is no vector a token, so it cannot be projected")
    return sites[0]
