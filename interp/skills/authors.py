"""Masks in the file format of the authors of skill localization: a list of S, one tensor a trainable parameter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from interp.errors import BadInput, UnreadableFile
from interp.skills.localize import SIGMOID_BIAS
from interp.skills.mask import GraftMask
from interp.skills.pairs import check_pair, trainable
from interp.skills.selection import budget, largest, movement
from interp.tracing.model import Model


def read_list_of_s(
    path: str | Path,
    pre: Model,
    ft: Model,
    sparsity: float,
    *,
    sigmoid_bias: float = SIGMOID_BIAS,
    everything: bool = False,
) -> GraftMask:
    """The mask that a list of S, as `torch.save` wrote it, stands for with these models at this sparsity.

    S alone is no mask: γ_base are the parameters that moved strictly more than the ⌊sparsity·N⌋-th most moved one, as
    the authors count (so one fewer than the budget, or more where movements are equal), and γ is rounded. Only tensors
    are read, no pickled code. Raises UnreadableFile, and BadInput where the list does not fit the models.
    """
    check_pair(pre, ft, everything)
    try:
        stored: Any = torch.load(path, map_location="cpu", weights_only=True)  # noqa: TID251
    except Exception as error:
        raise UnreadableFile(f"{path} is no list of S: {error}") from error
    if not isinstance(stored, list) or not all(isinstance(s, torch.Tensor) for s in stored):
        raise UnreadableFile(f"{path} holds a {type(stored).__name__}, not a list of tensors")
    ours, theirs = trainable(pre, everything), trainable(ft, everything)
    if len(stored) != len(ours):
        raise BadInput(
            f"{path} holds {len(stored)} tensors for the {len(ours)} trainable parameters of {pre.spec.name}"
        )
    for (name, parameter), s in zip(ours.items(), stored, strict=True):
        if s.shape != parameter.shape:
            raise BadInput(f"{path} has {list(s.shape)} where {name} of {pre.spec.name} is {list(parameter.shape)}")
    k = budget(sparsity, sum(parameter.numel() for parameter in ours.values()))
    most = largest(movement(ours, theirs), k)
    moved = {name: (theirs[name].detach() - parameter.detach()).abs() for name, parameter in ours.items()}
    least = min(float(moved[name].flatten()[indices].min()) for name, indices in most.items())
    indices = {}
    for name, s in zip(ours, stored, strict=True):
        sigma = torch.sigmoid(s.float() - sigmoid_bias)
        base = (moved[name].cpu() > least).float()
        indices[name] = (base + (1 - 2 * base) * sigma >= 0.5).flatten().nonzero().flatten()
    shapes = {name: tuple(parameter.shape) for name, parameter in ours.items()}
    about = {"rule": "list of S", "file": Path(path).name, "sparsity": sparsity, "sigmoid_bias": sigmoid_bias}
    return GraftMask(indices, shapes, pre.fingerprint, ft.fingerprint, about)
