"""Options that mean the same in every command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
Out = Annotated[Path, typer.Option(help="Where the result is written.", show_default=False)]
