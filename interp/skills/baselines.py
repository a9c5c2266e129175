"""Masks of the same budget that were not optimised: what a localised one must beat."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import prod
from typing import Literal, get_args

import torch
from torch import Tensor

from interp.errors import BadInput, choose
from interp.skills.mask import GraftMask
from interp.skills.pairs import check_pair, trainable
from interp.skills.selection import budget, largest, movement
from interp.tracing.model import Model

Rule = Literal["random", "magnitude", "movement", "bias"]


def baseline_mask(
    pre: Model, ft: Model, rule: Rule, sparsity: float, *, seed: int = 0, everything: bool = False
) -> GraftMask:
    """A mask of ⌊sparsity·N⌋ trainable parameters: drawn at random, largest in `ft`, moved most, or biases moved most.

    There may be fewer biases than the budget; then it holds them all. Raises BadInput, also where there are none.
    """
    if rule not in get_args(Rule):
        raise BadInput(f"there is no baseline {rule!r}; {choose(rule, get_args(Rule))}")
    check_pair(pre, ft, everything)
    ours = {name: parameter.detach() for name, parameter in trainable(pre, everything).items()}
    theirs = {name: parameter.detach() for name, parameter in trainable(ft, everything).items()}
    k = budget(sparsity, sum(parameter.numel() for parameter in ours.values()))
    if rule == "random":
        indices = _random(ours, k, seed)
    elif rule == "magnitude":
        indices = largest(lambda: ((name, parameter.abs()) for name, parameter in theirs.items()), k)
    elif rule == "movement":
        indices = largest(movement(ours, theirs), k)
    else:
        biases = {name: parameter for name, parameter in ours.items() if name.endswith("bias")}
        if not biases:
            raise BadInput(f"{pre.spec.name} has no biases to graft")
        indices = largest(movement(biases, theirs), min(k, sum(bias.numel() for bias in biases.values())))
    shapes = {name: tuple(parameter.shape) for name, parameter in ours.items()}
    about = {"rule": rule, "sparsity": sparsity, "seed": seed if rule == "random" else None}
    return GraftMask(indices, shapes, pre.fingerprint, ft.fingerprint, about)


def same_matrices(mask: GraftMask, *, seed: int = 0) -> GraftMask:
    """As many entries of every parameter as the mask has there, drawn at random: the right places, the wrong weights.

    Where it does as well as the mask, naming the layer and the module is enough.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = {
        name: torch.randperm(prod(mask.shapes[name]), generator=generator)[: len(chosen)].sort().values
        for name, chosen in mask.indices.items()
    }
    about = {"rule": "same matrices", "seed": seed, "of": dict(mask.metadata)}
    return replace(mask, indices=drawn, metadata=about)


def everything_mask(pre: Model, ft: Model, everything: bool = False) -> GraftMask:
    """The mask of all trainable parameters."""
    return baseline_mask(pre, ft, "movement", 1.0, everything=everything)


def _random(parameters: Mapping[str, Tensor], k: int, seed: int) -> dict[str, Tensor]:
    """k places drawn without repetition, as likely in each parameter as it is large."""
    generator = torch.Generator().manual_seed(seed)
    sizes = {name: parameter.numel() for name, parameter in parameters.items()}
    drawn = torch.randperm(sum(sizes.values()), generator=generator)[:k].sort().values
    indices, start = {}, 0
    for name, size in sizes.items():
        indices[name] = drawn[(drawn >= start) & (drawn < start + size)] - start
        start += size
    return indices
