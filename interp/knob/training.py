"""Subspaces of all layers, fitted by interchange in one loop over shared base runs.

Layers do not depend on each other, so their losses add up: one pass and one backward pass serve them all, and each
stops by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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

    `batch_size` counts prompts. `step`: the learning rate times the root of the width, about how far a direction turns
    in the first steps, in radians (Minder et al. take 0.064, 8 prompts a step and one epoch). `patience`: epochs
    without a lower loss on the validation pairs after which a layer stops; its best epoch counts.
    """

    epochs: int = 40
    batch_size: int = 64
    step: float = 0.5
    patience: int = 6

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch_size, self.patience) < 1 or not self.step > 0:
            raise BadInput(f"{self}: all must be positive")


@dataclass(frozen=True, eq=False)
class Fitted:
    """A layer's orthonormal `basis` `[rank width]`, its validation loss and accuracy, and the epochs it took."""

    layer: int
    basis: Tensor
    loss: float
    accuracy: float
    epochs: int


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
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(len(layers), width, rank, generator=generator) / width**0.5
    weights = start.to(pairs.base.resid.device).requires_grad_()
    optimizer = torch.optim.Adam([weights], lr=training.step / width**0.5)
    best: dict[int, Fitted] = {}
    running = list(range(len(layers)))
    rows = pairs.rows(split.train)
    for epoch in range(1, training.epochs + 1):
        order = rows[torch.randperm(len(rows), generator=generator)]
        for batch in order.split(training.batch_size):
            _step(pairs, layers, weights, running, batch, optimizer)
        bases = _orthonormal(weights.detach())
        found = measure_interchange(pairs, [layers[i] for i in running], [bases[i] for i in running], split.validation)
        for i, measured in zip(running, found, strict=True):
            loss = float(measured.loss.mean())
            if i not in best or loss < best[i].loss:
                best[i] = Fitted(layers[i], bases[i].clone(), loss, float(measured.source.mean()), epoch)
        running = [i for i in running if epoch - best[i].epochs < training.patience]
        if progress:
            progress(epoch, training.epochs)
        if not running:
            break
    return [best[i] for i in range(len(layers))]


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
