"""Reasoning about coloured objects: a scene of objects, then what colour one of them has."""

from __future__ import annotations

from random import Random
from typing import Any

from interp.pocket.documents import Document, Item, Segment, Split, draw
from interp.tasks.vocabulary import vocabulary
from interp.tasks.words import listed, with_article

OPENERS = ("I see", "you see", "there is")


def scene(surface: str, opener: str, things: list[tuple[str, str]]) -> str:
    """The sentence that lists coloured things, each an (object, colour) pair."""
    return f"Q: On the {surface}, {opener} {listed([with_article(f'{color} {thing}') for thing, color in things])}."


def question(thing: str) -> str:
    """Asks one colour; the answer follows with its space."""
    return f" What color is the {thing}?\nA:"


def item(rng: Random, split: Split, objects: int = 3, one_shot: bool = False) -> Item:
    """A scene and one question; with `one_shot`, after another scene that is answered."""
    text, things = _random_scene(rng, objects, split)
    thing, color = rng.choice(things)
    shown = ""
    if one_shot:
        example, shown_things = _random_scene(rng, objects, split)
        shown_thing, shown_color = rng.choice(shown_things)
        shown = f"{example}{question(shown_thing)} {shown_color}\n"
    others = [other for _, other in things if other != color]
    about: dict[str, Any] = {"object": thing, "color": color, "distractors": others, "things": things}
    return Item(shown + text + question(thing), f" {color}", about)


def document(rng: Random, room: int) -> Document:
    """A scene and questions about all its objects, asked or stated, each in a line of its own."""
    text, things = _random_scene(rng, rng.randint(2, 6), "train")
    segments = [Segment(text)]
    for n, (thing, color) in enumerate(rng.sample(things, len(things))):
        if rng.random() < 0.35:
            segments.append(Segment(f"{'' if n == 0 else chr(10)} The {thing} is"))
        else:
            segments.append(Segment(question(thing) if n == 0 else f"\nQ:{question(thing)}"))
        segments.append(Segment(f" {color}", "answer"))
    return Document(tuple(segments))


def _random_scene(rng: Random, objects: int, split: Split) -> tuple[str, list[tuple[str, str]]]:
    """Objects and colours all different, so that each question has one answer and each answer one source."""
    words = vocabulary()
    combination = draw(lambda: (*rng.sample(words.objects, objects), *rng.sample(words.colors, objects)), split)
    things = list(zip(combination[:objects], combination[objects:], strict=True))
    return scene(rng.choice(words.surfaces), rng.choice(OPENERS), things), things
