"""`interp explore`: the explorer in a browser."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from interp.cli.console import say
from interp.errors import BadInput, UnreadableFile


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
        what = f"{runs} is a file" if runs.exists() else f"there is no folder {runs}"
        raise UnreadableFile(f"{what}: --runs names a folder of runs; leave it out for runs and the bundled samples")
    _require_free(port)
    from apps.explorer import settings

    place = Path(settings.__file__).with_name("serve.py")
    chosen = {settings.RUNS: str(runs.resolve()) if runs else "", settings.MODEL: model}
    say(f"The explorer is at http://localhost:{port}; Ctrl-C ends it.")
    command = [sys.executable, str(place), f"--server.port={port}"]
    done = subprocess.run(command, env={**os.environ, **chosen}, check=False)
    if done.returncode:
        raise typer.Exit(1)


def _require_free(port: int) -> None:
    """Raise BadInput where something is already served at this port."""
    with socket.socket() as asked:
        asked.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            asked.bind(("localhost", port))
        except OSError as error:
            raise BadInput(
                f"port {port} cannot be served ({error.strerror}): name another with --port, or end what is there"
            ) from error
