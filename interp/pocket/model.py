"""The bundled model's shape, and its forward pass for training."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from interp.pocket.tokenizer import CONTEXT

LAYERS, WIDTH, HEADS, KV_HEADS, MLP_WIDTH = 4, 256, 8, 4, 640


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
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        attn_implementation="sdpa",
    )
    return LlamaForCausalLM(config)


def hidden_states(model: LlamaForCausalLM, ids: Tensor, positions: Tensor) -> Tensor:
    """The normalised last hidden states [B, T, D] of full causal attention at the given positions.

    The model's own forward would take a jump in the positions for the start of another sequence.
    """
    x = model.model.embed_tokens(ids)
    rotary = model.model.rotary_emb(x, position_ids=positions)
    for layer in model.model.layers:
        x = layer(x, attention_mask=None, position_embeddings=rotary)
    return model.model.norm(x)
