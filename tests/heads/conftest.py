"""Tiny random models of three families over a vocabulary of a few words, and random prompts for them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

import interp
from interp.tasks.prompts import PromptSet

WORDS = ["<pad>", *"abcdef"]


@pytest.fixture(scope="session")
def tokenizer():
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", unk_token="<pad>")


SIZES = {"vocab_size": len(WORDS), "eos_token_id": None, "bos_token_id": None}
FAMILIES = {
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(n_layer=2, n_head=4, n_embd=128, n_positions=256, **SIZES)),
    "llama": lambda: LlamaForCausalLM(
        LlamaConfig(
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            max_position_embeddings=256,
            **SIZES,
        )
    ),
    "gemma2": lambda: Gemma2ForCausalLM(
        Gemma2Config(
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            sliding_window=24,
            max_position_embeddings=256,
            **SIZES,
        )
    ),
}


@pytest.fixture(scope="session")
def make_model(tokenizer):
    """A model of a family with large random weights, always the same."""

    def make(family, attention):
        torch.manual_seed(0)
        hf = FAMILIES[family]()
        for parameter in hf.parameters():
            parameter.data.mul_(4 if parameter.ndim > 1 else 1)
        hf.set_attn_implementation(attention)
        return interp.wrap(hf.eval(), tokenizer)

    return make


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="session")
def llama(make_model):
    return make_model("llama", "sdpa")


@pytest.fixture(scope="session")
def prompts(tokenizer):
    """Random words; the first half of the tests share a beginning, as needle tests of one haystack do."""
    rng = np.random.default_rng(0)
    trunk = rng.choice(WORDS[1:], 60).tolist()
    texts, spans = [], []
    for i in range(12):
        own = rng.choice(WORDS[1:], int(rng.integers(20, 50))).tolist()
        words = [*trunk[: 34 + 3 * i], *own] if i < 6 else own
        start = len(words) - 18
        texts.append(" ".join(words))
        spans.append((2 * start, 2 * start + 15))
    answers = [f" {a} {b}" for a, b in rng.choice(WORDS[1:], (12, 2))]
    return PromptSet.build(tokenizer, texts, answers, spans={"value": spans})
