"""The table in docs/conformance.md; `python -m tests.conformance.table` writes it anew."""

from __future__ import annotations

from collections import defaultdict
from functools import cache
from pathlib import Path

import torch
from transformers.utils import logging

import interp
from interp.conformance import Conformance, conformance
from interp.errors import WorkbenchError
from interp.tracing.loading import BACKENDS
from tests.families import FAMILIES, build

TOLERANCE = 1e-5
PAGE = Path(__file__).resolve().parents[2] / "docs" / "conformance.md"
HEAD = """# What is tested on every family and backend, and what is refused

Written by `python -m tests.conformance.table`; the tests fail when it is out of date. Each line is a tiny random model
of the family (float32): every site read, an edit at every site, every kind of edit, gradients, generation with edits,
padding on both sides. What passes agrees to a relative {tolerance:g}, on the hooks backend with closed forms and the
site equations, on the others with the hooks backend; every edit changes what the model computes. Nothing fails.
`python -m interp.conformance MODEL` prints the same for a model of your own.

| family | backend | pass | refused |
|---|---|---|---|
"""


@cache
def hooked(family: str) -> interp.Model:
    return interp.wrap(build(family))


@cache
def outcome(family: str, backend: str) -> Conformance | str:
    """What conformance finds, or why the backend does not take this family."""
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    hooks = hooked(family)
    if backend == hooks.backend.name:
        return conformance(hooks, tolerance=TOLERANCE)
    try:
        model = interp.wrap(hooks.hf, backend=backend)
    except WorkbenchError as refusal:
        return str(refusal)
    return conformance(model, reference=hooks, tolerance=TOLERANCE)


def line(family: str, backend: str) -> str:
    """One line of the table."""
    found = outcome(family, backend)
    if isinstance(found, str):
        return f"| {family} | {backend} | 0 | the model: {found} |"
    passes = sum(each.result == "pass" for each in found.outcomes)
    subjects: dict[str, list[str]] = defaultdict(list)
    for each in found.outcomes:
        if each.result == "refused" and each.subject not in subjects[each.note]:
            subjects[each.note].append(each.subject)
    refused = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in subjects.items())
    return f"| {family} | {backend} | {passes} | {refused} |"


def page() -> str:
    """The whole page."""
    lines = [line(family, backend) for family in FAMILIES for backend in BACKENDS]
    return HEAD.format(tolerance=TOLERANCE) + "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8")
