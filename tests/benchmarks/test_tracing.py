"""What reading every layer costs, beside a plain forward pass, the neighbours, and each library used by hand."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import interp
from tests.benchmarks.measure import Target, compare, report
from tests.families import word_tokenizer

pytestmark = pytest.mark.bench

WIDTH, LAYERS, BATCH, TOKENS = 512, 8, 4, 256
VOCAB = 2048


@pytest.fixture(scope="module")
def hf() -> PreTrainedModel:
    config = AutoConfig.for_model(
        "llama",
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        intermediate_size=1376,
        num_hidden_layers=LAYERS,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=2 * TOKENS,
    )
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval().requires_grad_(False)


def through_transformer_lens(hf: PreTrainedModel, folder: Path, ids: Tensor) -> Callable[[], dict[str, Tensor]]:
    """TransformerBridge with a names filter, on its own modules over the same weights."""
    from transformer_lens.model_bridge import TransformerBridge

    logging.disable(logging.WARNING)
    word_tokenizer().save_pretrained(folder)
    hf.config.save_pretrained(folder)
    words = AutoTokenizer.from_pretrained(folder)
    shared: dict[int, Any] = {id(t): t for t in [*hf.parameters(), *hf.buffers()]}
    own = copy.deepcopy(hf, shared)
    own.config = copy.deepcopy(hf.config)
    bridge = TransformerBridge.boot_transformers(str(folder), hf_model=own, tokenizer=words)
    names = {f"blocks.{layer}.hook_resid_post" for layer in range(LAYERS)}

    def read() -> dict[str, Tensor]:
        with torch.no_grad():
            logits, cache = bridge.run_with_cache(ids, names_filter=lambda name: name in names, use_cache=False)
        found = {f"resid_post.{layer}": cache[f"blocks.{layer}.hook_resid_post"] for layer in range(LAYERS)}
        return {**found, "logits": logits}

    return read


def through_nnsight(hf: PreTrainedModel, ids: Tensor) -> Callable[[], dict[str, Tensor]]:
    import nnsight

    model = nnsight.NNsight(hf)

    def read() -> dict[str, Tensor]:
        with torch.no_grad(), model.trace(ids, use_cache=False):
            found = nnsight.save({})
            for layer in range(LAYERS):
                found[f"resid_post.{layer}"] = model.model.layers[layer].output
            found["logits"] = model.output.logits
        return dict(found)

    return read


def through_torch_hooks(hf: PreTrainedModel, ids: Tensor) -> Callable[[], dict[str, Tensor]]:
    mask = torch.ones_like(ids)

    def read() -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}

        def keep(name: str) -> Callable[..., None]:
            return lambda _module, _args, output: found.update({name: output})

        layers = hf.model.layers
        handles = [layer.register_forward_hook(keep(f"resid_post.{n}")) for n, layer in enumerate(layers)]
        with torch.no_grad():
            found["logits"] = hf(ids, attention_mask=mask, use_cache=False).logits
        for handle in handles:
            handle.remove()
        return found

    return read


def ours(model: interp.Model, ids: Tensor, logits: Any = "all") -> Callable[[], dict[str, Tensor]]:
    def read() -> dict[str, Tensor]:
        trace = model.run(ids, read="resid_post", logits=logits)
        kept = {} if logits is None else {"logits": trace.logits}
        return {**{str(site): trace[site] for site in trace}, **kept}

    return read


def must_agree(alternatives: dict[str, Callable[[], dict[str, Tensor]]], wanted: dict[str, Tensor]) -> None:
    assert len(wanted) == LAYERS + 1
    for name, read in alternatives.items():
        for site, value in read().items():
            torch.testing.assert_close(value, wanted[site], rtol=1e-4, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


@pytest.fixture(scope="module")
def ids() -> Tensor:
    return torch.randint(3, VOCAB, (BATCH, TOKENS), generator=torch.Generator().manual_seed(0))


def test_reading_every_residual_stream(hf: PreTrainedModel, ids: Tensor, tmp_path: Path) -> None:
    model = interp.wrap(hf)
    mask = torch.ones_like(ids)

    def plain() -> dict[str, Tensor]:
        with torch.no_grad():
            return {"logits": hf(ids, attention_mask=mask, use_cache=False).logits}

    alternatives = {
        "plain forward": plain,
        "plain forward, once more": plain,  # how far apart equal things are measured
        "Model.run": ours(model, ids),
        "Model.run without logits": ours(model, ids, None),
        "TransformerBridge": through_transformer_lens(hf, tmp_path, ids),
        "nnsight": through_nnsight(hf, ids),
    }
    must_agree(alternatives, alternatives["Model.run"]())
    comparison = compare(
        "tracing",
        f"resid_post of all layers, width {WIDTH}, {LAYERS} layers, {BATCH} x {TOKENS} tokens",
        alternatives,
        rounds=15,
        targets=(Target("Model.run", 1.05),),
    )
    assert report(comparison).is_file()


@pytest.mark.parametrize("backend", ["hooks", "nnsight", "transformer_lens"])
def test_a_backend_beside_its_library_used_by_hand(
    hf: PreTrainedModel, ids: Tensor, backend: str, tmp_path: Path
) -> None:
    by_hand = {
        "hooks": lambda: through_torch_hooks(hf, ids),
        "nnsight": lambda: through_nnsight(hf, ids),
        "transformer_lens": lambda: through_transformer_lens(hf, tmp_path, ids),
    }[backend]()
    alternatives = {"by hand": by_hand, "Model.run": ours(interp.wrap(hf, backend=backend), ids)}
    must_agree(alternatives, by_hand())
    comparison = compare(
        f"tracing-{backend}",
        f"resid_post of all layers through {backend}, width {WIDTH}, {LAYERS} layers, {BATCH} x {TOKENS} tokens",
        alternatives,
        rounds=9,
        targets=(Target("Model.run", 1.1),),
    )
    assert report(comparison).is_file()
