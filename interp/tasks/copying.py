"""Short stories whose last word repeats an earlier one: a copy task that even a model of children's stories solves.

Needle tests ask for numbers in long text; a small story model fails them all and no head gets a score. Here the value
is one word said a few sentences before, so retrieval is measured at the scale such a model works at.
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

from interp.errors import BadInput
from interp.tasks.prompts import PromptSet

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OBJECTS = ("ball", "doll", "book", "car", "hat", "toy", "box", "cup", "kite", "cake")
NAMES = ("Tom", "Lily", "Ben", "Sue", "Tim", "Mia", "Sam", "Anna")
BETWEEN = (
    "The sun was bright and the sky was blue.",
    "A bird sang in the big tree.",
    "Mom was in the kitchen.",
    "It was a nice day at the park.",
    "The dog ran fast.",
)
TEMPLATE = "One day, {name} lost the {object}. {between} {name} was very sad. {name} looked and looked for the lost"


def copy_prompts(tokenizer: PreTrainedTokenizerBase, n: int = 40, seed: int = 0, sentences: int = 2) -> PromptSet:
    """`n` stories about a lost object, to be named again at the end; the role `value` marks its first mention.

    `sentences` unrelated ones lie between. Raises BadInput for `n < 1` or more sentences than there are.
    """
    if n < 1 or not 0 <= sentences <= len(BETWEEN):
        raise BadInput(f"n={n}, sentences={sentences}: need n >= 1 and 0 to {len(BETWEEN)} sentences")
    rng = Random(f"copying {seed}")
    texts, answers, spans, about = [], [], [], []
    for _ in range(n):
        name, thing = rng.choice(NAMES), rng.choice(OBJECTS)
        between = " ".join(rng.sample(BETWEEN, sentences))
        text = TEMPLATE.format(name=name, object=thing, between=between)
        start = text.index(f" {thing}.")
        texts.append(text)
        answers.append(f" {thing}")
        spans.append((start, start + len(thing) + 1))
        about.append({"name": name, "object": thing, "sentences": sentences})
    return PromptSet.build(tokenizer, texts, answers, spans={"value": spans, "needle": spans}, metadata=about)
