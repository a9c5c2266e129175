"""Indirect object identification (Wang et al. 2022, arXiv:2211.00593): two people are named, one of them gives, and
the other is to receive.

A prompt names the indirect object (IO) and the subject (S1), then the subject again (S2), and ends before the name of
the indirect object. In ABBA prompts the indirect object comes first, in BABA the subject does. All names are one token
each, so a prompt and the same one with other names align position for position.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from interp.errors import BadInput, choose
from interp.tasks.encoding import Span
from interp.tasks.prompts import PromptSet
from interp.tasks.vocabulary import vocabulary
from interp.tasks.words import single_tokens, with_article

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Order = Literal["ABBA", "BABA", "mixed"]
Style = Literal["general", "pocket"]

GENERAL = (
    "One morning, {first} and {second} arrived at the {place}. Before noon, {subject} passed {object} to",
    "Last week {first} and {second} walked home from the {place}, and {subject} lent {object} to",
    "Outside the {place}, {first} and {second} stopped for a rest. Soon {subject} handed {object} to",
    "As soon as {first} and {second} found the {place}, {subject} offered {object} to",
    "It was late when {first} and {second} reached the {place}. Quietly, {subject} gave {object} to",
    "On Friday {first} and {second} cleaned the {place} together, so {subject} sent {object} to",
    "Since {first} and {second} were both waiting near the {place}, {subject} showed {object} to",
    "Everyone knew that {first} and {second} worked at the {place}. Today {subject} brought {object} to",
    "The rain kept {first} and {second} inside the {place}, where {subject} threw {object} to",
    "My friends {first} and {second} shared lunch at the {place}. Then {subject} sold {object} to",
    "Not far from the {place}, {first} and {second} sat down to talk, and {subject} returned {object} to",
    "Although {first} and {second} disliked the {place}, {subject} carried {object} to",
    "In the summer {first} and {second} visited the {place}. At the end {subject} promised {object} to",
    "The guide led {first} and {second} through the {place}, and later {subject} described {object} to",
    "For hours {first} and {second} searched the {place}. At last {subject} delivered {object} to",
)
POCKET = (
    "When {first} and {second} went to the {place}, {subject} gave {object} to",
    "Then, {first} and {second} went to the {place}. {subject} gave {object} to",
    "After {first} and {second} left the {place}, {subject} handed {object} to",
    "While {first} and {second} were at the {place}, {subject} offered {object} to",
    "Yesterday, {first} and {second} met at the {place}. {subject} brought {object} to",
    "Then, {first} and {second} had a long talk at the {place}. {subject} showed {object} to",
    "Because {first} and {second} liked the {place}, {subject} sold {object} to",
    "Then, {first} and {second} were working at the {place}. {subject} decided to give {object} to",
)
STYLES: dict[str, tuple[str, ...]] = {"general": GENERAL, "pocket": POCKET}
"""Templates by style; the bundled model knows only sentences of its own."""


class Names(NamedTuple):
    """Who stands where: the name in the place of IO, the subject's first mention, and the subject's second."""

    io: str
    s1: str
    s2: str


CORRUPTIONS: dict[str, tuple[str, str, str]] = {
    "S2->IO": ("io", "s", "io"),
    "IO->RAND": ("x", "s", "s"),
    "S->RAND": ("io", "x", "x"),
    "S1->RAND": ("io", "x", "s"),
    "S2->RAND": ("io", "s", "x"),
    "IO<->S1": ("s", "io", "s"),
    "ABC": ("x", "y", "z"),
}
"""What stands in the places of IO, S1 and S2 of the counterfactual: io and s as in the prompt, x y z fresh names.

