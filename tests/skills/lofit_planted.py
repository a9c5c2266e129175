"""A model in which one head alone reaches the answer, and tasks for it."""

from __future__ import annotations

import numpy as np
from transformers import GPT2LMHeadModel

from interp.skills.lofit_training import Recipe
from interp.tasks.prompts import PromptSet
from tests.planted import Head, Slots, plant

VOCAB, WANTED, PLANTED = 8, 5, (1, 2)
RECIPE = Recipe(1, 0.5, 0.1, epochs=5, lora_learning_rate=0.5)


def one_head_reaches_the_answer() -> GPT2LMHeadModel:
    """Every head copies its own token just as loudly; what all but 1.2 write, nothing reads."""
    slots = Slots(64, 16, token=VOCAB, position=16, unread=VOCAB, out=VOCAB)
    copy = {"q": slots.read("position"), "k": slots.read("position"), "v": slots.read("token")}
    heads = {(layer, head): Head(**copy, o=slots.write("unread")) for layer in range(2) for head in range(4)}
    heads[PLANTED] = Head(**copy, o=slots.write("out"))
    return plant(slots, heads, layers=2, n_heads=4, vocab=VOCAB)


def task(answer: int | None, n: int = 24, seed: int = 0) -> PromptSet:
    """Three random tokens, then the answer: always the same token, or (None) the last one again.

    The distractor is what the model says by itself, the last token.
    """
    rows = np.random.default_rng(seed).integers(0, VOCAB, (n, 3))
    rows[rows[:, -1] == answer, -1] = 0
    answers = tuple((int(row[-1]) if answer is None else answer,) for row in rows)
    distractors = tuple((int(row[-1] + 1) % VOCAB if answer is None else int(row[-1]),) for row in rows)
    texts = tuple(str(i) for i in range(n))
    return PromptSet(texts, tuple(tuple(map(int, row)) for row in rows), texts, answers, texts, distractors)
