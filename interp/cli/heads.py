"""`interp heads`: score heads, and exchange head masks with other tools."""

from __future__ import annotations

import typer

app = typer.Typer(help="Score attention heads; show, export and import head masks.", no_args_is_help=True)
