"""Addition with the steps written down, and without."""

from __future__ import annotations

from random import Random

from interp.pocket.documents import Document, Item, Segment, Split, draw

MOST_DIGITS = 4


def steps(a: int, b: int) -> str:
    """The columns from the right, each the two digits plus the carry into it: `7 + 5 + 0 = 12, 4 + 8 + 1 = 13`."""
    columns, carry = [], 0
    width = max(len(str(a)), len(str(b)))
    for x, y in zip(reversed(f"{a:0{width}}"), reversed(f"{b:0{width}}"), strict=True):
        total = int(x) + int(y) + carry
        columns.append(f"{x} + {y} + {carry} = {total}")
        carry = total // 10
    return ", ".join(columns)


def addition(a: int, b: int, with_steps: bool) -> Item:
    """The sum of two numbers; with steps the answer is the columns and the sum, without them the sum alone."""
    prompt = f"Add {a} and {b}.\n"
    about = {"a": a, "b": b, "sum": a + b}
    if with_steps:
        return Item(f"{prompt}Steps:", f" {steps(a, b)}.\nAnswer: {a + b}", about)
    return Item(f"{prompt}Answer:", f" {a + b}", about)


def steps_item(rng: Random, split: Split) -> Item:
    """Two operands of two to four digits; held-out pairs were not seen, in this order, with or without steps."""
    a, b = _operands(rng, split)
    return addition(a, b, with_steps=True)


def direct_item(rng: Random, split: Split) -> Item:
    """The same without steps."""
    a, b = _operands(rng, split)
    return addition(a, b, with_steps=False)


def steps_document(rng: Random, room: int) -> Document:
    """One addition with steps."""
    return _document(steps_item(rng, "train"))


def direct_document(rng: Random, room: int) -> Document:
    """One addition without steps."""
    return _document(direct_item(rng, "train"))


def _document(item: Item) -> Document:
    return Document((Segment(item.prompt), Segment(item.answer, "answer")))


def _operands(rng: Random, split: Split) -> tuple[int, ...]:
    def pair() -> tuple[int, int]:
        low = 10 ** (rng.randint(2, MOST_DIGITS) - 1)
        return rng.randrange(low, 10 * low), rng.randrange(low, 10 * low)

    return draw(pair, split)
