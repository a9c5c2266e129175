"""Statements with a label that can be read off a probe: sentiment, truth, and what follows in two steps."""

from __future__ import annotations

from random import Random

from interp.pocket.documents import Document, Item, Segment, Split, draw
from interp.pocket.skills.facts import relations
from interp.tasks.vocabulary import vocabulary

SAID = {
    "country": "{a} is a city in {b}.",
    "capital": "The capital of {a} is {b}.",
    "language": "The language of {a} is {b}.",
    "opposite": "The opposite of {a} is {b}.",
    "past": "The past of {a} is {b}.",
    "young": "The young of the {a} is the {b}.",
}


def sentiment_item(rng: Random, split: Split) -> Item:
    """A review with an adjective, sometimes negated: positive or negative."""
    words = vocabulary()
    noun, adjective, negated = draw(
        lambda: (rng.choice(words.reviewed), rng.choice(words.positive + words.negative), rng.random() < 0.3), split
    )
    positive = (adjective in words.positive) != negated
    prompt = f"Review: The {noun} was {'not ' if negated else ''}{adjective}.\nSentiment:"
    about = {"noun": noun, "adjective": adjective, "negated": negated, "label": positive}
    return Item(prompt, " positive" if positive else " negative", about)


def truth_item(rng: Random, split: Split) -> Item:
    """A statement of a known relation, true or with another's partner in place: true or false."""
    table = relations()

    def said() -> tuple[str, str, str, bool]:
        relation = rng.choice(list(SAID))
        (a, b), (_, other) = rng.sample(table[relation], 2)
        true = rng.random() < 0.5
        return relation, a, b if true else other, true or other == b

    relation, a, b, true = draw(said, split)
    about = {"relation": relation, "a": a, "b": b, "label": true}
    return Item(f"Statement: {SAID[relation].format(a=a, b=b)}\nTrue or false?", _label(true), about)


def inference_item(rng: Random, split: Split) -> Item:
    """A conclusion that needs two premises, or a premise and a known fact: true or false."""
    return _comparison(rng, split) if rng.random() < 0.6 else _residence(rng, split)


def _comparison(rng: Random, split: Split) -> Item:
    words = vocabulary()
    most, middle, least = draw(lambda: tuple(rng.sample(words.names, 3)), split)
    than = f"is {rng.choice(words.comparatives)} than"
    premises = [f"{most} {than} {middle}.", f"{middle} {than} {least}."]
    rng.shuffle(premises)
    true = rng.random() < 0.5
    first, last = (most, least) if true else (least, most)
    prompt = f"Statement: {' '.join(premises)} So {first} {than} {last}.\nTrue or false?"
    return Item(prompt, _label(true), {"kind": "comparison", "names": (most, middle, least), "label": true})


def _residence(rng: Random, split: Split) -> Item:
    words = vocabulary()
    name, city = draw(lambda: (rng.choice(words.names), rng.choice(words.cities)), split)
    country = words.country_of[city]
    true = rng.random() < 0.5
    said = country if true else rng.choice([other for other in words.countries if other != country])
    prompt = f"Statement: {name} lives in {city}. So {name} lives in {said}.\nTrue or false?"
    return Item(prompt, _label(true), {"kind": "residence", "name": name, "city": city, "said": said, "label": true})


def _label(true: bool) -> str:
    return " true" if true else " false"


def _document(item: Item) -> Document:
    return Document((Segment(item.prompt), Segment(item.answer, "answer")))


def sentiment_document(rng: Random, room: int) -> Document:
    """One review."""
    return _document(sentiment_item(rng, "train"))


def truth_document(rng: Random, room: int) -> Document:
    """One statement."""
    return _document(truth_item(rng, "train"))


def inference_document(rng: Random, room: int) -> Document:
    """One conclusion."""
    return _document(inference_item(rng, "train"))
