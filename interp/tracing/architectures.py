"""Where each model family keeps its parts: one row a family, module paths as data, no copies of modeling code.

Paths of `Architecture` are relative to the model (`blocks`, `final_norm`, `unembed`) or to one block (the rest). A
family that is not in the table is recognised by its structure and proven by a numerical self-check (`structure.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from interp.errors import UnsupportedArchitecture

QKV = Literal["separate", "concatenated", "interleaved"]
Refusals = Mapping[str, str]


def _nothing(_config: Any) -> Refusals:
    return {}


@dataclass(frozen=True)
class Architecture:
    """One family: where its parts are, and which sites it cannot offer.

    `qkv` says how the projections are laid out: three modules, one module with q, k and v one after the other, or one
    module with q, k and v of each head side by side. `attn_out` and `mlp_out` are the modules whose output is *added*
    to the residual stream: on sandwich-norm families that is the norm after attention, not attention itself.
    """

    family: str
    blocks: str = "model.layers"
    final_norm: str = "model.norm"
    unembed: str = "lm_head"
    attn_norm: str = "input_layernorm"
    attn: str = "self_attn"
    qkv: QKV = "separate"
    projections: tuple[str, ...] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    o: str = "self_attn.o_proj"
    attn_out: str = "self_attn"
    mlp_norm: str = "post_attention_layernorm"
    mlp_down: str = "mlp.down_proj"
    mlp_out: str = "mlp"
    refuses: Callable[[Any], Refusals] = field(default=_nothing, repr=False)
    unsupported: Callable[[Any], str | None] = field(default=lambda _config: None, repr=False)


_NO_ROTARY = "{} has no rotary embedding: the kernel reads the projections themselves, so use {} instead"


def _no_rotary(family: str) -> Refusals:
    return {"q_rot": _NO_ROTARY.format(family, "q"), "k_rot": _NO_ROTARY.format(family, "k")}


def _gpt_neox_refuses(config: Any) -> Refusals:
    if not config.use_parallel_residual:
        return {}
    return {
        "resid_mid": "GPT-NeoX blocks are parallel: attention and MLP both read resid_pre, so nothing lies between them"
    }


def _opt_unsupported(config: Any) -> str | None:
    if config.do_layer_norm_before:
        return None
    return "this OPT normalises after each sum (do_layer_norm_before=False), so its residual stream is not a sum"


def _sandwich(family: str, trunk: str = "model") -> Architecture:
    return Architecture(
        family,
        blocks=f"{trunk}.layers",
        final_norm=f"{trunk}.norm",
        attn_out="post_attention_layernorm",
        mlp_norm="pre_feedforward_layernorm",
        mlp_out="post_feedforward_layernorm",
    )


ARCHITECTURES: dict[str, Architecture] = {
    row.family: row
    for row in (
        Architecture("llama"),
        Architecture("mistral"),
        Architecture("qwen2"),
        Architecture("qwen3"),
        Architecture("phi3", qkv="concatenated", projections=("self_attn.qkv_proj",)),
        _sandwich("gemma2"),
        _sandwich("gemma3_text"),
        _sandwich("gemma3", trunk="model.language_model"),
        Architecture(
            "gpt2",
            blocks="transformer.h",
            final_norm="transformer.ln_f",
            attn_norm="ln_1",
            attn="attn",
            qkv="concatenated",
            projections=("attn.c_attn",),
            o="attn.c_proj",
            attn_out="attn",
            mlp_norm="ln_2",
            mlp_down="mlp.c_proj",
            refuses=lambda _config: _no_rotary("GPT-2"),
        ),
        Architecture(
            "gpt_neox",
            blocks="gpt_neox.layers",
            final_norm="gpt_neox.final_layer_norm",
            attn="attention",
            qkv="interleaved",
            projections=("attention.query_key_value",),
            o="attention.dense",
            attn_out="attention",
            mlp_down="mlp.dense_4h_to_h",
            refuses=_gpt_neox_refuses,
        ),
        Architecture(
            "opt",
            blocks="model.decoder.layers",
            final_norm="model.decoder.final_layer_norm",
            attn_norm="self_attn_layer_norm",
            o="self_attn.out_proj",
            mlp_norm="final_layer_norm",
            mlp_down="fc2",
            mlp_out="fc2",
            refuses=lambda _config: _no_rotary("OPT"),
            unsupported=_opt_unsupported,
        ),
    )
}


@dataclass(frozen=True, eq=False)
class Block:
    """The modules of one layer."""

    module: nn.Module
    attn_norm: nn.Module
    attn: nn.Module
    projections: tuple[nn.Module, ...]
    o: nn.Module
    attn_out: nn.Module
    mlp_norm: nn.Module
    mlp_down: nn.Module
    mlp_out: nn.Module


@dataclass(frozen=True, eq=False)
class Parts:
    """An architecture resolved on one model: its modules, and the sites it refuses with the reasons."""

    architecture: Architecture
    blocks: tuple[Block, ...]
    final_norm: nn.Module
    unembed: nn.Module
    refusals: Refusals


def locate_parts(model: nn.Module, architecture: Architecture, config: Any) -> Parts:
    """Resolve the table row on `model`; raises UnsupportedArchitecture naming the first path that is not there."""
    if reason := architecture.unsupported(config):
        raise UnsupportedArchitecture(f"{architecture.family}: {reason}")

    def find(root: nn.Module, path: str) -> nn.Module:
        try:
            return root.get_submodule(path)
        except AttributeError as error:
            raise UnsupportedArchitecture(
                f"{type(model).__name__} should keep {path!r} where the family {architecture.family!r} does, "
                f"and does not: {error}"
            ) from None

    names = ("attn_norm", "attn", "o", "attn_out", "mlp_norm", "mlp_down", "mlp_out")
    blocks = tuple(
        Block(
            module=block,
            projections=tuple(find(block, path) for path in architecture.projections),
            **{name: find(block, getattr(architecture, name)) for name in names},
        )
        for block in find(model, architecture.blocks).children()
    )
    return Parts(
        architecture=architecture,
        blocks=blocks,
        final_norm=find(model, architecture.final_norm),
        unembed=find(model, architecture.unembed),
        refusals={**architecture.refuses(config), **_weight_refusals(blocks[0].o)},
    )


def _weight_refusals(o: nn.Module) -> Refusals:
    weight = getattr(o, "weight", None)
    if weight is None or not weight.is_floating_point() or weight.ndim != 2:
        return {"head_out": f"W_O ({type(o).__name__}) does not hold a plain floating-point matrix to slice by head"}
    return {"head_out": "W_O is offloaded, so it cannot be sliced by head"} if weight.is_meta else {}
