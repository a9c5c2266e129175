"""One stage of the discovery of a circuit: what it is told, what makes a head one of a role, and what it finds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from interp.circuits.evidence import Link
from interp.heads.ablation import Head
from interp.patching.path import PathPatchingResult
from interp.runs import Run


@dataclass(frozen=True)
class RoleTest:
    """What makes a head of a stage one of `role`: attention along `link`, the sign of its effect, what it copies.

    `copies`: 1 for heads that write what they attend to, -1 for those that write against it, 0 where it is no matter.
    """

    role: str
    link: Link
    sign: Literal[1, -1] = 1
    copies: Literal[1, 0, -1] = 0


@dataclass(frozen=True)
class Stage:
    """Senders at the position `at`, to the `component` of the heads that have the roles `feeds` (none: the logits)."""

    name: str
    feeds: tuple[str, ...]
    component: Literal["logits", "q", "k", "v"]
    at: str
    tests: tuple[RoleTest, ...]

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> Stage:
        """A stage from what `asdict` makes of it, in JSON."""
        tests = [RoleTest(**{**test, "link": tuple(test["link"])}) for test in record["tests"]]
        return cls(**{**record, "feeds": tuple(record["feeds"]), "tests": tuple(tests)})


@dataclass(frozen=True, eq=False)
class StageResult:
    """What a stage found: the effect of every sender and the attention along every link, `[layer head]`.

    `patched` is None where no head of the roles it feeds was found after the first layer, so that none can be fed.
    """

    stage: Stage
    receivers: tuple[Head, ...]
    patched: PathPatchingResult | None
    attention: Mapping[Link, np.ndarray]
    found: Mapping[Head, str]

    @property
    def effects(self) -> np.ndarray:
        """Share of the way to the corrupted logit difference, `[layer head]`; 0 for heads that sent nothing."""
        shape = next(iter(self.attention.values())).shape
        return np.zeros(shape) if self.patched is None else np.nan_to_num(self.patched.effects)

    @property
    def certain(self) -> np.ndarray:
        """How far the interval of every effect stays away from 0, `[layer head]`; 0 where it holds 0."""
        grid = np.zeros(self.effects.shape)
        if self.patched is not None:
            frame = self.patched.frame
            away = np.maximum(frame["effect_ratio_of_means_low"], -frame["effect_ratio_of_means_high"])
            grid[frame["layer"], frame["head"]] = np.nan_to_num(away).clip(0)
        return grid

    @property
    def moved(self) -> tuple[np.ndarray, np.ndarray]:
        """How far every prompt's logit difference moved, `[prompt layer head]`, and the way it had to go `[prompt]`."""
        assert self.patched is not None
        clean = self.patched.clean[0]
        grid = np.zeros((len(clean), *self.effects.shape))
        layers, heads = zip(*self.patched.senders, strict=True)
        grid[:, layers, heads] = self.patched.values[:, 0].T - clean[:, None]
        return grid, self.patched.corrupted[0] - clean

    @property
    def record(self) -> dict[str, Any]:
        """What JSON keeps of it; the numbers are in `arrays`."""
        patched = None
        if self.patched is not None:
            patched = {
                "receivers": self.patched.receivers,
                "metrics": self.patched.metrics,
                "parameters": self.patched.parameters,
                "seed": self.patched.seed,
            }
        found = [[*head, role] for head, role in self.found.items()]
        return {"stage": asdict(self.stage), "receivers": self.receivers, "patched": patched, "found": found}

    def arrays(self, prefix: str = "") -> dict[str, np.ndarray]:
        """The effects, the attention `[link layer head]` and the metric of every prompt, by names of the stage."""
        own = {"effects": self.effects, "attention": np.stack(list(self.attention.values()))}
        if self.patched is not None:
            own |= {name: getattr(self.patched, name) for name in ("values", "clean", "corrupted")}
            own["senders"] = np.array(self.patched.senders)
        return {f"{prefix}{name}.{self.stage.name}": array for name, array in own.items()}

    @classmethod
    def read(cls, run: Run, record: Mapping[str, Any], prefix: str = "") -> StageResult:
        """What `record` and `arrays` wrote into a run. Raises UnreadableFile."""
        stage = Stage.read(record["stage"])

        def array(name: str, *shape: int | None) -> np.ndarray:
            return run.array(f"{prefix}{name}.{stage.name}", *shape)

        links = list(dict.fromkeys(test.link for test in stage.tests))
        patched = None
        if (about := record["patched"]) is not None:
            metrics = len(about["metrics"])
            senders = array("senders", None, 2)
            values = array("values", len(senders), metrics, None)
            clean, corrupted = (array(side, metrics, values.shape[2]) for side in ("clean", "corrupted"))
            patched = PathPatchingResult(
                senders=_heads(senders.tolist()),
                receivers=tuple(about["receivers"]),
                metrics=tuple(about["metrics"]),
                values=values,
                clean=clean,
                corrupted=corrupted,
                model=run.record.model,
                parameters=about["parameters"],
                seed=about["seed"],
            )
        return cls(
            stage=stage,
            receivers=_heads(record["receivers"]),
            patched=patched,
            attention=dict(zip(links, array("attention", len(links), *run.heads), strict=True)),
            found={(layer, head): role for layer, head, role in record["found"]},
        )


def _heads(pairs: Sequence[Sequence[int]]) -> tuple[Head, ...]:
    return tuple((layer, head) for layer, head in pairs)
