"""One row a model family: module paths as data, no copies of modeling code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from interp.tracing.architectures import Architecture


def _projections(attn: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{attn}.{name}" for name in names)


def _sandwich(family: str, trunk: str = "model") -> Architecture:
    """A norm before and one after each of attention and MLP."""
    return Architecture(
        family,
        blocks=f"{trunk}.layers",
        final_norm=f"{trunk}.norm",
        attn_out="post_attention_layernorm",
        mlp_norm="pre_feedforward_layernorm",
        mlp_out="post_feedforward_layernorm",
    )


def _experts(family: str) -> Architecture:
    return Architecture(family, mlp_down=None)


def _shared_norm(family: str, **parts: Any) -> Architecture:
    """Parallel blocks whose attention and MLP read the same normalised stream."""
    return Architecture(family, mlp_norm="input_layernorm", parallel=True, **parts)


def _encoder_unsupported(config: Any) -> str | None:
    if getattr(config, "is_decoder", False):
        return "is_decoder=True makes it a decoder, which is not covered"
    if config.chunk_size_feed_forward:
        return "chunk_size_feed_forward cuts its MLP into pieces that no site can hold; set it to 0"
    return None


def _bert(family: str, trunk: str, unembed: str) -> Architecture:
    """Norms after the sums, attention in both directions. RoBERTa's positions begin after its padding token."""
    return Architecture(
        family,
        blocks=f"{trunk}.encoder.layer",
        final_norm=None,
        unembed=unembed,
        attn_norm=None,
        attn="attention.self",
        projections=_projections("attention.self", "query", "key", "value"),
        o="attention.output.dense",
        attn_out="attention.output.dense",
        norm_after_attn="attention.output.LayerNorm",
        mlp_norm=None,
        mlp="intermediate",
        mlp_down="output.dense",
        mlp_out="output.dense",
        norm_after_mlp="output.LayerNorm",
        causal=False,
        rotary=False,
        variant=lambda config: {"first_position": config.pad_token_id + 1 if trunk == "roberta" else 0},
        unsupported=_encoder_unsupported,
    )


def _gpt_neox_variant(config: Any) -> Mapping[str, Any]:
    return {"parallel": config.use_parallel_residual}


def _opt_variant(config: Any) -> Mapping[str, Any]:
    if config.do_layer_norm_before:
        return {}
    return {
        "attn_norm": None,
        "mlp_norm": None,
        "final_norm": None,
        "norm_after_attn": "self_attn_layer_norm",
        "norm_after_mlp": "final_layer_norm",
    }


def _stablelm_variant(config: Any) -> Mapping[str, Any]:
    return {"parallel": True, "mlp_norm": "input_layernorm"} if config.use_parallel_residual else {}


def _falcon_variant(config: Any) -> Mapping[str, Any]:
    """Falcon-RW is sequential with ALiBi, Falcon-7B parallel with one norm, Falcon-40B parallel with two.

    With ALiBi, transformers 5.23 adds the bias twice in eager attention and once in SDPA; runs follow whichever is set.
    """
    new = config.new_decoder_architecture
    kv_heads = config.num_kv_heads if new or not config.multi_query else 1
    two_norms = new and config.num_ln_in_parallel_attn in (None, 2)
    parallel = new or config.parallel_attn
    shared = "input_layernorm" if parallel else "post_attention_layernorm"
    return {
        "kv_heads": kv_heads,
        "parallel": parallel,
        "attn_norm": "ln_attn" if two_norms else "input_layernorm",
        "mlp_norm": "ln_mlp" if two_norms else shared,
        "rotary": not config.alibi,
    }


