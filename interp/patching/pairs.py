"""Prompts and their counterfactual twins, checked before anything runs, and metrics of both."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from interp.errors import BadInput
from interp.metrics import BoundMetric, Metric, bind
from interp.tasks.prompts import PromptSet
from interp.tracing.batch import check_length, check_tokens, encode
from interp.tracing.model import Model

Progress = Callable[[int, int], None]
"""Called with what is done and the total."""


def corrupted(pairs: PromptSet) -> PromptSet:
    """The counterfactual's tokens under the prompts' own answers and roles, which metrics and positions refer to."""
    assert pairs.counterfactual is not None
    twin = pairs.counterfactual
    return replace(pairs, texts=twin.texts, tokens=twin.tokens, metadata=twin.metadata, counterfactual=None)


def check_pairs(model: Model, pairs: PromptSet, metrics: Sequence[Metric]) -> None:
    """Refuse what cannot be patched, before anything runs.

    Raises BadInput for an empty set, one without a counterfactual or with the same prompts as counterfactual, tokens
    outside the vocabulary and metrics that do not fit the prompts; PromptTooLong.
    """
    if len(pairs) == 0:
        raise BadInput("there are no prompts to patch: the prompt set is empty")
    if pairs.counterfactual is None:
        raise BadInput(
            "patching needs a counterfactual of every prompt, with as many tokens; this prompt set has none "
            "(PromptSet.build(…, counterfactual=…), or the field counterfactual of a JSONL file)"
        )
    if all(a == b for a, b in zip(pairs.tokens, pairs.counterfactual.tokens, strict=True)):
        raise BadInput("every prompt equals its counterfactual, so patching between them can change nothing")
    for prompts in (pairs, pairs.counterfactual):
        encoded = encode(prompts, model.tokenizer)
        check_tokens(encoded, model.spec.vocab)
        check_length(encoded, model.spec.context)
    bound(model, pairs, metrics)


def bound(model: Model, prompts: PromptSet, metrics: Sequence[Metric]) -> tuple[BoundMetric, ...]:
    """The metrics on these prompts. Raises BadInput where they do not fit them."""
    return bind(metrics, encode(prompts, model.tokenizer), prompts, model.spec.vocab)


def batches(pairs: PromptSet, metrics: Sequence[Metric], size: int) -> Iterator[tuple[PromptSet, tuple[Metric, ...]]]:
    """The prompts in parts of `size`, each with the metrics as they are on it; raises BadInput unless `size` > 0."""
    if size < 1:
        raise BadInput(f"a batch has at least one prompt; got batch_size={size}")
    for start in range(0, len(pairs), size):
        rows = slice(start, min(start + size, len(pairs)))
        yield pairs[rows], tuple(_part(metric, rows) for metric in metrics)


def _part(metric: Metric, rows: slice) -> Metric:
    """The metric on some of the prompts."""

    def part(column: tuple[int, ...] | None) -> tuple[int, ...] | None:
        return column if column is None or len(column) == 1 else column[rows]

    reference = None if metric.reference is None else metric.reference[rows]
    return replace(metric, answers=part(metric.answers), distractors=part(metric.distractors), reference=reference)


def against_clean(model: Model, pairs: PromptSet, metrics: Sequence[Metric]) -> tuple[Metric, ...]:
    """The same metrics, with KL measured from the prediction on the clean prompts where nothing else is said."""

    def referred(metric: Metric) -> Metric:
        if metric.kind != "kl" or metric.reference is not None:
            return metric
        return replace(metric, reference=logits_at(model, pairs, metric.position))

    return tuple(referred(metric) for metric in metrics)


def logits_at(model: Model, prompts: PromptSet, position: int | str) -> Tensor:
    """Logits `[prompt vocab]` at a metric's position: of a role, its last token."""
    return model.run(prompts, logits=position).logits[:, -1]


def measured(model: Model, prompts: PromptSet, metrics: Sequence[BoundMetric]) -> np.ndarray:
    """Values `[metric prompt]` of one plain run of the prompts; KL needs a reference."""
    places = dict.fromkeys(each.metric.position for each in metrics)
    at = {position: logits_at(model, prompts, position) for position in places}
    return torch.stack([each(at[each.metric.position]).cpu() for each in metrics]).numpy()


def further(progress: Progress | None, done: int, total: int) -> Progress | None:
    """Progress within a part, told as progress of the whole."""
    return None if progress is None else lambda here, _part: progress(done + here, total)


def differentiable(metric: Metric) -> Metric:
    """The metric itself; raises BadInput where it has no gradient, or none that says anything."""
    if metric.kind == "accuracy":
        raise BadInput(f"{metric} is a step function without a gradient; attribute logit_difference instead")
    if metric.kind == "kl" and metric.reference is None:
        raise BadInput(f"{metric} is at its minimum, with no gradient, where it is measured from; give a reference")
    return metric
