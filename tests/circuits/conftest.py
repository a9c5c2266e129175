"""A model with an IOI circuit written by hand, and what is discovered in it and in pocket."""

from __future__ import annotations

import pytest

import interp
from interp.circuits.ioi import ioi_circuit
from interp.tasks.ioi import ioi_prompts
from tests.planted import NAMES, ioi_model, ioi_tokenizer


@pytest.fixture(scope="package")
def planted():
    tokenizer = ioi_tokenizer()
    return interp.wrap(ioi_model(len(tokenizer)), tokenizer)


@pytest.fixture(scope="package")
def abc(planted):
    """IOI prompts of eight names, against p_ABC."""
    return ioi_prompts(planted.tokenizer, 32, seed=1, style="pocket", corruption="ABC", names=NAMES)


@pytest.fixture(scope="package")
def found(planted, abc):
    return ioi_circuit(planted, abc)


@pytest.fixture(scope="package")
def pocket():
    return interp.load("pocket")


@pytest.fixture(scope="package")
def pocket_ioi(pocket):
    return ioi_circuit(pocket, ioi_prompts(pocket.tokenizer, 32, seed=0, style="pocket", corruption="ABC"))
