"""Contexts that contradict what a model knows: the same query is to be answered from the context or from memory, and
the prompt may say which (Minder et al. 2025, "Controllable Context Sensitivity and the Knob Behind It").

    items = fact_items(200, seed=0)                             # or read_context_csv(path), arithmetic_items(200)
    prompts = context_prompts(tokenizer, items, PromptForm("instruction"))
    prompts[0], prompts[1]                                      # one item, to be answered from context and from memory

An item that cannot be used is refused or, where that is asked for, left out and counted: `items.lost` says how many
went to which filter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from interp.errors import BadInput, UnreadableFile, choose
from interp.tasks.labelled import read_rows
from interp.tasks.prompts import PromptSet
from interp.tasks.vocabulary import vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Intent = Literal["context", "prior"]
INTENTS: tuple[Intent, ...] = get_args(Intent)
"""In the order in which the prompts of an item follow each other."""
IntentForm = Literal["instruction", "weight", "none"]


@dataclass(frozen=True)
class ContextItem:
    """A query, a context that contradicts what is known, and both answers.

    `derived`: the context's answer follows from the context and does not stand in it (arithmetic).
    """

    query: str
    context: str
    prior_answer: str
    context_answer: str
    derived: bool = False

    def answer(self, intent: Intent) -> str:
        return self.context_answer if intent == "context" else self.prior_answer

    @property
    def flaw(self) -> str | None:
        """Why it cannot be used, if so."""
        if not self.query.strip() or not self.prior_answer.strip() or not self.context_answer.strip():
            return "empty query or answer"
        if self.prior_answer.strip().lower() == self.context_answer.strip().lower():
            return "answers coincide"
        if not self.derived and self.context_answer.lower() not in self.context.lower():
            return "answer not in the context"
        return None


@dataclass(frozen=True, repr=False)
class ContextItems:
    """Usable items; `lost` counts those that each filter dropped. Raises BadInput for unusable ones and for none."""

    items: tuple[ContextItem, ...]
    lost: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        flaws = [flaw for item in self.items if (flaw := item.flaw)]
        if flaws:
            first = next(item for item in self.items if item.flaw)
            counts = _counted({flaw: flaws.count(flaw) for flaw in sorted(set(flaws))})
            raise BadInput(
                f"{len(flaws)} of {len(self.items)} items cannot be used ({counts}); the first is {first.query!r} with "
                f"the answers {first.prior_answer!r} and {first.context_answer!r}: usable() leaves them out"
            )
        if not self.items:
            raise BadInput(f"no items are left: {_counted(self.lost) or 'there were none'}")

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[ContextItem]:
        return iter(self.items)

    def __getitem__(self, index: int) -> ContextItem:
        return self.items[index]

    def __repr__(self) -> str:
        lost = f"; lost: {_counted(self.lost)}" if self.lost else ""
        return f"ContextItems({len(self)} items{lost})"

    def keep(self, wanted: Sequence[bool], otherwise: str) -> ContextItems:
        """The wanted items; the others are counted as lost to the filter `otherwise`. Raises BadInput for none."""
        kept = tuple(item for item, good in zip(self.items, wanted, strict=True) if good)
        gone = len(self) - len(kept)
        return ContextItems(kept, {**self.lost, otherwise: self.lost.get(otherwise, 0) + gone} if gone else self.lost)

    def take(self, indices: Sequence[int]) -> ContextItems:
        """The items at `indices`, in that order."""
        return ContextItems(tuple(self.items[i] for i in indices), self.lost)

    @property
    def hash(self) -> str:
        """Sixteen hex digits over the content."""
        return hashlib.sha256(repr([astuple(item) for item in self.items]).encode()).hexdigest()[:16]


def usable(items: Sequence[ContextItem]) -> ContextItems:
    """Those that can be used, without repetitions; the others are counted by what is wrong with them."""
    lost: dict[str, int] = {}
    kept: dict[ContextItem, None] = {}
    for item in items:
        flaw = item.flaw or ("repeated" if item in kept else None)
        if flaw:
            lost[flaw] = lost.get(flaw, 0) + 1
        else:
            kept[item] = None
    return ContextItems(tuple(kept), lost)


class Wording(NamedTuple):
    """How the parts of a prompt are put; `instructions` and `weights` by intent."""

    system: str
    instructions: Mapping[Intent, str]
    weights: Mapping[Intent, str]


WEIGHTS: Mapping[Intent, str] = {"context": "Context weight: 1.00", "prior": "Context weight: 0.00"}
WORDINGS: Mapping[str, Wording] = {
    "paper": Wording(
        "Answer the following query considering the provided context. Answer with only one word.",
        {
            "context": "Instruction: Only consider the context in answering the query.",
            "prior": "Instruction: Ignore the context in answering the query.",
        },
        WEIGHTS,
    ),
    "pocket": Wording(
        "",
        {"context": "Instruction: Only use the context.", "prior": "Instruction: Ignore the context."},
        WEIGHTS,
    ),
}
"""By name; the bundled model knows only its own."""
CUE = "Answer:"
"""What a text ends with that is not a chat; the answer follows after a space."""


@dataclass(frozen=True)
class PromptForm:
    """How items become prompts. Raises BadInput for unknown choices.

    intent: how a prompt says what to follow: an instruction, the "context weight", or nothing at all.
    demonstrations: items shown before, with their answers, to be answered from context and memory in turn.
    chat: through the tokenizer's chat template; None where it has one.
    """

    intent: IntentForm = "instruction"
    wording: str = "paper"
    demonstrations: tuple[ContextItem, ...] = ()
    chat: bool | None = None

    def __post_init__(self) -> None:
        if self.intent not in get_args(IntentForm):
            raise BadInput(f"there is no form {self.intent!r}; {choose(self.intent, get_args(IntentForm))}")
        if self.wording not in WORDINGS:
            raise BadInput(f"there is no wording {self.wording!r}; {choose(self.wording, WORDINGS)}")

    @property
    def silent(self) -> PromptForm:
        """The same without saying what to follow."""
        return replace(self, intent="none")

    def as_dict(self) -> dict[str, Any]:
        """What a result says about it."""
        return {
            "form": self.intent,
            "wording": self.wording,
            "shots": len(self.demonstrations),
            "chat": self.chat,
        }

    def question(self, item: ContextItem, intent: Intent) -> str:
        """What the user says."""
        words = WORDINGS[self.wording]
        said = {"instruction": words.instructions, "weight": words.weights, "none": None}[self.intent]
        lines = [f"Context: {item.context}", *([said[intent]] if said else []), f"Query: {item.query}"]
        return "\n".join(lines)


def context_prompts(
    tokenizer: PreTrainedTokenizerBase,
    items: ContextItems,
    form: PromptForm,
    intents: Sequence[Intent] = INTENTS,
) -> PromptSet:
    """Prompts of every item, one an intent, which follow each other; the answer of the other intent is the distractor.

    Metadata: `item` (its index) and `intent`. Raises BadInput for a chat without a template, and for a demonstration
    that is among the items.
    """
    if shown := set(form.demonstrations) & set(items):
        raise BadInput(f"{len(shown)} demonstrations are among the items that are asked: {next(iter(shown)).query!r}")
    chat = tokenizer.chat_template is not None if form.chat is None else form.chat
    if chat and tokenizer.chat_template is None:
        raise BadInput("this tokenizer has no chat template; use chat=False")
    rows = [(index, item, intent) for index, item in enumerate(items) for intent in intents]
    lead = "" if chat else " "
    other: Mapping[Intent, Intent] = {"context": "prior", "prior": "context"}
    write = _chat if chat else _text
    return PromptSet.build(
        tokenizer,
        [write(tokenizer, form, form.question(item, intent)) for _, item, intent in rows],
        [lead + item.answer(intent) for _, item, intent in rows],
        distractors=[lead + item.answer(other[intent]) for _, item, intent in rows],
        metadata=[{"item": index, "intent": intent} for index, _, intent in rows],
        special_tokens=not chat,
    )


def without_collisions(tokenizer: PreTrainedTokenizerBase, items: ContextItems, form: PromptForm) -> ContextItems:
    """The items whose answers begin with different tokens; the others are counted."""
    prompts = context_prompts(tokenizer, items, form, ("context",))
    firsts = zip(prompts.answer_tokens, prompts.distractor_tokens, strict=True)
    return items.keep([a[0] != b[0] for a, b in firsts], "same first token")


def _text(_tokenizer: Any, form: PromptForm, question: str) -> str:
    system = WORDINGS[form.wording].system
    shown = [f"{asked}\n{CUE} {answer}" for asked, answer in _demonstrated(form)]
    return "\n\n".join([*([system] if system else []), *shown, f"{question}\n{CUE}"])


def _chat(tokenizer: PreTrainedTokenizerBase, form: PromptForm, question: str) -> str:
    from jinja2 import TemplateError

    turns = [
        {"role": role, "content": said}
        for pair in _demonstrated(form)
        for role, said in zip(("user", "assistant"), pair, strict=True)
    ]
    turns.append({"role": "user", "content": question})
    system = WORDINGS[form.wording].system
    introduced = [{"role": "system", "content": system}, *turns] if system else turns
    settings: dict[str, Any] = {"tokenize": False, "add_generation_prompt": True}
    try:
        return str(tokenizer.apply_chat_template(introduced, **settings))
    except TemplateError:  # some families, such as Gemma, know no system turn: the first user says it
        turns[0] = {"role": "user", "content": f"{system}\n{turns[0]['content']}"}
        return str(tokenizer.apply_chat_template(turns, **settings))


def _demonstrated(form: PromptForm) -> Iterator[tuple[str, str]]:
    for number, item in enumerate(form.demonstrations):
        intent = INTENTS[number % 2]
        yield form.question(item, intent), item.answer(intent)


class Relation(NamedTuple):
    """How a kind of fact is asked for and stated."""

    query: str
    contexts: tuple[str, ...]


RELATIONS: Mapping[str, Relation] = {
    "country": Relation(
        "Which country is {subject} in?",
        ("{subject} is a city in {answer}.", "{subject} lies in {answer}.", "The city of {subject} is in {answer}."),
    ),
    "capital": Relation(
        "What is the capital of {subject}?",
        ("The capital of {subject} is {answer}.", "{answer} is the capital city of {subject}."),
    ),
    "language": Relation(
        "Which language is spoken in {subject}?",
        ("People in {subject} speak {answer}.", "The language spoken in {subject} is {answer}."),
    ),
}
"""Of the shipped facts. The bundled model was taught to answer the first, in these words."""


def fact_items(n: int, seed: int = 0, relations: Sequence[str] = ("country",)) -> ContextItems:
    """`n` different contradictions of shipped facts. Raises BadInput for unknown relations and more than there are."""
    words = vocabulary()
    combinations = []
    for name in relations:
        if name not in RELATIONS:
            raise BadInput(f"there is no relation {name!r}; {choose(name, RELATIONS)}")
        facts = words.city_country if name == "country" else words.relations[name]
        answers = dict.fromkeys(answer for _, answer in facts)
        combinations += [(name, *fact, other) for fact in facts for other in answers if other != fact[1]]
    if not 1 <= n <= len(combinations):
        raise BadInput(f"n={n} items were asked for; 1 to {len(combinations)} can be had of {', '.join(relations)}")
    rng = Random(f"context prior facts {seed}")
    return ContextItems(tuple(_fact_item(rng, *chosen) for chosen in rng.sample(combinations, n)))


def _fact_item(rng: Random, relation: str, subject: str, known: str, stated: str) -> ContextItem:
    query, contexts = RELATIONS[relation]
    return ContextItem(
        query.format(subject=subject), rng.choice(contexts).format(subject=subject, answer=stated), known, stated
    )


OPERATIONS: Mapping[str, Callable[[int, int], int]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
}
LARGEST = 99
"""Answers of the arithmetic variant lie between 0 and this, operands between 0 and 9."""


def arithmetic_items(n: int, seed: int = 0) -> ContextItems:
    """`n` different expressions of one or two operations, in which the context gives a sub-expression a new value.

    Raises BadInput for `n` < 1.
    """
    if n < 1:
        raise BadInput(f"n={n} items were asked for; at least 1 can be had")
    rng = Random(f"context prior arithmetic {seed}")
    found: dict[ContextItem, None] = {}
    while len(found) < n:
        if item := _arithmetic_item(rng):
            found[item] = None
    return ContextItems(tuple(found))


def _arithmetic_item(rng: Random) -> ContextItem | None:
    """One draw; None where an answer is out of bounds or the new value changes nothing."""
    (first, inner), (second, outer) = rng.choices(list(OPERATIONS.items()), k=2)
    a, b, c, new = rng.randint(0, 9), rng.randint(0, 9), rng.randint(0, 9), rng.randint(0, LARGEST)
    part, value = f"{a} {first} {b}", inner(a, b)
    shapes: tuple[tuple[str, Callable[[int], int]], ...] = (
        (part, lambda x: x),
        (f"({part}) {second} {c}", lambda x: outer(x, c)),
        (f"{c} {second} ({part})", lambda x: outer(c, x)),
    )
    whole, answer = rng.choice(shapes)
    known, implied = answer(value), answer(new)
    if known == implied or not all(0 <= number <= LARGEST for number in (value, known, implied)):
        return None
    return ContextItem(f"What is {whole}?", f"{part} = {new}", str(known), str(implied), derived=whole != part)


COLUMNS = ("context", "query", "weight_context", "answer", "ctx_answer", "prior_answer")
"""Of the authors' files, in which every item has a row for each intent."""


