"""A model whose last token carries one direction that decides between context and prior: what a fit must find.

Its first layer's attention is uniform and copies embeddings; nothing else is computed. The words Only and Ignore lie at
opposite ends of the planted direction, words of queries and contexts are random at right angles to it, all others are
0. The answers alpha and beta are read off the planted direction.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import interp
from interp.tasks.context_prior import ContextItem, ContextItems

WIDTH, WORDS = 64, 120
SEED = 17


@dataclass(frozen=True)
class Planted:
    model: interp.Model
    direction: Tensor
    items: ContextItems


def planted(count: int = 160) -> Planted:
    generator = torch.Generator().manual_seed(SEED)
    direction = torch.randn(WIDTH, generator=generator)
    direction /= direction.norm()
    contents = [f"w{i}" for i in range(WORDS)]
    tokenizer = _tokenizer(["Only", "Ignore", "alpha", "beta", *contents])
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=8, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=2, head_dim=32, max_position_embeddings=128,
            tie_word_embeddings=False, bos_token_id=None, eos_token_id=None,
        )
    ).eval()  # fmt: skip
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0) if "norm" in name else parameter.zero_()
        attention = model.model.layers[0].self_attn
        attention.v_proj.weight.copy_(torch.eye(WIDTH))
        attention.o_proj.weight.copy_(torch.eye(WIDTH))
        ids = tokenizer.get_vocab()
        embedding, unembedding = model.model.embed_tokens.weight, model.lm_head.weight
        for word in contents:
            vector = torch.randn(WIDTH, generator=generator)
            embedding[ids[word]] = vector - (vector @ direction) * direction
        embedding[ids["Only"]], embedding[ids["Ignore"]] = direction, -direction
        unembedding[ids["alpha"]], unembedding[ids["beta"]] = direction, -direction
    drawn = torch.randint(WORDS, (count, 6), generator=generator).tolist()
    items = tuple(
        ContextItem(
            " ".join(f"w{i}" for i in row[:3]), " ".join([*(f"w{i}" for i in row[3:]), "alpha"]), "beta", "alpha"
        )
        for row in drawn
    )
    return Planted(interp.wrap(model, tokenizer), direction, ContextItems(items))


def _tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate(["<unk>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+|[^\w\s]+"), "removed", invert=True)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<unk>")
