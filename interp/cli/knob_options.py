"""What the commands of `interp knob` share: options, the items and prompts they describe, where a run goes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from interp.errors import BadInput

if TYPE_CHECKING:
    import pandas as pd

    from interp.knob import Behaviour
    from interp.tasks.context_prior import ContextItems, PromptForm

Task = Annotated[
    str, typer.Option(help="facts, arithmetic, or a CSV with the columns of the authors' files.", show_default=True)
]
Count = Annotated[int, typer.Option("--n", "-n", help="Items to generate, or to take from the file.", min=1)]
Form = Annotated[Literal["instruction", "weight"], typer.Option(help="How a prompt says what to follow.")]
Wording = Annotated[
    str | None,
    typer.Option(
        help="Words of the prompts: the paper's, or those that pocket knows.",
        show_default="pocket for pocket, else paper",
    ),
]
Shots = Annotated[int, typer.Option(help="Items shown before the question, with their answers.", min=0)]
Chat = Annotated[
    bool | None,
    typer.Option("--chat/--no-chat", help="Use the chat template.", show_default="where there is one"),
]


def material(
    model: str, task: str, n: int, shots: int, form: Any, wording: str | None, chat: bool | None, seed: int
) -> tuple[ContextItems, PromptForm]:
    """The items that the options describe and the form of their prompts. Raises BadInput, UnreadableFile."""
    from interp.tasks.context_prior import PromptForm, arithmetic_items, fact_items, read_context_csv

    if task == "facts":
        items = fact_items(n + shots, seed)
    elif task == "arithmetic":
        items = arithmetic_items(n + shots, seed)
    elif Path(task).is_file():
        items = read_context_csv(task, drop=True)
        items = items.take(range(min(n + shots, len(items))))
    else:
        raise BadInput(f"--task {task} is neither facts nor arithmetic nor a file")
    if len(items) <= shots:
        raise BadInput(f"--shots {shots} of {len(items)} items leave none to ask")
    said = PromptForm(form, wording or ("pocket" if model == "pocket" else "paper"), items.items[:shots], chat)
    return items.take(range(shots, len(items))), said


def rates(behaviour: Behaviour) -> pd.DataFrame:
    return behaviour.frame[["setting", "intent", "context", "prior", "other", "right", "pair_accuracy", "n"]]
