"""One wrapped tiny model a family, built once."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
from transformers.utils import logging

import interp
from tests.families import FAMILIES, build, word_tokenizer

torch.set_num_threads(1)
logging.set_verbosity_error()
logging.disable_progress_bar()

GetModel = Callable[..., interp.Model]


@pytest.fixture(scope="session")
def model_of() -> GetModel:
    """`model_of("llama", attention="sdpa")`: the wrapped model, the same object every time."""

    @cache
    def get(family: str, attention: str = "eager", dtype: torch.dtype = torch.float32) -> interp.Model:
        return interp.wrap(build(family, attention, dtype), tokenizer=word_tokenizer())

    return get


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def model(family: str, model_of: GetModel) -> interp.Model:
    """The eager model of every family in turn."""
    return model_of(family)


@pytest.fixture(scope="session")
def llama(model_of: GetModel) -> interp.Model:
    return model_of("llama", attention="sdpa")
