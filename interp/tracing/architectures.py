"""Where a model family keeps its parts, as data, and the parts found on one model.

The rows are in `families.py`. Paths of `Architecture` are relative to the model (`blocks`, `final_norm`, `unembed`) or
to one block (the rest). A family without a row is recognised by its structure and proven by a numerical self-check
(`structure.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from interp.errors import UnsupportedArchitecture

QKV = Literal["separate", "concatenated", "interleaved"]
Refusals = Mapping[str, str]


@dataclass(frozen=True)
class Architecture:
    """One family: where its parts are, and what it does differently. None: the family has no such part.

    qkv: how the projections are laid out: three modules, one module with q, k and v one after the other, or one module
    with the queries, the key and the value of each key/value head side by side. attn, mlp: the modules that read
    `attn_in` and `mlp_in`, as their first argument. attn_out, mlp_out: the modules whose output is *added* to the
    residual stream; on sandwich-norm families that is the norm after attention, not attention itself.
    norm_after_attn, norm_after_mlp: post-norm families normalise the sums, so `resid_mid = norm_after_attn(resid_pre +
    attn_out)` and `resid_post = norm_after_mlp(resid_mid + mlp_out)`.
    """

    family: str
    blocks: str = "model.layers"
    final_norm: str | None = "model.norm"
    unembed: str = "lm_head"
    attn_norm: str | None = "input_layernorm"
    attn: str = "self_attn"
    qkv: QKV = "separate"
    projections: tuple[str, ...] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    o: str = "self_attn.o_proj"
    attn_out: str = "self_attn"
    norm_after_attn: str | None = None
    mlp_norm: str | None = "post_attention_layernorm"
    mlp: str = "mlp"
    mlp_down: str | None = "mlp.down_proj"
    mlp_out: str = "mlp"
    norm_after_mlp: str | None = None
    causal: bool = True
    """Whether tokens see only what comes before them."""
    parallel: bool = False
    """Whether attention and MLP both read the stream that enters the block."""
    rotary: bool = True
    own_attention: bool = False
    """Whether attention is computed in the module itself, and not by one of transformers' attention functions."""
    overwrites: tuple[str, ...] = ()
    """Sites whose tensor the block changes in place afterwards, so that it must be handed a copy."""
    window: str = "sliding_window"
    """The configuration's name for how far a token sees."""
    kv_heads: int | None = None
    """Key/value heads where the configuration does not name them `num_key_value_heads`."""
    first_position: int = 0
    """The position id of the first token."""
    variant: Callable[[Any], Mapping[str, Any]] = field(default=lambda _config: {}, repr=False)
    """Fields that depend on the configuration."""
    unsupported: Callable[[Any], str | None] = field(default=lambda _config: None, repr=False)

    def resolved(self, config: Any) -> Architecture:
        """The row for one configuration; raises UnsupportedArchitecture with the reason where there is none."""
        if reason := self.unsupported(config):
            raise UnsupportedArchitecture(f"{self.family}: {reason}")
        return replace(self, **self.variant(config))


@dataclass(frozen=True, eq=False)
class Block:
    """The modules of one layer, None where the family has no such part."""

    module: nn.Module
    attn_norm: nn.Module | None
    attn: nn.Module
    projections: tuple[nn.Module, ...]
    o: nn.Module
    attn_out: nn.Module
    norm_after_attn: nn.Module | None
    mlp_norm: nn.Module | None
    mlp: nn.Module
    mlp_down: nn.Module | None
    mlp_out: nn.Module
    norm_after_mlp: nn.Module | None


@dataclass(frozen=True, eq=False)
class Parts:
    """An architecture resolved on one model: its modules, and the sites it refuses with the reasons."""

    architecture: Architecture
    blocks: tuple[Block, ...]
    final_norm: nn.Module | None
    unembed: nn.Module | None
    refusals: Refusals


BLOCK_PARTS = (
    "attn_norm",
    "attn",
    "o",
    "attn_out",
    "norm_after_attn",
    "mlp_norm",
    "mlp",
    "mlp_down",
    "mlp_out",
    "norm_after_mlp",
)


