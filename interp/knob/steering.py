"""One prompt continued without the knob, with it at a value, and with a random direction moved as far.

The control adds to what leaves the knob's block a vector of the length by which the knob changes it at the prompt's
last token, along a random direction at right angles to the knob, at that token and at every decoded one. So it
disturbs as much and leaves the knob's coordinate alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from interp.errors import BadInput, UnreadableFile
from interp.heads.scores import model_record
from interp.knob.knob import STEERED, Knob, coordinates
from interp.next_token import decoded, one_row
from interp.runs import Run, load_run, save_run
from interp.tables import in_notebook
from interp.tasks.prompts import PromptSet
from interp.tracing.edits import add
from interp.tracing.model import Model

if TYPE_CHECKING:
    import plotly.graph_objects as go

KIND = "knob-steering"
WITHOUT, KNOB, RANDOM = "without", "knob", "random"
"""Conditions of a steering; there are several random ones."""
CONTROLS = 5


@dataclass(frozen=True, eq=False, repr=False)
class Steering:
    """What one model says after one prompt, by condition: without the knob, with it, and under random controls.

    `texts` `[condition]` are greedy continuations, the controls' last; `probabilities` `[condition answer]` those of
    the first token of each of `answers` right after the prompt. `coordinate` is the knob's at the prompt's last token
    before it is set to `value`.
    """

    prompt: str
    value: float
    coordinate: float
    texts: tuple[str, ...]
    answers: tuple[str, ...]
    probabilities: np.ndarray
    model: Mapping[str, Any]
    parameters: Mapping[str, Any]
    seed: int

    def __repr__(self) -> str:
        return (
            f"Steering(from {self.coordinate:+.3g} to {self.value:+.3g}: {self.texts[0]!r} becomes {self.texts[1]!r})"
        )

    @cached_property
    def frame(self) -> pd.DataFrame:
        """One row a condition: how far the hidden state was moved, the text, and the probability of each answer."""
        moved = abs(self.value - self.coordinate)
        rows = [
            {"condition": condition, "moved": 0.0 if condition == WITHOUT else moved, "text": text}
            for condition, text in zip(self.conditions, self.texts, strict=True)
        ]
        shown = pd.DataFrame(self.probabilities, columns=[f"p({answer})" for answer in self.answers])
        return pd.concat([pd.DataFrame(rows), shown], axis=1)

    @property
    def conditions(self) -> tuple[str, ...]:
        """Names of the conditions, in the order of `texts`."""
        return (WITHOUT, KNOB, *(f"{RANDOM} {number + 1}" for number in range(len(self.texts) - 2)))

    @property
    def controls(self) -> np.ndarray:
        """Probabilities `[control answer]` under the random directions."""
        found: np.ndarray = self.probabilities[2:]
        return found

    def _repr_html_(self) -> str:
        return in_notebook(self, self.frame)

    def plot(self) -> go.Figure:
        """Bars of the answers' probabilities: without, at the value, and under the controls with their range."""
        from interp.plots.knob_effects import steering_bars

        return steering_bars(self)

    def save(self, path: str | Path, started: datetime | None = None) -> Run:
        """Write a run folder. Raises UnwritableOutput."""
        about = {"prompt": self.prompt, "value": self.value, "coordinate": self.coordinate}
        return save_run(
            path,
            kind=KIND,
            parameters={**self.parameters, **about, "texts": list(self.texts), "answers": list(self.answers)},
            model=self.model,
            seed=self.seed,
            frame=self.frame,
            arrays={"probabilities": self.probabilities},
            started=started,
        )

    @classmethod
    def load(cls, path: str | Path) -> Steering:
        """Read what `save` wrote. Raises UnreadableFile, BadInput for a run of another kind."""
        run = load_run(path, KIND)
        parameters = dict(run.record.parameters)
        prompt, value, coordinate = (parameters.pop(name) for name in ("prompt", "value", "coordinate"))
        texts, answers = (tuple(parameters.pop(name)) for name in ("texts", "answers"))
        if len(texts) < 3:
            raise UnreadableFile(f"{path} holds {len(texts)} continuations; a steering has at least 3")
        probabilities = run.array("probabilities", len(texts), len(answers))
        about = run.record.model, parameters, run.record.seed
        return cls(prompt, value, coordinate, texts, answers, probabilities, *about)


def steer(
    model: Model,
    knob: Knob,
    prompt: str | PromptSet,
    setting: str | float,
    *,
    new_tokens: int = 10,
    controls: int = CONTROLS,
    seed: int = 0,
) -> Steering:
    """Continue one prompt greedily without the knob, with it at a setting, and under random directions moved as far.

    Of a PromptSet of one prompt the first tokens of its answer and distractor are measured; of a text, which has
    neither, the tokens that the model says first without the knob and with it.

    Raises BadInput for several prompts and for none, a knob of another width or rank, an unknown setting, no control
    and a model without a tokenizer; PromptTooLong.
    """
    if model.tokenizer is None:
        raise BadInput("steering reads and writes text, and this model has no tokenizer; wrap(model, tokenizer=…)")
    if controls < 1:
        raise BadInput(f"controls={controls}: a steering has at least one random direction beside it")
    knob.check(model)
    value = knob.value(setting)
    row = one_row(model, prompt)
    resid = model.run([row], read=knob.site, positions=-1)[knob.site][0, 0]
    coordinate = float(coordinates(knob.basis, resid)[0])
    directions = right_angles(knob.direction, controls, seed)
    edits = [knob.edit(value).at(rows=1)]
    edits += [
        add(knob.site, direction, abs(value - coordinate)).at(positions=STEERED, rows=2 + number)
        for number, direction in enumerate(directions)
    ]
    rows = [row] * (2 + controls)
    logits = model.run(rows, edits=edits, logits="last").logits.double()
    answers = _answers(prompt) or {decoded(model, token): token for token in logits[:2].argmax(-1).tolist()}
    return Steering(
        prompt=prompt if isinstance(prompt, str) else prompt.texts[0],
        value=value,
        coordinate=coordinate,
        texts=model.generate(rows, max_new_tokens=new_tokens, edits=edits).texts,
        answers=tuple(answers),
        probabilities=logits.softmax(-1)[:, list(answers.values())].cpu().numpy(),
        model=model_record(model),
        parameters={"knob": knob.as_dict(), "new_tokens": new_tokens, "tokens": len(row)},
        seed=seed,
    )


def right_angles(direction: Tensor, count: int, seed: int) -> Tensor:
    """Random unit vectors `[count width]`, each at right angles to a unit `direction` `[width]`."""
    drawn = torch.randn(count, len(direction), generator=torch.Generator().manual_seed(seed))
    across = drawn - torch.outer(drawn @ direction, direction)
    return across / across.norm(dim=1, keepdim=True)


def _answers(prompt: str | PromptSet) -> dict[str, int]:
    """The first tokens of the answer and of the distractor of a task's prompt, by their texts; none of a text."""
    if isinstance(prompt, str):
        return {}
    texts = (*prompt.answers, *prompt.distractors)
    tokens = (*prompt.answer_tokens, *prompt.distractor_tokens)
    return {text: row[0] for text, row in zip(texts, tokens, strict=True)}
