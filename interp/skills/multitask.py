"""Several skills in one model: do their regions overlap, what does each carry of the others, and keeping old ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from interp.errors import BadInput
from interp.runs import Run, load_run, save_run
from interp.skills.finetune import finetune
from interp.skills.localize import localize
from interp.skills.mask import GraftMask, union
from interp.stats import Interval, bootstrap_interval, wilson_interval
from interp.tables import in_notebook
from interp.tasks.classification import Classification
from interp.tracing.model import Model

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True, eq=False, repr=False)
class Overlap:
    """Shared entries of masks, `shared[i, j]` = |i ∩ j|; `matrix[i, j]` is their share of mask j.

    So a column says how much of its mask lies in each other one, and transposed entries differ where budgets do.
    `size` is how many parameters could be grafted, `model` says of which pre-trained model.
    """

    names: tuple[str, ...]
    shared: np.ndarray
    size: int
    model: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Overlap({', '.join(self.names)}: {self.matrix.round(3).tolist()})"

    @property
    def matrix(self) -> np.ndarray:
        return np.asarray(self.shared / np.maximum(np.diag(self.shared), 1)[None, :])

    @property
    def by_chance(self) -> np.ndarray:
        """What the matrix would be on average if every other mask were drawn at random."""
        by_chance = np.repeat(np.diag(self.shared)[:, None] / self.size, len(self.names), axis=1)
        np.fill_diagonal(by_chance, 1.0)
        return np.asarray(by_chance)

    @property
    def frame(self) -> pd.DataFrame:
        """One row an ordered pair: the shared entries, their share of the second mask, and that expected by chance."""
        sizes, chance = np.diag(self.shared), self.by_chance
        return pd.DataFrame(
            [
                (a, b, int(self.shared[i, j]), self.matrix[i, j], chance[i, j], int(sizes[i]), int(sizes[j]))
                for i, a in enumerate(self.names)
                for j, b in enumerate(self.names)
            ],
            columns=["mask", "other", "shared", "share_of_other", "by_chance", "mask_size", "other_size"],
        )

    def plot(self) -> go.Figure:
        """Heat map of the matrix."""
        from interp.plots.graft_masks import overlap_map

        return overlap_map(self)

    def save(self, path: str | Path, started: datetime | None = None) -> Run:
        """Write a run. Raises UnwritableOutput."""
        return save_run(
            path,
            kind="skill-overlap",
            parameters={"masks": list(self.names), "size": self.size},
            model=self.model,
            seed=0,
            frame=self.frame,
            arrays={"shared": self.shared},
            started=started,
        )

    @classmethod
    def load(cls, path: str | Path) -> Overlap:
        """Read what `save` wrote. Raises UnreadableFile, BadInput for a run of another kind."""
        run = load_run(path, "skill-overlap")
        names = tuple(map(str, run.record.parameters["masks"]))
        shared = run.array("shared", len(names), len(names))
        return cls(names, shared, int(run.record.parameters["size"]), run.record.model)

    def _repr_html_(self) -> str:
        return in_notebook(self, self.frame)


def overlap(masks: Mapping[str, GraftMask]) -> Overlap:
    """Entries that masks of one pre-trained model share. Raises BadInput for fewer than two, MaskMismatch."""
    if len(masks) < 2:
        raise BadInput(f"an overlap takes two masks or more, not {len(masks)}")
    each = list(masks.values())
    shared = np.array([[len(a & b) for b in each] for a in each])
    about = {"name": each[0].metadata.get("model", "the pre-trained model"), "fingerprint": each[0].pre}
    return Overlap(tuple(masks), shared, each[0].size, about)


def overlap_difference(overlaps: Sequence[Overlap], related: Sequence[tuple[str, str]], seed: int = 0) -> pd.DataFrame:
    """Mean overlap of related and of other pairs and their difference, with bootstrap intervals over `overlaps`.

    One overlap a seed of the whole experiment; both directions of a pair count. Raises BadInput.
    """
    if not overlaps:
        raise BadInput("there are no overlaps to compare")
    names = overlaps[0].names
    if unknown := [name for pair in related for name in pair if name not in names]:
        raise BadInput(f"there is no mask {unknown[0]!r} among {', '.join(names)}")
    kin = np.array([[(a, b) in related or (b, a) in related for b in names] for a in names])
    others = ~kin & ~np.eye(len(names), dtype=bool)
    if not kin.any() or not others.any():
        raise BadInput("there must be related pairs and others to compare them with")
    means = np.array([(each.matrix[kin].mean(), each.matrix[others].mean()) for each in overlaps])

    def row(pairs: str, interval: Interval) -> dict[str, Any]:
        return {"pairs": pairs, "overlap": interval.estimate, "low": interval.low, "high": interval.high}

    rows = [
        row("related", bootstrap_interval(means[:, 0], seed=seed)),
        row("other", bootstrap_interval(means[:, 1], seed=seed)),
        row("difference", bootstrap_interval(means[:, 0] - means[:, 1], seed=seed)),
    ]
    return pd.DataFrame(rows).assign(n=len(overlaps))


def relative_gains(
    pre: Model, ft: Model, masks: Mapping[str, GraftMask], tasks: Sequence[Classification]
) -> pd.DataFrame:
    """What each mask, and the union of all, carries of every task: (P_γ − P_pre) / (P_ft − P_pre) on test accuracy.

    `ft` is one model fine-tuned on all tasks. Columns: mask, parameters, task, accuracy, relative_gain (NaN where
    fine-tuning gained nothing). Raises MaskMismatch.
    """
    before = {task.name: task.accuracy(pre) for task in tasks}
    after = {task.name: task.accuracy(ft) for task in tasks}
    rows = []
    for name, mask in {**masks, "union": union(list(masks.values()))}.items():
        with mask.check(pre, ft).applied(pre, ft) as grafted:
            for task in tasks:
                accuracy, gain = task.accuracy(grafted), after[task.name] - before[task.name]
                relative = (accuracy - before[task.name]) / gain if gain > 0 else float("nan")
                rows.append((name, len(mask), task.name, accuracy, relative))
    return pd.DataFrame(rows, columns=["mask", "parameters", "task", "accuracy", "relative_gain"])


@dataclass(frozen=True, eq=False, repr=False)
class Continual:
    """Accuracy on every task after each stage of learning them one after the other, two ways.

    `frame` has a row a method, stage and task: stage 0 is the model before it learned anything, `learned` the task of
    the stage, `accuracy` that on the test examples, with Wilson's interval and n.
    """

    frame: pd.DataFrame
    model: Mapping[str, Any]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0

    def __repr__(self) -> str:
        drops = self.forgetting.groupby("method", sort=False)["drop"].mean()
        lost = ", ".join(f"{method} {drop:.3f}" for method, drop in drops.items())
        return f"Continual({', '.join(self.parameters['tasks'])}: accuracy lost on average: {lost})"

    @property
    def forgetting(self) -> pd.DataFrame:
        """How far accuracy on a task fell from when it had just been learned to the end: method, task, drop."""
        rows = []
        for (method, task), group in self.frame.groupby(["method", "task"], sort=False):
            learned = group[group.learned == task].accuracy
            if len(learned):
                rows.append((method, task, float(learned.iloc[0]), float(group.accuracy.iloc[-1])))
        table = pd.DataFrame(rows, columns=["method", "task", "learned", "finally"])
        return table.assign(drop=table.learned - table["finally"])

    def save(self, path: str | Path, started: datetime | None = None) -> Run:
        """Write a run. Raises UnwritableOutput."""
        return save_run(
            path,
            kind="skill-continual",
            parameters=self.parameters,
            model=self.model,
            seed=self.seed,
            frame=self.frame,
            started=started,
        )

    @classmethod
    def load(cls, path: str | Path) -> Continual:
        """Read what `save` wrote. Raises UnreadableFile, BadInput for a run of another kind."""
        run = load_run(path, "skill-continual")
        return cls(run.frame, run.record.model, run.record.parameters, run.record.seed)

    def plot(self) -> go.Figure:
        """Accuracy on every task after each stage, a panel a task."""
        from interp.plots.skills import continual_curves

        return continual_curves(self)

    def _repr_html_(self) -> str:
        return in_notebook(self, self.frame, self.forgetting)


def continual(
    pre: Model,
    tasks: Sequence[Classification],
    *,
    tuning: Mapping[str, Any] | None = None,
    localizing: Mapping[str, Any] | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Continual:
    """Learn tasks one after the other: by plain fine-tuning, and keeping of each only a localised region.

    Grafting fine-tunes the model it has on the next task, localises what moved, and goes on with the graft alone.
    `tuning` and `localizing` are arguments of `finetune` and `localize`. Raises BadInput for fewer than two tasks.
    """
    if len(tasks) < 2:
        raise BadInput(f"learning one task after another takes two or more, not {len(tasks)}")
    tuning, localizing = dict(tuning or {}), dict(localizing or {})
    rows: list[dict[str, Any]] = []

    def measured(model: Model) -> list[dict[str, Any]]:
        found = []
        for task in tasks:
            n = len(task["test"])
            right = wilson_interval(round(task.accuracy(model) * n), n)
            found.append({"task": task.name, "accuracy": right.estimate, "low": right.low, "high": right.high, "n": n})
        return found

    before = measured(pre)
    for number, method in enumerate(("sequential", "grafting")):
        model = pre
        rows += [{"method": method, "stage": 0, "learned": "", **row} for row in before]
        for stage, task in enumerate(tasks, 1):
            tuned = finetune(model, task, seed=seed, **tuning).model
            if method == "grafting":
                mask = localize(model, tuned, task, seed=seed, **localizing).mask
                tuned = mask.apply(model, tuned)
            model = tuned
            rows += [{"method": method, "stage": stage, "learned": task.name, **row} for row in measured(model)]
            progress(number * len(tasks) + stage, 2 * len(tasks))
    return Continual(
        pd.DataFrame(rows),
        {**pre.spec.as_dict(), "fingerprint": pre.fingerprint},
        {"tasks": [task.name for task in tasks], "tuning": tuning, "localizing": localizing},
        seed,
    )
