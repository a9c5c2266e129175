"""The retrieval-reasoning score of HeadKV (Fu et al. 2024, "Not All Heads Matter").

Like the retrieval score, without asking that the key holds the predicted token: at every step of the answer the head is
paid for each of its `n` strongest keys (n: the needle's length) that lies in the needle, by the probability it puts
there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from interp.errors import BadInput, choose
from interp.heads.retrieval import rouge_words
from interp.heads.scores import HeadScores, model_record
from interp.heads.sharing import run_shared
from interp.tasks.prompts import PromptSet
from interp.tracing.model import Model
from interp.tracing.plan import RowFold
from kernels.rows import AttentionRows

F1_GATE = 0.5
"""Tests count when the F1 of the answer's words exceeds this."""
SCALE = 10.0
"""The published factor on every probability."""


def headkv_scores(
    model: Model,
    prompts: PromptSet,
    *,
    span: str = "needle",
    gate: float = F1_GATE,
    max_new_tokens: int = 50,
    batch_size: int = 8,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> HeadScores:
    """HeadKV-R2 score of every head over needle tests; the role `span` marks the whole needle.

    The model answers greedily; the rows of its answer's steps are then read in one pass over prompt and answer, which
    are the rows that decoding saw. Raises BadInput for prompts without answers or span.
    """
    if span not in prompts.spans:
        raise BadInput(f"these prompts mark no {span!r}; {choose(span, prompts.spans)}")
    if not prompts.answers:
        raise BadInput("the answers decide which tests count, and these prompts have none")
    kept: dict[int, np.ndarray] = {}
    tests: dict[int, dict[str, object]] = {}
    for batch, prefix in run_shared(model, prompts.tokens, batch_size):
        generation = model.generate(prompts.select(batch), max_new_tokens=max_new_tokens, stop=("\n",), prefix=prefix)
        for test, text, new in zip(batch, generation.texts, generation.tokens, strict=True):
            f1 = word_f1(text, prompts.answers[test])
            steps = min(len(new), len(prompts.answer_tokens[test]))
            if f1 > gate:
                row = [*prompts.tokens[test], *new[: steps - 1]]
                own = None if prefix is None else prefix.crop(prefix.shared_with(row))
                fold = RowFold("r2", _Paid(prompts.spans[span][test], steps))
                trace = model.run([row], read=fold, positions=slice(-steps, None), prefix=own)
                kept[test] = torch.stack([trace.folds["r2"][layer] for layer in range(model.spec.layers)]).cpu().numpy()
            tests[test] = {"answer": prompts.answers[test], "response": text, "recall": f1, "passed": f1 > gate}
        if progress:
            progress(len(tests), len(prompts))
    empty = np.zeros((0, model.spec.layers, model.spec.heads))
    return HeadScores(
        method="headkv-r2",
        samples=np.stack([kept[i] for i in sorted(kept)]) if kept else empty,
        tests=pd.DataFrame([tests[i] for i in sorted(tests)]),
        model=model_record(model),
        parameters={"gate": gate, "span": span, "prompts": prompts.hash},
        seed=seed,
    )


class _Paid:
    """Sum over the rows of a block of the scaled probabilities on needle keys among the strongest, `[head]`."""

    def __init__(self, span: tuple[int, int], steps: int) -> None:
        self.start, self.end = span
        self.steps = steps

    def __call__(self, rows: AttentionRows, _positions: Tensor, _layer: int) -> Tensor:
        length = self.end - self.start
        top = rows.pattern[0].topk(min(length, rows.pattern.shape[-1]), dim=-1)
        inside = (top.indices >= self.start) & (top.indices < self.end)
        return SCALE * (top.values * inside).sum((-1, -2)) / (length * self.steps)


def word_f1(response: str, reference: str) -> float:
    """F1 of the words of a response against a reference, counted with multiplicity."""
    said, wanted = rouge_words(response), rouge_words(reference)
    shared = sum((Counter(said) & Counter(wanted)).values())
    return 2 * shared / max(1, len(said) + len(wanted))
