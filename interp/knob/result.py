"""KnobResult: a fitted knob with everything that says how good it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from interp.errors import BadInput, choose
from interp.knob.behaviour import OUTCOMES, Behaviour, outcome_indices
from interp.knob.knob import Knob
from interp.runs import Run, load_run, save_run
from interp.tracing.edits import Edit

if TYPE_CHECKING:
    import plotly.graph_objects as go

KNOB_FILE = "knob.safetensors"
"""The knob inside a run, in the shape of the published checkpoints."""
Figure = Literal["coordinates", "layers"]


@dataclass(frozen=True, eq=False, repr=False)
class KnobResult:
    """The knob after the best layer, and what was measured on test pairs that it was not fitted on.

    `frame` has a row a layer and method (`interchange` is the fitted subspace; the others are baselines): `accuracy`,
    the share of prompts that give their twin's answer after interchange, with its 95 % bootstrap interval over pairs;
    `target_accuracy`, those that keep their own; `loss` in nats; `separation` (`interp.knob.separation`); n pairs.
    `bases` `[layer rank width]` are the fitted subspaces after `layers`. `coordinates` `[pair intent rank]` are those
    of the test prompts. `behaviour` holds what the model answers as instructed, without instruction, and steered; None
    for a rank above 1.
    """

    knob: Knob
    layers: tuple[int, ...]
    bases: np.ndarray
    frame: pd.DataFrame
    coordinates: np.ndarray
    behaviour: Behaviour | None
    model: Mapping[str, Any]
    parameters: Mapping[str, Any]
    seed: int

    def __repr__(self) -> str:
        best = self.fitted.set_index("layer").accuracy[self.knob.layer]
        return f"KnobResult({self.knob}; interchange accuracy {best:.3g} on {self.model['name']})"

    @property
    def layer(self) -> int:
        """The layer after which the knob sits: the best on the validation pairs."""
        return self.knob.layer

    @property
    def direction(self) -> np.ndarray:
        """The unit vector `[width]`, context upwards. Raises BadInput for a rank above 1."""
        direction: np.ndarray = self.knob.direction.numpy()
        return direction

    @property
    def fitted(self) -> pd.DataFrame:
        """The rows of the frame that belong to fitted subspaces, one a layer."""
        return self.frame[self.frame.method == "interchange"].reset_index(drop=True)

    @property
    def neighbours(self) -> pd.DataFrame:
        """The best layer, the one before and the one after, as far as they were fitted."""
        return self.fitted[(self.fitted.layer - self.knob.layer).abs() <= 1].reset_index(drop=True)

    def edit(self, setting: str | float) -> Edit:
        """The Edit that turns the knob to `"context"`, `"prior"` or a value, at every step of a generation."""
        return self.knob.edit(setting)

    def _repr_html_(self) -> str:
        behaviour = "" if self.behaviour is None else self.behaviour.frame.to_html(index=False)
        return f"<p>{self!r}</p>{self.frame.to_html(index=False)}{behaviour}"

    def plot(self, what: Figure = "layers") -> go.Figure:
        """`"layers"`: interchange accuracy by layer; `"coordinates"`: histograms by intent. Raises BadInput."""
        from interp.plots import knob

        if what == "layers":
            return knob.accuracy_by_layer(self)
        if what == "coordinates":
            return knob.coordinate_histograms(self)
        raise BadInput(f"there is no figure {what!r} of a knob; {choose(what, ('layers', 'coordinates'))}")

    def save(self, path: str | Path, started: datetime | None = None) -> Run:
        """Write a run folder, with the knob itself in KNOB_FILE. Raises UnwritableOutput."""
        about: dict[str, Any] = {"layers": list(self.layers), "best": self.knob.layer, "values": dict(self.knob.values)}
        arrays = {"bases": self.bases, "coordinates": self.coordinates}
        if self.behaviour is not None:
            about["behaviour"] = self.behaviour.frame.to_dict("records")
            arrays |= {f"outcome.{name}": outcome_indices(one) for name, one in self.behaviour.outcomes.items()}
        return save_run(
            path,
            kind="knob",
            parameters={**self.parameters, **about},
            model=self.model,
            seed=self.seed,
            frame=self.frame,
            arrays=arrays,
            files={KNOB_FILE: self.knob.save},
            started=started,
        )

    @classmethod
    def load(cls, path: str | Path) -> KnobResult:
        """Read what `save` wrote. Raises UnreadableFile, BadInput for a run of another kind."""
        run = load_run(path)
        if run.record.kind != "knob":
            raise BadInput(f"{path} holds a run of kind {run.record.kind!r}, not a knob")
        parameters = dict(run.record.parameters)
        layers = parameters.pop("layers")
        for name in ("best", "values", "behaviour"):
            parameters.pop(name, None)
        arrays = dict(run.arrays)
        prefix = "outcome."
        outcomes = {
            name.removeprefix(prefix): np.array(OUTCOMES)[array]
            for name, array in sorted(arrays.items())
            if name.startswith(prefix)
        }
        knob = Knob.load(Path(path) / KNOB_FILE)
        none = np.empty((0, 0), dtype=str)
        about = {name: parameters[name] for name in ("form", "wording", "shots", "chat", "items", "lost")}
        return cls(
            knob,
            tuple(layers),
            arrays["bases"],
            run.frame,
            arrays["coordinates"],
            Behaviour(outcomes, (), none, run.record.model, about) if outcomes else None,
            run.record.model,
            parameters,
            run.record.seed,
        )
