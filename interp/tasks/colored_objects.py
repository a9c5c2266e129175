"""Reasoning about coloured objects, as Merullo et al. (2024, arXiv:2310.08744) ask it: one scene with its question
answered, then another.

    Q: On the table, I see an orange ring, a red puzzle, and a purple cup. What color is the ring?
    A: Orange
    Q: On the desk, there is a blue pencil, a green lamp, and a white hat. What color is the lamp?
    A:

The counterfactual asks for another object of the same scene, so its answer is another colour of the same prompt.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Literal

from interp.errors import BadInput, UnreadableFile, choose
from interp.tasks.encoding import Span
from interp.tasks.prompts import PromptSet
from interp.tasks.vocabulary import vocabulary
from interp.tasks.words import SingleTokens, listed, read_labelled, single_tokens, with_article

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Style = Literal["title", "lower"]
STYLES = ("title", "lower")
"""How colours are answered: ` Blue` as in the paper, or ` blue` as the bundled model was taught."""
OPENERS = ("there is", "you see", "I see")
OBJECTS = 3
WRONG_COLORS = ("wrong_color_1", "wrong_color_2")
"""The roles of the two colours of the scene that are not asked for, in the order of the text."""

_SCENE = re.compile(
    r"Q: On the \w+, [\w ]+? an? (?P<color1>\w+) (?P<object1>[\w ]+), an? (?P<color2>\w+) (?P<object2>[\w ]+), "
    r"and an? (?P<color3>\w+) (?P<object3>[\w ]+)\. What color is the (?P<query>[\w ]+)\?\nA:$"
)
"""The scene that is asked about: the last of the prompt."""


def colored_object_prompts(
    tokenizer: PreTrainedTokenizerBase,
    n: int = 100,
    seed: int = 0,
    *,
    style: Style = "title",
    objects: Sequence[str] | None = None,
    colors: Sequence[str] | None = None,
    surfaces: Sequence[str] | None = None,
    drop: bool = False,
) -> PromptSet:
    """`n` one-shot prompts; the distractor is the answer of the counterfactual, which asks for another object.

    Spans, all of the second scene: `color1` to `color3` and `object1` to `object3` in the order of the text,
    `correct_color`, `wrong_color_1`, `wrong_color_2`, `correct_object`, `correct_object+1` (the token after it),
    `query` (the object in the question), `end`.
    Metadata: colors, objects, asked (which of them), wrong_colors, dropped_words.

    Objects and colours (as they are listed and as they are answered) must be one token each, so that the counterfactual
    aligns: the caller's are refused or, with `drop`, left out where they are not; of the bundled ones those that are
    not are always left out. Raises BadInput for `n < 1`, an unknown style and too few words.
    """
    if n < 1:
        raise BadInput(f"{n} prompts were asked for; at least 1 can be had")
    if style not in STYLES:
        raise BadInput(f"there is no style {style!r}; {choose(style, STYLES)}")
    words = vocabulary()

    def fitting(given: Sequence[str] | None, bundled: Sequence[str], what: str, least: int) -> SingleTokens:
        chosen = bundled if given is None else given
        return single_tokens(tokenizer, chosen, what, least=least, drop=drop or given is None)

    things = fitting(objects, words.objects, "objects", OBJECTS)
    places = fitting(surfaces, words.surfaces, "surfaces", 1)
    hues = fitting(colors, words.colors, "colors", OBJECTS)
    answers = {_answer(color, style): color for color in hues.kept}
    said = fitting(None if colors is None else tuple(answers), tuple(answers), f"{style}-case colors", OBJECTS)
    shades = tuple(answers[answer] for answer in said.kept)
    rng = Random(f"colored objects {seed}")
    prompts: list[tuple[str, str]] = []
    twins: list[tuple[str, str]] = []
    for _ in range(n):
        shown, test = (_Scene.draw(rng, places.kept, things.kept, shades) for _ in range(2))
        example, (asked, other) = rng.randrange(OBJECTS), rng.sample(range(OBJECTS), 2)
        begin = f"{shown.question(example)} {_answer(shown.colors[example], style)}\n"
        for to, which in ((prompts, asked), (twins, other)):
            to.append((begin + test.question(which), f" {_answer(test.colors[which], style)}"))
    dropped = sum(len(each.dropped) for each in (things, places, hues, said))
    return _prompt_set(tokenizer, prompts, twins, {"dropped_words": dropped})


def read_colored_objects(
    tokenizer: PreTrainedTokenizerBase, path: str | Path, counterfactual: str | Path | None = None
) -> PromptSet:
    """Prompts from a JSON list of `[prompt, label]`, with the spans and metadata of the generator.

    `counterfactual` is such a list whose rows ask for another object in the same scenes; its labels are the
    distractors. Raises UnreadableFile for files that hold anything else, BadInput where a prompt and its twin do not
    align or are of different scenes.
    """
    prompts = read_labelled(path)
    twins = None if counterfactual is None else read_labelled(counterfactual)
    for file, pairs in ((path, prompts), (counterfactual, twins or [])):
        for number, (text, _) in enumerate(pairs):
            scene = _SCENE.search(text)
            if scene is None or scene["query"] not in (scene[f"object{i + 1}"] for i in range(OBJECTS)):
                raise UnreadableFile(
                    f"Entry {number} of {file} does not end in a scene of three coloured objects and a question about "
                    "one of them."
                )
    if twins is not None and len(twins) != len(prompts):
        raise BadInput(f"{counterfactual} holds {len(twins)} prompts for the {len(prompts)} of {path}.")
    for number, ((text, _), (other, _)) in enumerate(zip(prompts, twins or [], strict=False)):
        (told, _, asked), (again, _, instead) = (each.rpartition(" What color is the ") for each in (text, other))
        if told != again or asked == instead:
            raise BadInput(
                f"Entry {number} of {counterfactual} does not ask for another object of the scene in {path}."
            )
    return _prompt_set(tokenizer, prompts, twins, {})


@dataclass(frozen=True)
class _Scene:
    surface: str
    opener: str
    objects: tuple[str, ...]
    colors: tuple[str, ...]

    @classmethod
    def draw(cls, rng: Random, surfaces: Sequence[str], objects: Sequence[str], colors: Sequence[str]) -> _Scene:
        """Objects and colours all different, so that each question has one answer and each answer one source."""
        things, hues = tuple(rng.sample(objects, OBJECTS)), tuple(rng.sample(colors, OBJECTS))
        return cls(rng.choice(surfaces), rng.choice(OPENERS), things, hues)

    def question(self, which: int) -> str:
        seen = [with_article(f"{color} {thing}") for color, thing in zip(self.colors, self.objects, strict=True)]
        return f"Q: On the {self.surface}, {self.opener} {listed(seen)}. What color is the {self.objects[which]}?\nA:"


def _answer(color: str, style: Style) -> str:
    return color.title() if style == "title" else color


def _prompt_set(
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[tuple[str, str]],
    twins: Sequence[tuple[str, str]] | None,
    about: dict[str, Any],
) -> PromptSet:
    """Prompts with their labels as answers and everything that the text itself says about them."""
    scenes = [_read_scene(text) for text, _ in pairs]
    prompts = PromptSet.build(
        tokenizer,
        [text for text, _ in pairs],
        [label for _, label in pairs],
        spans={role: [spans[role] for spans, _ in scenes] for role in scenes[0][0]},
        distractors=[label for _, label in twins] if twins else (),
        counterfactual=_prompt_set(tokenizer, twins, None, about) if twins else None,
        metadata=[{**found, **about} for _, found in scenes],
    )
    last = tuple((len(tokens) - 1, len(tokens)) for tokens in prompts.tokens)
    after = tuple((end, end + 1) for _, end in prompts.spans["correct_object"])
    return replace(prompts, spans={**prompts.spans, "correct_object+1": after, "end": last})


def _read_scene(text: str) -> tuple[dict[str, Span], dict[str, Any]]:
    """The characters of every role in the scene that is asked about, and what it says."""
    scene = _SCENE.search(text)
    assert scene is not None
    numbers = range(1, OBJECTS + 1)
    objects, colors = ([scene[f"{what}{i}"] for i in numbers] for what in ("object", "color"))
    asked = objects.index(scene["query"])
    wrong = [i for i in range(OBJECTS) if i != asked]
    spans = {name: scene.span(name) for name in scene.re.groupindex}
    spans |= {"correct_color": spans[f"color{asked + 1}"], "correct_object": spans[f"object{asked + 1}"]}
    spans |= {role: spans[f"color{i + 1}"] for role, i in zip(WRONG_COLORS, wrong, strict=True)}
    about = {"objects": objects, "colors": colors, "asked": asked, "wrong_colors": [colors[i] for i in wrong]}
    return spans, about
