"""What a study feeds a model: token rows, and how many of their last positions decode an answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from interp.errors import BadInput
from interp.tasks.prompts import PromptSet

DECODE = "decode"
"""The role of the positions that decode an answer: the last token of the prompt and the answer's but for its last."""


@dataclass(frozen=True)
class Rows:
    """Token rows of one run, with their named positions."""

    tokens: tuple[tuple[int, ...], ...]
    spans: Mapping[str, tuple[tuple[int, int], ...]]


@dataclass(frozen=True)
class Fed:
    """Rows of tokens; the last `decoded[i]` positions of row i predict `answers[i]`, none in plain text."""

    tokens: tuple[tuple[int, ...], ...]
    decoded: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...] = ()
    metadata: tuple[Mapping[str, Any], ...] = ()

    @classmethod
    def answering(cls, prompts: PromptSet) -> Fed:
        """Every prompt with its answer, but for the token that nothing follows. Raises BadInput without either."""
        if not len(prompts):
            raise BadInput("there are no prompts: a study needs at least one")
        if not prompts.answers:
            raise BadInput("recall is measured against answers, and these prompts have none")
        answers = prompts.answer_tokens
        rows = tuple((*prompt, *answer[:-1]) for prompt, answer in zip(prompts.tokens, answers, strict=True))
        return cls(rows, tuple(map(len, answers)), answers, prompts.metadata)

    def __len__(self) -> int:
        return len(self.tokens)

    def rows(self, indices: Sequence[int]) -> Rows:
        """The rows at `indices`, with the role "decode" where there are answers."""
        tokens = tuple(self.tokens[i] for i in indices)
        spans = tuple((len(self.tokens[i]) - self.decoded[i], len(self.tokens[i])) for i in indices)
        return Rows(tokens, {DECODE: spans} if self.answers else {})
