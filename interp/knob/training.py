"""Subspaces of all layers, fitted by interchange in one loop over shared base runs.

Layers do not depend on each other, so their losses add up: one pass and one backward pass serve them all, and each
stops by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from interp.errors import BadInput
from interp.knob.interchange import interchange_logits, measure_interchange
from interp.knob.pairs import Pairs, Split


@dataclass(frozen=True)
class Training:
    """How subspaces are fitted, by Adam.

    `batch_size` counts prompts. `turn`: the learning rate times the root of the width, about how far a direction turns
    in the first steps, in radians. Minder et al. take 0.064, 8 prompts a step and one epoch. Every `check` steps the
    loss on the validation pairs is taken; a layer stops after `patience` checks without a lower one, and its best
    counts.
    """

    steps: int = 600
    batch_size: int = 32
    turn: float = 0.5
    check: int = 20
    patience: int = 5

    def __post_init__(self) -> None:
        if min(self.steps, self.batch_size, self.check, self.patience) < 1 or not self.turn > 0:
            raise BadInput(f"{self}: all must be positive")


@dataclass(frozen=True, eq=False)
class Fitted:
    """A layer's orthonormal `basis` `[rank width]`, its validation loss and accuracy, and the steps it took."""

    layer: int
    basis: Tensor
    loss: float
    accuracy: float
    steps: int


def train(
    pairs: Pairs,
    split: Split,
    layers: Sequence[int],
    rank: int,
    training: Training,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> list[Fitted]:
    """Fit a subspace after each layer: cross-entropy of the twin's answer at its first token, the model frozen."""
    width = pairs.base.resid.shape[-1]
    if not 1 <= rank <= width:
        raise BadInput(f"rank {rank} is not between 1 and the width {width}")
    weights = torch.stack([start(width, rank, seed, layer) for layer in layers])
    weights = weights.to(pairs.base.resid.device).requires_grad_()
    optimizer = torch.optim.Adam([weights], lr=training.turn / width**0.5)
    endless = batches(pairs.rows(split.train), training.batch_size, seed)
    best: dict[int, Fitted] = {}
    running = list(range(len(layers)))
    for step in range(1, training.steps + 1):
        _step(pairs, layers, weights, running, next(endless), optimizer)
        if step % training.check and step < training.steps:
            continue
        bases = _orthonormal(weights.detach())
        found = measure_interchange(pairs, [layers[i] for i in running], [bases[i] for i in running], split.validation)
        for i, measured in zip(running, found, strict=True):
            loss = float(measured.loss.mean())
            if i not in best or loss < best[i].loss:
                best[i] = Fitted(layers[i], bases[i].clone(), loss, float(measured.source.mean()), step)
        running = [i for i in running if step - best[i].steps < training.patience * training.check]
        if progress:
            progress(training.steps if not running else step, training.steps)
        if not running:
            break
    return [best[i] for i in range(len(layers))]


def start(width: int, rank: int, seed: int, layer: int) -> Tensor:
    """Where a layer's fit starts, `[width rank]`, whichever others are fitted beside it."""
    generator = torch.Generator().manual_seed(seed * 1_000 + layer)
    return torch.randn(width, rank, generator=generator) / width**0.5


def batches(rows: Tensor, size: int, seed: int) -> Iterator[Tensor]:
    """Batches of rows without end, shuffled anew each time through."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from rows[torch.randperm(len(rows), generator=generator)].split(size)


def _step(
    pairs: Pairs,
    layers: Sequence[int],
    weights: Tensor,
    running: Sequence[int],
    batch: Tensor,
    optimizer: torch.optim.Optimizer,
) -> None:
    with torch.enable_grad():
        bases = _orthonormal(weights)
        logits = interchange_logits(pairs, [layers[i] for i in running], [bases[i] for i in running], batch)
        wanted = pairs.others[batch.to(pairs.others.device)]
        loss = torch.stack([cross_entropy(one.float(), wanted) for one in logits]).sum()
        weights.grad = torch.autograd.grad(loss, weights)[0]  # the model's own weights get none
    optimizer.step()


def _orthonormal(weights: Tensor) -> Tensor:
    """Orthonormal bases `[layer rank width]` of the columns of `weights` `[layer width rank]`."""
    return torch.linalg.qr(weights).Q.transpose(1, 2)
