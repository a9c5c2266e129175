"""The `interp` command. Exit codes: 0 done, 1 the work failed, 2 the request was wrong, 130 interrupted."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

import interp
from interp.cli import bench, circuit, conformance, explore, heads, info, knob, patch, probe, project, runs, skill
from interp.cli.console import say
from interp.errors import BadInput, WorkbenchError
from kernels.errors import InvalidRequest

app = typer.Typer(
    name="interp",
    help="A mechanistic-interpretability workbench: heads, circuits, subspaces, skills and probes of language models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command("info")(info.info)
app.command("conformance")(conformance.conformance)
app.command("explore")(explore.explore)
app.command("patch")(patch.patch)
app.command("project")(project.project)
app.add_typer(bench.app, name="bench")
app.add_typer(circuit.app, name="circuit")
app.add_typer(heads.app, name="heads")
app.add_typer(knob.app, name="knob")
app.add_typer(probe.app, name="probe")
app.add_typer(runs.app, name="runs")
app.add_typer(skill.app, name="skill")

_debug = False


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(interp.__version__)
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[
        bool, typer.Option("--debug", envvar="INTERP_DEBUG", help="Show the traceback of an error.")
    ] = False,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop."),
    ] = False,
) -> None:
    global _debug
    _debug = debug


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; an error made on purpose is one sentence on stderr and its exit code."""
    try:
        app(args=arguments)
    except (WorkbenchError, InvalidRequest) as error:
        if _debug:
            raise
        say(f"Error: {error}")
        sys.exit(error.exit_code if isinstance(error, WorkbenchError) else BadInput.exit_code)


if __name__ == "__main__":
    main()
