"""Writes the .ipynb of every notebook anew from its text: `python notebooks/sync.py`.

The .py is the source (jupytext's percent format). What is written has no outputs, and every cell's identifier comes
from the cell itself, so a change of one cell is a change of its lines alone.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import jupytext
import nbformat

FOLDER = Path(__file__).parent
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def texts() -> list[Path]:
    """The sources of all notebooks, in order."""
    return sorted(FOLDER.glob("[0-9][0-9]_*.py"))


def notebook(text: Path) -> Any:
    """The notebook that a source describes. Raises ValueError where two of its cells are the same."""
    made = jupytext.read(text, fmt="py:percent")
    made.metadata = nbformat.from_dict(METADATA)
    for cell in made.cells:
        cell.id = hashlib.sha256(f"{cell.cell_type} {cell.source}".encode()).hexdigest()[:12]
    if len({cell.id for cell in made.cells}) < len(made.cells):
        raise ValueError(f"{text.name} holds the same cell twice")
    return made


def written(text: Path) -> str:
    """The .ipynb of a source, as it is written."""
    return str(nbformat.writes(notebook(text))) + "\n"


if __name__ == "__main__":
    for text in texts():
        text.with_suffix(".ipynb").write_text(written(text), encoding="utf-8")
