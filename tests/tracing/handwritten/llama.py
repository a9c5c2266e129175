"""Llama and what descends from it: rotary embeddings, gated MLPs or experts, and every place a norm can be."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from tests.tracing.handwritten.model import HandModel


def embed(hand: HandModel, ids: Tensor) -> Tensor:
    return hand.hf.get_input_embeddings()(ids)


def head(hand: HandModel, stream: Tensor) -> Tensor:
    norm = hand.hf.get_submodule("model.final_layernorm" if hand.family == "phi" else "model.norm")
    logits = hand.hf.lm_head(hand.at("final_norm", norm(stream))) * getattr(hand.config, "logit_scale", 1.0)
    cap = getattr(hand.config, "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)


def block(hand: HandModel, layer: int, stream: Tensor) -> Tensor:
    block = hand.hf.model.layers[layer]
    parallel = hand.family in ("cohere", "cohere2", "phi") or getattr(hand.config, "use_parallel_residual", False)
    before_attn, before_mlp, after_attn, after_mlp = norms(hand, block, parallel)
    attn_in = hand.at(f"attn_in.{layer}", before_attn(stream))
    attn_out = hand.at(f"attn_out.{layer}", after_attn(attention(hand, layer, block.self_attn, attn_in)))
    middle = stream if parallel else hand.at(f"resid_mid.{layer}", stream + attn_out)
    mlp_in = hand.at(f"mlp_in.{layer}", before_mlp(middle))
    mlp_out = hand.at(f"mlp_out.{layer}", after_mlp(mlp(hand, layer, block.mlp, mlp_in)))
    return stream + attn_out + mlp_out if parallel else middle + mlp_out


def norms(hand: HandModel, block: nn.Module, parallel: bool) -> tuple[nn.Module, ...]:
    """Before attention, before the MLP, after attention, after the MLP."""
    nothing = nn.Identity()
    if hand.family == "olmo2":
        return nothing, nothing, block.post_attention_layernorm, block.post_feedforward_layernorm
    if parallel:
        return block.input_layernorm, block.input_layernorm, nothing, nothing
    if hand.family in ("gemma2", "gemma3_text"):
        after = block.post_attention_layernorm, block.post_feedforward_layernorm
        return block.input_layernorm, block.pre_feedforward_layernorm, *after
    return block.input_layernorm, block.post_attention_layernorm, nothing, nothing


def attention(hand: HandModel, layer: int, attn: nn.Module, attn_in: Tensor) -> Tensor:
    if hasattr(attn, "qkv_proj"):
        counts = (hand.config.num_attention_heads, *[hand.config.num_key_value_heads] * 2)
        flat = attn.qkv_proj(attn_in).split([n * hand.head_dim for n in counts], dim=-1)
    else:
        flat = [projection(attn_in) for projection in (attn.q_proj, attn.k_proj, attn.v_proj)]
    q, k, v = hand.qkv(layer, *flat)
    q, k = normed(hand, attn, q, k)
    q, k = rotate(hand, layer, q, k, hand.hf.model.rotary_emb)
    scale = getattr(hand.config, "query_pre_attn_scalar", None) or hand.head_dim
    z = hand.attend(layer, q, k, v, scaling=scale**-0.5, sinks=getattr(attn, "sinks", None))
    if hand.family == "bitnet":
        z = hand.heads(attn.attn_sub_norm(z.flatten(2)))
    return hand.write_with(layer, z, attn.dense if hand.family == "phi" else attn.o_proj)


def normed(hand: HandModel, attn: nn.Module, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys where they are normalised: over a head, over all heads, or with a norm of its own for each."""
    if hand.family == "olmo2":
        return hand.heads(attn.q_norm(q.flatten(2))), hand.heads(attn.k_norm(k.flatten(2)))
    if hasattr(attn, "q_norm"):
        return attn.q_norm(q), attn.k_norm(k)
    if getattr(attn, "qk_layernorm", False):
        q, k = (
            torch.stack([norm(x[:, :, h]) for h, norm in enumerate(layer.norms)], dim=2)
            for x, layer in ((q, attn.q_layernorm), (k, attn.k_layernorm))
        )
    return q, k


def rotate(hand: HandModel, layer: int, q: Tensor, k: Tensor, rotary: nn.Module) -> tuple[Tensor, Tensor]:
    kind: dict[str, Any] = {}
    if hand.family in ("gemma3_text", "modernbert"):
        kind["layer_type"] = hand.config.layer_types[layer]
    cos, sin = rotary(q, torch.arange(q.shape[1])[None], **kind)
    apply = importlib.import_module(type(hand.hf).__module__).apply_rotary_pos_emb
    rotated = cos.shape[-1] if hand.family in ("phi", "stablelm") else q.shape[-1]
    if hand.family == "cohere2" and hand.window(layer) is None:
        rotated = 0
    if rotated:
        turned = apply(*(x[..., :rotated].transpose(1, 2) for x in (q, k)), cos, sin)
        q, k = (torch.cat([t.transpose(1, 2), x[..., rotated:]], dim=-1) for t, x in zip(turned, (q, k), strict=True))
    return hand.at(f"q_rot.{layer}", q), hand.at(f"k_rot.{layer}", k)


def mlp(hand: HandModel, layer: int, mlp: nn.Module, mlp_in: Tensor) -> Tensor:
    if hasattr(mlp, "experts"):
        out = mlp(mlp_in)
        return out[0] if isinstance(out, tuple) else out
    if hasattr(mlp, "fc1"):
        return mlp.fc2(hand.at(f"mlp_post.{layer}", mlp.activation_fn(mlp.fc1(mlp_in))))
    if hasattr(mlp, "gate_up_proj"):
        gate, up = mlp.gate_up_proj(mlp_in).chunk(2, dim=-1)
    else:
        gate, up = mlp.gate_proj(mlp_in), mlp.up_proj(mlp_in)
    neurons = (mlp.activation_fn if hasattr(mlp, "activation_fn") else mlp.act_fn)(gate) * up
    if hand.family == "bitnet":
        neurons = mlp.ffn_sub_norm(neurons)
    return mlp.down_proj(hand.at(f"mlp_post.{layer}", neurons))
