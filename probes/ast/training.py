"""Training the probes of all layers at once, each with its own learning rate and its own end.

Functions are sorted by length and cut into batches once; labels, pairs and places are worked out once and serve every
layer and epoch. A batch is a slice of the states, not a copy, and pads next to nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from interp.errors import BadInput
from probes.ast.leaves import LeafStates
from probes.ast.probe import AstProbe, Labels, Weights, boundaries, orthogonality, rank_loss, scores
from probes.ast.tree import TreeTuple

UNKNOWN = -100
"""A label that no training function has; it costs nothing to miss in the loss, and counts as missed in F1."""


@dataclass(frozen=True)
class Settings:
    """How a probe is trained; the defaults are the paper's. Raises BadInput on values that make no sense.

    Attributes:
        rank: m, the dimension of the subspace.
        orthogonality: λ, the weight of ‖BᵀB - I‖².
        shrink: factor of the learning rate after more than `plateau` epochs without a lower validation loss.
        patience: epochs without a lower validation loss after which a layer stops.
        init: bound of the uniform distribution of all first weights.
        standardize: features to mean 0 and deviation 1 over the training leaves, where the paper takes states as they
            are: the margin of the rank loss would mean another thing at every layer.
    """

    rank: int = 128
    epochs: int = 20
    batch: int = 32
    learning_rate: float = 1e-3
    shrink: float = 0.1
    plateau: int = 0
    patience: int = 5
    orthogonality: float = 5.0
    init: float = 0.05
    standardize: bool = True
    seed: int = 42

    def __post_init__(self) -> None:
        for name in ("rank", "epochs", "batch", "patience"):
            if getattr(self, name) < 1:
                raise BadInput(f"{name} is at least 1, not {getattr(self, name)}")

    def require_width(self, width: int) -> None:
        """Raises BadInput where states of this many features have no subspace of the rank."""
        if self.rank > width:
            raise BadInput(f"a subspace of {width} features has at most rank {width}, not {self.rank}")

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a run's record."""
        return asdict(self)


PAPER = Settings()
"""Hernández López et al. (2022), who have 20,000 functions; fewer of them want smaller batches and more epochs."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Functions of like length: where their leaves are, and what is true of them.

    `d` `[function boundary]` has NaN after a function's last one. Of all neighbouring leaves of the batch `within` are
    those of one function, and `place` says where they are in `d`, flat; `c` is UNKNOWN for the others.
    """

    leaves: slice
    within: Tensor
    place: Tensor
    d: Tensor
    c: Tensor
    u: Tensor


@dataclass(frozen=True, eq=False)
class TrainingSet:
    """States `[layer leaf width]` in the order of the batches, and the batches."""

    values: Tensor
    batches: tuple[Batch, ...]

    @classmethod
    def of(
        cls, states: LeafStates, trees: Sequence[TreeTuple], labels: Labels, batch: int, scale: tuple[Tensor, Tensor]
    ) -> TrainingSet:
        """Standardise, sort and cut; `scale` holds mean and deviation `[layer 1 width]`."""
        lengths = np.array(states.lengths)
        starts = np.concatenate([[0], lengths.cumsum()])
        order = np.argsort(lengths, kind="stable")
        rows = np.concatenate([np.arange(starts[i], starts[i + 1]) for i in order])
        values = states.values[:, rows].sub_(scale[0]).div_(scale[1])
        batches, first = [], 0
        for at in range(0, len(order), batch):
            chosen = order[at : at + batch]
            end = first + int(lengths[chosen].sum())
            batches.append(_batch(slice(first, end), [trees[i] for i in chosen], labels))
            first = end
        return cls(values, tuple(batches))


def _batch(leaves: slice, trees: Sequence[TreeTuple], labels: Labels) -> Batch:
    lengths = [len(tree.u) for tree in trees]
    d = torch.full((len(trees), max(lengths) - 1), torch.nan)
    for row, tree in enumerate(trees):
        d[row, : len(tree.d)] = torch.tensor(tree.d)
    c, u = labels.numbers
    within = boundaries(lengths)
    true = torch.full((sum(lengths) - 1,), UNKNOWN)
    true[within] = torch.tensor([c.get(chain, UNKNOWN) for tree in trees for chain in tree.c])
    return Batch(
        leaves,
        within,
        (~d.isnan()).flatten().nonzero().squeeze(-1),
        d,
        true,
        torch.tensor([u.get(chain, UNKNOWN) for tree in trees for chain in tree.u]),
    )


def losses(weights: Weights, values: Tensor, batch: Batch) -> Tensor:
    """Rank loss and both cross-entropies, `[layer]`."""
    said = scores(weights, values[:, batch.leaves])
    padded = said.d.new_zeros(len(said.d), batch.d.numel()).index_copy(1, batch.place, said.d[:, batch.within])
    rank = rank_loss(padded.unflatten(1, batch.d.shape), batch.d)
    return rank + _cross_entropy(said.c, batch.c) + _cross_entropy(said.u, batch.u)


