"""Where output goes: results to stdout, everything else to stderr, JSON alone when it is asked for."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    import pandas as pd

out = Console(width=None if sys.stdout.isatty() else 120)  # a pipe has no width; 80 would wrap every table
err = Console(stderr=True)


def emit(document: Mapping[str, Any] | Sequence[Any]) -> None:
    """Print one JSON document; what JSON has no number for (NaN, infinity) becomes null."""
    typer.echo(json.dumps(_plain(document), indent=2, allow_nan=False))


def say(sentence: str) -> None:
    """A sentence for the person at the terminal, beside the result."""
    err.print(sentence, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def progress(task: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on stderr, moved by calling (done, total); silent where stderr is not a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        number = bar.add_task(task, total=None)
        yield lambda done, total: bar.update(number, completed=done, total=total)


def show_table(title: str, table: Table) -> None:
    """A title on a line of its own (inside a table it would wrap at the table's width), then the table."""
    out.print(Text(title, style="bold"), soft_wrap=True)
    out.print(table)


def show_facts(title: str, rows: Mapping[str, object]) -> None:
    """A two-column table of names and values."""
    table = Table(show_header=False)
    for name, value in rows.items():
        table.add_row(Text(name), Text(str(value)))
    show_table(title, table)


def show_frame(title: str, frame: pd.DataFrame, columns: Sequence[str] | None = None) -> None:
    """A data frame, numbers to three digits."""
    chosen = frame if columns is None else frame[list(columns)]
    table = Table()
    for column in chosen:
        table.add_column(str(column), justify="left" if chosen[column].dtype.kind in "OSU" else "right")
    for row in chosen.itertuples(index=False):
        table.add_row(*(Text(f"{cell:.3g}" if isinstance(cell, float) else str(cell)) for cell in row))
    show_table(title, table)


def show_written(**written: object) -> None:
    """Where results lie, a line each (`run=path` as "Run: path"), never wrapped so that a path can be copied."""
    width = max(map(len, written)) + 1
    lines = [f"{what.capitalize() + ':':<{width}} {where}" for what, where in written.items()]
    out.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)


def _plain(value: Any) -> Any:
    """What `json` can write: numpy scalars and arrays unwrapped, NaN and infinity as None."""
    if hasattr(value, "tolist"):  # numpy scalars and arrays
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
