"""The probes of all layers trained together, beside a plain loop that trains one layer after the other."""

from __future__ import annotations

import time
from collections.abc import Callable
from random import Random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.measure import Timing
from probes.ast.languages import parse
from probes.ast.leaves import LeafStates
from probes.ast.probe import Labels
from probes.ast.training import PAPER, Settings, fit
from probes.ast.tree import TreeTuple, to_tuple
from tests.benchmarks.measure import Comparison, Target, report

pytestmark = pytest.mark.bench

FUNCTIONS, VALID, WIDTH, LAYERS = 2_000, 32, 256, 5
"""The layers and width of pocket."""
TIMED = 3
"""Epochs of ours that are timed, beside one; every epoch costs the same, and what comes before them is paid once."""
EXPRESSIONS = ("a", "a.b", "f(a)", "f(a, b)[c]", "a + b * c", "[a, b]", "not a", "f(a)(b.c)")
STATEMENTS = ("return {}", "x = {}", "if {}:\n        x = a", "for b in {}:\n        f(b)", "x += {}", "print({})")


def functions(n: int, seed: int) -> list[TreeTuple]:
    """Trees of functions whose numbers of leaves spread as those of the standard library: most short, some long."""
    rng = Random(seed)
    trees = []
    for _ in range(n):
        lines = [
            f"    {rng.choice(STATEMENTS).format(rng.choice(EXPRESSIONS))}"
            for _ in range(1 + int(rng.expovariate(0.2)))
        ]
        trees.append(to_tuple(parse("def f(a, b):\n" + "\n".join(lines[:40]) + "\n", "python")))
    return trees


def states(trees: list[TreeTuple], seed: int) -> LeafStates:
    lengths = tuple(len(tree.u) for tree in trees)
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(LAYERS, sum(lengths), WIDTH, generator=generator)
    return LeafStates(tuple(f"resid_post.{i}" for i in range(LAYERS)), values, lengths)


def loop(held: LeafStates, trees: list[TreeTuple], valid: tuple[LeafStates, list[TreeTuple]]) -> None:
    """As one writes it down: a run a layer, batches drawn at random and padded to their longest function."""
    labels = Labels.of(trees)
    for layer in range(LAYERS):
        torch.manual_seed(PAPER.seed)
        shapes = ((WIDTH, PAPER.rank), (PAPER.rank, len(labels.c)), (PAPER.rank, len(labels.u)))
        weights = [torch.empty(shape).uniform_(-PAPER.init, PAPER.init).requires_grad_() for shape in shapes]
        optimizer = torch.optim.Adam(weights, lr=PAPER.learning_rate)
        functions = held.values[layer].split(list(held.lengths))
        order = np.random.default_rng(PAPER.seed).permutation(len(trees))
        for at in range(0, len(order), PAPER.batch):
            chosen = order[at : at + PAPER.batch]
            loss = padded_loss(weights, [functions[i] for i in chosen], [trees[i] for i in chosen], labels)
            gram = weights[0].T @ weights[0] - torch.eye(PAPER.rank)
            (loss + PAPER.orthogonality * gram.square().sum()).backward()
            optimizer.step()
            optimizer.zero_grad()
        with torch.no_grad():
            padded_loss(weights, list(valid[0].values[layer].split(list(valid[0].lengths))), valid[1], labels)


def padded_loss(weights: list[Tensor], functions: list[Tensor], trees: list[TreeTuple], labels: Labels) -> Tensor:
    c, u = labels.numbers
    projection, vectors_c, vectors_u = weights
    h = torch.nn.utils.rnn.pad_sequence(functions, batch_first=True)
    d = pad([torch.tensor(t.d, dtype=torch.float32) for t in trees], 0)
    real = pad([torch.ones(len(t.d)) for t in trees], 0)
    p = h @ projection
    delta = p[:, 1:] - p[:, :-1]
    said = delta.square().sum(-1)
    above = (d[:, :, None] > d[:, None, :]) * real[:, :, None] * real[:, None, :]
    rank = (torch.relu(1 - (said[:, :, None] - said[:, None, :])) * above).sum() / above.sum()
    true_c = pad([torch.tensor([c.get(x, -100) for x in t.c]) for t in trees], -100)
    true_u = pad([torch.tensor([u.get(x, -100) for x in t.u]) for t in trees], -100)
    inner = F.cross_entropy((delta @ vectors_c).flatten(0, 1), true_c.flatten())
    return rank + inner + F.cross_entropy((p @ vectors_u).flatten(0, 1), true_u.flatten())


def pad(rows: list[Tensor], value: float) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)


def timed(work: Callable[[], object]) -> np.ndarray:
    """CPU seconds of the process, which other processes do not add to, and wall seconds."""
    begun = time.process_time(), time.perf_counter()
    work()
    return np.array([time.process_time() - begun[0], time.perf_counter() - begun[1]])


def test_all_layers_at_once_against_a_loop_over_layers() -> None:
    torch.set_num_threads(1)
    trees, valid = functions(FUNCTIONS, 0), functions(VALID, 1)
    train, judged = states(trees, 0), (states(valid, 1), valid)
    looped = timed(lambda: loop(train, trees, judged))
    one, more = (timed(lambda n=n: fit((train, trees), judged, Settings(epochs=n))) for n in (1, TIMED))
    alternatives = {
        "loop over layers": looped * PAPER.epochs,
        "all layers at once": one + (more - one) / (TIMED - 1) * (PAPER.epochs - 1),
    }
    base = alternatives["loop over layers"]
    lengths = np.array(train.lengths)
    comparison = Comparison(
        "ast-probe",
        f"{FUNCTIONS} functions of {lengths.min()} to {lengths.max()} leaves (mean {lengths.mean():.0f}), {LAYERS} "
        f"layers x {WIDTH}, rank {PAPER.rank}, {PAPER.epochs} epochs, scaled from 1 of the loop ({looped[0]:.1f} s), "
        f"1 and {TIMED} of ours ({one[0]:.1f} s, {more[0]:.1f} s)",
        1,
        tuple(
            Timing(name, float(cpu), *[float(cpu / base[0])] * 3, float(wall))
            for name, (cpu, wall) in alternatives.items()
        ),
        (Target("all layers at once", 0.25),),
    )
    report(comparison)
