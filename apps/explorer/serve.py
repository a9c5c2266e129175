"""Serves the explorer, and meanwhile loads what its pages wait for: `interp explore` runs this file."""

from __future__ import annotations

import sys
from pathlib import Path
from threading import Thread

from streamlit.web import cli

from apps.explorer import live
from apps.explorer.settings import settings


def warm() -> None:
    """Load the model and, with it, the libraries: a page that needs them sooner waits for the same load."""
    name = settings().model
    if name is None:
        import interp.heads.effects  # noqa: F401 - what reading most runs needs
    else:
        live.ready(name)


if __name__ == "__main__":
    Thread(target=warm, daemon=True).start()
    cli.main(["run", str(Path(__file__).with_name("app.py")), *sys.argv[1:]])
