"""From hidden states of several layers to one vector a prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from interp.errors import BadInput, choose
from interp.tracing.spec import ModelSpec

CLUSTERS = 5
ITERATIONS = 1000
"""The paper's number of clusters, and the bound of its k-means."""
INGESTIONS = ("clusters", "last", "mean", "concatenation")
"""`clusters`: the paper's sum of cluster centres; then the last layer alone, the mean, and all layers side by side."""


def upper_half(spec: ModelSpec) -> tuple[str, ...]:
    """The sites of the paper's ingestion: hidden states from number L // 2 to L, where 0 is the embedding."""
    first = spec.layers // 2
    start = ("resid_pre.0",) if first == 0 else ()
    return (*start, *(f"resid_post.{layer}" for layer in range(max(0, first - 1), spec.layers)))


def ingest(states: Mapping[str, np.ndarray], names: Sequence[str] = INGESTIONS, seed: int = 0) -> dict[str, np.ndarray]:
    """Vectors of every kind named, `[example feature]`, from states `[example width]` of each layer in order.

    A name is one of INGESTIONS or a site of `states`, which is then taken alone. Raises BadInput.
    """
    layers = np.stack([np.asarray(value, dtype=np.float32) for value in states.values()], 1)
    found: dict[str, np.ndarray] = {}
    for name in names:
        if name == "clusters":
            found[name] = sum_of_centres(torch.from_numpy(layers), seed=seed).numpy()
        elif name == "last":
            found[name] = layers[:, -1]
        elif name == "mean":
            found[name] = layers.mean(1)
        elif name == "concatenation":
            found[name] = layers.reshape(len(layers), -1)
        elif name in states:
            found[name] = np.asarray(states[name], dtype=np.float32)
        else:
            raise BadInput(f"there is no ingestion {name!r}; {choose(name, (*INGESTIONS, *states))}")
    return found


def sum_of_centres(layers: Tensor, clusters: int = CLUSTERS, seed: int = 0) -> Tensor:
    """k-means over the layers of each example `[example layer width]`, and the sum of the centres `[example width]`.

    The initial centres are the same seeded choice of layers for all examples, so a prompt gives the same vector in any
    company. With no more layers than clusters each is its own centre: the sum of the layers.
    """
    count = layers.shape[1]
    if count <= clusters:
        return layers.sum(1)
    start = torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:clusters].sort().values
    centres = layers[:, start]
    assigned = torch.full(layers.shape[:2], -1)
    for _ in range(ITERATIONS):
        nearest = torch.cdist(layers, centres).argmin(-1)
        if torch.equal(nearest, assigned):
            break
        assigned = nearest
        member = torch.nn.functional.one_hot(assigned, clusters).to(layers.dtype)
        size = member.sum(1)[..., None]
        means = member.mT @ layers / size.clamp_min(1)
        centres = torch.where(size > 0, means, centres)
    return centres.sum(1)
