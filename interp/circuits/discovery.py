"""What the staged discovery of a circuit finds: heads with roles, their effects, and the circuit they make."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from interp.circuits.circuit import Circuit
from interp.circuits.evidence import CopyScores
from interp.circuits.stage import StageResult
from interp.errors import BadInput
from interp.heads.ablation import Head
from interp.runs import Run, load_run, save_run
from interp.stats import Interval, bootstrap_interval
from interp.tables import in_notebook

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True)
class Thresholds:
    """From where on a head counts: `effect` as a share of the way from clean to corrupted (absolute), `attention` as
    mean probability along the link of its role, `copy` as share of copied tokens."""

    effect: float = 0.02
    attention: float = 0.3
    copy: float = 0.5

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not 0 <= value <= 1:
                raise BadInput(f"the threshold {name}={value} is not a share between 0 and 1")


RECORDED = ("task", "accuracy", "contrast", "roles", "copied_tokens", "stages", "evaluations")
"""What a run of a circuit says besides the parameters of its discovery."""


@dataclass(frozen=True, eq=False, repr=False)
class Discovery:
    """All stages of one task on one model."""

    task: str
    stages: tuple[StageResult, ...]
    copies: CopyScores
    accuracy: float
    """Share of prompts whose answer is the most probable token."""
    model: Mapping[str, Any]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0

    def __repr__(self) -> str:
        found = ", ".join(f"{len(heads)} {role}" for role, heads in self.by_role.items()) or "no head with a role"
        return f"Discovery({self.task} on {self.model['name']}: {found})"

    @property
    def contrast(self) -> Interval:
        """Mean logit difference of the clean prompts minus that of the corrupted ones, with its interval.

        Effects are shares of it: where it may be 0, the model does not tell the two apart and effects are noise.
        """
        patched = self.stages[0].patched
        assert patched is not None
        return bootstrap_interval(patched.clean[0] - patched.corrupted[0], seed=self.seed)

    @property
    def roles(self) -> dict[Head, str]:
        """The role of every head that has one; of a head that several stages found, the first."""
        found: dict[Head, str] = {}
        for result in self.stages:
            for head, role in result.found.items():
                found.setdefault(head, role)
        return found

    @property
    def by_role(self) -> dict[str, tuple[Head, ...]]:
        """The heads of every role, whichever stages found them, strongest first."""
        found: dict[str, tuple[Head, ...]] = {}
        for result in self.stages:
            for test in result.stage.tests:
                heads = tuple(head for head, role in result.found.items() if role == test.role)
                if heads:
                    found[test.role] = heads
        return found

    @cached_property
    def effects(self) -> np.ndarray:
        """Of every head the effect, with its sign, at the stage where it is strongest, `[layer head]`."""
        each = np.stack([result.effects for result in self.stages])
        return np.take_along_axis(each, np.abs(each).argmax(0)[None], axis=0)[0]

    @property
    def scores(self) -> np.ndarray:
        """Of every head the largest absolute effect of any stage, `[layer head]`."""
        return np.abs(self.effects)

    def strongest(self, size: int) -> tuple[Head, ...]:
        """The heads with the largest scores, largest first, as a faithfulness curve of the scores takes them in."""
        order = np.argsort(-self.scores, axis=None, kind="stable")[:size]
        return tuple(divmod(int(i), self.scores.shape[1]) for i in order)

    def circuit(self, size: int | None = None, at: str | None = None) -> Circuit:
        """The heads whose effect at some stage reaches the threshold and is no accident of the prompts, with roles.

        An effect is no accident where its interval does not hold 0; heads come in the order of the bound nearest to 0.
        At most `size` of them; only by what they do at the position `at`, if one is named. Raises BadInput where no
        head is left.
        """
        least = self.parameters["thresholds"]["effect"]
        chosen = [result for result in self.stages if at is None or result.stage.at == at]
        bounds = [np.where(np.abs(result.effects) >= least, result.certain, 0) for result in chosen]
        scores = np.max([np.zeros_like(self.scores), *bounds], axis=0)
        order = [divmod(int(i), scores.shape[1]) for i in np.argsort(-scores, axis=None, kind="stable")]
        heads = tuple(head for head in order if scores[head] > 0)[:size]
        if not heads:
            where = f" at {at}" if at else ""
            raise BadInput(
                f"no head of {self.model['name']} certainly reaches an effect of {least} in {self.task}{where}: take "
                f"more prompts or lower the threshold, unless the model does not solve the task (accuracy "
                f"{self.accuracy:.2f})"
            )
        return Circuit(heads, {head: role for head, role in self.roles.items() if head in heads})

    @property
    def frame(self) -> pd.DataFrame:
        """One row a stage and sender, strongest first within a stage.

        Columns: stage, layer, head, effect with its interval over prompts, the attention along every link of the stage,
        copy and anti_copy scores, the role it has by the tests of this stage.
        """
        parts = [_stage_frame(result, self.copies) for result in self.stages if result.patched is not None]
        frame = pd.concat(parts, ignore_index=True)
        last = ["copy", "anti_copy", "role", "n"]
        return frame[[*frame.columns.drop(last), *last]]

    def plot(self) -> go.Figure:
        """The heads with roles, layer by layer, and which of them feed which."""
        from interp.plots.circuit_graph import circuit_graph

        return circuit_graph(self)

    def _repr_html_(self) -> str:
        return in_notebook(self, self.frame)

    @property
    def record(self) -> dict[str, Any]:
        """What JSON keeps of it; the numbers are in `arrays`."""
        return {
            "task": self.task,
            "accuracy": self.accuracy,
            "contrast": asdict(self.contrast),
            "roles": {role: [list(head) for head in heads] for role, heads in self.by_role.items()},
            "copied_tokens": self.copies.n,
            "stages": [result.record for result in self.stages],
            **self.parameters,
        }

    def arrays(self, prefix: str = "") -> dict[str, np.ndarray]:
        """The copy scores and the arrays of every stage, by names that begin with `prefix`."""
        copies = {f"{prefix}copy": self.copies.positive, f"{prefix}anti_copy": self.copies.negative}
        return {name: array for result in self.stages for name, array in result.arrays(prefix).items()} | copies

    @classmethod
    def read(cls, run: Run, record: Mapping[str, Any], seed: int, prefix: str = "") -> Discovery:
        """What `record` and `arrays` wrote into a run. Raises UnreadableFile."""
        parameters = {name: value for name, value in record.items() if name not in RECORDED}
        positive, negative = (run.array(f"{prefix}{name}", *run.heads) for name in ("copy", "anti_copy"))
        return cls(
            task=record["task"],
            stages=tuple(StageResult.read(run, stage, prefix) for stage in record["stages"]),
            copies=CopyScores(positive, negative, record["copied_tokens"]),
            accuracy=record["accuracy"],
            model=run.record.model,
            parameters=parameters,
            seed=seed,
        )

    def save(self, path: str | Path, started: datetime | None = None) -> Run:
        """Write a run folder: the frame, and what every stage measured. Raises UnwritableOutput."""
        return save_run(
            path,
            kind="circuit",
            parameters=self.record,
            model=self.model,
            seed=self.seed,
            frame=self.frame,
            arrays=self.arrays(),
            started=started,
        )

    @classmethod
    def load(cls, path: str | Path) -> Discovery:
        """Read what `save`, or that of a `CircuitStudy`, wrote. Raises UnreadableFile, BadInput for another kind."""
        run = load_run(path, "circuit")
        return cls.read(run, run.record.parameters, run.record.seed)


def _stage_frame(result: StageResult, copies: CopyScores) -> pd.DataFrame:
    assert result.patched is not None
    patched = result.patched.frame
    at = (patched["layer"].to_numpy(), patched["head"].to_numpy())
    columns = {
        "stage": result.stage.name,
        "layer": at[0],
        "head": at[1],
        "effect": patched["effect_ratio_of_means"],
        "low": patched["effect_ratio_of_means_low"],
        "high": patched["effect_ratio_of_means_high"],
    }
    columns |= {f"{query}→{key}": values[at] for (query, key), values in result.attention.items()}
    columns |= {"copy": copies.positive[at], "anti_copy": copies.negative[at]}
    columns |= {"role": [result.found.get(head, "") for head in zip(*at, strict=True)], "n": patched["n"]}
    frame = pd.DataFrame(columns)
    return frame.sort_values("effect", key=np.abs, ascending=False, kind="stable", ignore_index=True)
