"""The word lists and facts that ship with the workbench."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache

from interp.shipped import data_folder


@dataclass(frozen=True)
class Filler:
    """Words of the sentences that say nothing: what needles are hidden in."""

    noun: tuple[str, ...]
    adjective: tuple[str, ...]
    verb: tuple[str, ...]
    motion: tuple[str, ...]
    preposition: tuple[str, ...]
    adverb: tuple[str, ...]
    time: tuple[str, ...]


@dataclass(frozen=True)
class Vocabulary:
    """Word lists by kind. Every word of `single_tokens` is one token of the bundled model, with its space."""

    names: tuple[str, ...]
    objects: tuple[str, ...]
    colors: tuple[str, ...]
    places: tuple[str, ...]
    surfaces: tuple[str, ...]
    positive: tuple[str, ...]
    negative: tuple[str, ...]
    reviewed: tuple[str, ...]
    comparatives: tuple[str, ...]
    attributes: tuple[str, ...]
    city_country: tuple[tuple[str, str], ...]
    relations: dict[str, tuple[tuple[str, str], ...]]
    filler: Filler

    @property
    def cities(self) -> tuple[str, ...]:
        return tuple(city for city, _ in self.city_country)

    @property
    def countries(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(country for _, country in self.city_country))

    @property
    def country_of(self) -> dict[str, str]:
        return dict(self.city_country)

    @property
    def single_tokens(self) -> tuple[str, ...]:
        """Words that may be an answer, so that a logit difference compares two tokens."""
        related = tuple(word for pairs in self.relations.values() for pair in pairs for word in pair)
        kinds = (self.names, self.objects, self.colors, self.places, self.surfaces, self.positive, self.negative)
        return tuple(dict.fromkeys(sum(kinds, ()) + self.cities + self.countries + related))


@lru_cache(maxsize=1)
def vocabulary() -> Vocabulary:
    """The shipped lists, read once."""
    raw = json.loads((data_folder() / "vocabulary.json").read_text(encoding="utf-8"))
    pairs = lambda rows: tuple((a, b) for a, b in rows)  # noqa: E731
    relations = {name: pairs(rows) for name, rows in raw.pop("relations").items()}
    filler = Filler(**{kind: tuple(words) for kind, words in raw.pop("filler").items()})
    facts = pairs(raw.pop("city_country"))
    lists = {kind: tuple(words) for kind, words in raw.items()}
    return Vocabulary(**lists, city_country=facts, relations=relations, filler=filler)
