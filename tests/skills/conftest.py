"""Pairs of models to localise skills in: a planted one with a known difference, and a taught one."""

from __future__ import annotations

import copy

import pytest
import torch

import interp
from interp.skills.finetune import FineTuning, finetune
from interp.skills.pairs import trainable
from interp.tasks.classification import Classification, bundled_task
from interp.tracing.model import Model

SMALL = {"train": 128, "validation": 32, "test": 64, "ood": 32}


@pytest.fixture(scope="session")
def pocket() -> Model:
    return interp.load("pocket")


@pytest.fixture(scope="session")
def topic(pocket: Model) -> Classification:
    return bundled_task("topic", pocket.tokenizer, sizes=SMALL)


@pytest.fixture(scope="session")
def planted(pocket: Model) -> tuple[Model, dict[str, torch.Tensor]]:
    """Pocket with forty entries of four parameters moved, and which."""
    changed = copy.deepcopy(pocket.hf)
    generator = torch.Generator().manual_seed(3)
    entries = {}
    model = interp.wrap(changed, tokenizer=pocket.tokenizer, name="planted")
    parameters = trainable(model)
    with torch.no_grad():
        for name in list(parameters)[2:40:10]:
            entries[name] = torch.randperm(parameters[name].numel(), generator=generator)[:10].sort().values
            parameters[name].view(-1)[entries[name]] += 2.0
    return model, entries


@pytest.fixture(scope="session")
def taught(pocket: Model, topic: Classification) -> FineTuning:
    """Pocket taught topics for a few seconds."""
    return finetune(pocket, topic, optimizer="sgd", learning_rate=0.3, steps=80, batch=12)
