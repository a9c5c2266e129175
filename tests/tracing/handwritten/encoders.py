"""BERT and its kin: attention in both directions, and mostly norms after the sums."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import gelu

from tests.tracing.handwritten.llama import rotate

if TYPE_CHECKING:
    from tests.tracing.handwritten.model import HandModel


def embed_bert(hand: HandModel, ids: Tensor) -> Tensor:
    """RoBERTa counts positions from the one after its padding token."""
    embeddings = hand.hf.base_model.embeddings
    first = hand.config.pad_token_id + 1 if "roberta" in hand.family else 0
    positions = embeddings.position_embeddings.weight[first : first + ids.shape[1]]
    total = embeddings.word_embeddings.weight[ids] + positions
    if hasattr(embeddings, "token_type_embeddings"):
        total = total + embeddings.token_type_embeddings.weight[0]
    return embeddings.LayerNorm(total)


def embed_modernbert(hand: HandModel, ids: Tensor) -> Tensor:
    embeddings = hand.hf.model.embeddings
    return embeddings.norm(embeddings.tok_embeddings.weight[ids])


def bert(hand: HandModel, layer: int, stream: Tensor) -> Tensor:
    block = hand.hf.base_model.encoder.layer[layer]
    attn, output = block.attention.self, block.attention.output
    attn_in = hand.at(f"attn_in.{layer}", stream)
    q, k, v = hand.qkv(layer, attn.query(attn_in), attn.key(attn_in), attn.value(attn_in))
    z = hand.attend(layer, q, k, v, visible=everything(q))
    attn_out = hand.at(f"attn_out.{layer}", hand.write_with(layer, z, output.dense))
    mid = hand.at(f"resid_mid.{layer}", output.LayerNorm(stream + attn_out))
    neurons = hand.at(f"mlp_post.{layer}", gelu(block.intermediate.dense(hand.at(f"mlp_in.{layer}", mid))))
    return block.output.LayerNorm(mid + hand.at(f"mlp_out.{layer}", block.output.dense(neurons)))


def distilbert(hand: HandModel, layer: int, stream: Tensor) -> Tensor:
    block = hand.hf.distilbert.transformer.layer[layer]
    attn = block.attention
    attn_in = hand.at(f"attn_in.{layer}", stream)
    q, k, v = hand.qkv(layer, attn.q_lin(attn_in), attn.k_lin(attn_in), attn.v_lin(attn_in))
    z = hand.attend(layer, q, k, v, visible=everything(q))
    attn_out = hand.at(f"attn_out.{layer}", hand.write_with(layer, z, attn.out_lin))
    mid = hand.at(f"resid_mid.{layer}", block.sa_layer_norm(stream + attn_out))
    neurons = hand.at(f"mlp_post.{layer}", gelu(block.ffn.lin1(hand.at(f"mlp_in.{layer}", mid))))
    return block.output_layer_norm(mid + hand.at(f"mlp_out.{layer}", block.ffn.lin2(neurons)))


def modernbert(hand: HandModel, layer: int, stream: Tensor) -> Tensor:
    """Norms before; local layers see half the window on either side, and themselves."""
    block = hand.hf.model.layers[layer]
    attn_in = hand.at(f"attn_in.{layer}", stream if layer == 0 else block.attn_norm(stream))
    q, k, v = hand.qkv(layer, *block.attn.Wqkv(attn_in).chunk(3, dim=-1))
    q, k = rotate(hand, layer, q, k, hand.hf.model.rotary_emb)
    visible = everything(q)
    if hand.config.layer_types[layer] == "sliding_attention":
        reach = hand.config.local_attention // 2
        visible = visible.tril(reach).triu(-reach)
    attn_out = hand.write_with(layer, hand.attend(layer, q, k, v, visible=visible), block.attn.Wo)
    mid = hand.at(f"resid_mid.{layer}", stream + hand.at(f"attn_out.{layer}", attn_out))
    first, gate = block.mlp.Wi(hand.at(f"mlp_in.{layer}", block.mlp_norm(mid))).chunk(2, dim=-1)
    neurons = hand.at(f"mlp_post.{layer}", gelu(first) * gate)
    return mid + hand.at(f"mlp_out.{layer}", block.mlp.Wo(neurons))


def everything(q: Tensor) -> Tensor:
    return torch.ones(q.shape[1], q.shape[1], dtype=torch.bool)


def head_bert(hand: HandModel, stream: Tensor) -> Tensor:
    head = hand.hf.cls.predictions
    return head.decoder(head.transform.LayerNorm(gelu(head.transform.dense(stream))))


def head_roberta(hand: HandModel, stream: Tensor) -> Tensor:
    head = hand.hf.lm_head
    return head.decoder(head.layer_norm(gelu(head.dense(stream))))


def head_distilbert(hand: HandModel, stream: Tensor) -> Tensor:
    hf = hand.hf
    return hf.vocab_projector(hf.vocab_layer_norm(gelu(hf.vocab_transform(stream))))


def head_modernbert(hand: HandModel, stream: Tensor) -> Tensor:
    head = hand.hf.head
    stream = hand.at("final_norm", hand.hf.model.final_norm(stream))
    return hand.hf.decoder(head.norm(gelu(head.dense(stream))))


EMBED = {**dict.fromkeys(("bert", "roberta", "xlm-roberta", "distilbert"), embed_bert), "modernbert": embed_modernbert}
BLOCK = {**dict.fromkeys(("bert", "roberta", "xlm-roberta"), bert), "distilbert": distilbert, "modernbert": modernbert}
HEAD = {
    "bert": head_bert,
    **dict.fromkeys(("roberta", "xlm-roberta"), head_roberta),
    "distilbert": head_distilbert,
    "modernbert": head_modernbert,
}
