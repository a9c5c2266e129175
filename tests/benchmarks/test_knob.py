"""Fitting a knob after every layer of the bundled model, beside the same loop written with nnsight's tracing.

Both take the same steps over the same 500 pairs: all layers, the same batches, loss and optimizer. Nnsight's reads the
sources once, as ours does, and then runs whole prompts, one layer at a time, with the edit inside the trace.
"""

from __future__ import annotations

from collections.abc import Callable

import nnsight
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

import interp
from interp.knob.pairs import Pairs, Split, intent_pairs, split_pairs
from interp.knob.training import Training, batches, start, train
from interp.tasks.context_prior import PromptForm, fact_items
from tests.benchmarks.measure import Target, compare, report

pytestmark = pytest.mark.bench

PAIRS, STEPS, BATCH = 500, 15, 32  # one epoch, as published
FASTER = 3
FORM = PromptForm(wording="pocket")


@pytest.fixture(scope="module")
def model() -> interp.Model:
    return interp.load("pocket")


def ours(model: interp.Model) -> Callable[[], list[Tensor]]:
    def fit() -> list[Tensor]:
        pairs = intent_pairs(model, fact_items(PAIRS), FORM)
        split = split_pairs(pairs.used(), 0.05, 0.05, 0)
        training = Training(steps=STEPS, batch_size=BATCH, check=STEPS)
        return [each.basis for each in train(pairs, split, range(model.spec.layers), 1, training, 0)]

    return fit


def through_nnsight(model: interp.Model, pairs: Pairs, split: Split) -> Callable[[], list[Tensor]]:
    traced = nnsight.NNsight(model.hf)
    padded = model.tokenizer.pad({"input_ids": [list(row) for row in pairs.prompts.tokens]}, padding_side="left",
                                 return_tensors="pt")  # fmt: skip
    ids, mask = padded["input_ids"], padded["attention_mask"]
    layers, width = model.spec.layers, model.spec.width

    def sources() -> Tensor:
        with torch.no_grad(), traced.trace(ids, attention_mask=mask, use_cache=False):
            found = nnsight.save([])
            for layer in range(layers):
                found.append(traced.model.layers[layer].output[:, -1])
        return torch.stack(list(found))

    def fit() -> list[Tensor]:
        resid = sources()
        fitted = []
        for layer in range(layers):
            weight = start(width, 1, 0, layer).requires_grad_()
            optimizer = torch.optim.Adam([weight], lr=0.5 / width**0.5)
            endless = batches(pairs.rows(split.train), BATCH, 0)
            for _ in range(STEPS):
                rows = next(endless)
                unit = weight[:, 0] / weight.norm()
                donor = resid[layer][rows ^ 1]
                with traced.trace(ids[rows], attention_mask=mask[rows], use_cache=False):
                    hidden = traced.model.layers[layer].output
                    target = hidden[:, -1]
                    new = target + ((donor - target) @ unit)[:, None] * unit
                    traced.model.layers[layer].output = torch.cat([hidden[:, :-1], new[:, None]], dim=1)
                    logits = nnsight.save(traced.output.logits[:, -1])
                loss = cross_entropy(logits, pairs.others[rows])
                weight.grad = torch.autograd.grad(loss, weight)[0]
                optimizer.step()
            fitted.append((weight[:, 0] / weight.norm()).detach()[None])
        return fitted

    return fit


def test_fitting_every_layer(model: interp.Model) -> None:
    pairs = intent_pairs(model, fact_items(PAIRS), FORM)
    split = split_pairs(pairs.used(), 0.05, 0.05, 0)
    alternatives = {"nnsight": through_nnsight(model, pairs, split), "fit_knob's loop": ours(model)}
    theirs, mine = (fit() for fit in alternatives.values())
    deciding = 1  # after other layers gradients are mostly rounding, which Adam blows up
    assert float((theirs[deciding] @ mine[deciding].T).abs()) > 0.99
    comparison = compare(
        "knob",
        f"{PAIRS} pairs of pocket, rank 1 after all {model.spec.layers} layers, {STEPS} steps of {BATCH} prompts each",
        alternatives,
        rounds=3,
        targets=(Target("fit_knob's loop", 1 / FASTER),),
    )
    assert report(comparison).is_file()
