"""The IOI circuit (Wang et al. 2022, arXiv:2211.00593), found anew in any model.

    logits ← movers: copy the name they attend to, end → IO (negative movers write against it)
           ← subject suppressors: write against the name they attend to, end → S2
    movers' queries ← inhibition heads: end → S2
    inhibition heads' and suppressors' values ← duplicate-token heads: S2 → S1, induction heads: S2 → S1+1, and heads
        that hold on to the name itself: S2 → S2
    induction heads' keys ← previous-token heads: S1+1 → S1

Subject suppressors and own-token heads are not of the paper's circuit of GPT-2 small; the bundled model has them.
"""

from __future__ import annotations

from collections.abc import Callable

from interp.circuits.discovery import Discovery, Thresholds
from interp.circuits.knockout import Knockout, knockout
from interp.circuits.stage import RoleTest, Stage
from interp.circuits.stages import discover
from interp.tasks.ioi import Order, Style, ioi_prompts
from interp.tasks.prompts import PromptSet
from interp.tracing.model import Model

STAGES = (
    Stage(
        "movers",
        (),
        "logits",
        "end",
        (
            RoleTest("mover", ("end", "IO"), copies=1),
            RoleTest("negative mover", ("end", "IO"), sign=-1, copies=-1),
            RoleTest("subject suppressor", ("end", "S2"), copies=-1),
        ),
    ),
    Stage("inhibition", ("mover", "negative mover"), "q", "end", (RoleTest("inhibition", ("end", "S2")),)),
    Stage(
        "repetition",
        ("inhibition", "subject suppressor"),
        "v",
        "S2",
        (
            RoleTest("duplicate token", ("S2", "S1")),
            RoleTest("induction", ("S2", "S1+1")),
            RoleTest("own token", ("S2", "S2")),
        ),
    ),
    Stage("previous token", ("induction",), "k", "S1+1", (RoleTest("previous token", ("S1+1", "S1")),)),
)
REFERENCE = 480
"""Prompts that means are taken over: 16 or more for each template and order."""
TEMPLATE = ("template", "order")
"""What prompts must agree in for their positions to mean the same."""


def ioi_circuit(
    model: Model,
    prompts: PromptSet,
    *,
    thresholds: Thresholds | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Discovery:
    """The circuit by stages, on prompts of `ioi_prompts(…, corruption="ABC")`, the corruption of the paper.

    Another corruption shows less: one that leaves S1 as it is cannot show what is read from there. Raises BadInput for
    prompts without distractors or the roles of IOI.
    """
    names = {
        "IO": [tokens[0] for tokens in prompts.answer_tokens],
        "S1": [tokens[0] for tokens in prompts.distractor_tokens],
    }
    return discover(model, prompts, "ioi", STAGES, names, thresholds=thresholds, seed=seed, progress=progress)


def ioi_knockout(
    model: Model,
    prompts: PromptSet,
    *,
    reference: int = REFERENCE,
    style: Style = "general",
    order: Order = "mixed",
    at: str | None = None,
    seed: int = 1,
) -> Knockout:
    """Mean ablation of heads on these prompts, the means over `reference` prompts of p_ABC, per template and position.

    The reference has the same style and orders and is drawn with a seed of its own. Means over few prompts still name
    somebody: circuits look worse by them. `at` is as for `knockout`.
    """
    drawn = ioi_prompts(model.tokenizer, reference, seed, style=style, order=order, corruption="ABC")
    assert drawn.counterfactual is not None
    return knockout(model, prompts, drawn.counterfactual, by=TEMPLATE, at=at)
