"""`interp explore`: the explorer in a browser."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from interp.cli.console import say
from interp.errors import BadInput, UnreadableFile

FLAGS = {
    "server.address": "localhost",
    "browser.gatherUsageStats": "false",
    "server.fileWatcherType": "none",
    "server.maxUploadSize": "20",
    "client.toolbarMode": "minimal",
}
"""Streamlit's settings: nothing leaves the machine, and nobody else reaches it."""


def explore(
    runs: Annotated[
        Path | None, typer.Option(help="Folder of runs to browse.", show_default="runs, and the bundled samples")
    ] = None,
    model: Annotated[
        str, typer.Option(help="pocket, a local folder or a hub id; none for saved runs alone.")
    ] = "pocket",
    port: Annotated[int, typer.Option(help="Where the explorer is served.", min=1, max=65535)] = 8501,
) -> None:
    """Browse heads, runs and a live model in the browser."""
    if find_spec("streamlit") is None:
        raise BadInput("the explorer needs streamlit, which is not installed: pip install 'interp-workbench[explorer]'")
    if runs is not None and not runs.is_dir():
        raise UnreadableFile(f"there is no folder {runs} to browse; leave --runs out for the bundled samples")
    from apps.explorer import settings

    place = Path(settings.__file__).with_name("app.py")
    flags = [f"--{name}={value}" for name, value in {**FLAGS, "server.port": port}.items()]
    chosen = {settings.RUNS: str(runs.resolve()) if runs else "", settings.MODEL: model}
    say(f"The explorer is at http://localhost:{port}; Ctrl-C ends it.")
    command = [sys.executable, "-m", "streamlit", "run", str(place), *flags]
    done = subprocess.run(command, env={**os.environ, **chosen}, check=False)
    if done.returncode:
        raise typer.Exit(1)
