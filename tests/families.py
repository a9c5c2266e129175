"""Tiny random models of every family, built from configurations: no weights on disk, no network.

Heads are 32 wide (the narrowest that every attention kernel computes exactly), key/value heads are grouped where the
family groups them, windows are shorter than the prompts, and all weights are large enough for every part to matter.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

VOCAB = 199
CONTEXT = 96
WINDOW = 6

_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
_GROUPED: dict[str, Any] = {**_COMMON, "num_key_value_heads": 2, "head_dim": 32, "intermediate_size": 96}
_GEMMA: dict[str, Any] = {
    **_GROUPED,
    "query_pre_attn_scalar": 24,
    "sliding_window": WINDOW,
    "layer_types": ["sliding_attention", "full_attention"],
}
_WIDE: dict[str, Any] = {**_COMMON, "hidden_size": 128, "intermediate_size": 160}
_WIDE_GROUPED: dict[str, Any] = {**_WIDE, "num_key_value_heads": 2}
_NEOX: dict[str, Any] = {**_WIDE, "rotary_pct": 0.25}
_OPT: dict[str, Any] = {**_COMMON, "hidden_size": 128, "ffn_dim": 160, "word_embed_proj_dim": 128}
_PARTIAL_ROTARY = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}}
_LOCAL_FIRST = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
_ROUTED = {"num_experts_per_tok": 2, "experts_implementation": "eager"}
_GPT2: dict[str, Any] = {
    "vocab_size": VOCAB,
    "n_embd": 128,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": CONTEXT,
    "bos_token_id": 0,
    "eos_token_id": 1,
}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", _GPT2),
    "gpt_neox": ("gpt_neox", _NEOX),
    "gpt_neox_sequential": ("gpt_neox", {**_NEOX, "use_parallel_residual": False}),
    "opt": ("opt", _OPT),
    "llama": ("llama", _GROUPED),
    "mistral": ("mistral", {**_GROUPED, "sliding_window": WINDOW}),
    "qwen2": ("qwen2", _WIDE_GROUPED),
    "qwen3": ("qwen3", _GROUPED),
    "phi3": ("phi3", {**_GROUPED, "hidden_size": 128, "partial_rotary_factor": 0.5}),
    "gemma2": ("gemma2", {**_GEMMA, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 8.0}),
    "gemma3": ("gemma3_text", _GEMMA),
    "bitnet": ("bitnet", {**_GROUPED, "hidden_size": 128, "hidden_act": "relu2"}),
    "gemma": ("gemma", _GROUPED),
    "olmo2": ("olmo2", _WIDE_GROUPED),
    "cohere": ("cohere", {**_WIDE_GROUPED, "use_qk_norm": True}),
    "cohere2": ("cohere2", {**_WIDE_GROUPED, **_LOCAL_FIRST}),
    "phi": ("phi", {**_WIDE_GROUPED, **_PARTIAL_ROTARY}),
    "stablelm": ("stablelm", _WIDE_GROUPED),
    "stablelm_parallel": ("stablelm", {**_WIDE_GROUPED, "use_parallel_residual": True, "qk_layernorm": True}),
    "mixtral": ("mixtral", {**_GROUPED, **_ROUTED, "num_local_experts": 4, "sliding_window": WINDOW}),
    "qwen2_moe": (
        "qwen2_moe",
        {
            **_WIDE_GROUPED,
            **_ROUTED,
            "num_experts": 4,
            "moe_intermediate_size": 48,
            "shared_expert_intermediate_size": 80,
            "mlp_only_layers": [1],
            "use_sliding_window": True,
            "sliding_window": WINDOW,
            "max_window_layers": 1,
        },
    ),
    "qwen3_moe": ("qwen3_moe", {**_GROUPED, **_ROUTED, "num_experts": 4, "moe_intermediate_size": 48}),
    "gpt_oss": (
        "gpt_oss",
        {
            **_GROUPED,
            **_ROUTED,
            **_LOCAL_FIRST,
            "num_local_experts": 4,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
    ),
    "gpt_neo": (
        "gpt_neo",
        {
            **_COMMON,
            "hidden_size": 128,
            "intermediate_size": 160,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "window_size": WINDOW,
        },
    ),
    "gptj": ("gptj", {**_GPT2, "rotary_dim": 16}),
    "bloom": (
        "bloom",
        {**{k: v for k, v in _COMMON.items() if k != "max_position_embeddings"}, "hidden_size": 128},
    ),
    "falcon": ("falcon", {**_COMMON, "hidden_size": 128}),
    "falcon_grouped": ("falcon", {**_COMMON, "hidden_size": 128, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon_alibi": (
        "falcon",
        {**_COMMON, "hidden_size": 128, "multi_query": False, "parallel_attn": False, "alibi": True, "bias": True},
    ),
    "opt_post_norm": ("opt", {**_OPT, "word_embed_proj_dim": 64, "do_layer_norm_before": False}),
    "bert": ("bert", _WIDE),
    "roberta": ("roberta", {**_WIDE, "max_position_embeddings": CONTEXT + 3}),
    "xlm-roberta": ("xlm-roberta", {**_WIDE, "max_position_embeddings": CONTEXT + 3}),
    "distilbert": (
        "distilbert",
        {
            "vocab_size": VOCAB,
            "dim": 128,
            "n_layers": 2,
            "n_heads": 4,
            "hidden_dim": 160,
            "max_position_embeddings": CONTEXT,
            "pad_token_id": 2,
        },
    ),
    "modernbert": ("modernbert", {**_WIDE, "local_attention": WINDOW, "layer_types": _LOCAL_FIRST["layer_types"]}),
}
ENCODERS = ["bert", "roberta", "xlm-roberta", "distilbert", "modernbert"]
DECODERS = [name for name in FAMILIES if name not in ENCODERS]
NO_SDPA = {
    "gemma2": "soft-caps its scores, which SDPA cannot",
    "gpt_oss": "has sink logits, which SDPA cannot",
    "gpt_neo": "has only eager attention",
    "gptj": "has only eager attention",
    "bloom": "has only eager attention",
}
SDPA = [name for name in FAMILIES if name not in NO_SDPA]
"""Families whose stock SDPA attention exists."""
OWN_ATTENTION = ["gpt_neo", "gptj", "bloom", "falcon", "falcon_grouped", "falcon_alibi"]
"""Families that do not call transformers' attention functions, so that their kernel cannot be observed."""
REPRESENTATIVES = [
    "gpt2",
    "gpt_neox",
    "opt",
    "llama",
    "mistral",
    "gemma2",
    "gemma3",
    "gpt_oss",
    "bloom",
    "opt_post_norm",
    "bert",
    "modernbert",
]
"""One family of each kind of forward pass, for what would cost too much on all."""


