"""Directions that need no fitting by interchange, beside which a knob must hold its own."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor

RANDOM_DRAWS = 5
"""Random subspaces that a result averages over."""


def baselines(resid: Tensor, rank: int, seed: int) -> Mapping[str, list[Tensor]]:
    """Orthonormal bases `[rank width]` by method, from residual streams `[pair intent width]`; several for random.

    difference of means: of the two intents. logistic regression: the normal of the plane that parts them. Both are
    lines whatever the rank. PCA: of the residual streams less the mean of their pair (Zou et al. 2023). random: drawn
    uniformly.
    """
    width = resid.shape[-1]
    resid = resid.cpu()
    generator = torch.Generator().manual_seed(seed)
    draws = [torch.randn(width, rank, generator=generator) for _ in range(RANDOM_DRAWS)]
    return {
        "difference of means": [_unit(resid[:, 0].mean(0) - resid[:, 1].mean(0))],
        "PCA": [_principal(resid, rank)],
        "logistic regression": [_unit(_logistic(resid))],
        "random": [torch.linalg.qr(draw).Q.T for draw in draws],
    }


def _unit(direction: Tensor) -> Tensor:
    return (direction / direction.norm())[None]


def _principal(resid: Tensor, rank: int) -> Tensor:
    within = (resid - resid.mean(1, keepdim=True)).flatten(0, 1)
    found = torch.linalg.svd(within, full_matrices=False).Vh[:rank]
    if len(found) == rank:
        return found
    missing = torch.eye(resid.shape[-1])[:, : resid.shape[-1]]  # fewer pairs than dimensions: any complement will do
    return torch.linalg.qr(torch.cat([found.T, missing], dim=1)).Q.T[:rank]


def _logistic(resid: Tensor) -> Tensor:
    features = resid.flatten(0, 1).double()
    scale = features.std(0).clamp(min=1e-12)
    labels = torch.tensor([1, 0]).repeat(len(resid))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a baseline: two separable clouds never quite converge
        fitted = LogisticRegression(max_iter=200).fit(((features - features.mean(0)) / scale).numpy(), labels.numpy())
    return (torch.from_numpy(fitted.coef_[0]) / scale).float()
