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

MODELS, ANALYSES, RESULTS = "Models", "Analyses", "Results"

app = typer.Typer(
    name="interp",
    help="A mechanistic-interpretability workbench: heads, circuits, subspaces, skills and probes of language models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command("info", rich_help_panel=MODELS, epilog="Example: interp info pocket")(info.info)
app.command("conformance", rich_help_panel=MODELS, epilog="Example: interp conformance ./llama")(
    conformance.conformance
)
app.command("patch", rich_help_panel=ANALYSES, epilog="Example: interp patch pocket --task ioi --site z --by head")(
    patch.patch
)
app.command(
    "project", rich_help_panel=ANALYSES, epilog="Example: interp project pocket --data sentiment --mean-difference"
)(project.project)
app.command("explore", rich_help_panel=RESULTS, epilog="Example: interp explore --model pocket")(explore.explore)
app.add_typer(heads.app, name="heads", rich_help_panel=ANALYSES)
app.add_typer(circuit.app, name="circuit", rich_help_panel=ANALYSES)
app.add_typer(probe.app, name="probe", rich_help_panel=ANALYSES)
app.add_typer(knob.app, name="knob", rich_help_panel=ANALYSES)
app.add_typer(skill.app, name="skill", rich_help_panel=ANALYSES)
app.add_typer(runs.app, name="runs", rich_help_panel=RESULTS)
app.add_typer(bench.app, name="bench", rich_help_panel=MODELS)

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
