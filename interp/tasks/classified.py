"""Generated texts to classify, in the words of the bundled model: sentiment, entailment, topic, two domains each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from random import Random

from interp.tasks.vocabulary import vocabulary
from interp.tasks.words import with_article


@dataclass(frozen=True)
class Example:
    """A text (or a pair of texts) and its label."""

    text: str
    label: str
    pair: str | None = None


@dataclass(frozen=True)
class Source:
    """Where examples of a task come from: the template to put them in, a word for each label, a generator a domain."""

    template: str
    words: Mapping[str, str]
    domains: tuple[str, str]
    draw: Callable[[Random, str, str], Example]

    def examples(self, rng: Random, domain: str) -> Iterator[Example]:
        """Random examples without end, labels in equal shares."""
        labels = tuple(self.words)
        while True:
            yield self.draw(rng, domain, rng.choice(labels))


def _sentiment(rng: Random, domain: str, label: str) -> Example:
    """What someone thought of a film or a meal, or of a thing, sometimes by negation."""
    words = vocabulary()
    spoken = SENTIMENT_WORDS.values()  # the answer itself never occurs in a text
    negated = rng.random() < 0.25
    adjectives = words.positive if (label == "positive") != negated else words.negative
    one, two = rng.sample([word for word in adjectives if word not in spoken], 2)
    name, other = rng.sample(words.names, 2)
    place, colour = rng.choice(words.places), rng.choice(words.colors)
    if domain == "reviews":
        noun = rng.choice(words.reviewed)
        said = (
            (f"The {noun} was not {one}.", f"{name} found the {noun} at the {place} not {one}.")
            if negated
            else (f"The {noun} was {one} and {two}.", f"{name} remembered the {one} {noun} at the {place}.")
        )
    else:
        noun = rng.choice(words.objects)
        said = (
            (f"The {colour} {noun} of {name} is not {one}.", f"The {noun} that {name} gave to {other} is not {one}.")
            if negated
            else (f"{name} gave {with_article(one)} {noun} to {other}.", f"{name} likes the {one} {colour} {noun}.")
        )
    return Example(rng.choice(said), label)


def _entailment(rng: Random, domain: str, label: str) -> Example:
    """Two people are said to be somewhere; the second text repeats one of them, or gives one the other's place."""
    words = vocabulary()
    one, two = rng.sample(words.names, 2)
    kind, between = (words.places, "went to the") if domain == "visits" else (words.cities, "lives in")
    here, there = rng.sample(kind, 2)
    who = rng.choice(((one, here, there), (two, there, here)))
    claimed = who[1] if label == "entailed" else who[2]
    return Example(f"{one} {between} {here}. {two} {between} {there}.", label, f"{who[0]} {between} {claimed}.")


def _topic(rng: Random, domain: str, label: str) -> Example:
    """Two words of a topic in a sentence that says nothing else; the domains share neither words nor sentences."""
    words = vocabulary()
    of_topic = [word for word in _topics()[label] if word not in TOPIC_WORDS.values()]
    half = len(of_topic) // 2
    one, two = rng.sample(of_topic[:half] if domain == "sentences" else of_topic[half:], 2)
    if label != "geography":
        one, two = f"the {one}", f"the {two}"
    filler = words.filler
    name, verb, time = rng.choice(words.names), rng.choice(filler.verb), rng.choice(filler.time)
    if domain == "sentences":
        return Example(f"{name} {verb} {one} and {two} {time}.", label)
    noun = rng.choice(filler.noun[7:14])  # people: of no topic
    opening = f"{time[0].upper()}{time[1:]}"
    return Example(f"{opening}, the {noun} {verb} {one}, and {name} {rng.choice(filler.adverb)} {verb} {two}.", label)


def _topics() -> dict[str, tuple[str, ...]]:
    words = vocabulary()
    return {
        "geography": tuple(word for pair in words.city_country for word in pair),
        "animals": tuple(word for pair in words.relations["young"] for word in pair),
        "culture": tuple(word for word in words.reviewed if word not in ("meal", "hotel", "dish")),
        "goods": words.objects,
    }


SENTIMENT_WORDS = {"positive": "great", "negative": "terrible"}
TOPIC_WORDS = {"geography": "country", "animals": "farm", "culture": "theater", "goods": "store"}

TASKS: dict[str, Source] = {
    "sentiment": Source("{text} It was", SENTIMENT_WORDS, ("reviews", "things"), _sentiment),
    "entailment": Source(
        "{text} So {pair} This is", {"entailed": "true", "contradicted": "false"}, ("visits", "residence"), _entailment
    ),
    "topic": Source("{text} It is from the", TOPIC_WORDS, ("sentences", "scenes"), _topic),
}
"""By name. The first domain is what a model is taught in, the second what it is then tested in."""
