"""What every skill yields: documents to train on and items to test with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any, Literal
from zlib import crc32

Split = Literal["train", "held_out"]
Kind = Literal["answer", "text", "filler", "code"]


@dataclass(frozen=True)
class Segment:
    """A stretch of a document. Segments begin at token boundaries: with a space, a line break or a digit."""

    text: str
    kind: Kind = "text"


@dataclass(frozen=True)
class Document:
    """Training text in segments; filler may be dropped to make a document fit a sequence."""

    segments: tuple[Segment, ...]

    @property
    def text(self) -> str:
        return "".join(segment.text for segment in self.segments)

    @property
    def answer_spans(self) -> tuple[tuple[int, int], ...]:
        """Character offsets of what the model is to predict."""
        spans, start = [], 0
        for segment in self.segments:
            end = start + len(segment.text)
            if segment.kind == "answer":
                spans.append((start, end))
            start = end
        return tuple(spans)


@dataclass(frozen=True)
class Item:
    """A test: greedy continuation of `prompt` must equal `answer`. `about` names the parts for analyses."""

    prompt: str
    answer: str
    about: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Skill:
    """One thing the model must know: how it is taught and how it is tested.

    `document(rng, room)` makes training text of about `room` tokens at most, out of combinations that are not
    held out; `item(rng, split)` makes a test out of those that are (or that are not, for comparison).
    `weight` is the share of documents.
    """

    name: str
    weight: float
    document: Callable[[Random, int], Document]
    item: Callable[[Random, Split], Item]

    def items(self, n: int, seed: int = 0, split: Split = "held_out") -> list[Item]:
        """`n` items, always the same for the same seed; every seed gives other ones."""
        rng = Random(f"{self.name} {seed} {split}")
        return [self.item(rng, split) for _ in range(n)]


def is_held_out(*parts: object) -> bool:
    """Whether a combination is kept from training: a tenth of all, chosen by a hash of its parts."""
    return crc32("|".join(map(str, parts)).encode()) % 10 == 0


def draw(make: Callable[[], tuple[Any, ...]], split: Split) -> tuple[Any, ...]:
    """Draw combinations until one belongs to `split`."""
    return next(c for c in _forever(make) if is_held_out(*c) == (split == "held_out"))


def _forever(make: Callable[[], tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
    while True:
        yield make()


def log_uniform(rng: Random, low: int, high: int) -> int:
    """An integer between `low` and `high`, evenly on a log scale: small ones are common."""
    return round(low * (high / low) ** rng.random())
