"""Families that are not in the table: recognised by the common pattern of their modules, then proven numerically.

A wrong guess cannot pass unnoticed: the site equations are evaluated on random tokens before the model is handed out.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from interp.errors import UnsupportedArchitecture
from interp.tracing.architectures import Architecture

ATTENTION = ("self_attn", "attn", "attention", "self_attention")
OUTPUT = ("o_proj", "out_proj", "dense", "c_proj", "wo")
MLP = ("mlp", "feed_forward", "ffn")
DOWN = ("down_proj", "c_proj", "fc2", "dense_4h_to_h", "w2", "fc_out")
ATTENTION_NORM = ("input_layernorm", "ln_1", "attention_norm", "self_attn_layer_norm", "norm1")
MLP_NORM = ("post_attention_layernorm", "ln_2", "ffn_norm", "final_layer_norm", "norm2")
FINAL_NORM = ("norm", "ln_f", "final_layer_norm", "final_layernorm")
SEPARATE = (("q_proj", "k_proj", "v_proj"), ("wq", "wk", "wv"))


def recognise(model: nn.Module, config: Any) -> Architecture:
    """The table row this model would have; raises UnsupportedArchitecture saying which part was not found."""
    family = str(config.model_type)
    path, block = _blocks(model, count(config, "num_hidden_layers"), family)
    attn = _child(block, ATTENTION, family, path)
    names = {name for name, _ in block.named_children()}
    projections = _projections(block.get_submodule(attn), family, f"{path}.N.{attn}")
    mlp = _child(block, MLP, family, path)
    sandwich = "pre_feedforward_layernorm" in names
    trunk = path.rpartition(".")[0]
    return Architecture(
        family,
        blocks=path,
        final_norm=f"{trunk}.{_child(model.get_submodule(trunk), FINAL_NORM, family, trunk)}".strip("."),
        unembed=_unembedding(model, family),
        attn_norm=_child(block, ATTENTION_NORM, family, path),
        attn=attn,
        projections=tuple(f"{attn}.{name}" for name in projections),
        o=f"{attn}.{_child(block.get_submodule(attn), OUTPUT, family, f'{path}.N.{attn}')}",
        attn_out="post_attention_layernorm" if sandwich else attn,
        mlp_norm="pre_feedforward_layernorm" if sandwich else _child(block, MLP_NORM, family, path),
        mlp=mlp,
        mlp_down=_down(model.get_submodule(path), mlp, family, path),
        mlp_out="post_feedforward_layernorm" if sandwich else mlp,
    )


def count(config: Any, name: str) -> int:
    """A number of the configuration; raises UnsupportedArchitecture where it is missing or differs between layers."""
    value = getattr(config, name, None)
    if not isinstance(value, int):
        raise UnsupportedArchitecture(f"the configuration of {config.model_type!r} has {name}={value}, not one number")
    return value


def _blocks(model: nn.Module, layers: int, family: str) -> tuple[str, nn.Module]:
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == layers:
            return path, module[0]
    raise _not_found(family, f"no list of {layers} blocks (config.num_hidden_layers)", model)


def _projections(attn: nn.Module, family: str, where: str) -> tuple[str, ...]:
    names = {name for name, _ in attn.named_children()}
    for candidate in SEPARATE:
        if names.issuperset(candidate):
            return candidate
    raise _not_found(family, f"no separate query, key and value projections in {where}", attn)


def _down(blocks: nn.Module, mlp: str, family: str, path: str) -> str | None:
    """The projection that neurons go through; None where some MLP is a mixture of experts."""
    mlps = [block.get_submodule(mlp) for block in blocks.children()]
    if any(hasattr(module, "experts") for module in mlps):
        return None
    return f"{mlp}.{_child(mlps[0], DOWN, family, f'{path}.N.{mlp}')}"


def _child(module: nn.Module, candidates: Iterable[str], family: str, where: str) -> str:
    names = {name for name, _ in module.named_children()}
    for name in candidates:
        if name in names:
            return name
    raise _not_found(family, f"none of {', '.join(candidates)} in {where}", module)


def _unembedding(model: nn.Module, family: str) -> str:
    unembed = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    for path, module in model.named_modules():
        if module is unembed:
            return path
    raise _not_found(family, "no output embedding: is this a language model with a head?", model)


def _not_found(family: str, what: str, module: nn.Module) -> UnsupportedArchitecture:
    there = ", ".join(name for name, _ in module.named_children())
    return UnsupportedArchitecture(
        f"the family {family!r} is not in the table, and its structure has {what}; there are: {there}"
    )
