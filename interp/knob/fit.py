"""Fitting the knob: the subspace after every layer, its baselines, the values that mean context and prior.

Follows Minder et al. 2025, with the search for directions of Geiger et al. 2024 (distributed alignment search).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from interp.errors import BadInput
from interp.heads.scores import model_record
from interp.knob.baselines import baselines
from interp.knob.behaviour import evaluate
from interp.knob.interchange import Interchange, measure_interchange
from interp.knob.knob import Knob, check_layer, coordinates, oriented
from interp.knob.last_token import Executor, last_tokens
from interp.knob.pairs import NOT_CONFIDENT, Pairs, Split, intent_pairs, split_pairs
from interp.knob.result import PARTS, KnobResult
from interp.knob.separation import separation
from interp.knob.training import Fitted, Training, train
from interp.stats import wilson_mean
from interp.tasks.context_prior import ContextItems, PromptForm, context_prompts
from interp.tracing.model import Model

METHOD = "interchange"
"""What the frame calls the fitted subspace, beside the baselines."""
REACH = (0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0)
"""Values that are tried, as multiples of the distance from the middle between the two intents' means to each."""
TOLERANCE = 0.05
"""Share of items that a value may lose to the best one and still be preferred for being nearer."""


def fit_knob(
    model: Model,
    items: ContextItems,
    layer: int | Sequence[int] | None = None,
    rank: int = 1,
    *,
    form: PromptForm | None = None,
    training: Training | None = None,
    validation: float = 0.15,
    test: float = 0.25,
    confident: bool = True,
    seed: int = 0,
    executor: Executor = "auto",
    memory: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> KnobResult:
    """Fit the subspace that decides between context and prior after one layer, several, or every one (None).

    Pairs are split by `seed`: to fit on, to stop and to choose the best layer by (`validation`), and to report on
    (`test`). A rank-1 knob is turned so that context lies above prior, and its two values are those that work best
    without instruction on the validation pairs.

    Args:
        form: how prompts say what to follow.
        confident: fit only on pairs that the model answers as asked under both intents; others are counted.
        executor, memory: as for `interp.knob.last_token.last_tokens`.
        progress: called with the number of steps done and their greatest number.

    Raises BadInput (UnknownSite for a layer out of range) before anything runs, and where the filters leave no item.
    """
    form, training = form or PromptForm(), training or Training()
    layers = _layers(model, layer)
    if not 1 <= rank <= model.spec.width:
        raise BadInput(f"rank {rank} is not between 1 and the width {model.spec.width}")
    pairs = intent_pairs(model, items, form, executor=executor, memory=memory)
    used = pairs.used(confident)
    split = split_pairs(used, validation, test, seed)
    fitted = train(pairs, split, layers, rank, training, seed, progress)
    bases = [oriented(each.basis, pairs.resid(each.layer, split.train)) for each in fitted]
    best = max(range(len(layers)), key=lambda i: (fitted[i].accuracy, -fitted[i].loss))
    knob = Knob(layers[best], bases[best], model=model_record(model))
    behaviour = None
    if rank == 1:
        knob = calibrate(model, knob, pairs.items.take(split.validation.tolist()), pairs, split, memory=memory)
        behaviour = evaluate(model, pairs.items.take(split.test.tolist()), knob, form=form)
    return KnobResult(
        knob=knob,
        layers=tuple(layers),
        bases=torch.stack([basis.cpu() for basis in bases]).float().numpy(),
        frame=_measure(pairs, split, fitted, bases, rank, seed),
        coordinates=coordinates(bases[best], pairs.resid(layers[best], split.test)).cpu().numpy(),
        behaviour=behaviour,
        items={part: pairs.items.take(getattr(split, part).tolist()) for part in PARTS},
        form=form,
        model=model_record(model),
        parameters={
            **form.as_dict(),
            "rank": rank,
            "training": asdict(training),
            "items": items.hash,
            "pairs": {"train": len(split.train), "validation": len(split.validation), "test": len(split.test)},
            "lost": {**pairs.items.lost, NOT_CONFIDENT: len(pairs) - len(used)},
            "confident": confident,
            "base_accuracy": float(pairs.confident.mean()),
            "executor": pairs.base.name,
            "reason": pairs.reason,
        },
        seed=seed,
    )


def calibrate(
    model: Model,
    knob: Knob,
    items: ContextItems,
    pairs: Pairs,
    split: Split,
    *,
    memory: int | None = None,
) -> Knob:
    """The knob with the values that mean context and prior.

    Those tried lie around the two intents' means on the training pairs; for each intent the nearest counts
    that makes about as many of `items` begin with its answer, without instruction, as the best one does: a value that
    is further than need be disturbs what else the model does.
    """
    means = coordinates(knob.basis, pairs.resid(knob.layer, split.train)).mean(dim=(0, 2)).tolist()
    middle = sum(means) / 2
    tried = [[middle + reach * (mean - middle) for reach in REACH] for mean in means]
    prompts = context_prompts(model.tokenizer, items, pairs.form.silent, ("context",))
    base, _ = last_tokens(model, prompts.tokens, memory=memory)
    answers = torch.tensor([row[0] for row in prompts.answer_tokens])
    others = torch.tensor([row[0] for row in prompts.distractor_tokens])
    rows = torch.arange(len(prompts))
    values = []
    for wanted, candidates in zip((answers, others), tried, strict=True):
        hidden = [_set(base.resid[knob.layer], knob.basis, value) for value in candidates]
        with torch.no_grad():
            logits = base.logits_from([knob.layer] * len(hidden), hidden, [rows] * len(hidden))
        right = [float((one.argmax(-1).cpu() == wanted).float().mean()) for one in logits]
        enough = max(right) - TOLERANCE
        values.append(next(value for value, share in zip(candidates, right, strict=True) if share >= enough))
    return knob.with_values(context=values[0], prior=values[1])


def _set(resid: Tensor, basis: Tensor, value: float) -> Tensor:
    """`resid` `[row width]` with its coordinate along a rank-1 basis at `value`."""
    direction = basis.to(device=resid.device)
    change = value - coordinates(direction, resid)
    return (resid + change * direction).to(resid.dtype)


def _layers(model: Model, layer: int | Sequence[int] | None) -> list[int]:
    if layer is None:
        return list(range(model.spec.layers))
    chosen = [layer] if isinstance(layer, int) else sorted(set(layer))
    if not chosen:
        raise BadInput("no layer was named; give one, several, or None for all")
    return [check_layer(model, one) for one in chosen]


def _measure(
    pairs: Pairs, split: Split, fitted: Sequence[Fitted], bases: Sequence[Tensor], rank: int, seed: int
) -> pd.DataFrame:
    """One row a layer and method, on the test pairs; random subspaces are averaged over."""
    subspaces: list[tuple[int, str, Tensor]] = []
    for each, basis in zip(fitted, bases, strict=True):
        others = baselines(pairs.resid(each.layer, split.train), rank, seed)
        subspaces += [(each.layer, METHOD, basis)]
        subspaces += [(each.layer, name, one) for name, several in others.items() for one in several]
    measured = measure_interchange(pairs, [s[0] for s in subspaces], [s[2] for s in subspaces], split.test)
    rows = []
    by_layer = {each.layer: each for each in fitted}
    for layer, name in dict.fromkeys((layer, name) for layer, name, _ in subspaces):
        mine = [i for i, (other, method, _) in enumerate(subspaces) if (other, method) == (layer, name)]
        found = [measured[i] for i in mine]
        row = {"layer": layer, "method": name, **_summary(found)}
        row["separation"] = float(np.mean([separation(pairs, layer, subspaces[i][2], split.test) for i in mine]))
        if name == METHOD:
            one = by_layer[layer]
            row |= {"validation_accuracy": one.accuracy, "validation_loss": one.loss, "steps": one.steps}
        rows.append(row)
    return pd.DataFrame(rows)


def _summary(found: Sequence[Interchange]) -> dict[str, Any]:
    """Of one subspace or several: shares of prompts that change their answer and that keep it, by pair."""

    def by_pair(name: str) -> np.ndarray:
        mean: np.ndarray = np.mean([getattr(one, name) for one in found], axis=0)
        return mean.reshape(-1, 2).mean(1)

    accuracy = wilson_mean(by_pair("source"))
    return {
        "accuracy": accuracy.estimate,
        "accuracy_low": accuracy.low,
        "accuracy_high": accuracy.high,
        "target_accuracy": float(by_pair("target").mean()),
        "loss": float(by_pair("loss").mean()),
        "n": accuracy.n,
    }