def read_context_csv(path: str | Path, *, derived: bool = False, drop: bool = False) -> ContextItems:
    """Read the authors' files: a CSV with the columns COLUMNS, others ignored.

    derived: the contexts imply their answers without stating them. drop: leave out and count what cannot be used.
    Raises UnreadableFile naming the row that does not fit, BadInput for unusable items.
    """
    path = Path(path)
    rows = read_rows(path)
    if missing := [column for column in COLUMNS if column not in rows[0]]:
        raise UnreadableFile(f"{path} lacks the columns {', '.join(missing)}; it has {', '.join(map(str, rows[0]))}")
    items = [_item_of(row, number, path, derived) for number, row in enumerate(rows, 1)]
    distinct = list(dict.fromkeys(items))
    return usable(distinct) if drop else ContextItems(tuple(distinct))


def _item_of(row: Mapping[str, Any], number: int, path: Path, derived: bool) -> ContextItem:
    if any(row[column] is None for column in COLUMNS):
        raise UnreadableFile(f"row {number} of {path} is cut short")
    known, stated = row["prior_answer"], row["ctx_answer"]
    try:
        weight = float(row["weight_context"])
    except ValueError:
        weight = float("nan")
    if weight not in (0.0, 1.0):
        raise UnreadableFile(f"row {number} of {path}: weight_context is {row['weight_context']!r}, not 0 or 1")
    if row["answer"] != (stated if weight else known):
        raise UnreadableFile(
            f"row {number} of {path}: with weight_context {weight:.0f} the answer should be "
            f"{stated if weight else known!r}, and is {row['answer']!r}"
        )
    return ContextItem(row["query"], row["context"], known, stated, derived)


def _counted(lost: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in lost.items())
