"""Indirect object identification: two people are named, one acts, the other receives."""

from __future__ import annotations

from random import Random

from interp.pocket.documents import Document, Item, Segment, Split, draw
from interp.tasks.ioi import POCKET as TEMPLATES
from interp.tasks.vocabulary import vocabulary
from interp.tasks.words import with_article

ORDERS = ("ABBA", "BABA")


def ioi(io: str, subject: str, order: str, template: int, place: str, thing: str) -> Item:
    """The prompt in which `subject` gives to `io`; ABBA names the indirect object first, BABA the subject."""
    first, second = (io, subject) if order == "ABBA" else (subject, io)
    prompt = TEMPLATES[template].format(
        first=first, second=second, subject=subject, place=place, object=with_article(thing)
    )
    about = {"io": io, "subject": subject, "order": order, "template": template, "place": place, "object": thing}
    return Item(prompt, f" {io}", about)


def ioi_item(rng: Random, split: Split) -> Item:
    """A pair of names (held out: in no order and no template seen in training) in a random template and order."""
    words = vocabulary()
    pair = list(draw(lambda: tuple(sorted(rng.sample(words.names, 2))), split))
    rng.shuffle(pair)
    template, order = rng.randrange(len(TEMPLATES)), rng.choice(ORDERS)
    return ioi(pair[0], pair[1], order, template, rng.choice(words.places), rng.choice(words.objects))


def ioi_document(rng: Random, room: int) -> Document:
    """One sentence."""
    item = ioi_item(rng, "train")
    return Document((Segment(item.prompt), Segment(item.answer, "answer"), Segment(".")))
