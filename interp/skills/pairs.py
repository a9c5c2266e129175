"""A pre-trained model and one fine-tuned from it: which parameters may differ, and that nothing else does."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import torch
from torch import nn

from interp.errors import BadInput
from interp.tracing.loading import wrap
from interp.tracing.model import Model


def trainable(model: Model, everything: bool = False) -> dict[str, nn.Parameter]:
    """The parameters that fine-tuning moves, by name: those of the blocks, or with `everything` all.

    Embeddings, final norm and head stay as they are by default, as in Panigrahi et al. (2023).
    """
    blocks = {id(parameter) for block in model.parts.blocks for parameter in block.module.parameters()}
    return {name: parameter for name, parameter in model.hf.named_parameters() if everything or id(parameter) in blocks}


def check_pair(pre: Model, ft: Model, everything: bool = False) -> None:
    """Raise BadInput unless both have the same parameters, and differ in trainable ones alone."""
    ours, theirs = dict(pre.hf.named_parameters()), dict(ft.hf.named_parameters())
    if differing := sorted(ours.keys() ^ theirs.keys()):
        owner = pre if differing[0] in ours else ft
        raise BadInput(
            f"{pre.spec.name} and {ft.spec.name} are no pair: only {owner.spec.name} has {differing[0]} "
            f"({len(differing)} parameters differ by name)"
        )
    for name, parameter in ours.items():
        other = theirs[name]
        if parameter.shape != other.shape or parameter.dtype != other.dtype:
            raise BadInput(
                f"{pre.spec.name} and {ft.spec.name} are no pair: {name} is {list(parameter.shape)} of "
                f"{parameter.dtype} in one and {list(other.shape)} of {other.dtype} in the other"
            )
    movable = trainable(pre, everything)
    for name, tensor in _state(pre.hf).items():
        if name not in movable and not torch.equal(tensor, _state(ft.hf)[name].to(tensor.device)):
            raise BadInput(
                f"{ft.spec.name} differs from {pre.spec.name} in {name}, which is not in a block; say that everything "
                "was trained (everything=True)"
            )


def refuse_encoder(model: Model) -> None:
    """Raise BadInput for a model whose last token does not say what comes next."""
    if not model.parts.architecture.causal:
        raise BadInput(f"{model.spec.name} is an encoder; labels are read at the last token of a causal model")


def independent_copy(model: Model, name: str) -> Model:
    """The same model with weights of its own."""
    return wrap(copy.deepcopy(model.hf), tokenizer=model.tokenizer, name=name)


def same_storage_copy(model: Model) -> Model:
    """Another module tree over the very same weights, so that it can be changed without changing the model's."""
    shared: Any = {id(t): t for t in itertools.chain(model.hf.parameters(), model.hf.buffers())}
    return wrap(copy.deepcopy(model.hf, shared), tokenizer=model.tokenizer, name=model.spec.name)


def write_model(model: Model, folder: Path) -> None:
    """Write the weights, and the tokenizer where there is one, as a folder that `interp.load` reads."""
    hf: Any = model.hf
    hf.save_pretrained(folder)
    if model.tokenizer is not None:
        model.tokenizer.save_pretrained(folder)


def _state(module: nn.Module) -> dict[str, torch.Tensor]:
    return dict(itertools.chain(module.named_parameters(), module.named_buffers()))
