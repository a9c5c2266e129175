"""KnobResult: a fitted knob with everything that says how good it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from interp.errors import BadInput, UnreadableFile, choose
from interp.knob.behaviour import Behaviour, outcome_indices, read_outcomes
from interp.knob.knob import Knob
from interp.runs import Run, load_run, save_run
from interp.tables import in_notebook
from interp.tasks.context_prior import INTENTS, ContextItem, ContextItems, PromptForm
from interp.tracing.edits import Edit

if TYPE_CHECKING:
    import plotly.graph_objects as go

KIND = "knob"
KNOB_FILE = "knob.safetensors"
"""The knob inside a run, in the shape of the published checkpoints."""
ITEMS = "items"
"""The further table of a run: every item, and whether the knob was fitted on it."""
PARTS = ("train", "validation", "test")
SHOWN = "demonstration"
"""The part of items that are shown in every prompt."""
FITTED_ON = "the knob was fitted on"
"""What items are lost to that a knob has seen."""
OUTCOME = "outcome."
Figure = Literal["coordinates", "layers"]


@dataclass(frozen=True, eq=False, repr=False)
class KnobResult:
    """The knob after the best layer, and what was measured on test pairs that it was not fitted on.

    `frame` has a row a layer and method (`interchange` is the fitted subspace; the others are baselines): `accuracy`,
    the share of prompts that give their twin's answer after interchange, with its 95 % Wilson interval over pairs;
    `target_accuracy`, those that keep their own; `loss` in nats; `separation` (`interp.knob.separation`); n pairs.
    `bases` `[layer rank width]` are the fitted subspaces after `layers`. `coordinates` `[pair intent rank]` are those
    of the test prompts. `behaviour` holds what the model answers as instructed, without instruction, and steered; None
    for a rank above 1. `items` are those of each of PARTS: fitted on, chosen by, reported on; `form` their prompts'.
    """

    knob: Knob
    layers: tuple[int, ...]
    bases: np.ndarray
    frame: pd.DataFrame
    coordinates: np.ndarray
    behaviour: Behaviour | None
    items: Mapping[str, ContextItems]
    form: PromptForm
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

    def unseen(self, items: ContextItems) -> ContextItems:
        """Those that the knob was neither fitted on nor chosen by; the others are counted. Raises BadInput for none."""
        seen = {_contradiction(item) for part in PARTS[:2] for item in self.items[part]}
        return items.keep([_contradiction(item) not in seen for item in items], FITTED_ON)

    def _repr_html_(self) -> str:
        behaviour = [] if self.behaviour is None else [self.behaviour.frame]
        return in_notebook(self, self.frame, *behaviour)

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
            about["behaviour"] = dict(self.behaviour.parameters)
            arrays |= {f"{OUTCOME}{name}": outcome_indices(one) for name, one in self.behaviour.outcomes.items()}
        return save_run(
            path,
            kind=KIND,
            parameters={**self.parameters, **about},
            model=self.model,
            seed=self.seed,
            frame=self.frame,
            arrays=arrays,
            files={KNOB_FILE: self.knob.save, f"{ITEMS}.parquet": self._save_items},
            started=started,
        )

    def _save_items(self, file: Path) -> None:
        parts: dict[str, Iterable[ContextItem]] = {**self.items, SHOWN: self.form.demonstrations}
        rows = [{"part": part, **asdict(item)} for part, items in parts.items() for item in items]
        pd.DataFrame(rows).to_parquet(file, index=False)

    @classmethod
    def load(cls, path: str | Path) -> KnobResult:
        """Read what `save` wrote. Raises UnreadableFile, BadInput for a run of another kind."""
        run = load_run(path, KIND)
        parameters = dict(run.record.parameters)
        layers, best = parameters.pop("layers"), parameters.pop("best")
        del parameters["values"]
        behaviour = parameters.pop("behaviour", None)
        knob = Knob.load(Path(path) / KNOB_FILE)
        if knob.layer != best or best not in layers:
            raise UnreadableFile(
                f"{path}: {KNOB_FILE} is of layer {knob.layer}, and the run's best of {layers} is {best}"
            )
        parts = {part: _items_of(run, part) for part in (*PARTS, SHOWN)}
        tests = len(parts["test"])
        outcomes = {
            name.removeprefix(OUTCOME): read_outcomes(run, name, tests, 1 if name == f"{OUTCOME}silent" else 2)
            for name in sorted(run.arrays)
            if name.startswith(OUTCOME)
        }
        unmeasured = np.empty((0, tests), dtype=str)
        return cls(
            knob,
            tuple(layers),
            run.array("bases", len(layers), knob.rank, knob.width),
            run.frame,
            run.array("coordinates", tests, len(INTENTS), knob.rank),
            None if behaviour is None else Behaviour(outcomes, (), unmeasured, run.record.model, behaviour),
            {part: ContextItems(parts[part]) for part in PARTS},
            PromptForm(parameters["form"], parameters["wording"], parts[SHOWN], parameters["chat"]),
            run.record.model,
            parameters,
            run.record.seed,
        )


def _items_of(run: Run, part: str) -> tuple[ContextItem, ...]:
    """The items of one part. Raises UnreadableFile."""
    frame = run.table(ITEMS)
    names = [field.name for field in fields(ContextItem)]
    if missing := [name for name in ("part", *names) if name not in frame]:
        raise UnreadableFile(f"{run.path}: {ITEMS}.parquet lacks the columns {', '.join(missing)}")
    return tuple(ContextItem(*row) for row in frame.loc[frame.part == part, names].itertuples(index=False))


def _contradiction(item: ContextItem) -> tuple[str, str, str]:
    """What makes two items the same to a knob, in whatever words the context is."""
    return item.query, item.prior_answer, item.context_answer