def _cross_entropy(logits: Tensor, true: Tensor) -> Tensor:
    layers = len(logits)
    each = F.cross_entropy(logits.flatten(0, 1), true.repeat(layers), ignore_index=UNKNOWN, reduction="none")
    return each.view(layers, -1).sum(1) / (true != UNKNOWN).sum().clamp(min=1)


class Learner:
    """The weights of one layer, what changes them, and the best of them so far."""

    def __init__(self, first: Sequence[Tensor], settings: Settings) -> None:
        self.weights = [each.clone().requires_grad_() for each in first]
        self.optimizer = torch.optim.Adam(self.weights, lr=settings.learning_rate, fused=True)
        self.schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(
            self.optimizer, factor=settings.shrink, patience=settings.plateau
        )
        self.patience = settings.patience
        self.best, self.waited = float("inf"), 0
        self.kept = Weights(*first)

    def judge(self, loss: float) -> bool:
        """Take note of a validation loss; whether to go on."""
        self.schedule.step(loss)
        if loss < self.best:
            self.best, self.waited = loss, 0
            self.kept = Weights(*(each.detach().clone() for each in self.weights))
        else:
            self.waited += 1
        return self.waited < self.patience


def fit(
    train: tuple[LeafStates, Sequence[TreeTuple]],
    valid: tuple[LeafStates, Sequence[TreeTuple]],
    settings: Settings = PAPER,
    sites: Sequence[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, AstProbe]:
    """One probe a site (all by default), each the weights of its epoch of least validation loss.

    Raises BadInput for a rank above the width of the states, and for sites that were not read.
    """
    (states, trees), judged = (train[0].at(sites), train[1]), valid[0].at(sites)
    width = states.values.shape[-1]
    settings.require_width(width)
    labels = Labels.of(trees)
    scale = _scale(states.values, settings.standardize)
    learned = TrainingSet.of(states, trees, labels, settings.batch, scale)
    held_out = TrainingSet.of(judged, valid[1], labels, settings.batch, scale)
    learners = _train(learned, held_out, _first(width, labels, settings), settings, progress)
    return {
        site: _probe(site, learner.kept, scale[0][i, 0], scale[1][i, 0], labels)
        for i, (site, learner) in enumerate(zip(states.sites, learners, strict=True))
    }


def _train(
    train: TrainingSet,
    valid: TrainingSet,
    first: Sequence[Tensor],
    settings: Settings,
    progress: Callable[[int, int], None] | None,
) -> list[Learner]:
    learners = [Learner(first, settings) for _ in train.values]
    learning = list(range(len(learners)))
    learned, judged = train.values, valid.values
    rng = np.random.default_rng(settings.seed)
    for epoch in range(settings.epochs):
        for i in rng.permutation(len(train.batches)):
            weights = _together([learners[layer] for layer in learning])
            loss = losses(weights, learned, train.batches[i])
            (loss + settings.orthogonality * orthogonality(weights.projection)).sum().backward()
            for layer in learning:
                learners[layer].optimizer.step()
                learners[layer].optimizer.zero_grad()
        with torch.no_grad():
            weights = _together([learners[layer] for layer in learning])
            found = torch.stack([losses(weights, judged, batch) for batch in valid.batches]).mean(0).tolist()
        going = [i for i, loss in enumerate(found) if learners[learning[i]].judge(loss)]
        if progress:
            progress(epoch + 1, settings.epochs)
        if not going:
            break
        if len(going) < len(learning):
            learning, learned, judged = [learning[i] for i in going], learned[going], judged[going]
    return learners


def _together(learners: Sequence[Learner]) -> Weights:
    return Weights(*(torch.stack(each) for each in zip(*(learner.weights for learner in learners), strict=True)))


def _first(width: int, labels: Labels, settings: Settings) -> list[Tensor]:
    """First weights, the same at every layer."""
    generator = torch.Generator().manual_seed(settings.seed)
    shapes = ((width, settings.rank), (settings.rank, len(labels.c)), (settings.rank, len(labels.u)))
    return [torch.empty(shape).uniform_(-settings.init, settings.init, generator=generator) for shape in shapes]


def _scale(values: Tensor, standardize: bool) -> tuple[Tensor, Tensor]:
    if not standardize:
        return torch.zeros(len(values), 1, values.shape[2]), torch.ones(len(values), 1, values.shape[2])
    variance, mean = torch.var_mean(values, 1, keepdim=True, correction=0)
    return mean, torch.where(variance > 0, variance.sqrt(), 1)


def _probe(site: str, weights: Weights, mean: Tensor, deviation: Tensor, labels: Labels) -> AstProbe:
    projection = weights.projection / deviation[:, None]
    off = float(orthogonality(weights.projection[None])[0].sqrt())
    return AstProbe(site, projection, mean @ projection, weights.c, weights.u, labels, off)
