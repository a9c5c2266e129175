"""Do retrieval heads matter more when a model writes its steps down?

Wu et al. (2024) find that masking retrieval heads hurts answers with a chain of thought, which copies from the problem
and from its own steps, and leaves direct answers alone. Here: accuracy on the same problems with and without steps,
with the heads intact, ablated, and with random heads of the same layers ablated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from interp.errors import BadInput
from interp.heads.ablation import Ablation, Head, fit
from interp.heads.causal import random_heads
from interp.heads.fed import Fed
from interp.heads.scores import model_record
from interp.stats import wilson_interval
from interp.tables import in_notebook
from interp.tasks.prompts import PromptSet
from interp.tracing.edits import Edit
from interp.tracing.model import Model


@dataclass(frozen=True, eq=False, repr=False)
class ChainOfThoughtReport:
    """`frame`: accuracy with its interval for (steps or direct) x (heads intact, ablated, random ones ablated)."""

    frame: pd.DataFrame
    heads: tuple[Head, ...]
    model: Mapping[str, Any]

    def __repr__(self) -> str:
        return f"ChainOfThoughtReport({self.model['name']}: {len(self.heads)} heads ablated)"

    def _repr_html_(self) -> str:
        return in_notebook(self, self.frame)


def chain_of_thought_influence(
    model: Model,
    with_steps: PromptSet,
    direct: PromptSet,
    heads: Sequence[Head],
    *,
    ablation: str | Ablation = "zero",
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    max_new_tokens: int = 96,
    batch_size: int = 16,
) -> ChainOfThoughtReport:
    """Accuracy of the final answer under greedy decoding; both sets ask the same problems, in the same order.

    A response is right when its last word is the last word of the expected answer. Raises BadInput for sets of unequal
    length and for ablations that need to know the tokens beforehand.
    """
    if len(with_steps) != len(direct):
        raise BadInput(f"{len(with_steps)} problems with steps and {len(direct)} without: give the same problems twice")
    kind = Ablation.parse(ablation)
    if not (kind.is_alike or kind.spares_prompts):
        raise BadInput(f"ablation {kind} is not offered while generating: it needs to know all tokens beforehand")
    conditions: list[tuple[str, int, tuple[Head, ...]]] = [("none", -1, ()), ("chosen", -1, tuple(heads))]
    conditions += [("random", seed, random_heads(model, heads, seed)) for seed in seeds]
    rows = []
    for name, prompts in (("steps", with_steps), ("direct", direct)):
        fitted = fit(model, kind, Fed.answering(prompts), range(model.spec.layers))
        for condition, seed, chosen in conditions:
            edits = [_while_decoding(edit) for edit in fitted.edits(chosen)]
            right = _accuracy(model, prompts, edits, max_new_tokens, batch_size)
            interval = wilson_interval(int(right.sum()), len(right))
            rows.append(
                {
                    "answer": name,
                    "heads": condition,
                    "seed": seed,
                    "ablation": str(kind) if chosen else "none",
                    "accuracy": interval.estimate,
                    "low": interval.low,
                    "high": interval.high,
                    "n": interval.n,
                }
            )
    return ChainOfThoughtReport(pd.DataFrame(rows), tuple(heads), model_record(model))


def _while_decoding(edit: Edit) -> Edit:
    """The role "decode" of teacher-forced recall as positions of a generation: the last prompt token and all after."""
    return edit.at(slice(-1, None)) if edit.positions == "decode" else edit


def _accuracy(model: Model, prompts: PromptSet, edits: list[Edit], limit: int, batch_size: int) -> np.ndarray:
    right = []
    for start in range(0, len(prompts), batch_size):
        part = prompts.select(range(start, min(start + batch_size, len(prompts))))
        generation = model.generate(part, max_new_tokens=limit, edits=edits)
        right += [_last(text) == _last(answer) for text, answer in zip(generation.texts, part.answers, strict=True)]
    return np.array(right)


def _last(text: str) -> str:
    words = text.split()
    return words[-1].strip(".") if words else ""
