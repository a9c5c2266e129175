"""Prompts whose symbolic structure is known: analogies, key-value associations, syntactic roles.

Every generator returns a PromptSet whose metadata holds the structure of each prompt as plain values
(`Structure.metadata`, `structures`), so that it also travels through a prompt file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from interp.errors import BadInput, UnreadableFile
from interp.tasks.bundled import filler_sentence
from interp.tasks.ioi import Style, ioi_prompts
from interp.tasks.prompts import PromptSet
from interp.tasks.vocabulary import vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Pair = tuple[str, str]
ANALOGY = "Analogy: {a} : {b} = {c} :"
"""The sentence of the bundled model; `{a} : {b} = {c} :` is the paper's."""
ASSOCIATIONS = (("has the", "objects"), ("lives in", "cities"), ("went to the", "places"), ("likes", "colors"))
"""What a key-value statement says, and the word list its values come from."""
ROLE = "role:"
"""What the names of roles begin with, so that they are no concepts of a text."""
ATTEMPTS = 200
"""Draws for one more prompt that is not there yet, before the pairs count as exhausted."""


@dataclass(frozen=True)
class Structure:
    """What a prompt says: concepts bound to each other, single ones, and the one that is asked for.

    `key` is what the target is bound to, None where it is one of the single `members`. `roles` say the same, or what of
    it the last token should know, as bindings of roles to fillers. Raises BadInput where the target is neither bound to
    its key nor a member, and where no role has it.
    """

    bindings: tuple[Pair, ...]
    target: str
    key: str | None = None
    members: tuple[str, ...] = ()
    roles: tuple[Pair, ...] = ()

    def __post_init__(self) -> None:
        if self.key is None and self.target not in self.members:
            raise BadInput(f"the target {self.target!r} has no key, and is none of the members {self.members}")
        if self.key is not None and self.asked not in self.pairs:
            raise BadInput(f"the target {self.target!r} is not bound to its key {self.key!r}")
        if self.roles and self.target not in [filler for _, filler in self.roles]:
            raise BadInput(f"the target {self.target!r} fills none of the roles {[role for role, _ in self.roles]}")

    @property
    def asked(self) -> frozenset[str]:
        """The pair that is asked for, in no order."""
        return frozenset({self.target} if self.key is None else {self.key, self.target})

    @cached_property
    def pairs(self) -> frozenset[frozenset[str]]:
        """Everything that is bound, each pair in no order, and each single concept."""
        return frozenset(map(frozenset, self.bindings)) | {frozenset({name}) for name in self.members}

    @property
    def concepts(self) -> tuple[str, ...]:
        return (*(name for pair in self.bindings for name in pair), *self.members)

    @property
    def by_roles(self) -> Structure:
        """The same with each role bound to its filler, the target's role being the key. Raises BadInput without."""
        if not self.roles:
            raise BadInput("this structure has no roles; encode its pairs")
        key = next(role for role, filler in self.roles[::-1] if filler == self.target)
        return Structure(self.roles, self.target, key)

    @property
    def metadata(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "bindings": [list(pair) for pair in self.bindings],
            "members": list(self.members),
            "roles": [list(pair) for pair in self.roles],
            "key": self.key,
            "target": self.target,
        }

    @classmethod
    def of(cls, metadata: Mapping[str, Any]) -> Structure:
        """The structure that metadata holds; raises BadInput where it holds none."""
        try:
            bindings, roles = (
                tuple((str(left), str(right)) for left, right in metadata.get(name, ()))
                for name in ("bindings", "roles")
            )
            key = metadata.get("key")
            members = tuple(map(str, metadata.get("members", ())))
            target = str(metadata["target"])
        except (KeyError, TypeError, ValueError) as error:
            raise BadInput(
                "a structure is metadata with bindings (a list of pairs), target and key; "
                f"{dict(metadata)} is not ({error!r})"
            ) from error
        return cls(bindings, target, None if key is None else str(key), members, roles)


def structures(prompts: PromptSet) -> tuple[Structure, ...]:
    """The structure of each prompt. Raises BadInput where there is none."""
    if not prompts.metadata:
        raise BadInput("these prompts say nothing of their structure: give bindings, key and target as metadata")
    return tuple(Structure.of(row) for row in prompts.metadata)


