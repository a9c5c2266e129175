"""`interp runs`: what has been run, with what, and how it looks."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from interp.cli.console import emit, out, say, show_facts, show_frame
from interp.cli.options import Json
from interp.errors import BadInput, UnreadableFile, choose
from interp.runs import RunRecord, load_run, run_folders

app = typer.Typer(help="List, show and draw saved runs.", no_args_is_help=True)


@app.command("list", epilog="Example: interp runs list runs")
def list_runs(
    folder: Annotated[Path, typer.Argument(help="Folder that holds the runs.")] = Path("runs"),
    json: Json = False,
) -> None:
    """List the runs of a folder."""
    records: dict[str, RunRecord] = {}
    for path in run_folders(folder):
        try:
            records[path.name] = load_run(path).record
        except UnreadableFile as error:  # one damaged run should not hide the others
            say(f"Skipped: {error}")
    if json:
        emit([{"run": name, **asdict(record)} for name, record in records.items()])
        return
    if not records:
        say(f"No runs in {folder}.")
        return
    table = Table("run", "kind", "model", "seed", "finished")
    for name, record in records.items():
        row = (name, record.kind, record.model.get("name"), record.seed, record.finished)
        table.add_row(*(Text(str(cell)) for cell in row))
    out.print(table)


@app.command(epilog="Example: interp runs show runs/pocket-retrieval")
def show(
    run: Annotated[Path, typer.Argument(help="Folder of the run.", show_default=False)],
    rows: Annotated[int, typer.Option(help="Rows of its table to show.", min=1)] = 20,
    json: Json = False,
) -> None:
    """Show how a run came to be, and its table."""
    loaded = load_run(run)
    record = asdict(loaded.record)
    if json:
        shapes = {name: list(array.shape) for name, array in loaded.arrays.items()}
        emit({**record, "table": loaded.frame.to_dict("records"), "arrays": shapes})
        return
    nested = {
        f"{group} {name}": value
        for group in ("model", "parameters", "versions")
        for name, value in record.pop(group).items()
    }
    show_facts(str(run), record | nested)
    total = len(loaded.frame)
    show_frame(f"first {min(rows, total)} of {total} rows", loaded.frame.head(rows))


@app.command(epilog="Example: interp runs figure runs/pocket-retrieval figure.html")
def figure(
    run: Annotated[Path, typer.Argument(help="Folder of the run.", show_default=False)],
    file: Annotated[Path, typer.Argument(help="Where to: .html, .json, .png or .svg.", show_default=False)],
    name: Annotated[str, typer.Option(help="Which figure, where a run has several.")] = "result",
    width: Annotated[
        int | None, typer.Option(help="Width of a picture in pixels.", show_default="the figure's")
    ] = None,
    height: Annotated[
        int | None, typer.Option(help="Height of a picture in pixels.", show_default="the figure's")
    ] = None,
    json: Json = False,
) -> None:
    """Write a figure of a run to a file: the one that its result plots."""
    from apps.explorer.results import figures_of
    from interp.plots.export import require_format, save_figure

    require_format(file)
    loaded = load_run(run)
    figures = figures_of(loaded)
    if not figures:
        raise BadInput(f"{run} is of kind {loaded.record.kind!r}, which has tables and no figure")
    if name not in figures:
        raise BadInput(f"{run} has no figure {name!r}; {choose(name, figures)}")
    save_figure(figures[name], file, width=width, height=height)
    if json:
        emit({"run": str(run), "figure": name, "file": str(file), "figures": list(figures)})
        return
    say(f"Wrote {file}.")
    if others := [other for other in figures if other != name]:
        say(f"The run has more: --name {' or '.join(repr(other) for other in others)}.")
