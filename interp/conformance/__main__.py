"""`python -m interp.conformance MODEL`: try everything the workbench does to a model, and print what passes."""

from __future__ import annotations

import sys
from typing import Annotated

import pandas as pd
import typer
from rich.console import Console
from rich.table import Table

from interp.errors import WorkbenchError

COLORS = {"pass": "green", "refused": "yellow", "fail": "red"}


app = typer.Typer(add_completion=False)


@app.command()
def main(
    name: Annotated[str, typer.Argument(metavar="MODEL", help="pocket, a local folder or a hub id")],
    backend: Annotated[
        list[str] | None, typer.Option(help="Backend to try; again for several. All of them by default.")
    ] = None,
    kernel: Annotated[
        list[str] | None, typer.Option(help="Attention implementation to try beside the model's own.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16, or auto for the checkpoint's.")] = "float32",
    json: Annotated[bool, typer.Option("--json", help="One JSON record a check, instead of the table.")] = False,
) -> None:
    """Try every site, equation, edit, backend and kernel on a model.

    Each check passes, is refused with the reason, or fails. The exit code is 1 if anything failed.
    """
    try:
        frame = _tried(name, backend or [], kernel or ["eager", "sdpa"], dtype)
    except WorkbenchError as error:
        Console(stderr=True).print(f"[red]Error:[/red] {error}", highlight=False)
        raise typer.Exit(error.exit_code) from None
    if json:
        sys.stdout.write(frame.to_json(orient="records", lines=True))
    else:
        _show(frame)
    raise typer.Exit(int((frame["result"] == "fail").any()))


def _tried(name: str, backends: list[str], implementations: list[str], dtype: str) -> pd.DataFrame:
    from interp.conformance.checks import conformance, kernels
    from interp.conformance.report import Conformance
    from interp.tracing.loading import BACKENDS, check_backend, load, wrap

    for backend in backends:
        check_backend(backend)
    model = load(name, dtype=dtype)
    frames = []
    for backend in backends or BACKENDS:
        hooks = backend == model.backend.name
        tried = model if hooks else wrap(model.hf, tokenizer=model.tokenizer, backend=backend, name=model.spec.name)
        report = conformance(tried, reference=None if hooks else model)
        Console(stderr=True).print(str(report), highlight=False, soft_wrap=True)
        frames.append(report.frame)
    outcomes = tuple(kernels(model, implementations))
    own = Conformance(model.spec.name, model.spec.family, "hooks", model.attention, outcomes)
    frames.insert(1, own.frame)
    return pd.concat(frames, ignore_index=True)


def _show(frame: pd.DataFrame) -> None:
    for (backend, attention), outcomes in frame.groupby(["backend", "attention"], sort=False):
        table = Table("group", "subject", "result", "error", "note", title=f"{backend} backend, {attention} attention")
        for row in outcomes.itertuples():
            error = "" if pd.isna(row.error) else f"{row.error:.0e}"
            color = COLORS[str(row.result)]
            table.add_row(row.group, row.subject, f"[{color}]{row.result}[/{color}]", error, row.note)
        Console().print(table)


if __name__ == "__main__":
    app()
