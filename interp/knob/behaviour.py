"""What a model answers: as it is asked to, when nothing says what to follow, and when the knob is set.

Answers are decoded greedily, with the knob at the prompt's last token and at every new one. A response counts as an
answer where it begins with it and the word ends there (Minder et al. ask for the beginning alone, under which 13 would
count as 1).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from interp.errors import BadInput, UnreadableFile
from interp.heads.scores import model_record
from interp.knob.knob import Knob
from interp.runs import Run, load_run, save_run
from interp.stats import Interval, wilson_interval
from interp.tables import in_notebook
from interp.tasks.context_prior import INTENTS, ContextItem, ContextItems, PromptForm, context_prompts
from interp.tasks.prompts import PromptSet
from interp.tracing.edits import Edit
from interp.tracing.model import Model

if TYPE_CHECKING:
    import plotly.graph_objects as go

KIND = "knob-behaviour"
OUTCOMES = ("context", "prior", "other")
BATCH = 32
ROOM = 2
"""Tokens decoded beyond the longest answer, so that one sees where its word ends."""

Report = Callable[[int, int], None] | None


@dataclass(frozen=True, eq=False, repr=False)
class Behaviour:
    """Answers of one model under several settings.

    `outcomes[setting]` `[item 2]` are what was answered where the context was wanted and where the prior was: under
    `instructed` the prompt says so, under `steered` the knob alone does. `silent` `[item 1]` has neither. `values`
    `[value item]` are the answers with the knob set to each of `settings`, without instruction.
    """

    outcomes: Mapping[str, np.ndarray]
    settings: tuple[float, ...]
    values: np.ndarray
    model: Mapping[str, Any]
    parameters: Mapping[str, Any]

    def __repr__(self) -> str:
        said = ", ".join(f"{name} {self.pair_accuracy(name)}" for name in self.outcomes if name != "silent")
        return f"Behaviour(pair accuracy {said} on {self.model['name']})"

    def pair_accuracy(self, setting: str) -> Interval:
        """Share of items answered right under both intents, with a 95 % Wilson interval."""
        right = np.all(self._right(setting), axis=1)
        return wilson_interval(int(right.sum()), len(right))

    def accuracy(self, setting: str, intent: str) -> Interval:
        """Share of items answered right under one intent."""
        right = self._right(setting)[:, OUTCOMES.index(intent)]
        return wilson_interval(int(right.sum()), len(right))

    def _right(self, setting: str) -> np.ndarray:
        if setting not in self.outcomes or setting == "silent":
            known = [name for name in self.outcomes if name != "silent"]
            raise BadInput(f"no intent was given under {setting!r}; valid: {', '.join(known)}")
        return np.asarray(self.outcomes[setting] == np.array(INTENTS))

    @cached_property
    def frame(self) -> pd.DataFrame:
        """One row a setting and intent: rates of each kind of answer and the share of memory among context and memory;
        `right` and, of both intents together, `pair_accuracy`, with 95 % Wilson intervals; n."""
        rows = []
        for setting, outcomes in self.outcomes.items():
            for column, intent in enumerate(INTENTS if outcomes.shape[1] == 2 else ("none",)):
                row: dict[str, Any] = {"setting": setting, "intent": intent, **_rates(outcomes[:, column])}
                if intent != "none":
                    row |= columns("right", self.accuracy(setting, intent))
                    row |= columns("pair_accuracy", self.pair_accuracy(setting))
                rows.append({**row, "n": len(outcomes)})
        return pd.DataFrame(rows)

    @cached_property
    def curve(self) -> pd.DataFrame:
        """One row a value of the coordinate: rates of each kind of answer without instruction, with intervals."""
        rows = []
        for value, outcomes in zip(self.settings, self.values, strict=True):
            row: dict[str, Any] = {"value": value}
            for outcome in OUTCOMES:
                row |= columns(outcome, wilson_interval(int((outcomes == outcome).sum()), len(outcomes)))
            rows.append({**row, "n": len(outcomes)})
        return pd.DataFrame(rows)

    def _repr_html_(self) -> str:
        return in_notebook(self, self.frame)

    def plot(self) -> go.Figure:
        """Rates of answers along the value of the coordinate; by setting where no values were measured."""
        from interp.plots.knob_effects import answer_bars, answer_rates

        return answer_rates(self) if self.settings else answer_bars(self)

    def save(self, path: str | Path, started: datetime | None = None) -> Run:
        """Write a run folder: the frame, the curve and every outcome as its place in OUTCOMES.

        Raises UnwritableOutput.
        """
        arrays = {name: outcome_indices(outcomes) for name, outcomes in self.outcomes.items()}
        if self.settings:
            arrays |= {"values": outcome_indices(self.values), "settings": np.array(self.settings)}
        return save_run(
            path,
            kind=KIND,
            parameters={**self.parameters, "outcomes": list(OUTCOMES)},
            model=self.model,
            seed=0,
            frame=self.frame,
            arrays=arrays,
            started=started,
        )

    @classmethod
    def load(cls, path: str | Path) -> Behaviour:
        """Read what `save` wrote. Raises UnreadableFile, BadInput for a run of another kind."""
        run = load_run(path, KIND)
        names = sorted(run.arrays.keys() - {"values", "settings"})  # in the order in which they are measured
        outcomes = {name: read_outcomes(run, name, None, 1 if name == "silent" else 2) for name in names}
        if "silent" not in outcomes or len({len(answers) for answers in outcomes.values()}) != 1:
            raise UnreadableFile(f"{path} does not hold the answers of the same items under every setting")
        settings = run.array("settings", None) if "settings" in run.arrays else np.empty(0)
        values = np.empty((0, len(outcomes["silent"])), dtype=str)
        if len(settings):
            values = read_outcomes(run, "values", len(settings), len(outcomes["silent"]))
        parameters = {name: value for name, value in run.record.parameters.items() if name != "outcomes"}
        return cls(outcomes, tuple(settings.tolist()), values, run.record.model, parameters)


def evaluate(
    model: Model,
    items: ContextItems,
    knob: Knob | None = None,
    *,
    form: PromptForm | None = None,
    values: Sequence[float] = (),
    batch_size: int = BATCH,
    progress: Report = None,
) -> Behaviour:
    """Answers as instructed, without instruction, and under a knob without instruction.

    The knob may come from another model of the same width (transfer); it is set to its own values of "context" and
    "prior", and to each of `values`. Without a knob only the first two settings are measured; with the silent form only
    the last two.

    Raises BadInput for a knob of another width, or without values, and UnknownSite for a layer that the model lacks.
    """
    form = form or PromptForm()
    if knob is None and values:
        raise BadInput(f"values={list(values)} are those of a knob, and none was given")
    steering: list[Edit] = []
    if knob is not None:
        knob.check(model)
        steering = [knob.edit(setting) for setting in (*INTENTS, *values)]
    silent = context_prompts(model.tokenizer, items, form.silent, ("context",))
    rounds = len(steering) + 1 + (form.intent != "none")
    done = iter(range(1, rounds + 1))

    def answered(prompts: PromptSet, edit: Edit | None = None) -> np.ndarray:
        found = outcomes_of(model, prompts, items, edit, batch_size)
        if progress:
            progress(next(done), rounds)
        return found

    outcomes: dict[str, np.ndarray] = {}
    if form.intent != "none":
        outcomes["instructed"] = answered(context_prompts(model.tokenizer, items, form)).reshape(-1, 2)
    outcomes["silent"] = answered(silent)[:, None]
    steered = [answered(silent, edit) for edit in steering]
    if steered:
        outcomes["steered"] = np.stack(steered[:2], axis=1)
    about = {} if knob is None else knob.as_dict()
    return Behaviour(
        outcomes,
        tuple(map(float, values)),
        np.array(steered[2:], dtype=object).reshape(-1, len(items)).astype(str),
        model_record(model),
        {
            **form.as_dict(),
            "items": items.hash,
            "lost": dict(items.lost),
            "knob": about,
        },
    )


def outcomes_of(
    model: Model, prompts: PromptSet, items: ContextItems, edit: Edit | None = None, batch_size: int = BATCH
) -> np.ndarray:
    """What was answered to every prompt, `[prompt]` of OUTCOMES."""
    texts = responses(model, prompts, edit, batch_size)
    about = [items[row["item"]] for row in prompts.metadata]
    return np.array([outcome(text, item) for text, item in zip(texts, about, strict=True)])


def responses(model: Model, prompts: PromptSet, edit: Edit | None = None, batch_size: int = BATCH) -> list[str]:
    """Greedy responses, a little longer than the longest answer of either kind."""
    if batch_size < 1:
        raise BadInput(f"a batch has at least one prompt; got batch_size={batch_size}")
    longest = max(map(len, prompts.answer_tokens + prompts.distractor_tokens)) + ROOM
    edits = [] if edit is None else [edit]
    texts: list[str] = []
    for start in range(0, len(prompts), batch_size):
        part = prompts[start : start + batch_size]
        texts += model.generate(part, max_new_tokens=longest, edits=edits).texts
    return texts


def outcome(text: str, item: ContextItem) -> str:
    """Which answer a response begins with, the longer one where both fit."""
    answers = {"context": item.context_answer, "prior": item.prior_answer}
    for name, answer in sorted(answers.items(), key=lambda pair: -len(pair[1])):
        rest = text.strip().lower().removeprefix(answer.strip().lower())
        if len(rest) < len(text.strip()) and not rest[:1].isalnum():
            return name
    return "other"


def _rates(outcomes: np.ndarray) -> dict[str, float]:
    rates = {outcome: float((outcomes == outcome).mean()) for outcome in OUTCOMES}
    decided = rates["prior"] + rates["context"]
    return {**rates, "memory_ratio": rates["prior"] / decided if decided else float("nan")}


def columns(name: str, interval: Interval) -> dict[str, float]:
    """An estimate and its bounds as the columns of a table."""
    return {name: interval.estimate, f"{name}_low": interval.low, f"{name}_high": interval.high}


def outcome_indices(outcomes: np.ndarray) -> np.ndarray:
    """Outcomes as their places in OUTCOMES, as runs keep them."""
    return np.array([OUTCOMES.index(one) for one in outcomes.ravel()], dtype=np.int8).reshape(outcomes.shape)


def read_outcomes(run: Run, name: str, *shape: int | None) -> np.ndarray:
    """Outcomes of this shape that `outcome_indices` made an array of. Raises UnreadableFile."""
    found = run.array(name, *shape)
    if not np.isin(found, range(len(OUTCOMES))).all():
        raise UnreadableFile(f"{run.path}: the array {name!r} holds more than the places 0 to {len(OUTCOMES) - 1}")
    outcomes: np.ndarray = np.array(OUTCOMES)[found.astype(int)]
    return outcomes
