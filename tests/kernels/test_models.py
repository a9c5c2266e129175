"""Whole models that compute with the kernels give the logits of eager attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from kernels.attention import head_attention
from kernels.types import MaskSpec
from tests.families import CONTEXT, VOCAB, WINDOW, build, prompts, randomise

FAMILIES = ("gpt2", "gpt_neox", "opt", "llama", "mistral", "qwen3", "phi3", "gemma2", "gemma3", "gpt_oss")


def model_of(family: str, attention: str) -> PreTrainedModel:
    """A tiny random model; gpt-oss, whose heads have sink logits, is built here."""
    if family != "gpt_oss":
        return build(family, attention)
    config = AutoConfig.for_model(
        "gpt_oss", vocab_size=VOCAB, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=32, intermediate_size=64, num_local_experts=2, num_experts_per_tok=1, sliding_window=WINDOW,
        max_position_embeddings=CONTEXT, layer_types=["sliding_attention", "full_attention"], rope_scaling=None,
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    randomise(model)
    return model.eval()


@torch.no_grad()
@pytest.mark.parametrize("backend", ["reference", "sdpa"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_eager_attention(family: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = prompts(2, 20)
    real = torch.ones_like(ids)
    real[1, :7] = 0
    calls = []

    def kernel(
        _: object, query: Tensor, key: Tensor, value: Tensor, mask: object, **kwargs: Any
    ) -> tuple[Tensor, None]:
        spec = MaskSpec.padded(
            real,
            scale=kwargs.get("scaling"),
            window=kwargs.get("sliding_window"),
            softcap=kwargs.get("softcap"),
            sinks=kwargs.get("s_aux"),
        )
        calls.append(spec)
        out, _ = head_attention(query, key, value, mask=spec, backend=backend, allow_dense=backend == "reference")
        return out, None

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "under-test", kernel)
    model = model_of(family, "eager")
    position_ids = (real.cumsum(-1) - 1).clamp(min=0)
    wanted = model(ids, attention_mask=real, position_ids=position_ids).logits
    model.set_attn_implementation("under-test")
    got = model(ids, attention_mask=real, position_ids=position_ids).logits
    assert len(calls) == 2
    assert any(spec.window for spec in calls) == (family in ("mistral", "gemma2", "gemma3", "gpt_oss"))
    assert all((spec.softcap is not None) == (family == "gemma2") for spec in calls)
    assert all((spec.sinks is not None) == (family == "gpt_oss") for spec in calls)
    live = real.bool()
    torch.testing.assert_close(got[live], wanted[live], rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))
