"""GPT-2 and its contemporaries: learned positions, ALiBi or rotary embeddings of their own, MLPs without a gate."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tests.tracing.handwritten.llama import rotate

if TYPE_CHECKING:
    from tests.tracing.handwritten.model import HandModel


def with_positions(hand: HandModel, ids: Tensor) -> Tensor:
    return hand.hf.transformer.wte(ids) + hand.hf.transformer.wpe(torch.arange(ids.shape[1]))


def embed_opt(hand: HandModel, ids: Tensor) -> Tensor:
    decoder = hand.hf.model.decoder
    words = decoder.embed_tokens(ids)
    words = words if decoder.project_in is None else decoder.project_in(words)
    return words + decoder.embed_positions.weight[torch.arange(ids.shape[1]) + 2]


def embed_bloom(hand: HandModel, ids: Tensor) -> Tensor:
    return hand.hf.transformer.word_embeddings_layernorm(hand.hf.transformer.word_embeddings(ids))


def head(path: str) -> Callable[[HandModel, Tensor], Tensor]:
    def unembed(hand: HandModel, stream: Tensor) -> Tensor:
        return hand.hf.lm_head(hand.at("final_norm", hand.hf.get_submodule(path)(stream)))

    return unembed


def head_opt(hand: HandModel, stream: Tensor) -> Tensor:
    decoder = hand.hf.model.decoder
    if decoder.final_layer_norm is not None:
        stream = hand.at("final_norm", decoder.final_layer_norm(stream))
    return hand.hf.lm_head(stream if decoder.project_out is None else decoder.project_out(stream))


def sequential(
    hand: HandModel, layer: int, stream: Tensor, attn_out: Tensor, norm: nn.Module, mlp: Callable[[Tensor], Tensor]
) -> Tensor:
    mid = hand.at(f"resid_mid.{layer}", stream + hand.at(f"attn_out.{layer}", attn_out))
    return mid + hand.at(f"mlp_out.{layer}", mlp(hand.at(f"mlp_in.{layer}", norm(mid))))


def parallel(
    hand: HandModel, layer: int, stream: Tensor, attn_out: Tensor, norm: nn.Module, mlp: Callable[[Tensor], Tensor]
) -> Tensor:
    mlp_out = hand.at(f"mlp_out.{layer}", mlp(hand.at(f"mlp_in.{layer}", norm(stream))))
    return stream + hand.at(f"attn_out.{layer}", attn_out) + mlp_out


def neurons(hand: HandModel, layer: int, up: nn.Module, act: nn.Module, down: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda mlp_in: down(hand.at(f"mlp_post.{layer}", act(up(mlp_in))))


def gpt2(hand: HandModel, layer: int, stream: Tensor) -> Tensor:
    block = hand.hf.transformer.h[layer]
    attn_in = hand.at(f"attn_in.{layer}", block.ln_1(stream))
    z = hand.attend(layer, *hand.qkv(layer, *block.attn.c_attn(attn_in).chunk(3, dim=-1)))
    attn_out = hand.write(layer, z, block.attn.c_proj.weight, block.attn.c_proj.bias)
    mlp = neurons(hand, layer, block.mlp.c_fc, block.mlp.act, block.mlp.c_proj)
    return sequential(hand, layer, stream, attn_out, block.ln_2, mlp)


def gpt_neo(hand: HandModel, layer: int, stream: Tensor) -> Tensor:
    """Every other layer sees a window, and scores are not scaled."""
    block = hand.hf.transformer.h[layer]
    attn = block.attn.attention
    attn_in = hand.at(f"attn_in.{layer}", block.ln_1(stream))
    q, k, v = hand.qkv(layer, attn.q_proj(attn_in), attn.k_proj(attn_in), attn.v_proj(attn_in))
    visible = torch.ones(q.shape[1], q.shape[1]).tril().bool()
    if hand.config.attention_layers[layer] == "local":
        visible &= ~visible.tril(-hand.config.window_size)
    attn_out = hand.write_with(layer, hand.attend(layer, q, k, v, visible=visible, scaling=1.0), attn.out_proj)
    mlp = neurons(hand, layer, block.mlp.c_fc, block.mlp.act, block.mlp.c_proj)
    return sequential(hand, layer, stream, attn_out, block.ln_2, mlp)


def gptj(hand: HandModel, layer: int, stream: Tensor) -> Tensor:
    block = hand.hf.transformer.h[layer]
    attn = block.attn
    attn_in = hand.at(f"attn_in.{layer}", block.ln_1(stream))
    q, k, v = hand.qkv(layer, attn.q_proj(attn_in), attn.k_proj(attn_in), attn.v_proj(attn_in))
    q, k = (in_pairs(x, hand.config.rotary_dim) for x in (q, k))
    attn_out = hand.write_with(layer, hand.attend(layer, q, k, v), attn.out_proj)
    mlp = neurons(hand, layer, block.mlp.fc_in, block.mlp.act, block.mlp.fc_out)
    return parallel(hand, layer, stream, attn_out, block.ln_1, mlp)


def in_pairs(x: Tensor, width: int) -> Tensor:
    """GPT-J's rotary embedding: neighbouring features of the first `width` turn as complex numbers."""
    turn = torch.arange(x.shape[1])[:, None] / 10000 ** (torch.arange(0, width, 2) / width)
    pairs = torch.view_as_complex(x[..., :width].unflatten(-1, (-1, 2)).contiguous())
    turned = torch.view_as_real(pairs * torch.polar(torch.ones_like(turn), turn)[:, None].to(pairs.dtype))
    return torch.cat([turned.flatten(-2), x[..., width:]], dim=-1)


