"""What LoFiT teaches and how well it is known: prompts with answers, and which answers a model gets right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

import numpy as np
import torch

from interp.errors import BadInput
from interp.tasks.classification import Classification
from interp.tasks.prompts import PromptSet
from interp.tracing.edits import Edit
from interp.tracing.model import Model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHUNK = 64


@dataclass(frozen=True)
class Skill:
    """Prompts with answers to learn from and to be tested on; DPO and ITI need distractors, too.

    `choices` are the tokens of label words: an answer is right where its token is the likeliest of these. Without, it
    is right where greedy decoding gives the whole answer (exact match). Raises BadInput for prompts without answers,
    and for choices that lack an answer or of which the training prompts have one alone.
    """

    name: str
    train: PromptSet
    test: PromptSet
    choices: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for split, prompts in (("train", self.train), ("test", self.test)):
            if not len(prompts) or not prompts.answers:
                raise BadInput(f"{self.name} has no prompts with answers to {split} with")
            outside = [
                i for i, answer in enumerate(prompts.answer_tokens) if self.choices and answer[0] not in self.choices
            ]
            if outside:
                raise BadInput(
                    f"answer {prompts.answers[outside[0]]!r} of {self.name} ({split}) is none of its label words"
                )
        if self.choices and len(set(self.train.answer_tokens)) < 2:
            raise BadInput(
                f"every training answer of {self.name} is {self.train.answers[0]!r}; there must be two classes"
            )

    @classmethod
    def of(cls, task: Classification) -> Skill:
        """A classification task as a skill: its training and test splits, told apart by the label words."""
        return cls(task.name, task["train"].prompts, task["test"].prompts, task.label_tokens)

    def right(self, model: Model, split: PromptSet | None = None, edits: Sequence[Edit] = ()) -> np.ndarray:
        """Whether each answer (of the test prompts by default) is right under the edits, `[prompt]` of 0 and 1."""
        prompts = self.test if split is None else split
        found = np.zeros(len(prompts))
        by_answer: dict[int, list[int]] = {}
        for i, answer in enumerate(prompts.answer_tokens):
            by_answer.setdefault(len(answer), []).append(i)
        for length, rows in by_answer.items():
            for start in range(0, len(rows), CHUNK):
                chunk = rows[start : start + CHUNK]
                tokens = [(*prompts.tokens[i], *prompts.answer_tokens[i][:-1]) for i in chunk]
                logits = model.run(tokens, edits=edits, logits=tuple(range(-length, 0))).logits
                found[chunk] = self._right(logits, [prompts.answer_tokens[i] for i in chunk]).cpu().numpy()
        return found

    def _right(self, logits: torch.Tensor, answers: list[tuple[int, ...]]) -> torch.Tensor:
        """Of logits `[prompt answer vocab]`."""
        if self.choices:
            choices = torch.tensor(self.choices, device=logits.device)
            first = torch.tensor([answer[0] for answer in answers], device=logits.device)
            return choices[logits[:, 0, choices].argmax(-1)] == first
        return (logits.argmax(-1) == torch.tensor(answers, device=logits.device)).all(-1)


def memory_skill(tokenizer: PreTrainedTokenizerBase, n: int = 128, n_test: int = 200, seed: int = 0) -> Skill:
    """For the bundled model: name a city's country from memory although the prompt says to use a contradicting context.

    It was trained to do as it is told, so it does the opposite, and it has all it needs to do this. Training and test
    contradictions do not overlap.
    """
    from interp.pocket.skills.facts import context_item, contradiction

    def prompts(split: str, count: int) -> PromptSet:
        rng = Random(f"memory {split} {seed}")
        drawn = [context_item(rng, split).about for _ in range(count)]  # type: ignore[arg-type]
        items = [contradiction(about["city"], about["context"], True, about["statement"]) for about in drawn]
        return PromptSet.build(
            tokenizer,
            [item.prompt for item in items],
            [f" {item.about['memory']}" for item in items],
            distractors=[item.answer for item in items],
        )

    return Skill("memory", prompts("train", n), prompts("held_out", n_test))
