"""The bundled model with a knob fitted to it, once for all tests of this folder."""

from __future__ import annotations

import pytest

import interp
from interp.knob import KnobResult, fit_knob
from interp.tasks.context_prior import ContextItems, PromptForm, fact_items

FITTED, ASKED = 240, 60


@pytest.fixture(scope="session")
def pocket() -> interp.Model:
    return interp.load("pocket")


@pytest.fixture(scope="session")
def form() -> PromptForm:
    return PromptForm(wording="pocket")


@pytest.fixture(scope="session")
def drawn() -> ContextItems:
    return fact_items(FITTED + ASKED, seed=0)


@pytest.fixture(scope="session")
def items(drawn: ContextItems) -> ContextItems:
    return drawn.take(range(FITTED))


@pytest.fixture(scope="session")
def others(drawn: ContextItems) -> ContextItems:
    """Items that no knob was fitted on."""
    return drawn.take(range(FITTED, FITTED + ASKED))


@pytest.fixture(scope="session")
def fitted(pocket: interp.Model, items: ContextItems, form: PromptForm) -> KnobResult:
    return fit_knob(pocket, items, form=form)