def locate_parts(model: nn.Module, architecture: Architecture, config: Any) -> Parts:
    """Resolve the table row on `model`; raises UnsupportedArchitecture naming the first path that is not there."""
    architecture = _on_trunk(architecture.resolved(config), model)

    def find(root: nn.Module, path: str | None) -> Any:
        if path is None:
            return None
        try:
            return root.get_submodule(path)
        except AttributeError as error:
            raise UnsupportedArchitecture(
                f"{type(model).__name__} should keep {path!r} where the family {architecture.family!r} does, "
                f"and does not: {error}"
            ) from None

    blocks = tuple(
        Block(
            module=block,
            projections=tuple(find(block, path) for path in architecture.projections),
            **{name: find(block, getattr(architecture, name)) for name in BLOCK_PARTS},
        )
        for block in find(model, architecture.blocks).children()
    )
    unembed = _unembedding(model, architecture)
    refusals = {**_refusals(architecture), **_weight_refusals([block.o for block in blocks])}
    if unembed is None:
        refusals["logits"] = f"{type(model).__name__} has no language-model head, only hidden states to read and edit"
    return Parts(architecture, blocks, find(model, architecture.final_norm), unembed, refusals)


def _on_trunk(architecture: Architecture, model: nn.Module) -> Architecture:
    """Paths as they are in a model without a head, where the trunk itself is the model."""
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    if getattr(model, "base_model", None) is not model or not architecture.blocks.startswith(prefix):
        return architecture
    norm = architecture.final_norm
    return replace(
        architecture,
        blocks=architecture.blocks.removeprefix(prefix),
        final_norm=None if norm is None else norm.removeprefix(prefix),
    )


def _unembedding(model: nn.Module, architecture: Architecture) -> nn.Module | None:
    try:
        return model.get_submodule(architecture.unembed)
    except AttributeError:
        return None


def _refusals(a: Architecture) -> dict[str, str]:
    """Sites that the family does not have, with the reasons."""
    refused: dict[str, str] = {}
    if a.parallel:
        refused["resid_mid"] = (
            f"the blocks of {a.family} are parallel: attention and MLP both read resid_pre, so nothing lies between"
        )
    if a.mlp_down is None:
        refused["mlp_post"] = (
            f"the MLP of {a.family} is a mixture of experts: each token has neurons of its own, which are not one "
            "tensor; mlp_out is what they add together"
        )
    if a.final_norm is None:
        refused["final_norm"] = (
            f"{a.family} normalises inside its blocks: the last resid_post is what goes into the head"
        )
    if not a.rotary:
        for name in "qk":
            refused[f"{name}_rot"] = (
                f"{a.family} has no rotary embedding: the kernel reads the projections themselves, so use {name}"
            )
    if a.own_attention:
        for name in ("q_rot", "k_rot", "pattern", "attention_stats"):
            refused[name] = (
                f"{a.family} computes attention inside its own module and not through transformers' attention "
                "functions, so its kernel cannot be observed; q, k, v and z can"
            )
    return refused


def _weight_refusals(outputs: list[nn.Module]) -> dict[str, str]:
    """Why W_O cannot be sliced by head, if it cannot."""
    for o in outputs:
        weight = getattr(o, "weight", None)
        plain = isinstance(o, (nn.Linear, Conv1D)) and type(weight) in (torch.Tensor, nn.Parameter)
        if not plain or not weight.is_floating_point() or weight.itemsize < 2 or weight.ndim != 2:  # type: ignore[union-attr]
            return {
                "head_out": f"W_O ({type(o).__name__}) does not hold a plain floating-point matrix to slice by head; "
                "load the model without quantisation or adapters, or read z and attn_out"
            }
        if weight.is_meta:  # type: ignore[union-attr]
            return {"head_out": "W_O is offloaded or on the meta device, so it cannot be sliced by head"}
    return {}
