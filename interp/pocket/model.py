"""The bundled model's shape, and its forward pass for training."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from interp.pocket.tokenizer import CONTEXT

LAYERS, WIDTH, HEADS, KV_HEADS, MLP_WIDTH = 4, 256, 8, 4, 640


LOOK_BACK, STAY = 6.0, 2.0  # sizes of the biases, see `start_looking`


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int, width: int = WIDTH) -> LlamaForCausalLM:
    """A freshly initialised model; four query heads' width 32, two query heads to a key/value head."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=MLP_WIDTH * width // WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        attention_bias=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        attn_implementation="sdpa",
    )
    model = LlamaForCausalLM(config)
    start_looking(model)
    return model


def start_looking(model: LlamaForCausalLM) -> None:
    """Set query and key biases so that some heads begin with a place to look at, whatever the tokens are.

    Rotary embedding turns queries and keys by their positions. With a key bias u, and u turned back by d positions
    as the query bias, the score is greatest d tokens back. The first layer's heads begin by looking one token back:
    heads that match and copy are built on such heads, which otherwise form late or, in a training as short as this
    one, never. Half of the second layer's heads begin by looking at their own token, so that copying is taken up by
    the other half and not by every head a little.
    """
    config, angles = model.config, model.model.rotary_emb.inv_freq
    group = config.num_attention_heads // config.num_key_value_heads
    ahead = torch.cat([torch.ones_like(angles), torch.zeros_like(angles)])
    back = torch.cat([torch.cos(-angles), torch.sin(-angles)])
    first, second = (
        (
            layer.self_attn.q_proj.bias.data.view(config.num_key_value_heads, group, -1),
            layer.self_attn.k_proj.bias.data.view(config.num_key_value_heads, 1, -1),
        )
        for layer in model.model.layers[:2]
    )
    first[0][:], first[1][:] = LOOK_BACK * back, LOOK_BACK * ahead
    half = config.num_key_value_heads // 2
    second[0][half:], second[1][half:] = STAY * ahead, STAY * ahead


def hidden_states(model: LlamaForCausalLM, ids: Tensor, positions: Tensor) -> Tensor:
    """The normalised last hidden states [B, T, D] of full causal attention at the given positions.

    The model's own forward would take a jump in the positions for the start of another sequence.
    """
    x = model.model.embed_tokens(ids)
    rotary = model.model.rotary_emb(x, position_ids=positions)
    for layer in model.model.layers:
        x = layer(x, attention_mask=None, position_embeddings=rotary)
    return model.model.norm(x)
