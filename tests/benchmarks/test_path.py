"""Path patching of all senders into one set of receivers, beside the two hooked passes a sender of TransformerLens.

Those cost the same for every sender, so TransformerLens runs one head of every layer and its time counts as often as
there are heads in a layer: `ours` patches all 144 senders, and is three times as fast where it takes at most four times
as long as that twelfth.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

import interp
from interp.metrics import logit_difference
from interp.patching.path import path_patching
from interp.tasks.prompts import PromptSet
from interp.tracing.frame import Positions
from tests.benchmarks.measure import Target, compare, report
from tests.families import word_tokenizer

pytestmark = pytest.mark.bench

LAYERS, HEADS, WIDTH = 12, 12, 768
VOCAB = 20_000
PROMPTS, TOKENS = 4, 32
RECEIVERS = [(9, 6), (9, 9), (10, 0)]
"""Queries of three heads, as when the paper asks what feeds the name movers."""
FASTER = 3


@pytest.fixture(scope="module")
def model() -> interp.Model:
    config = AutoConfig.for_model(
        "gpt2", vocab_size=VOCAB, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, n_positions=2 * TOKENS
    )
    config.bos_token_id = config.eos_token_id = 0
    torch.manual_seed(0)
    hf = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval().requires_grad_(False)
    return interp.wrap(hf, word_tokenizer())


@pytest.fixture(scope="module")
def pairs() -> PromptSet:
    generator = torch.Generator().manual_seed(0)
    clean, twin = (
        tuple(map(tuple, torch.randint(3, VOCAB, (PROMPTS, TOKENS), generator=generator).tolist())) for _ in range(2)
    )
    names = tuple(map(str, range(PROMPTS)))
    return replace(
        PromptSet(names, clean, counterfactual=PromptSet(names, twin)),
        answers=names,
        answer_tokens=((5,),) * PROMPTS,
        distractors=names,
        distractor_tokens=((6,),) * PROMPTS,
    )


def through_transformer_lens(
    model: interp.Model, pairs: PromptSet, senders: list[tuple[int, int]], columns: slice
) -> Callable[[], Tensor]:
    """Logit differences `[sender prompt]`, two passes a sender."""
    logging.disable(logging.WARNING)
    bridge: Any = interp.wrap(model.hf, word_tokenizer(), backend="transformer_lens").backend_object
    assert pairs.counterfactual is not None
    clean, twin = torch.tensor(pairs.tokens), torch.tensor(pairs.counterfactual.tokens)

    def z(layer: int) -> str:
        return f"blocks.{layer}.attn.hook_z"

    def q(layer: int) -> str:
        return f"blocks.{layer}.attn.hook_q"

    def freeze(value: Tensor, hook: Any, layer: int, own: Any, other: Any, sender: tuple[int, int]) -> Tensor:
        frozen = own[z(layer)].clone()
        if layer == sender[0]:
            frozen[:, columns, sender[1]] = other[z(layer)][:, columns, sender[1]]
        return frozen

    def keep(value: Tensor, hook: Any, layer: int, kept: dict[int, Tensor]) -> None:
        kept[layer] = value.clone()

    def overwrite(value: Tensor, hook: Any, layer: int, kept: dict[int, Tensor]) -> Tensor:
        for _, head in (each for each in RECEIVERS if each[0] == layer):
            value[:, columns, head] = kept[layer][:, columns, head]
        return value

    layers = sorted({layer for layer, _ in RECEIVERS})

    @torch.no_grad()
    def patch() -> Tensor:
        names = [z(layer) for layer in range(LAYERS)]
        own, other = (bridge.run_with_cache(ids, names_filter=names)[1] for ids in (clean, twin))
        values = []
        for sender in senders:
            kept: dict[int, Tensor] = {}
            hooks = [(q(layer), partial(keep, layer=layer, kept=kept)) for layer in layers]
            frozen = partial(freeze, own=own, other=other, sender=sender)
            hooks += [(z(layer), partial(frozen, layer=layer)) for layer in range(LAYERS)]
            bridge.run_with_hooks(clean, fwd_hooks=hooks)
            hooks = [(q(layer), partial(overwrite, layer=layer, kept=kept)) for layer in layers]
            logits = bridge.run_with_hooks(clean, fwd_hooks=hooks)
            values.append(logits[:, -1, 5] - logits[:, -1, 6])
        return torch.stack(values)

    return patch


@pytest.mark.parametrize(
    ("setting", "positions", "columns"), [("last", -1, slice(-1, None)), ("all", None, slice(None))]
)
def test_all_senders_into_one_set_of_receivers(
    model: interp.Model, pairs: PromptSet, setting: str, positions: Positions, columns: slice
) -> None:
    receivers = [f"q.{layer}.{head}" for layer, head in RECEIVERS]
    some = [(layer, layer) for layer in range(max(layer for layer, _ in RECEIVERS))]
    theirs = through_transformer_lens(model, pairs, some, columns)

    def ours() -> np.ndarray:
        return path_patching(model, pairs, receivers, positions=positions, metrics=[logit_difference()]).values[:, 0]

    wanted, found = theirs().numpy(), ours().reshape(len(some), HEADS, PROMPTS)
    np.testing.assert_allclose(found[range(len(some)), range(len(some))], wanted, atol=1e-4)
    assert np.abs(wanted - wanted.mean(0)).max() > 1e-4
    comparison = compare(
        f"path-{setting}",
        f"GPT-2 of {LAYERS} x {HEADS} heads, {PROMPTS} prompts of {TOKENS} tokens, patched at positions: {setting}",
        {"TransformerLens, one head of each layer": theirs, "ours, all heads": ours},
        rounds=2,
        targets=(Target("ours, all heads", HEADS / FASTER),),
    )
    report(comparison)