`S2->IO` turns the answer round; `ABC` is the distribution p_ABC of the paper, three names of which none repeats.
"""


def ioi_prompts(
    tokenizer: PreTrainedTokenizerBase,
    n: int = 100,
    seed: int = 0,
    *,
    order: Order = "mixed",
    style: Style = "general",
    corruption: str = "S2->IO",
    names: Sequence[str] | None = None,
    places: Sequence[str] | None = None,
    objects: Sequence[str] | None = None,
    drop: bool = False,
) -> PromptSet:
    """`n` prompts with the indirect object as answer, the subject as distractor and an aligned counterfactual.

    Templates (and, in `"mixed"`, orders) are used equally often, in random sequence. `corruption` names a row of
    CORRUPTIONS. The counterfactual has an answer of its own where one of its names occurs once and the other twice.
    Spans: `IO`, `S1`, `S1+1`, `S2`, `end` (the last token). Metadata: template, order, io, subject, place, object,
    corruption, dropped_words.

    The caller's words must be one token each, or with `drop` are left out where they are not; of the bundled ones
    those that are not are always left out. Raises BadInput for `n < 1`, unknown choices and too few words.
    """
    if n < 1:
        raise BadInput(f"{n} prompts were asked for; at least 1 can be had")
    for what, value, valid in (("order", order, ("ABBA", "BABA", "mixed")), ("style", style, STYLES)):
        if value not in valid:
            raise BadInput(f"there is no {what} {value!r}; {choose(value, valid)}")
    if corruption not in CORRUPTIONS:
        raise BadInput(f"there is no corruption {corruption!r}; {choose(corruption, CORRUPTIONS)}")
    words = vocabulary()
    lists = [
        single_tokens(tokenizer, bundled if given is None else given, what, least=least, drop=drop or given is None)
        for what, given, bundled, least in (
            ("names", names, words.names, 5),  # two in the prompt, up to three fresh ones
            ("places", places, words.places, 1),
            ("objects", objects, words.objects, 1),
        )
    ]
    dropped = sum(len(each.dropped) for each in lists)
    rng = Random(f"ioi {seed}")
    rows = [
        {**row, "corruption": corruption, "dropped_words": dropped}
        for row in _rows(rng, n, order, len(STYLES[style]), *(each.kept for each in lists))
    ]
    prompts, twins = [], []
    for row in rows:
        io, subject = row["io"], row["subject"]
        fresh = rng.sample([name for name in lists[0].kept if name not in (io, subject)], 3)
        who = dict(zip("xyz", fresh, strict=True), io=io, s=subject)
        prompts.append(Names(io, subject, subject))
        twins.append(Names(*(who[part] for part in CORRUPTIONS[corruption])))
    return replace(
        _prompt_set(tokenizer, STYLES[style], rows, prompts),
        counterfactual=_prompt_set(tokenizer, STYLES[style], rows, twins),
    )


def _rows(
    rng: Random,
    n: int,
    order: Order,
    templates: int,
    names: Sequence[str],
    places: Sequence[str],
    objects: Sequence[str],
) -> list[dict[str, Any]]:
    orders = ("ABBA", "BABA") if order == "mixed" else (order,)
    cells = [(template, each) for template in range(templates) for each in orders]
    drawn = [cell for _ in range(0, n, len(cells)) for cell in rng.sample(cells, len(cells))][:n]
    rows = []
    for template, each in drawn:
        io, subject = rng.sample(names, 2)
        about = {"template": template, "order": each, "io": io, "subject": subject}
        rows.append({**about, "place": rng.choice(places), "object": rng.choice(objects)})
    return rows


def _prompt_set(
    tokenizer: PreTrainedTokenizerBase,
    templates: Sequence[str],
    rows: Sequence[dict[str, Any]],
    names: Sequence[Names],
) -> PromptSet:
    """The prompts of `rows` with these names in their places."""
    made = [_fill(templates[row["template"]], row, who) for row, who in zip(rows, names, strict=True)]
    spans = {role: [of_prompt[role] for _, of_prompt in made] for role in ("IO", "S1", "S2")}
    pairs = [_answer(who) for who in names]
    known = all(pair is not None for pair in pairs)
    prompts = PromptSet.build(
        tokenizer,
        [text for text, _ in made],
        [f" {pair[0]}" for pair in pairs if pair] if known else (),
        spans=spans,
        distractors=[f" {pair[1]}" for pair in pairs if pair] if known else (),
        metadata=rows,
    )
    after = tuple((end, end + 1) for _, end in prompts.spans["S1"])
    last = tuple((len(tokens) - 1, len(tokens)) for tokens in prompts.tokens)
    in_order = {"IO": prompts.spans["IO"], "S1": prompts.spans["S1"], "S1+1": after, "S2": prompts.spans["S2"]}
    return replace(prompts, spans={**in_order, "end": last})


def _fill(template: str, row: dict[str, Any], who: Names) -> tuple[str, dict[str, Span]]:
    """The text, and the characters of every name."""
    io, s1 = ("first", "second") if row["order"] == "ABBA" else ("second", "first")
    names = {io: ("IO", who.io), s1: ("S1", who.s1), "subject": ("S2", who.s2)}
    others = {"place": row["place"], "object": with_article(row["object"])}
    text, spans = "", {}
    for part in template.split("{"):
        slot, closed, rest = part.partition("}")
        if not closed:
            text += part
            continue
        if slot in names:
            role, name = names[slot]
            spans[role] = (len(text), len(text) + len(name))
            text += name + rest
        else:
            text += others[slot] + rest
    return text, spans


def _answer(who: Names) -> tuple[str, str] | None:
    """The name that occurs once among two people, and the one that occurs twice."""
    if len(set(who)) != 2:
        return None
    once = next(name for name in who if who.count(name) == 1)
    return once, next(name for name in who if name != once)
