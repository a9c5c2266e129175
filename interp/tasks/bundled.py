"""Text that ships for needle tests: filler sentences without a digit, and needles whose values are digits.

A bundled needle reads `The door code of Anna is 40716.`; its question repeats the sentence up to the value
and ends with the space before it. The bundled model's tokenizer splits at every digit, so the value is the
same tokens inside the needle and after the question. No digit occurs twice in a value: each token that is
copied from the needle has exactly one place there it can have come from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from interp.tasks.vocabulary import vocabulary

DIGITS = 5


@dataclass(frozen=True)
class Needle:
    """A sentence to hide, what to ask for it, and the sub-string of it that answers."""

    needle: str
    question: str
    answer: str
    key: str
    value: str
    attribute: str


def filler_sentence(rng: Random) -> str:
    """One sentence that says nothing anyone asks about: no digit, no name, no city, no colour."""
    words = vocabulary().filler
    pick = rng.choice

    def the() -> str:
        return f"the {pick(words.adjective)} {pick(words.noun)}" if rng.random() < 0.6 else f"the {pick(words.noun)}"

    shapes: tuple[Callable[[], str], ...] = (
        lambda: f"{the()} {pick(words.verb)} {the()} {pick(words.time)}",
        lambda: f"{the()} {pick(words.motion)} {pick(words.adverb)} {pick(words.preposition)} {the()}",
        lambda: f"{pick(words.time)}, {the()} {pick(words.verb)} {the()}",
        lambda: f"{the()} was {pick(words.adjective)} and {pick(words.adjective)}",
        lambda: f"{pick(words.preposition)} {the()} there was a {pick(words.adjective)} {pick(words.noun)}",
        lambda: f"no one {pick(words.verb)} {the()} {pick(words.preposition)} {the()}",
        lambda: f"{the()} {pick(words.verb)} {the()}, and {the()} {pick(words.motion)} {pick(words.adverb)}",
        lambda: f"people {pick(words.adverb)} {pick(words.verb)} {the()} {pick(words.time)}",
        lambda: (
            f"when {the()} {pick(words.motion)} {pick(words.preposition)} {the()}, {the()} was {pick(words.adjective)}"
        ),
        lambda: f"{the()} and {the()} {pick(words.motion)} {pick(words.preposition)} {the()}",
    )
    sentence = pick(shapes)()
    return sentence[0].upper() + sentence[1:] + "."


def filler_text(seed: int, n_sentences: int) -> str:
    """`n_sentences` filler sentences with single spaces between them, always the same for the same seed."""
    rng = Random(f"filler {seed}")
    return " ".join(filler_sentence(rng) for _ in range(n_sentences))


def make_needle(key: str, attribute: str, value: str) -> Needle:
    """The needle that says `value` of `key`, and its question."""
    statement = f"The {attribute} of {key} is "
    question = f"\nQuestion: What is the {attribute} of {key}?\nAnswer: {statement}"
    return Needle(f"{statement}{value}.", question, value, key, value, attribute)


def random_needle(rng: Random, key: str) -> Needle:
    """A needle about `key` with a random attribute and a value of five different digits."""
    value = "".join(rng.sample("0123456789", DIGITS))
    return make_needle(key, rng.choice(vocabulary().attributes), value)


def bundled_needles(seed: int, n: int) -> list[Needle]:
    """`n` needles with different keys (names and cities), always the same for the same seed.

    Raises ValueError when `n` exceeds the number of keys.
    """
    keys = needle_keys()
    if not 0 <= n <= len(keys):
        raise ValueError(f"n={n} needles were asked for; there are {len(keys)} keys, so 0 to {len(keys)} can be had")
    rng = Random(f"needles {seed}")
    return [random_needle(rng, key) for key in rng.sample(keys, n)]


def needle_keys() -> tuple[str, ...]:
    """Words that can key a needle: names and cities."""
    return vocabulary().names + vocabulary().cities
