"""Encoders of several layers trained as one, beside a loop that trains one layer after another."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from torch import nn

from probes.vsa.algebra import Algebra
from probes.vsa.encoder import SQUARED, Examples, Training, train_encoders
from tests.benchmarks.measure import Target, compare, report

pytestmark = pytest.mark.bench

EXAMPLES, FEATURES = 960, 256
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TRAINING = Training(hidden=128, epochs=2, patience=2, device=DEVICE)


def examples(layers: int, dimensions: int) -> Examples:
    rng = np.random.default_rng(0)
    states = {f"layer {i}": rng.standard_normal((EXAMPLES, FEATURES)).astype(np.float32) for i in range(layers)}
    rows = np.arange(EXAMPLES)
    return Examples(states, Algebra().random(EXAMPLES, dimensions, 0), rows[:860], rows[860:])


def one_layer(states: torch.Tensor, targets: torch.Tensor, rows: int) -> None:
    """The training of one encoder as it is usually written: modules, a loss, autograd and a stock optimiser."""
    network = nn.Sequential(
        nn.Linear(FEATURES, TRAINING.hidden),
        nn.GELU(),
        nn.Dropout(TRAINING.dropout),
        nn.Linear(TRAINING.hidden, TRAINING.hidden),
        nn.GELU(),
        nn.Dropout(TRAINING.dropout),
        nn.Linear(TRAINING.hidden, targets.shape[1]),
    ).to(DEVICE)
    optimiser = torch.optim.AdamW(network.parameters(), TRAINING.rate, weight_decay=TRAINING.decay)
    entropy, squared = nn.BCEWithLogitsLoss(), nn.MSELoss()
    for _ in range(TRAINING.epochs):
        network.train()
        for batch in torch.randperm(rows).to(DEVICE).split(TRAINING.batch):
            outputs = network(states[batch])
            loss = entropy(outputs, (targets[batch] + 1) / 2) + SQUARED * squared(outputs, targets[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        network.eval()
        with torch.no_grad():
            float(torch.cosine_similarity(network(states[rows:]), targets[rows:], dim=-1).mean())


@pytest.mark.parametrize(("layers", "dimensions"), [(24, 256), (12, 4096)])
def test_layers_together_against_a_loop(layers: int, dimensions: int) -> None:
    data = examples(layers, dimensions)
    targets = data.targets.float().to(DEVICE)
    states = [torch.tensor(value).to(DEVICE) for value in data.states.values()]

    def loop() -> None:
        for own in states:
            one_layer(own, targets, len(data.train))
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    comparison = compare(
        f"vsa-encoders-{layers}-{dimensions}",
        f"{layers} layers x {EXAMPLES} examples x {FEATURES} features to {dimensions} dimensions, {TRAINING.epochs} "
        f"epochs of batches of {TRAINING.batch} on {DEVICE}",
        {"a loop over layers": loop, "all layers as one": lambda: train_encoders(data, Algebra(), TRAINING)},
        rounds=2,
        clock=time.perf_counter if DEVICE == "cuda" else time.process_time,
        targets=(Target("all layers as one", 0.25),),
    )
    report(comparison)
