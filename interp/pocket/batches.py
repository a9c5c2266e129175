"""Training batches: documents packed into sequences, each batch a function of the seed and its number alone.

A row is at most one long document (recall in filler, repetition) and then short ones. Filler is dropped until
the long document fits. Positions jump ahead at some starts of sentences and documents, so that short rows
already teach the rotary distances of the whole context.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from random import Random

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerFast

from interp.pocket.documents import Document, Skill, log_uniform
from interp.pocket.skills import LONG, SHORT
from interp.pocket.skills.recall import key_value_document, repetition_document
from interp.pocket.tokenizer import CONTEXT

WEIGHTS = {"answer": 1.0, "text": 0.05, "filler": 0.03, "code": 0.3}
BACKGROUND = 0.25  # share of the lightly weighted tokens whose loss is computed, each with four times its weight
TARGETS_MULTIPLE = 512
LONG_SHARE, BOS_SHARE, JUMP_SHARE = 0.45, 0.9, 0.6


@dataclass(frozen=True)
class Phase:
    """A stretch of training: its number of steps, the length of its sequences and what it dwells on.

    `random_tokens` is the share of rows that repeat random tokens; `emphasis` multiplies the weights of skills.
    `dropped_heads` is the share of spare heads that a sequence goes without (`model.dropped_heads`).
    `short_units` makes most repeated sequences short; `dense` asks more of a recall document, with less filler.
    """

    steps: int
    length: int
    random_tokens: float = 0.02
    dropped_heads: float = 0.0
    emphasis: Mapping[str, float] = field(default_factory=dict)
    short_units: bool = True
    dense: bool = True


# What is learned first (facts, analogies, indirect objects) gives way to what is learned late; then sequences grow.
EARLY = {
    "analogies": 0.35,
    "facts": 0.6,
    "sentiment": 3.0,
    "context": 2.0,
    "colored_objects": 2.0,
    "key_value": 1.4,
    "addition_steps": 1.5,
}
LATER = {
    **EARLY,
    "needle": 1.5,
    "key_value": 1.0,
    "repetition": 2.0,
    "ioi": 0.4,
    "colored_objects": 1.5,
    "addition_steps": 3.0,
    "truth": 2.0,
    "inference": 2.0,
    "python": 0.6,
}
# Copying comes first: heads that match and copy form within a hundred steps where repeated random tokens are all
# there is.
PHASES = (
    Phase(110, 128, random_tokens=1.0, short_units=False),
    Phase(60, 256, random_tokens=0.25, short_units=False),
    Phase(436, 256, emphasis=EARLY),
    Phase(794, 256, random_tokens=0.04, emphasis=LATER),
    Phase(364, 512, emphasis=LATER),
    Phase(150, 512, dropped_heads=0.2, emphasis=LATER),
    Phase(150, 1024, dropped_heads=0.2, emphasis=LATER),
    Phase(90, 2048, dropped_heads=0.2, emphasis=LATER),
)


def phase_at(phases: Sequence[Phase], step: int) -> Phase:
    """The phase that a step belongs to."""
    ends = list(accumulate(phase.steps for phase in phases))
    return phases[bisect_right(ends, step)]


@dataclass(frozen=True)
class Row:
    """Token ids, loss weight of each as a target, and where positions may jump."""

    ids: list[int]
    weights: list[float]
    breaks: list[int]


class Batches(Dataset[tuple[Tensor, Tensor, Tensor, Tensor]]):
    """Batch number n: ids [B, T], positions [B, T], and the targets' flat indices [S] with weights [S].

    Target index i = b·T + t stands for predicting token t+1 of row b from token t.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, seed: int, batch_tokens: int, phases: tuple[Phase, ...]
    ) -> None:
        self.tokenizer, self.seed = tokenizer, seed
        self.batch_tokens, self.phases = batch_tokens, phases

    def __len__(self) -> int:
        return sum(phase.steps for phase in self.phases)

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        rng, phase = Random(f"{self.seed} {step}"), phase_at(self.phases, step)
        length = phase.length
        rows = [self.row(rng, phase) for _ in range(self.batch_tokens // length)]
        ids = torch.tensor([row.ids for row in rows])
        positions = torch.stack([_positions(rng, row.breaks, length) for row in rows])
        weights = np.array([[*row.weights[1:], 0.0] for row in rows], dtype=np.float32).reshape(-1)
        light = weights < WEIGHTS["code"]
        kept = np.random.default_rng(rng.getrandbits(32)).random(weights.size) < BACKGROUND
        weights = np.where(light, weights / BACKGROUND * kept, weights)
        index = np.flatnonzero(weights)
        # A few targets of no weight make the number round: matrix kernels are made anew for every other size.
        index = np.concatenate([index, np.full(-len(index) % TARGETS_MULTIPLE, length - 1)])
        return ids, positions, torch.from_numpy(index), torch.from_numpy(weights[index])

    def row(self, rng: Random, phase: Phase) -> Row:
        """One sequence of exactly the phase's length."""
        row, length = Row([], [], []), phase.length
        kind = rng.random()
        if kind < phase.random_tokens:
            _repeat_random_tokens(rng, row, phase, len(self.tokenizer))
        elif kind < phase.random_tokens + LONG_SHARE:
            self._append(rng, row, self._long_document(rng, phase), length)
        while len(row.ids) < length:
            self._append(rng, row, _choose(rng, SHORT, phase).document(rng, length - len(row.ids)), None)
        return Row(row.ids[:length], row.weights[:length], [b for b in row.breaks if b < length])

    def _long_document(self, rng: Random, phase: Phase) -> Document:
        skill = _choose(rng, LONG, phase)
        if skill.name == "repetition" and phase.short_units:
            return repetition_document(rng, phase.length, short_units=True)
        if skill.name == "key_value" and phase.dense:
            return key_value_document(rng, phase.length, dense=True)
        return skill.document(rng, phase.length)

    def _append(self, rng: Random, row: Row, document: Document, room: int | None) -> None:
        """Add a document between its begin and end tokens, without as much filler as does not fit in `room`."""
        segments = list(document.segments)
        backend = self.tokenizer.backend_tokenizer
        encoded = [e.ids for e in backend.encode_batch([s.text for s in segments], add_special_tokens=False)]
        if room is not None:
            spare = room - 2 - sum(map(len, encoded))
            filler = [n for n, segment in enumerate(segments) if segment.kind == "filler"]
            rng.shuffle(filler)
            while spare < 0 and filler:
                n = filler.pop()
                spare += len(encoded[n])
                encoded[n] = []
        row.breaks.append(len(row.ids))
        if rng.random() < BOS_SHARE:
            row.ids.append(self.tokenizer.bos_token_id)
            row.weights.append(0.0)
        for segment, ids in zip(segments, encoded, strict=True):
            if segment.kind == "filler":
                row.breaks.append(len(row.ids))
            row.ids.extend(ids)
            row.weights.extend([WEIGHTS[segment.kind]] * len(ids))
        row.ids.append(self.tokenizer.eos_token_id)
        row.weights.append(WEIGHTS["text"])


def _choose(rng: Random, skills: Sequence[Skill], phase: Phase) -> Skill:
    return rng.choices(skills, [skill.weight * phase.emphasis.get(skill.name, 1.0) for skill in skills])[0]


def _repeat_random_tokens(rng: Random, row: Row, phase: Phase, vocabulary_size: int) -> None:
    """Random token ids again and again: what induction heads are made of."""
    if phase.short_units:
        size = log_uniform(rng, 3, phase.length // 2)
        times = phase.length // size
    else:
        size = rng.randint(8, phase.length // 2)
    unit = [rng.randrange(3, vocabulary_size) for _ in range(size)]
    if not phase.short_units:
        times = rng.randint(2, max(2, min(4, phase.length // size)))
    row.breaks.append(0)
    row.ids.extend(unit * times)
    row.weights.extend([0.0] * (size + 1) + [WEIGHTS["answer"]] * (size * (times - 1) - 1))


def _positions(rng: Random, breaks: list[int], length: int) -> Tensor:
    """Positions of a row [T]: consecutive, or with one to four jumps that use up part of the spare context."""
    positions = torch.arange(length)
    spare = CONTEXT - length
    if spare > 0 and breaks and rng.random() < JUMP_SHARE:
        budget = rng.randint(0, spare)
        cuts = sorted(rng.randint(0, budget) for _ in range(rng.randint(0, 3)))
        for jump in np.diff([0, *cuts, budget]):
            positions[rng.choice(breaks) :] += int(jump)
    return positions
