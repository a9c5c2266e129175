"""The circuit for coloured objects (Merullo et al. 2024, arXiv:2310.08744), by the stages that find the IOI circuit.

    logits ← movers: copy the colour they attend to, end → the correct colour (negative movers write against it)
    movers' queries ← content gatherers: end → the object asked for, and inhibition heads: end → the wrong colours
    gatherers' and inhibition heads' values ← duplicate-token heads: query → the object in the scene, and induction
        heads: query → what follows it there

The counterfactual asks for another object, so nothing before the question differs: what is read from the scene itself,
such as by previous-token heads, cannot be shown by it.
"""

from __future__ import annotations

from collections.abc import Callable

from interp.circuits.discovery import Discovery, Thresholds
from interp.circuits.knockout import Knockout, knockout
from interp.circuits.stage import RoleTest, Stage
from interp.circuits.stages import discover
from interp.tasks.colored_objects import WRONG_COLORS, Style, colored_object_prompts
from interp.tasks.prompts import PromptSet
from interp.tracing.model import Model

STAGES = (
    Stage(
        "movers",
        (),
        "logits",
        "end",
        (
            RoleTest("mover", ("end", "correct_color"), copies=1),
            RoleTest("negative mover", ("end", "correct_color"), sign=-1, copies=-1),
        ),
    ),
    Stage(
        "inhibition",
        ("mover", "negative mover"),
        "q",
        "end",
        (
            RoleTest("content gatherer", ("end", "query")),
            *(RoleTest("inhibition", ("end", color)) for color in WRONG_COLORS),
        ),
    ),
    Stage(
        "repetition",
        ("content gatherer", "inhibition"),
        "v",
        "query",
        (
            RoleTest("duplicate token", ("query", "correct_object")),
            RoleTest("induction", ("query", "correct_object+1")),
        ),
    ),
)

REFERENCE = 200
"""Prompts that means are taken over."""


def colored_objects_circuit(
    model: Model,
    prompts: PromptSet,
    *,
    thresholds: Thresholds | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Discovery:
    """The circuit by stages, on prompts of `colored_object_prompts`. Raises BadInput for prompts without distractors or
    the roles of the task."""
    colors = {"correct_color": [tokens[0] for tokens in prompts.answer_tokens]}
    return discover(
        model, prompts, "colored-objects", STAGES, colors, thresholds=thresholds, seed=seed, progress=progress
    )


def colored_objects_knockout(
    model: Model,
    prompts: PromptSet,
    *,
    reference: int = REFERENCE,
    style: Style = "title",
    at: str | None = None,
    seed: int = 1,
) -> Knockout:
    """Mean ablation of heads on these prompts, the means over `reference` other scenes and questions, by position."""
    return knockout(model, prompts, colored_object_prompts(model.tokenizer, reference, seed, style=style), at=at)
