"""What a search for the layers that decide found: the layers of each setting, and every patch on the way to them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from interp.errors import UnreadableFile
from interp.runs import Run, load_run, save_run
from interp.tables import in_notebook

if TYPE_CHECKING:
    import plotly.graph_objects as go

Setting = Literal["PRI", "CTX", "CP", "PC"]
SETTINGS: Mapping[Setting, str] = {
    "PRI": "from another item into this one, both to be answered from memory",
    "CTX": "from another item into this one, both to be answered from the context",
    "CP": "from the prompt that follows the context into its twin that follows memory",
    "PC": "from the prompt that follows memory into its twin that follows the context",
}
"""Where a patch comes from and where it goes."""
LAYERED, EXHAUSTIVE = "knob-search", "knob-search-exhaustive"
"""Kinds of run."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """One patch of the attention outputs of `layers`: mean probabilities `[layer]` of the first token of the source's
    and of the target's answer, read out after each block."""

    layers: tuple[int, ...]
    source: np.ndarray
    target: np.ndarray


@dataclass(frozen=True, eq=False)
class Found:
    """What one setting's search found: `layers`, or none where even all layers stay below the threshold."""

    setting: Setting
    layers: tuple[int, ...]
    evaluations: tuple[Evaluation, ...]

    @property
    def last(self) -> Evaluation:
        """The evaluation of the layers that were found; of all layers where none were."""
        wanted = self.layers or max((e.layers for e in self.evaluations), key=len)
        return next(e for e in self.evaluations if e.layers == wanted)


@dataclass(frozen=True, eq=False, repr=False)
class LayerSearch:
    """The layers found for each setting, and every patch that was evaluated on the way."""

    found: Mapping[Setting, Found]
    model: Mapping[str, Any]
    parameters: Mapping[str, Any]
    seed: int

    def __repr__(self) -> str:
        ranges = ", ".join(f"{name} {list(each.layers) or 'nothing'}" for name, each in self.found.items())
        return f"LayerSearch({ranges}; {self.evaluations} patch evaluations on {self.model['name']})"

    @property
    def evaluations(self) -> int:
        """Patch evaluations of all settings."""
        return sum(len(each.evaluations) for each in self.found.values())

    @cached_property
    def frame(self) -> pd.DataFrame:
        """One row a setting, patch and layer of the read-out: probabilities of both answers, and what was patched."""
        rows = [
            {
                "setting": name,
                "evaluation": number,
                "patched": ",".join(map(str, evaluation.layers)),
                "chosen": evaluation.layers == each.layers,
                "layer": layer,
                "p_source": source,
                "p_target": target,
            }
            for name, each in self.found.items()
            for number, evaluation in enumerate(each.evaluations)
            for layer, (source, target) in enumerate(zip(evaluation.source, evaluation.target, strict=True))
        ]
        return pd.DataFrame(rows)

    @cached_property
    def summary(self) -> pd.DataFrame:
        """One row a setting: its layers, the probabilities they lead to, and how many patches were evaluated."""
        rows = [
            {
                "setting": name,
                "layers": ",".join(map(str, each.layers)) or "none",
                "p_source_best": each.last.source.max(),
                "p_source_last": each.last.source[-1],
                "p_target_last": each.last.target[-1],
                "evaluations": len(each.evaluations),
            }
            for name, each in self.found.items()
        ]
        return pd.DataFrame(rows)

    def _repr_html_(self) -> str:
        return in_notebook(self, self.summary)

    def plot(self) -> go.Figure:
        """The read-out after every block under the layers that were found."""
        from interp.plots.knob import search_map

        return search_map(self)

    def save(self, path: str | Path, started: datetime | None = None) -> Run:
        """Write a run folder: every evaluation, and the layers among the parameters. Raises UnwritableOutput."""
        layers = {name: list(each.layers) for name, each in self.found.items()}
        return save_run(
            path,
            kind=LAYERED,
            parameters={**self.parameters, "layers": layers},
            model=self.model,
            seed=self.seed,
            frame=self.frame,
            started=started,
        )

    @classmethod
    def load(cls, path: str | Path) -> LayerSearch:
        """Read what `save` wrote. Raises UnreadableFile, BadInput for a run of another kind."""
        run = load_run(path, LAYERED)
        parameters = dict(run.record.parameters)
        layers = parameters.pop("layers")
        if set(layers) != set(run.frame.setting):
            raise UnreadableFile(f"{path}: its table is of the settings {sorted(set(run.frame.setting))}, not {layers}")
        found = {
            name: Found(name, tuple(layers[name]), tuple(_evaluations(part)))
            for name, part in run.frame.groupby("setting", sort=False)
        }
        return cls(found, run.record.model, parameters, run.record.seed)


@dataclass(frozen=True, eq=False, repr=False)
class ExhaustiveSearch:
    """The final prediction under a patch of every range of layers; `single` ranks the ranges of one layer.

    `frame` has a row a setting and range `[start, stop)`: mean probability of the source's answer with its 95 %
    bootstrap interval, `p_unpatched` without a patch, n.
    """

    frame: pd.DataFrame
    model: Mapping[str, Any]
    parameters: Mapping[str, Any]
    seed: int

    def __repr__(self) -> str:
        return f"ExhaustiveSearch({len(self.frame)} ranges on {self.model['name']})"

    def single(self, setting: Setting) -> list[int]:
        """Layers by what a patch of each alone does to the source's answer, the strongest first."""
        rows = self.frame[(self.frame.setting == setting) & (self.frame.stop == self.frame.start + 1)]
        return rows.sort_values("p_source", ascending=False).start.tolist()

    def _repr_html_(self) -> str:
        return in_notebook(self, self.frame)

    def plot(self) -> go.Figure:
        """Heat maps of the source's answer, first by last layer of the patched range."""
        from interp.plots.knob import range_maps

        return range_maps(self)

    def save(self, path: str | Path, started: datetime | None = None) -> Run:
        """Write a run folder. Raises UnwritableOutput."""
        return save_run(
            path,
            kind=EXHAUSTIVE,
            parameters=self.parameters,
            model=self.model,
            seed=self.seed,
            frame=self.frame,
            started=started,
        )

    @classmethod
    def load(cls, path: str | Path) -> ExhaustiveSearch:
        """Read what `save` wrote. Raises UnreadableFile, BadInput for a run of another kind."""
        run = load_run(path, EXHAUSTIVE)
        return cls(run.frame, run.record.model, run.record.parameters, run.record.seed)


def _evaluations(frame: pd.DataFrame) -> Iterator[Evaluation]:
    """The evaluations of one setting, from its rows of a search's table."""
    for _, part in frame.groupby("evaluation"):
        patched = str(part.patched.iloc[0])
        layers = tuple(int(layer) for layer in patched.split(",") if layer)
        yield Evaluation(layers, part.p_source.to_numpy(), part.p_target.to_numpy())
