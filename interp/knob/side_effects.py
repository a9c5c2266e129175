"""What setting a knob costs tasks that have nothing to do with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from interp.errors import BadInput
from interp.heads.scores import model_record
from interp.knob.behaviour import BATCH, columns
from interp.knob.knob import Knob
from interp.runs import Run, load_run, save_run
from interp.stats import bootstrap_interval, wilson_interval
from interp.tables import in_notebook
from interp.tasks.context_prior import INTENTS
from interp.tasks.prompts import PromptSet
from interp.tracing.edits import Edit
from interp.tracing.model import Model

if TYPE_CHECKING:
    import plotly.graph_objects as go

KIND = "knob-side-effects"
WITHOUT = "none"
"""The setting without the knob."""


@dataclass(frozen=True, eq=False, repr=False)
class SideEffects:
    """Right answers of unrelated tasks without the knob and at its values of context and prior.

    `frame` has a row a task and setting (none, context, prior): `right`, the share of prompts whose greedy response is
    their whole answer, with its 95 % Wilson interval; `change` from no knob, with its 95 % bootstrap interval over
    prompts; n prompts.
    """

    frame: pd.DataFrame
    model: Mapping[str, Any]
    parameters: Mapping[str, Any]
    seed: int

    def __repr__(self) -> str:
        worst = self.frame.loc[self.frame.change.idxmin()]
        return f"SideEffects(worst change {worst.change:+.3g}: {worst.task} set to {worst.setting})"

    def _repr_html_(self) -> str:
        return in_notebook(self, self.frame)

    def plot(self) -> go.Figure:
        """Bars of right answers by task and setting."""
        from interp.plots.knob_effects import side_effect_bars

        return side_effect_bars(self)

    def save(self, path: str | Path, started: datetime | None = None) -> Run:
        """Write a run folder. Raises UnwritableOutput."""
        return save_run(
            path,
            kind=KIND,
            parameters=self.parameters,
            model=self.model,
            seed=self.seed,
            frame=self.frame,
            started=started,
        )

    @classmethod
    def load(cls, path: str | Path) -> SideEffects:
        """Read what `save` wrote. Raises UnreadableFile, BadInput for a run of another kind."""
        run = load_run(path, KIND)
        return cls(run.frame, run.record.model, run.record.parameters, run.record.seed)


def side_effects(
    model: Model, knob: Knob, prompts: Mapping[str, PromptSet], *, batch_size: int = BATCH, seed: int = 0
) -> SideEffects:
    """What setting the knob costs unrelated tasks, by the name of each.

    Raises BadInput for prompts without answers and for a knob of another width.
    """
    knob.check(model)
    rows: list[dict[str, Any]] = []
    for task, own in prompts.items():
        if not own.answers:
            raise BadInput(f"the prompts of {task} have no answers")
        base = _right_answers(model, own, None, batch_size)
        for setting in (WITHOUT, *INTENTS):
            right = base if setting == WITHOUT else _right_answers(model, own, knob.edit(setting), batch_size)
            share = wilson_interval(int(right.sum()), len(right))
            change = bootstrap_interval(right - base, seed=seed)
            rows.append(
                {
                    "task": task,
                    "setting": setting,
                    **columns("right", share),
                    **columns("change", change),
                    "n": len(right),
                }
            )
    parameters = {"knob": knob.as_dict(), "prompts": {task: own.hash for task, own in prompts.items()}}
    return SideEffects(pd.DataFrame(rows), model_record(model), parameters, seed)


def _right_answers(model: Model, prompts: PromptSet, edit: Edit | None, batch_size: int) -> np.ndarray:
    """Whether each prompt's greedy response is its whole answer, `[prompt]` of 0 and 1."""
    right = []
    for start in range(0, len(prompts), batch_size):
        part = prompts[start : start + batch_size]
        longest = max(map(len, part.answer_tokens))
        found = model.generate(part, max_new_tokens=longest, edits=[] if edit is None else [edit]).tokens
        right += [row[: len(answer)] == answer for row, answer in zip(found, part.answer_tokens, strict=True)]
    return np.array(right, dtype=float)
