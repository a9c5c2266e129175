"""Options that mean the same in every command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from interp.errors import BadInput
from interp.runs import require_free

ModelName = Annotated[str, typer.Argument(help="pocket, a local folder or a hub id.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else on stdout.")]
Seed = Annotated[int, typer.Option(help="Seed of every random choice.")]
Device = Annotated[str | None, typer.Option(help="Where the model runs, such as cpu or cuda.", show_default=False)]
DType = Annotated[
    str | None,
    typer.Option(help="Number type of the weights, such as float32 or bfloat16.", show_default="as stored"),
]
Attention = Annotated[
    str | None,
    typer.Option(help="Attention implementation, such as sdpa or eager.", show_default="the model's own"),
]
Revision = Annotated[str | None, typer.Option(help="Revision of a hub model.", show_default=False)]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with an interrupted job of the same --out.")]


def out_option(default: str, what: str = "Folder of the new run.") -> Any:
    """The option --out, which says in the help where the result goes without it."""
    return typer.Option("--out", help=what, show_default=default)


def new_run(to: Path | None, of: str | Path, kind: str) -> Path:
    """Where the run goes: `to`, or runs/OF-KIND. Raises UnwritableOutput where there is something already."""
    run = to or Path("runs") / f"{Path(of).resolve().name}-{kind}"
    require_free(run)
    return run


CONCEPTS = "country, truth, sentiment, comparison, residence"
"""Those that interp.tasks.concepts generates, which the help names without loading it."""

Number = TypeVar("Number", int, float)


def numbers(option: str, text: str, kind: Callable[[str], Number]) -> list[Number]:
    """`"256,512"` as numbers. Raises BadInput naming the option."""
    try:
        return [kind(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise BadInput(f"{option} {text} is not a list of numbers such as 25,50") from None
