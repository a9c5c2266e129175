"""The bundled model's held-out items as prompt sets, for the analyses that take those."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING

from interp.errors import BadInput, choose
from interp.pocket.documents import Item
from interp.pocket.skills import SKILLS
from interp.pocket.skills.arithmetic import addition, steps_item
from interp.tasks.prompts import PromptSet

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def skill_prompts(tokenizer: PreTrainedTokenizerBase, skill: str, n: int, seed: int = 0) -> PromptSet:
    """`n` held-out items of a skill with their answers. Raises BadInput for a skill the model was never taught."""
    if skill not in SKILLS:
        raise BadInput(f"there is no skill {skill!r}; {choose(skill, SKILLS)}")
    return _prompts(tokenizer, SKILLS[skill].items(n, seed))


def addition_prompts(tokenizer: PreTrainedTokenizerBase, n: int, seed: int = 0) -> tuple[PromptSet, PromptSet]:
    """The same `n` held-out sums twice: to be answered with the steps written down, and at once."""
    rng = Random(f"addition {seed}")
    with_steps = [steps_item(rng, "held_out") for _ in range(n)]
    direct = [addition(item.about["a"], item.about["b"], with_steps=False) for item in with_steps]
    return _prompts(tokenizer, with_steps), _prompts(tokenizer, direct)


def _prompts(tokenizer: PreTrainedTokenizerBase, items: Sequence[Item]) -> PromptSet:
    return PromptSet.build(tokenizer, [item.prompt for item in items], [item.answer for item in items])
