"""What the model knows by heart: cities, contexts that contradict it, and analogies over all relations."""

from __future__ import annotations

from random import Random

from interp.pocket.documents import Document, Item, Segment, Split, draw
from interp.tasks.vocabulary import vocabulary

USE_CONTEXT = "Only use the context."
USE_MEMORY = "Ignore the context."
CONTEXTS = ("{city} is a city in {country}.", "{city} lies in {country}.", "The city of {city} is in {country}.")


def query(city: str) -> str:
    """Asks the country of a city; the answer follows with its space."""
    return f"Query: Which country is {city} in?\nAnswer:"


def fact_item(rng: Random, split: Split) -> Item:
    """A city to name the country of. Facts are learned by heart: every city was seen, whatever the split."""
    city, country = rng.choice(vocabulary().city_country)
    return Item(query(city), f" {country}", {"city": city, "country": country})


def fact_document(rng: Random, room: int) -> Document:
    """A fact stated or asked."""
    city, country = rng.choice(vocabulary().city_country)
    if rng.random() < 0.4:
        stated = rng.choice(CONTEXTS).format(city=city, country="")
        return Document((Segment(stated[:-2]), Segment(f" {country}", "answer"), Segment(".")))
    return Document((Segment(query(city)), Segment(f" {country}", "answer")))


def contradiction(city: str, context_country: str, follow_context: bool, statement: int = 0) -> Item:
    """A context that moves `city` to `context_country`, the instruction which to follow, and the query."""
    memory = vocabulary().country_of[city]
    context = CONTEXTS[statement].format(city=city, country=context_country)
    instruction = USE_CONTEXT if follow_context else USE_MEMORY
    answer, other = (context_country, memory) if follow_context else (memory, context_country)
    about = {"city": city, "memory": memory, "context": context_country, "follow_context": follow_context}
    prompt = f"Context: {context}\nInstruction: {instruction}\n{query(city)}"
    return Item(prompt, f" {answer}", {**about, "other": other, "statement": statement})


def context_item(rng: Random, split: Split) -> Item:
    """A contradiction with a random intent; `both_intents` gives the pair."""
    words = vocabulary()
    city, country = draw(lambda: _contradicted(rng, words.country_of, words.countries), split)
    return contradiction(city, country, rng.random() < 0.5, rng.randrange(len(CONTEXTS)))


def both_intents(item: Item) -> tuple[Item, Item]:
    """The same contradiction with the instruction to follow the context, and to follow memory."""
    city, country, statement = item.about["city"], item.about["context"], item.about["statement"]
    return contradiction(city, country, True, statement), contradiction(city, country, False, statement)


def context_document(rng: Random, room: int) -> Document:
    """A contradiction with either intent."""
    item = context_item(rng, "train")
    return Document((Segment(item.prompt), Segment(item.answer, "answer")))


def relations() -> dict[str, tuple[tuple[str, str], ...]]:
    """All relations that analogies are made of, by name."""
    return {"country": vocabulary().city_country, **vocabulary().relations}


def analogy_item(rng: Random, split: Split) -> Item:
    """`A : B = C :` with D to be named; a held-out combination of A and C was never seen in that order."""
    table = relations()
    relation, a, c = draw(lambda: _two_of_a_relation(rng, table), split)
    related = dict(table[relation])
    about = {"relation": relation, "a": a, "b": related[a], "c": c, "d": related[c]}
    return Item(f"Analogy: {a} : {related[a]} = {c} :", f" {related[c]}", about)


def analogy_document(rng: Random, room: int) -> Document:
    """One analogy."""
    item = analogy_item(rng, "train")
    return Document((Segment(item.prompt), Segment(item.answer, "answer")))


def _two_of_a_relation(rng: Random, table: dict[str, tuple[tuple[str, str], ...]]) -> tuple[str, str, str]:
    relation = rng.choice(list(table))
    (a, b), (c, d) = rng.sample(table[relation], 2)
    return (relation, a, c) if b != d else _two_of_a_relation(rng, table)


def _contradicted(rng: Random, country_of: dict[str, str], countries: tuple[str, ...]) -> tuple[str, str]:
    city = rng.choice(list(country_of))
    return city, rng.choice([country for country in countries if country != country_of[city]])
