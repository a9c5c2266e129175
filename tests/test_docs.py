"""The snippets of the pages in docs/ run as they stand there."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
from transformers.utils import logging

DOCS = Path(__file__).resolve().parent.parent / "docs"
SNIPPETS = [
    pytest.param(code, id=f"{page.stem} {number}")
    for page in sorted(DOCS.glob("*.md"))
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL), 1)
]


@pytest.mark.parametrize("code", SNIPPETS)
def test_a_snippet_runs(code: str, tmp_path: Path) -> None:
    logging.set_verbosity_error()
    file = tmp_path / "snippet.py"  # nnsight reads the source of what it traces
    file.write_text(code, encoding="utf-8")
    runpy.run_path(str(file))


def test_there_are_snippets() -> None:
    assert len(SNIPPETS) >= 4