ARCHITECTURES: dict[str, Architecture] = {
    row.family: row
    for row in (
        Architecture("llama"),
        Architecture("mistral"),
        Architecture("qwen2"),
        Architecture("qwen3"),
        Architecture("gemma"),
        Architecture("phi3", qkv="concatenated", projections=("self_attn.qkv_proj",)),
        _sandwich("gemma2"),
        _sandwich("gemma3_text"),
        _sandwich("gemma3", trunk="model.language_model"),
        Architecture(
            "olmo2",
            attn_norm=None,
            attn_out="post_attention_layernorm",
            mlp_norm=None,
            mlp_out="post_feedforward_layernorm",
        ),
        _experts("mixtral"),
        _experts("qwen2_moe"),
        _experts("qwen3_moe"),
        _experts("gpt_oss"),
        _shared_norm("cohere"),
        _shared_norm("cohere2"),
        _shared_norm(
            "phi",
            final_norm="model.final_layernorm",
            o="self_attn.dense",
            mlp_down="mlp.fc2",
        ),
        Architecture("stablelm", variant=_stablelm_variant),
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
            rotary=False,
        ),
        Architecture(
            "gpt_neo",
            blocks="transformer.h",
            final_norm="transformer.ln_f",
            attn_norm="ln_1",
            attn="attn",
            projections=_projections("attn.attention", "q_proj", "k_proj", "v_proj"),
            o="attn.attention.out_proj",
            attn_out="attn",
            mlp_norm="ln_2",
            mlp_down="mlp.c_proj",
            rotary=False,
            own_attention=True,
            window="window_size",
        ),
        Architecture(
            "gptj",
            blocks="transformer.h",
            final_norm="transformer.ln_f",
            attn_norm="ln_1",
            attn="attn",
            projections=_projections("attn", "q_proj", "k_proj", "v_proj"),
            o="attn.out_proj",
            attn_out="attn",
            mlp_norm="ln_1",
            mlp_down="mlp.fc_out",
            parallel=True,
            own_attention=True,
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
            variant=_gpt_neox_variant,
        ),
        Architecture(
            "bloom",
            blocks="transformer.h",
            final_norm="transformer.ln_f",
            attn="self_attention",
            qkv="interleaved",
            projections=("self_attention.query_key_value",),
            o="self_attention.dense",
            attn_out="self_attention.dense",
            mlp_down="mlp.dense_4h_to_h",
            mlp_out="mlp.dense_4h_to_h",
            rotary=False,
            own_attention=True,
            unsupported=lambda config: (
                "apply_residual_connection_post_layernorm adds attention to the normalised "
                "stream, so its residual stream is not a sum"
                if config.apply_residual_connection_post_layernorm
                else None
            ),
        ),
        Architecture(
            "falcon",
            blocks="transformer.h",
            final_norm="transformer.ln_f",
            attn="self_attention",
            qkv="interleaved",
            projections=("self_attention.query_key_value",),
            o="self_attention.dense",
            attn_out="self_attention",
            mlp_down="mlp.dense_4h_to_h",
            own_attention=True,
            overwrites=("mlp_out",),
            variant=_falcon_variant,
        ),
        Architecture(
            "opt",
            blocks="model.decoder.layers",
            final_norm="model.decoder.final_layer_norm",
            attn_norm="self_attn_layer_norm",
            o="self_attn.out_proj",
            mlp_norm="final_layer_norm",
            mlp="fc1",
            mlp_down="fc2",
            mlp_out="fc2",
            rotary=False,
            variant=_opt_variant,
        ),
        _bert("bert", trunk="bert", unembed="cls.predictions.decoder"),
        _bert("roberta", trunk="roberta", unembed="lm_head.decoder"),
        _bert("xlm-roberta", trunk="roberta", unembed="lm_head.decoder"),
        Architecture(
            "distilbert",
            blocks="distilbert.transformer.layer",
            final_norm=None,
            unembed="vocab_projector",
            attn_norm=None,
            attn="attention",
            projections=_projections("attention", "q_lin", "k_lin", "v_lin"),
            o="attention.out_lin",
            attn_out="attention",
            norm_after_attn="sa_layer_norm",
            mlp_norm=None,
            mlp="ffn",
            mlp_down="ffn.lin2",
            mlp_out="ffn",
            norm_after_mlp="output_layer_norm",
            causal=False,
            rotary=False,
            unsupported=_encoder_unsupported,
        ),
        Architecture(
            "modernbert",
            final_norm="model.final_norm",
            unembed="decoder",
            attn_norm="attn_norm",
            attn="attn",
            qkv="concatenated",
            projections=("attn.Wqkv",),
            o="attn.Wo",
            attn_out="attn",
            mlp_norm="mlp_norm",
            mlp_down="mlp.Wo",
            causal=False,
        ),
    )
}
