"""Random prompts with an aligned counterfactual, answers, distractors and roles, for random models."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from interp.tasks.prompts import PromptSet
from tests.families import VOCAB, prompts


def random_pairs(rows: int = 3, length: int = 9) -> PromptSet:
    """Roles `first` (token 2) and `end`; prompt and counterfactual share no tokens but by chance."""
    clean, twin = (_rows(prompts(rows, length, seed)) for seed in (1, 2))
    tokens = torch.randperm(VOCAB, generator=torch.Generator().manual_seed(3))[: 2 * rows].tolist()
    return replace(
        PromptSet(tuple(f"clean {i}" for i in range(rows)), clean),
        answers=tuple("a" * rows),
        answer_tokens=tuple((token,) for token in tokens[:rows]),
        distractors=tuple("d" * rows),
        distractor_tokens=tuple((token,) for token in tokens[rows:]),
        spans={"first": ((2, 3),) * rows, "end": ((length - 1, length),) * rows},
        counterfactual=PromptSet(tuple(f"twin {i}" for i in range(rows)), twin),
    )


def ids(pairs: PromptSet) -> tuple[Tensor, Tensor]:
    """Clean and corrupted token ids `[prompt tokens]`."""
    assert pairs.counterfactual is not None
    return torch.tensor(pairs.tokens), torch.tensor(pairs.counterfactual.tokens)


def difference(logits: Tensor, pairs: PromptSet) -> Tensor:
    """Logit difference of every prompt, `[prompt]`, from the logits of the last position `[prompt vocab]`."""
    rows = torch.arange(len(pairs))
    answers, distractors = (torch.tensor(t)[:, 0] for t in (pairs.answer_tokens, pairs.distractor_tokens))
    return logits[rows, answers] - logits[rows, distractors]


def _rows(tokens: Tensor) -> tuple[tuple[int, ...], ...]:
    return tuple(map(tuple, tokens.tolist()))
