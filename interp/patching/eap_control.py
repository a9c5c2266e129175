"""Edge scores beside those that have nothing to do with the behaviour: under the answers of other prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from interp.errors import BadInput
from interp.metrics import Metric
from interp.patching.eap import EdgeScores, Progress, edge_scores
from interp.tasks.prompts import PromptSet
from interp.tracing.model import Model


def with_control(
    model: Model, pairs: PromptSet, metric: Metric, scores: EdgeScores, *, seed: int = 0, progress: Progress = None
) -> EdgeScores:
    """The same scores beside those under `strangers`' answers, by the same method. Raises what `edge_scores` raises."""
    steps, size = scores.parameters["steps"], scores.parameters["batch_size"]
    others = edge_scores(
        model,
        strangers(pairs, seed),
        metric,
        method=scores.method,
        steps=max(1, steps),
        batch_size=size,
        progress=progress,
    )
    return replace(scores, control=others.scores, parameters={**scores.parameters, "control_seed": seed})


def strangers(pairs: PromptSet, seed: int = 0) -> PromptSet:
    """The prompts with the answers and distractors of others, drawn at random, none with its own.

    Raises BadInput for a single prompt and for prompts without answers and distractors.
    """
    if len(pairs) < 2 or not pairs.answer_tokens or not pairs.distractor_tokens:
        raise BadInput("a control with the answers of other prompts needs two or more, with answers and distractors")
    order = np.random.default_rng(seed).permutation(len(pairs))
    other = np.empty(len(pairs), dtype=int)
    other[order] = np.roll(order, 1)  # one cycle, so that no prompt keeps its own

    def of_others(own: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(own[i] for i in other)

    return replace(
        pairs,
        answers=of_others(pairs.answers),
        answer_tokens=of_others(pairs.answer_tokens),
        distractors=of_others(pairs.distractors),
        distractor_tokens=of_others(pairs.distractor_tokens),
    )