def gpt_neox(hand: HandModel, layer: int, stream: Tensor) -> Tensor:
    block = hand.hf.gpt_neox.layers[layer]
    attn_in = hand.at(f"attn_in.{layer}", block.input_layernorm(stream))
    q, k, v = hand.grouped_qkv(layer, block.attention.query_key_value(attn_in), hand.config.num_attention_heads)
    q, k = rotate(hand, layer, q, k, hand.hf.gpt_neox.rotary_emb)
    attn_out = hand.write_with(layer, hand.attend(layer, q, k, v), block.attention.dense)
    mlp = neurons(hand, layer, block.mlp.dense_h_to_4h, block.mlp.act, block.mlp.dense_4h_to_h)
    order = parallel if hand.config.use_parallel_residual else sequential
    return order(hand, layer, stream, attn_out, block.post_attention_layernorm, mlp)


def alibi(hand: HandModel, tokens: int) -> Tensor:
    """`[head key]` for a number of heads that is a power of two."""
    heads = hand.config.num_attention_heads
    slopes = 2.0 ** (-8.0 * torch.arange(1, heads + 1) / heads)
    return slopes[:, None] * torch.arange(tokens)


def bloom(hand: HandModel, layer: int, stream: Tensor) -> Tensor:
    block = hand.hf.transformer.h[layer]
    attn = block.self_attention
    attn_in = hand.at(f"attn_in.{layer}", block.input_layernorm(stream))
    q, k, v = hand.grouped_qkv(layer, attn.query_key_value(attn_in), hand.config.num_attention_heads)
    z = hand.attend(layer, q, k, v, bias=alibi(hand, q.shape[1]))
    mlp = neurons(hand, layer, block.mlp.dense_h_to_4h, block.mlp.gelu_impl, block.mlp.dense_4h_to_h)
    return sequential(hand, layer, stream, hand.write_with(layer, z, attn.dense), block.post_attention_layernorm, mlp)


def falcon(hand: HandModel, layer: int, stream: Tensor) -> Tensor:
    block, config = hand.hf.transformer.h[layer], hand.config
    attn = block.self_attention
    two_norms = config.new_decoder_architecture
    attn_in = hand.at(f"attn_in.{layer}", (block.ln_attn if two_norms else block.input_layernorm)(stream))
    kv_heads = 1 if config.multi_query else config.num_attention_heads
    fused = attn.query_key_value(attn_in)
    q, k, v = hand.grouped_qkv(layer, fused, config.num_kv_heads if two_norms else kv_heads)
    bias = None
    if config.alibi:
        # transformers 5.23 adds the bias twice in eager attention: to the scores, and in the mask.
        times = 2 if config._attn_implementation == "eager" else 1
        bias = alibi(hand, q.shape[1]) * times * hand.head_dim**-0.5
    else:
        q, k = rotate(hand, layer, q, k, hand.hf.transformer.rotary_emb)
    attn_out = hand.write_with(layer, hand.attend(layer, q, k, v, bias=bias), attn.dense)
    mlp = neurons(hand, layer, block.mlp.dense_h_to_4h, block.mlp.act, block.mlp.dense_4h_to_h)
    if two_norms:
        return parallel(hand, layer, stream, attn_out, block.ln_mlp, mlp)
    if config.parallel_attn:
        return parallel(hand, layer, stream, attn_out, block.input_layernorm, mlp)
    return sequential(hand, layer, stream, attn_out, block.post_attention_layernorm, mlp)


def opt(hand: HandModel, layer: int, stream: Tensor) -> Tensor:
    """Norms before attention and MLP or, in one size, after the sums."""
    block = hand.hf.model.decoder.layers[layer]
    attn, nothing = block.self_attn, nn.Identity()
    first, second = block.self_attn_layer_norm, block.final_layer_norm
    before = hand.config.do_layer_norm_before
    attn_in = hand.at(f"attn_in.{layer}", first(stream) if before else stream)
    z = hand.attend(layer, *hand.qkv(layer, attn.q_proj(attn_in), attn.k_proj(attn_in), attn.v_proj(attn_in)))
    attn_out = hand.at(f"attn_out.{layer}", hand.write_with(layer, z, attn.out_proj))
    mid = hand.at(f"resid_mid.{layer}", (nothing if before else first)(stream + attn_out))
    mlp_in = hand.at(f"mlp_in.{layer}", second(mid) if before else mid)
    mlp_out = hand.at(f"mlp_out.{layer}", neurons(hand, layer, block.fc1, block.activation_fn, block.fc2)(mlp_in))
    return mid + mlp_out if before else second(mid + mlp_out)


EMBED = {"gpt2": with_positions, "gpt_neo": with_positions, "opt": embed_opt, "bloom": embed_bloom}
BLOCK = {
    "gpt2": gpt2,
    "gpt_neo": gpt_neo,
    "gptj": gptj,
    "gpt_neox": gpt_neox,
    "bloom": bloom,
    "falcon": falcon,
    "opt": opt,
}
HEAD = {
    **dict.fromkeys(("gpt2", "gpt_neo", "gptj", "bloom", "falcon"), head("transformer.ln_f")),
    "gpt_neox": head("gpt_neox.final_layer_norm"),
    "opt": head_opt,
}
