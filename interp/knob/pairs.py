"""Items as pairs of prompts, one to be answered from the context and one from memory, run once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from interp.errors import BadInput
from interp.knob.last_token import Executor, LastTokens, last_tokens
from interp.tasks.context_prior import ContextItems, PromptForm, context_prompts, without_collisions
from interp.tasks.prompts import PromptSet
from interp.tracing.model import Model

NOT_CONFIDENT = "not answered as asked under both intents"
"""What a pair is lost to that the model does not get right."""


@dataclass(frozen=True, eq=False)
class Pairs:
    """Prompts of both intents of every item, next to each other: row 2i follows the context, row 2i + 1 memory.

    `answers` `[row]` and `others` `[row]` are the first tokens of the answer of a row's intent and of the other one;
    `reason` says why the prompts were run as they were.
    """

    items: ContextItems
    form: PromptForm
    prompts: PromptSet
    base: LastTokens
    reason: str

    def __len__(self) -> int:
        return len(self.items)

    @cached_property
    def answers(self) -> Tensor:
        return torch.tensor([row[0] for row in self.prompts.answer_tokens], device=self.base.logits.device)

    @cached_property
    def others(self) -> Tensor:
        return torch.tensor([row[0] for row in self.prompts.distractor_tokens], device=self.base.logits.device)

    @cached_property
    def confident(self) -> np.ndarray:
        """Pairs `[pair]` whose answers are both predicted, by their first tokens."""
        right = self.base.logits.argmax(-1) == self.answers
        return right.view(-1, 2).all(1).cpu().numpy()

    def used(self, confident: bool = True, least: int = 1) -> np.ndarray:
        """Indices of the confident pairs, or of all; raises BadInput for fewer than `least`, saying where they went."""
        chosen = np.flatnonzero(self.confident) if confident else np.arange(len(self))
        if len(chosen) < least:
            lost = {**self.items.lost, NOT_CONFIDENT: len(self) - len(chosen)}
            raise BadInput(
                f"{len(chosen)} pairs are left, and at least {least} are needed; lost: "
                f"{', '.join(f'{count} {reason}' for reason, count in lost.items())}. Give more items, another form of "
                "prompt, or confident=False"
            )
        return chosen

    def rows(self, pairs: Sequence[int] | np.ndarray) -> Tensor:
        """The rows of some pairs, `[2 * pair]`."""
        first = 2 * torch.as_tensor(np.asarray(pairs), dtype=torch.long)
        return torch.stack([first, first + 1], dim=1).flatten()

    def resid(self, layer: int, pairs: Sequence[int] | np.ndarray) -> Tensor:
        """What leaves a block at the last token, `[pair intent width]`, in float32 or better."""
        value = self.base.resid[layer][self.rows(pairs).to(self.base.resid.device)]
        return value.to(torch.promote_types(value.dtype, torch.float32)).unflatten(0, (-1, 2))


def intent_pairs(
    model: Model,
    items: ContextItems,
    form: PromptForm,
    *,
    executor: Executor = "auto",
    memory: int | None = None,
) -> Pairs:
    """Run both prompts of every item whose answers begin with different tokens; the others are counted in `items.lost`.

    Raises BadInput for a form that does not say what to follow, and where no item is left.
    """
    if form.intent == "none":
        raise BadInput("prompts of form 'none' are the same for both intents; use 'instruction' or 'weight'")
    if model.tokenizer is None:
        raise BadInput("items are text, and this model has no tokenizer; wrap(model, tokenizer=…)")
    kept = without_collisions(model.tokenizer, items, form)
    prompts = context_prompts(model.tokenizer, kept, form)
    base, reason = last_tokens(model, prompts.tokens, executor=executor, memory=memory)
    return Pairs(kept, form, prompts, base, reason)


@dataclass(frozen=True, eq=False)
class Split:
    """Indices of pairs: to fit on, to stop and choose the layer by, and to report on."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def split_pairs(indices: np.ndarray, validation: float, test: float, seed: int) -> Split:
    """A seeded split by shares. Raises BadInput for shares that leave a part empty."""
    count = len(indices)
    if not (0 < validation < 1 and 0 < test < 1 and validation + test < 1):
        raise BadInput(f"validation={validation} and test={test} are shares between 0 and 1, together less than 1")
    order = np.random.default_rng(seed).permutation(indices)
    sizes = round(count * test), round(count * validation)
    held, stopping, train = np.split(order, np.cumsum(sizes))
    if not (len(held) and len(stopping) and len(train) > 1):
        raise BadInput(
            f"{count} pairs leave {len(train)} to fit on, {len(stopping)} to stop by and {len(held)} to report on; "
            "give more items, or other shares"
        )
    return Split(train, stopping, held)