def analogy_prompts(
    tokenizer: PreTrainedTokenizerBase,
    n: int,
    seed: int = 0,
    *,
    relations: Mapping[str, Sequence[Pair]] | None = None,
    template: str = ANALOGY,
) -> PromptSet:
    """`n` different prompts "A : B = C :" of two pairs of one relation with different B and D; D is asked for.

    `relations` are the bundled ones unless given (`read_analogies`). Raises BadInput where there are not so many.
    """
    words = vocabulary()
    table = {"country": words.city_country, **words.relations} if relations is None else relations
    usable = {name: list(pairs) for name, pairs in table.items() if len({right for _, right in pairs}) > 1}
    if not usable:
        raise BadInput("no relation has two pairs with different answers, so there is no analogy to ask")
    for part in ("{a}", "{b}", "{c}"):
        if part not in template:
            raise BadInput(f"an analogy's template has {{a}}, {{b}} and {{c}}; {template!r} lacks {part}")
    rng = Random(f"analogies {seed}")

    def draw() -> tuple[str, Structure, dict[str, Any]]:
        relation = rng.choice(list(usable))
        (a, b), (c, d) = rng.sample(usable[relation], 2)
        while b == d:
            (a, b), (c, d) = rng.sample(usable[relation], 2)
        structure = Structure(((a, b), (c, d)), d, c, roles=_roles(a=a, b=b, c=c, d=d))
        return template.format(a=a, b=b, c=c), structure, {"relation": relation}

    return _build(tokenizer, n, draw, "analogies")


def key_value_prompts(
    tokenizer: PreTrainedTokenizerBase, n: int, seed: int = 0, *, pairs: int = 3, sentences: int = 2
) -> PromptSet:
    """`n` different prompts in which `pairs` names each have one word of a kind, among filler; one is asked again.

    All values of a prompt differ. Raises BadInput for no pairs and for more than there are different values.
    """
    words = vocabulary()
    fewest = min(len(getattr(words, kind)) for _, kind in ASSOCIATIONS)
    if not 1 <= pairs <= fewest:
        raise BadInput(f"a prompt states 1 to {fewest} pairs of different values, not {pairs}")
    rng = Random(f"key-value {seed}")

    def draw() -> tuple[str, Structure, dict[str, Any]]:
        between, kind = rng.choice(ASSOCIATIONS)
        stated = list(zip(rng.sample(words.names, pairs), rng.sample(getattr(words, kind), pairs), strict=True))
        said = [f"{name} {between} {value}." for name, value in stated]
        for _ in range(sentences):
            said.insert(rng.randrange(len(said) + 1), filler_sentence(rng))
        name, value = rng.choice(stated)
        text = f"{' '.join(said)}\nRecall: {name} {between}"
        return text, Structure(tuple(stated), value, name, roles=_roles(key=name, value=value)), {"relation": kind}

    return _build(tokenizer, n, draw, "key-value prompts")


def syntax_prompts(tokenizer: PreTrainedTokenizerBase, n: int, seed: int = 0, *, style: Style = "pocket") -> PromptSet:
    """`n` sentences in which someone gives something to someone somewhere; who receives it is asked for.

    Giver and recipient are bound, and place and object; the roles are `giver`, `recipient`, `place` and `object`.
    """
    prompts = ioi_prompts(tokenizer, n, seed, style=style)
    rows = []
    for about in prompts.metadata:
        giver, recipient, place, thing = (about[name] for name in ("subject", "io", "place", "object"))
        roles = _roles(giver=giver, recipient=recipient, place=place, object=thing)
        structure = Structure(((giver, recipient), (place, thing)), recipient, giver, roles=roles)
        rows.append({**structure.metadata, "relation": f"template {about['template']}"})
    return PromptSet.build(tokenizer, prompts.texts, prompts.answers, metadata=rows)


def read_analogies(path: str | Path) -> dict[str, tuple[Pair, ...]]:
    """The pairs of each relation of a file in the form of `questions-words.txt`.

    A line `: NAME` begins a relation; any other line is four words, `A B C D`. Raises UnreadableFile naming the line.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UnreadableFile(f"{path} cannot be read: {error}") from error
    found: dict[str, dict[Pair, None]] = {}
    relation = ""
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words:
            continue
        if words[0] == ":":
            relation = " ".join(words[1:])
            found.setdefault(relation, {})
            continue
        if len(words) != 4 or not relation:
            raise UnreadableFile(
                f"line {number} of {path} is {line!r}: a relation begins with `: NAME`, then lines are four words each"
            )
        a, b, c, d = words
        found[relation] |= {(a, b): None, (c, d): None}
    if not any(found.values()):
        raise UnreadableFile(f"{path} holds no analogies")
    return {name: tuple(pairs) for name, pairs in found.items()}


def _roles(**fillers: str) -> tuple[Pair, ...]:
    return tuple((f"{ROLE}{name}", filler) for name, filler in fillers.items())


def _build(tokenizer: PreTrainedTokenizerBase, n: int, draw: Any, what: str) -> PromptSet:
    """`n` different prompts; what follows is a space and the target."""
    if n < 1:
        raise BadInput(f"{n} {what} were asked for; at least 1 can be had")
    made: dict[str, tuple[Structure, dict[str, Any]]] = {}
    for _ in range(n):
        for _ in range(ATTEMPTS):
            text, structure, about = draw()
            if text not in made:
                break
        else:
            raise BadInput(f"there are about {len(made)} different {what}, not {n}")
        made[text] = structure, about
    answers = [f" {structure.target}" for structure, _ in made.values()]
    rows = [{**structure.metadata, **about} for structure, about in made.values()]
    return PromptSet.build(tokenizer, list(made), answers, metadata=rows)