def build(name: str, attention: str = "eager", dtype: torch.dtype = torch.float32, **changes: Any) -> PreTrainedModel:
    """A random model of a family; the same name gives the same weights whatever the attention and dtype."""
    model_type, settings = FAMILIES[name]
    config = AutoConfig.for_model(model_type, **{**settings, **changes})
    torch.manual_seed(0)
    auto = AutoModelForMaskedLM if name in ENCODERS else AutoModelForCausalLM
    model = auto.from_config(config, attn_implementation=attention)
    randomise(model)
    return model.to(dtype).eval()


@torch.no_grad()
def randomise(model: nn.Module, seed: int = 1) -> None:
    """Weights of the usual fan-in scale times two, and norms and biases that are neither one nor zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "embed" in name or "wte" in name or "wpe" in name:
            parameter.copy_(0.25 * noise)
        elif parameter.ndim == 1:
            parameter.copy_(0.3 * noise + (0.8 if name.endswith("weight") else 0.0))
        else:
            parameter.copy_(2.0 * noise / parameter.shape[-1] ** 0.5)


def prompts(rows: int = 2, length: int = 12, seed: int = 5) -> torch.Tensor:
    """Random token ids `[rows length]` without special tokens."""
    return torch.randint(3, VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))


def ragged(lengths: tuple[int, ...] = (12, 7, 10), seed: int = 5) -> list[list[int]]:
    """Random prompts of unequal length."""
    return [prompts(1, length, seed + length)[0].tolist() for length in lengths]


def word_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer whose words are `w3 w4 …`, so that text and ids are the same thing."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit

    words = ["<s>", "</s>", "<pad>", *(f"w{i}" for i in range(3, VOCAB))]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<pad>"
    )
