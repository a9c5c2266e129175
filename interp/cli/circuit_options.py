"""What the circuit commands have in common: their options, and finding a circuit with a progress bar."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from interp.cli.console import progress, say

if TYPE_CHECKING:
    from interp.circuits.discovery import Discovery, Thresholds
    from interp.tasks.prompts import PromptSet
    from interp.tracing.model import Model

Prompts = Annotated[int, typer.Option("--n", "-n", help="Prompts to find the circuit on.", min=2)]
Test = Annotated[int, typer.Option("--test", help="Fresh prompts to evaluate it on; 0 leaves that out.", min=0)]
Reference = Annotated[
    int | None,
    typer.Option(
        help="Prompts that knockout means are taken over.", min=2, show_default="480 for ioi, 200 for colored-objects"
    ),
]
Size = Annotated[
    int | None, typer.Option(help="Heads of the circuit at most.", min=1, show_default="a quarter of all heads")
]
RandomCircuits = Annotated[int, typer.Option("--random", help="Random circuits to compare it with.", min=0)]
Effect = Annotated[float, typer.Option(help="Least effect of a head, as a share of the contrast.", min=0, max=1)]
Attend = Annotated[float, typer.Option(help="Least attention along the link of a role.", min=0, max=1)]
Copy = Annotated[float, typer.Option(help="Least share of tokens that a copying head copies.", min=0, max=1)]
IOIStyle = Annotated[
    Literal["general", "pocket"] | None,
    typer.Option(
        help="Sentences: general English, or those the bundled model knows.",
        show_default="pocket for pocket, else general",
    ),
]
ColorStyle = Annotated[
    Literal["title", "lower"] | None,
    typer.Option(help="Colors answered as ` Blue` or ` blue`.", show_default="lower for pocket, else title"),
]


def is_bundled(model: Model) -> bool:
    """Whether this is pocket, which was taught sentences of its own."""
    return model.spec.name == "pocket"


def discovered(
    find: Callable[..., Discovery], model: Model, prompts: PromptSet, thresholds: Thresholds, seed: int
) -> Discovery:
    """The circuit; says so where the model does not do the task."""
    with progress("path patching") as report:
        result = find(model, prompts, thresholds=thresholds, seed=seed, progress=report)
    if not result.contrast.low > 0:
        say(
            f"{result.model['name']} does not tell {result.task} prompts from corrupted ones (logit difference higher "
            f"by {result.contrast}; accuracy {result.accuracy:.2f}), so effects are noise and a circuit means little."
        )
    return result
