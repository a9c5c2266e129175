"""Small Python functions, all of which parse."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from interp.pocket.documents import Document, Item, Segment, Split

VARIABLES = ("x", "y", "n", "item", "value", "count", "total", "index", "left", "right", "size", "key")
VERBS = ("get", "make", "find", "sum", "check", "count", "merge", "scale", "filter", "update")
LISTS = ("items", "values", "numbers", "rows", "words")
OPERATORS = ("+", "-", "*", "//", "%")
COMPARISONS = ("<", ">", "==", "!=", "<=", ">=")


def function(rng: Random) -> str:
    """The source of one function with one or two parameters and a body of one to three statements."""
    data, name = rng.choice(LISTS), rng.choice(VARIABLES)
    parameters = [data, name] if rng.random() < 0.7 else [data]
    total = rng.choice([word for word in VARIABLES if word not in parameters])
    each = rng.choice([word for word in VARIABLES if word not in (*parameters, total)])
    known = parameters[-1]
    bodies: tuple[Callable[[], list[str]], ...] = (
        lambda: [f"{total} = {rng.randrange(10)}", *_loop(rng, each, data, total), f"return {total}"],
        lambda: [f"return [{_expression(rng, each)} for {each} in {data} if {_test(rng, each)}]"],
        lambda: [f"if {_test(rng, f'len({data})')}:", f"    return {known}", f"return {data}[{rng.randrange(4)}]"],
        lambda: [f"{total} = len({data})", f"while {_test(rng, total)}:", f"    {total} -= 1", f"return {total}"],
        lambda: [f"{total} = {{}}", f"for {each} in {data}:", f"    {total}[{each}] = {_expression(rng, each)}",
                 f"return {total}"],
        lambda: [f"{total} = sorted({data})", f"return {total}[{rng.randrange(3)}:]"],
    )  # fmt: skip
    head = f"def {rng.choice(VERBS)}_{data}({', '.join(parameters)}):"
    return "\n".join([head, *(f"    {line}" for line in rng.choice(bodies)())]) + "\n"


def document(rng: Random, room: int) -> Document:
    """One function, all of it worth predicting a little."""
    return Document((Segment(function(rng), "code"),))


def item(rng: Random, split: Split) -> Item:
    """A function without its last line's final word, where that word is a name used before: what is returned."""
    lines = function(rng).rstrip("\n").split("\n")
    while not lines[-1].split()[-1].isidentifier() or len(lines) < 3:
        lines = function(rng).rstrip("\n").split("\n")
    prompt, answer = "\n".join(lines).rsplit(" ", 1)
    return Item(prompt, f" {answer}", {"function": "\n".join(lines)})


def _expression(rng: Random, name: str) -> str:
    return f"{name} {rng.choice(OPERATORS)} {rng.randrange(1, 10)}"


def _test(rng: Random, name: str) -> str:
    return f"{name} {rng.choice(COMPARISONS)} {rng.randrange(10)}"


def _loop(rng: Random, each: str, data: str, total: str) -> list[str]:
    step = f"{total} += {each}" if rng.random() < 0.5 else f"{total} = {total} {rng.choice(OPERATORS)} {each}"
    if rng.random() < 0.5:
        return [f"for {each} in {data}:", f"    {step}"]
    return [f"for {each} in {data}:", f"    if {_test(rng, each)}:", f"        {step}"]
