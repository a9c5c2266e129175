"""All probes of a depth study at once, beside a loop of scikit-learn's, and beside the forward passes they read."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits
from transformers import GPT2Config, GPT2Model

from kernels.measure import Timing
from probes.solver import Solution, solve
from tests.benchmarks.measure import Comparison, Target, report

pytestmark = pytest.mark.bench

LAYERS, WIDTH, EXAMPLES, FOLDS = 13, 768, 4_000, 5
STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0)
TOLERANCES = (1e-4, 1e-6)
"""scikit-learn's default, and ours: both solvers stop at this largest entry of the same gradient."""
TIMED = (2, 6, 10)
"""Layers that scikit-learn's loop is timed on, with one fold and every strength; its whole time is scaled from them."""
THREADS = 2
TEXT, BATCH = 64, 16
"""Tokens of an example, and examples of the forward pass that is timed; its whole time is scaled from them."""

Seconds = np.ndarray
"""CPU seconds of the process, which other processes do not add to, and wall seconds."""


def timed(work: Callable[[], Any]) -> Seconds:
    begun = time.process_time(), time.perf_counter()
    work()
    return np.array([time.process_time() - begun[0], time.perf_counter() - begun[1]])


def layer(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Standardised activations with a falling spectrum, and labels that are readable the better the later the layer."""
    rng = np.random.default_rng(number)
    mixing = rng.standard_normal((WIDTH, WIDTH)) * np.arange(1, WIDTH + 1)[:, None] ** -0.7
    x = rng.standard_normal((EXAMPLES, WIDTH)) @ mixing
    x = (x - x.mean(0)) / x.std(0)
    score = x @ rng.standard_normal(WIDTH)
    return x, (number * score / score.std() + rng.logistic(size=EXAMPLES) > 0).astype(int)


def folds() -> np.ndarray:
    return np.arange(EXAMPLES) % FOLDS != np.arange(FOLDS)[:, None]


def batched(x: np.ndarray, y: np.ndarray, tolerance: float) -> Solution:
    return solve(
        torch.tensor(x)[None],
        torch.tensor(y, dtype=torch.float64)[None, None],
        torch.tensor(folds(), dtype=torch.float64)[None],
        torch.tensor(STRENGTHS, dtype=torch.float64),
        loss="logistic",
        tolerance=tolerance,
    )


def looped(x: np.ndarray, y: np.ndarray, tolerance: float) -> None:
    """One fold, every strength, on one thread: its products with a vector gain nothing from a second."""
    train = folds()[0]
    for strength in STRENGTHS:
        with warnings.catch_warnings(), threadpool_limits(1):
            warnings.simplefilter("ignore")
            LogisticRegression(C=strength, tol=tolerance, max_iter=20_000).fit(x[train], y[train])


def passes() -> Seconds:
    """A random model of GPT-2's size over all examples."""
    model = GPT2Model(GPT2Config()).eval()
    tokens = torch.randint(0, 50_000, (BATCH, TEXT))
    with torch.no_grad():
        model(tokens)
        return timed(lambda: model(tokens)) * EXAMPLES / BATCH


@pytest.mark.parametrize("tolerance", TOLERANCES)
def test_every_layer_fold_and_strength_against_scikit_learn(tolerance: float) -> None:
    torch.set_num_threads(THREADS)
    own, theirs = np.zeros(2), np.zeros(2)
    for number in range(LAYERS):
        x, y = layer(number)
        found: list[Solution] = []
        own += timed(lambda x=x, y=y, found=found: found.append(batched(x, y, tolerance)))
        assert bool(found[0].converged.all())
        if number in TIMED:
            theirs += timed(lambda x=x, y=y: looped(x, y, tolerance)) * FOLDS * LAYERS / len(TIMED)
    alternatives = {"scikit-learn loop": theirs, "one batched solve": own, "forward pass": passes()}
    ratios = {name: float(seconds[0] / theirs[0]) for name, seconds in alternatives.items()}
    comparison = Comparison(
        f"probes-{tolerance:g}",
        f"{LAYERS} layers x {WIDTH} features x {EXAMPLES} examples x {FOLDS} folds x {len(STRENGTHS)} strengths, "
        f"tolerance {tolerance:g}; scikit-learn on one thread scaled from layers {TIMED} and one fold, the forward "
        f"pass (a model of GPT-2's size, {TEXT} tokens an example) from {BATCH} examples",
        1,
        tuple(
            Timing(name, float(cpu), ratios[name], ratios[name], ratios[name], float(wall))
            for name, (cpu, wall) in alternatives.items()
        ),
        (Target("one batched solve", 0.1),),
    )
    report(comparison)
    share = ratios["one batched solve"] / ratios["forward pass"]
    print(f"  {1 / ratios['one batched solve']:.1f} times as fast as the loop; {share:.2f} of the forward pass")
