"""Concepts of three levels to look for in hidden states: facts, emotions, inferences, each at several difficulties.

After the levels of "Exploring Concept Depth" (Jin et al. 2024), on our own words: those of the bundled model, so that
it can show what a larger model does with real data. Classes are of equal size, and the same seed gives the same texts.

| concept | level | a text says | difficulty 1, 2, 3 |
|---|---|---|---|
| country | factual | asks which country a city is in | asked alone; against a context; either, as told |
| truth | factual | states a relation, rightly or not | one relation; two; six |
| sentiment | emotional | judges a thing | plainly; half of them negated; after another judgement too |
| comparison | inferential | concludes who is taller | from one premise; two; three, in any order |
| residence | inferential | concludes who lives in which country | from the city; after another; after two others |

Cities and adjectives are groups: a probe is tested on those it was not fitted to, so that it must read the concept and
cannot remember the words.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from random import Random

from interp.errors import BadInput, choose
from interp.tasks.labelled import LabelledTexts, balanced
from interp.tasks.vocabulary import vocabulary

DIFFICULTIES = (1, 2, 3)
LEVELS = ("factual", "emotional", "inferential")
ATTEMPTS = 200
"""Draws for one more text that is not there yet, before the concept counts as exhausted."""


@dataclass(frozen=True)
class Example:
    """One text: what decides its label, and what must not be on both sides of a split."""

    text: str
    key: str
    group: str = ""


@dataclass(frozen=True, repr=False)
class Concept:
    """A generator: `make(rng, label, difficulty)` writes a text with this label.

    `closed` says by difficulty how many texts there are where the facts run out.
    """

    name: str
    level: str
    labels: tuple[str, str]
    make: Callable[[Random, bool, int], Example]
    closed: Mapping[int, int] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Concept({self.name}, {self.level}: {' / '.join(self.labels)})"

    def at_most(self, n: int, difficulty: int = 1) -> int:
        """`n`, or as many texts as there are where those are fewer: facts are a closed list."""
        return min(n, self.closed.get(difficulty, n))

    def texts(self, n: int = 400, difficulty: int = 1, seed: int = 0) -> LabelledTexts:
        """`n` different texts, half of each class. Raises BadInput where there are not so many, naming how many."""
        if difficulty not in DIFFICULTIES:
            raise BadInput(f"{self.name} has the difficulties {', '.join(map(str, DIFFICULTIES))}, not {difficulty}")
        if n < 2:
            raise BadInput(f"a data set of two classes has at least 2 texts, not {n}")
        rng = Random(f"{self.name} {difficulty} {seed}")
        found: dict[str, tuple[Example, str]] = {}
        for true in balanced((False, True), n):
            for _ in range(ATTEMPTS):
                example = self.make(rng, true, difficulty)
                if example.text not in found:
                    break
            else:
                raise BadInput(
                    f"{self.name} of difficulty {difficulty} has about {len(found)} different texts, not {n}"
                )
            found[example.text] = (example, self.labels[true])
        rows = list(found.values())
        rng.shuffle(rows)
        return LabelledTexts(
            self.name,
            tuple(example.text for example, _ in rows),
            tuple(label for _, label in rows),
            tuple(example.key for example, _ in rows),
            tuple(example.group for example, _ in rows if example.group),
            self.level,
            {"concept": self.name, "difficulty": difficulty, "seed": seed, "n": n},
        )


def concept(name: str) -> Concept:
    """A concept by name; raises BadInput naming the others."""
    if name not in CONCEPTS:
        raise BadInput(f"there is no concept {name!r}; {choose(name, CONCEPTS)}")
    return CONCEPTS[name]


def in_first_half(country: str) -> bool:
    """A half of the countries that nothing but the country decides: every other one in alphabetical order."""
    return sorted(vocabulary().countries).index(country) % 2 == 0


STATED = ("{city} is a city in", "{city} lies in", "The city of {city} is in")
ASKED = "Query: Which country is {city} in?\nAnswer:"
MEMORY, CONTEXT = "Ignore the context.", "Only use the context."


def _country(rng: Random, first: bool, difficulty: int) -> Example:
    """The answer is in the first half of the countries or not; cities are tested whose country has another city."""
    words = vocabulary()
    answer = rng.choice([country for country in words.countries if in_first_half(country) == first])
    city = rng.choice([city for city, country in words.city_country if country == answer])
    if difficulty == 1:
        return Example(rng.choice((ASKED, *STATED)).format(city=city), city, city)
    # The other country is of either half, so that it says nothing about the label.
    other = rng.choice([country for country in words.countries if country != answer])
    told, said = MEMORY, other
    if difficulty == 3 and rng.random() < 0.5:
        city = rng.choice([city for city, country in words.city_country if country == other])
        told, said = CONTEXT, answer
    statement = rng.choice(STATED).format(city=city)
    text = f"Context: {statement} {said}.\nInstruction: {told}\n{ASKED.format(city=city)}"
    return Example(text, f"{city}/{answer}", city)


SAID = {
    "country": "{a} is a city in {b}.",
    "capital": "The capital of {a} is {b}.",
    "language": "The language of {a} is {b}.",
    "opposite": "The opposite of {a} is {b}.",
    "past": "The past of {a} is {b}.",
    "young": "The young of the {a} is the {b}.",
}


def _truth(rng: Random, true: bool, difficulty: int) -> Example:
    table = {"country": vocabulary().city_country, **vocabulary().relations}
    relation = rng.choice(list(SAID)[: (1, 2, 6)[difficulty - 1]])
    a, b = rng.choice(table[relation])
    if not true:
        b = rng.choice([other for _, other in table[relation] if other != b])
    return Example(f"Statement: {SAID[relation].format(a=a, b=b)}\nTrue or false?", f"{a}/{b}")


def _sentiment(rng: Random, positive: bool, difficulty: int) -> Example:
    words = vocabulary()
    about, aside = rng.sample(words.reviewed, 2)
    negated = difficulty > 1 and rng.random() < 0.5
    adjective = rng.choice(words.positive if positive != negated else words.negative)
    said = f"The {about} was {'not ' if negated else ''}{adjective}."
    if difficulty == 3:
        other = rng.choice(words.positive + words.negative)
        said = f"The {aside} was {'not ' if rng.random() < 0.5 else ''}{other}. {said}"
    return Example(f"Review: {said}\nSentiment:", f"{adjective}/{negated}", adjective)


def _comparison(rng: Random, true: bool, premises: int) -> Example:
    words = vocabulary()
    names = rng.sample(words.names, premises + 1)
    than = f"is {rng.choice(words.comparatives)} than"
    given = [f"{a} {than} {b}." for a, b in pairwise(names)]
    rng.shuffle(given)
    first, last = (names[0], names[-1]) if true else (names[-1], names[0])
    text = f"Statement: {' '.join(given)} So {first} {than} {last}.\nTrue or false?"
    return Example(text, f"{first}/{last}")


def _residence(rng: Random, true: bool, difficulty: int) -> Example:
    words = vocabulary()
    people = rng.sample(words.names, difficulty)
    lives = rng.sample(words.cities, difficulty)
    given = [f"{name} lives in {city}." for name, city in zip(people, lives, strict=True)]
    country = words.country_of[lives[0]]
    said = country if true else rng.choice([other for other in words.countries if other != country])
    rng.shuffle(given)
    text = f"Statement: {' '.join(given)} So {people[0]} lives in {said}.\nTrue or false?"
    return Example(text, f"{lives[0]}/{said}")


CONCEPTS: dict[str, Concept] = {
    made.name: made
    for made in (
        Concept("country", "factual", ("second half", "first half"), _country, {1: 240}),
        Concept("truth", "factual", ("false", "true"), _truth, {1: 128, 2: 180, 3: 300}),
        Concept("sentiment", "emotional", ("negative", "positive"), _sentiment),
        Concept("comparison", "inferential", ("false", "true"), _comparison),
        Concept("residence", "inferential", ("false", "true"), _residence),
    )
}
