"""Finding again what was read: needles in filler, key-value statements in filler, repetition of random words."""

from __future__ import annotations

from functools import lru_cache
from random import Random

from interp.pocket.documents import Document, Item, Segment, Split, draw, is_held_out, log_uniform
from interp.tasks.bundled import Needle, filler_sentence, needle_keys, random_needle
from interp.tasks.vocabulary import vocabulary

SENTENCE_TOKENS = 9  # a filler sentence has about twelve: this makes a few too many, and the packer drops those
RECALL_SHAPES = (("has the", "objects"), ("lives in", "cities"), ("went to the", "places"), ("likes", "colors"))


def needle_document(rng: Random, room: int) -> Document:
    """Several needles in filler, then a question about each; all keys differ, so each has one answer."""
    n = rng.randint(1, min(12, max(2, room // 45)))
    needles = [_needle(rng, key, "train") for key in rng.sample(needle_keys(), n)]
    asked = rng.sample(needles, n)
    ask_fully = rng.random() < 0.5
    hidden = [[Segment(f" {needle.needle}")] for needle in needles]
    questions: list[Segment] = []
    for needle in asked:
        ask = needle.question if ask_fully else f" {needle.needle[: needle.needle.index(needle.answer)]}"
        questions += [Segment(ask), Segment(needle.answer, "answer"), Segment(".")]
    used = 17 * n + (29 if ask_fully else 17) * n
    return Document(_hide(rng, hidden, max(0, room - used) // SENTENCE_TOKENS) + tuple(questions))


def needle_item(rng: Random, split: Split, sentences: int = 14, distractors: int = 2) -> Item:
    """One question about one of `1 + distractors` needles with different keys in `sentences` of filler."""
    keys = rng.sample(needle_keys(), 1 + distractors)
    needle, *others = [_needle(rng, key, split) for key in keys]
    hidden = [[Segment(f" {each.needle}")] for each in (needle, *others)]
    rng.shuffle(hidden)
    text = "".join(segment.text for segment in _hide(rng, hidden, sentences)).strip()
    return Item(text + needle.question, needle.answer, {"needle": needle, "distractors": others})


def key_value_document(rng: Random, room: int, dense: bool = False) -> Document:
    """Names that each have one word of a kind, in filler or in a row, then all of them asked in another order.

    With `dense` there is little filler, and rounds of questions follow until the room is filled.
    """
    n = min(16, rng.randint(2, max(3, room // 20)))
    between, pairs = _pairs(rng, n, "train")
    hidden = [[Segment(f" {name} {between} {value}.")] for name, value in pairs]
    asked: list[Segment] = [Segment("\nRecall:")]
    rounds = max(1, min(4, room // (6 * n) - 1)) if dense else 1
    for _ in range(rounds):
        for name, value in rng.sample(pairs, n):
            asked += [Segment(f" {name} {between}"), Segment(f" {value}", "answer"), Segment(".")]
    space = max(0, room - 6 * n * (1 + rounds)) // SENTENCE_TOKENS
    filler = (rng.randint(0, space) if dense else space) if rng.random() < 0.8 else 0
    return Document(_hide(rng, hidden, filler) + tuple(asked))


def key_value_item(rng: Random, split: Split, pairs: int = 6, sentences: int = 8) -> Item:
    """One of `pairs` statements asked again."""
    between, stated = _pairs(rng, pairs, split)
    hidden = [[Segment(f" {name} {between} {value}.")] for name, value in stated]
    text = "".join(segment.text for segment in _hide(rng, hidden, sentences)).strip()
    name, value = rng.choice(stated)
    others = [other for _, other in stated if other != value]
    return Item(f"{text}\nRecall: {name} {between}", f" {value}", {"key": name, "distractors": others})


def repetition_document(rng: Random, room: int, short_units: bool = False) -> Document:
    """A sequence of random words again and again; short ones come round more often."""
    longest = max(6, min(100, room // 3))
    if short_units:
        words = _words(rng, log_uniform(rng, 3, longest), "train")
        times = max(1, room // (2 * len(words)) - 1)
    else:
        words = _words(rng, rng.randint(4, longest), "train")
        times = max(1, min(rng.randint(1, 4), room // (2 * len(words)) - 1))
    again = [Segment(f" {words[0]}"), Segment("".join(f" {word}" for word in words[1:]), "answer")]
    return Document((Segment(" ".join(words)), *again * times))


def repetition_item(rng: Random, split: Split, length: int = 24, answer: int = 6) -> Item:
    """A sequence of random words and the start of its repetition; the next `answer` words are asked for."""
    words = _words(rng, length, split)
    start = rng.randrange(2, length - answer)
    prompt = " ".join([*words, *words[:start]])
    return Item(prompt, "".join(f" {word}" for word in words[start : start + answer]), {"words": words})


def _needle(rng: Random, key: str, split: Split) -> Needle:
    while is_held_out((needle := random_needle(rng, key)).value) != (split == "held_out"):
        pass
    return needle


def _pairs(rng: Random, n: int, split: Split) -> tuple[str, list[tuple[str, str]]]:
    between, kind = rng.choice(RECALL_SHAPES)
    values: tuple[str, ...] = getattr(vocabulary(), kind)
    pairs: dict[str, str] = {}
    while len(pairs) < n:
        name, value = draw(lambda: (rng.choice(vocabulary().names), rng.choice(values)), split)
        pairs.setdefault(name, value)
    return between, list(pairs.items())


def _words(rng: Random, n: int, split: Split) -> tuple[str, ...]:
    return draw(lambda: tuple(rng.sample(_repeatable(), n)), split)


@lru_cache(maxsize=1)
def _repeatable() -> tuple[str, ...]:
    words = vocabulary()
    return tuple(dict.fromkeys(words.single_tokens + words.filler.noun))


def _hide(rng: Random, hidden: list[list[Segment]], sentences: int) -> tuple[Segment, ...]:
    """The hidden segments, in order, at random places between `sentences` of filler."""
    filler = [[Segment(f" {filler_sentence(rng)}", "filler")] for _ in range(sentences)]
    order = [True] * len(hidden) + [False] * len(filler)
    rng.shuffle(order)
    sources = {True: iter(hidden), False: iter(filler)}
    return tuple(segment for from_hidden in order for segment in next(sources[from_hidden]))
