"""The probe of Hernández López et al. (2022): a subspace in which the differences of neighbouring leaves are a tree.

With states h of the leaves, p_i = Bᵀh_i and δ_i = p_{i+1} - p_i: the distance is ‖δ_i‖², the label of the common
ancestor is read from δ_i, the chain above a leaf from p_i. Everything here has a leading dimension of layers, so that
the probes of all layers are one batched product.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from interp.errors import BadInput
from probes.ast.tree import Chain, TreeTuple

MARGIN = 1.0
"""By how much the greater of two distances is to exceed the other."""


class Weights(NamedTuple):
    """`projection` B `[layer width rank]`, `c` `[layer rank label]`, `u` `[layer rank label]`."""

    projection: Tensor
    c: Tensor
    u: Tensor


class Scores(NamedTuple):
    """Of packed leaves and their n - 1 neighbourhoods, those of two functions' ends included, which mean nothing: `d`
    `[layer neighbours]`, `c` `[layer neighbours label]`, `u` `[layer leaf label]`."""

    d: Tensor
    c: Tensor
    u: Tensor


@dataclass(frozen=True)
class Labels:
    """What a probe can say: the labels it was trained on."""

    c: tuple[Chain, ...]
    u: tuple[Chain, ...]

    @classmethod
    def of(cls, vectors: Iterable[TreeTuple]) -> Labels:
        """All labels that occur, in alphabetical order."""
        trees = list(vectors)
        c = {chain for tree in trees for chain in tree.c}
        u = {chain for tree in trees for chain in tree.u}
        return cls(tuple(sorted(c)), tuple(sorted(u)))

    @cached_property
    def numbers(self) -> tuple[dict[Chain, int], dict[Chain, int]]:
        """The number of each label of a boundary, and of each label of a leaf."""
        return {chain: i for i, chain in enumerate(self.c)}, {chain: i for i, chain in enumerate(self.u)}


def scores(weights: Weights, states: Tensor) -> Scores:
    """What the probes say of states `[layer leaf width]`."""
    p = torch.bmm(states, weights.projection)
    delta = p[:, 1:] - p[:, :-1]
    both = torch.bmm(p, torch.cat([weights.c, weights.u], dim=-1))  # one product: the label scores of δ are differences
    c, u = both.split([weights.c.shape[-1], weights.u.shape[-1]], dim=-1)
    return Scores(delta.square().sum(-1), c[:, 1:] - c[:, :-1], u)


def rank_loss(predicted: Tensor, true: Tensor) -> Tensor:
    """Mean of relu(1 - (predicted_i - predicted_j)) over all pairs of one function with true_i > true_j.

    `predicted` `[layer function boundary]`, `true` `[function boundary]` with NaN after a function's last boundary; the
    mean is over the pairs of all functions, `[layer]`. The loss is linear in the predictions as long as the same pairs
    fall short, so it is enough to count for each boundary how often it should be greater, and how often less: value and
    gradient are those of the sum over pairs, and no pair needs a number of its own.
    """
    above = true[:, :, None] > true[:, None, :]  # never where one of them is NaN
    with torch.no_grad():
        short = above & (predicted[..., None, :] > predicted[..., :, None] - MARGIN)
        raised, lowered = short.sum(-1, dtype=predicted.dtype), short.sum(-2, dtype=predicted.dtype)
    total = (MARGIN * raised + (lowered - raised) * predicted).sum((-1, -2))
    return total / above.sum().clamp(min=1)


def orthogonality(projection: Tensor) -> Tensor:
    """‖BᵀB - I‖² (Frobenius) of every layer."""
    gram = projection.mT @ projection
    return (gram - torch.eye(gram.shape[-1])).square().sum((-1, -2))


def boundaries(lengths: Sequence[int]) -> Tensor:
    """The leaves that have a right neighbour in their own function, of functions packed one after the other."""
    last = torch.tensor(lengths).cumsum(0) - 1
    keep = torch.ones(int(last[-1]) + 1, dtype=torch.bool)
    keep[last] = False
    return keep.nonzero().squeeze(-1)


@dataclass(frozen=True, eq=False)
class AstProbe:
    """A trained probe of one site, in the coordinates of the activations.

    Attributes:
        projection: `[width rank]`; p = projectionᵀh - offset.
        offset: `[rank]`.
        c, u: `[rank label]`.
        orthogonality: ‖BᵀB - I‖ (Frobenius) of the projection of standardised states.
    """

    site: str
    projection: Tensor
    offset: Tensor
    c: Tensor
    u: Tensor
    labels: Labels
    orthogonality: float

    @property
    def rank(self) -> int:
        return self.projection.shape[1]

    def predict(self, states: Tensor, lengths: Sequence[int]) -> list[TreeTuple]:
        """The vectors of every function's tree from states `[leaf width]` of its leaves, packed.

        Raises BadInput for states of another width or number.
        """
        if states.shape != (sum(lengths), len(self.projection)):
            raise BadInput(
                f"this probe reads {len(self.projection)} features of {sum(lengths)} leaves, not states of shape "
                f"{tuple(states.shape)}"
            )
        p = states @ self.projection - self.offset
        delta = (p[1:] - p[:-1])[boundaries(lengths)]
        d = delta.square().sum(-1).split([n - 1 for n in lengths])
        c = (delta @ self.c).argmax(-1).split([n - 1 for n in lengths])
        u = (p @ self.u).argmax(-1).split(list(lengths))
        return [
            TreeTuple(
                tuple(distances.tolist()),
                tuple(self.labels.c[i] for i in inner.tolist()),
                tuple(self.labels.u[i] for i in above.tolist()),
            )
            for distances, inner, above in zip(d, c, u, strict=True)
        ]
