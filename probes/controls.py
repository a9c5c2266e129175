"""What a probe's accuracy must be held against: random labels, an untrained model, the words alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from interp.errors import BadInput
from interp.tracing.loading import wrap
from interp.tracing.model import Model

ATTEMPTS = 100
"""Draws of control labels before too few keys are blamed."""


def control_labels(
    labels: Sequence[Any] | np.ndarray, keys: Sequence[str], seed: int = 0, least: int = 1
) -> np.ndarray:
    """A control task (Hewitt & Liang 2019): every key gets one random class, drawn as often as the real ones occur.

    A probe that learns it only shows that it can remember keys; accuracy beyond it is selectivity. Each class gets at
    least `least` examples. Raises BadInput where the keys are too few for that.
    """
    given = np.asarray(labels)
    if len(keys) != len(given):
        raise BadInput(f"there are {len(keys)} keys for {len(given)} labels")
    kinds, index = np.unique(np.asarray(keys, dtype=str), return_inverse=True)
    classes = np.unique(given)
    rng = np.random.default_rng(seed)
    for _ in range(ATTEMPTS):
        drawn = rng.choice(given, len(kinds))[index]
        if all((drawn == value).sum() >= least for value in classes):
            return drawn
    raise BadInput(
        f"{len(kinds)} keys cannot carry random labels of {len(classes)} classes with {least} examples each; give keys "
        "that distinguish more examples, or leave the controls out"
    )


def shuffled_labels(labels: Sequence[Any] | np.ndarray, seed: int = 0) -> np.ndarray:
    """The same labels on other examples: what accuracy means when there is nothing to learn."""
    return np.random.default_rng(seed).permutation(np.asarray(labels))


def untrained(model: Model, seed: int = 0) -> Model:
    """A model of the same shape with the weights it would have begun its training with."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = type(model.hf)(model.hf.config)
    like = next(model.hf.parameters())
    fresh = fresh.to(device=like.device, dtype=like.dtype).eval().requires_grad_(False)
    return wrap(fresh, tokenizer=model.tokenizer, name=f"{model.spec.name} untrained")


def bag_of_tokens(rows: Sequence[Sequence[int]]) -> np.ndarray:
    """How often each token that occurs at all is in each text, `[example token]`: what is said, not in which order."""
    used = {token: i for i, token in enumerate(sorted({token for row in rows for token in row}))}
    counts = np.zeros((len(rows), len(used)))
    for i, row in enumerate(rows):
        np.add.at(counts[i], [used[token] for token in row], 1)
    return counts
