"""The retrieval score of attention heads (Wu et al. 2024, "Retrieval Head Mechanistically Explains Long-Context
Factuality").

A head scores on a needle test when, at the step that predicts a token, the key it looks at most lies in the needle and
holds exactly that token. Each such step is worth one over the length of the needle's value; a test counts only if the
answer recalls more than half of the value's words. Attention rows are computed for the decoding steps alone: the
prompt, however long, never has its attention matrix built.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from interp.errors import BadInput, choose
from interp.heads.scores import HeadScores, model_record
from interp.heads.sharing import run_shared
from interp.runs import Journal
from interp.tasks.prompts import PromptSet
from interp.tracing.model import Model
from interp.tracing.prefix import Prefix

Method = Literal["stepwise", "chunk"]
Dedup = Literal["code", "paper"]
Progress = Callable[[int, int], None]

MAX_NEW_TOKENS = 50
"""The published scorer decodes at most this many tokens."""
RECALL_GATE = 0.5
"""A test counts when its ROUGE-1 recall exceeds this."""


@dataclass(frozen=True)
class Outcome:
    """One needle test: the response, how much of the value it recalls, and `scores` `[layer head]`."""

    response: str
    recall: float
    scores: np.ndarray

    def to_json(self) -> dict[str, Any]:
        layer, head = np.nonzero(self.scores)
        hits = [[int(a), int(b), float(self.scores[a, b])] for a, b in zip(layer, head, strict=True)]
        return {"response": self.response, "recall": self.recall, "hits": hits}

    @classmethod
    def from_json(cls, record: dict[str, Any], layers: int, heads: int) -> Outcome:
        scores = np.zeros((layers, heads))
        for layer, head, score in record["hits"]:
            scores[layer, head] = score
        return cls(record["response"], record["recall"], scores)


def retrieval_scores(
    model: Model,
    prompts: PromptSet,
    *,
    method: Method = "stepwise",
    dedup: Dedup = "code",
    gate: float = RECALL_GATE,
    span: str = "value",
    batch_size: int = 8,
    max_new_tokens: int = MAX_NEW_TOKENS,
    seed: int = 0,
    journal: Journal | None = None,
    progress: Progress | None = None,
) -> HeadScores:
    """Retrieval score of every head over needle tests.

    Args:
        prompts: needle tests with answers; the role `span` is the place of the value in the prompt.
        method: `"stepwise"` decodes greedily as published; `"chunk"` feeds the true answer in one pass and takes what
            the
            model would have said at each step, which is the same wherever it answers right and about as many times
            faster as the answer has tokens.
        dedup: `"code"` counts every copying step as the authors' code does (scores above 1 are possible); `"paper"`
            counts
            each distinct copied token once, over the number of distinct tokens of the value, as the paper's formula
            does.
        gate: tests whose ROUGE-1 recall is not above it contribute nothing.
        journal: finished tests are kept there, and those it already holds are not run again.
        progress: called with (tests finished, tests in all).

    Raises:
        BadInput: prompts without answers or without the span, unknown method or dedup.
        PromptTooLong: a prompt and its answer exceed the model's context.
    """
    _check(prompts, method, dedup, span)
    layers, heads = model.spec.layers, model.spec.heads
    done: dict[int, Outcome] = {}
    if journal is not None:
        done = {int(key): Outcome.from_json(value, layers, heads) for key, value in journal.done.items()}
    rows = _rows(prompts, method)
    waiting = [i for i in range(len(prompts)) if i not in done]
    if progress:
        progress(len(done), len(prompts))
    for i, result in _run_tests(model, prompts, rows, waiting, method, dedup, span, batch_size, max_new_tokens):
        done[i] = result
        if journal is not None:
            journal.append(str(i), result.to_json())
        if progress:
            progress(len(done), len(prompts))
    results = [done[i] for i in range(len(prompts))]
    return _collect(model, prompts, results, gate, seed, decoding=method, dedup=dedup, span=span)


def _run_tests(
    model: Model,
    prompts: PromptSet,
    rows: Sequence[Sequence[int]],
    waiting: list[int],
    method: Method,
    dedup: Dedup,
    span: str,
    batch_size: int,
    max_new_tokens: int,
) -> Iterator[tuple[int, Outcome]]:
    for batch, prefix in run_shared(model, [rows[i] for i in waiting], batch_size):
        tests = [waiting[i] for i in batch]
        if method == "stepwise":
            steps = _decode(model, prompts, tests, prefix, max_new_tokens)
        else:
            steps = _teacher_forced(model, prompts, tests, prefix)
        for test, (predicted, looked_at) in zip(tests, steps, strict=True):
            response = model.tokenizer.decode(predicted, skip_special_tokens=True)
            where = prompts.spans[span][test]
            scores = copy_scores(looked_at, predicted, prompts.tokens[test], where, dedup)
            yield test, Outcome(response, rouge1_recall(response, prompts.answers[test]), scores)


Steps = tuple[list[int], Tensor]
"""Tokens the model predicts at each step, and the key each head looks at most then, `[layer head step]`."""


def _decode(model: Model, prompts: PromptSet, tests: list[int], prefix: Prefix | None, limit: int) -> list[Steps]:
    generation = model.generate(
        prompts.select(tests),
        max_new_tokens=limit,
        read="attention_stats",
        positions=slice(-1, None),
        stop=("\n",),
        prefix=prefix,
    )
    assert generation.trace is not None
    looked_at = _argmax(generation.trace, model.spec.layers)
    return [(list(new), looked_at[:, row, :, : len(new)]) for row, new in enumerate(generation.tokens)]


def _teacher_forced(model: Model, prompts: PromptSet, tests: list[int], prefix: Prefix | None) -> list[Steps]:
    """One pass over prompt and answer; the batch is split by answer length, so that every row has as many steps."""
    steps: dict[int, Steps] = {}
    by_length: dict[int, list[int]] = {}
    for test in tests:
        by_length.setdefault(len(prompts.answer_tokens[test]), []).append(test)
    for count, group in by_length.items():
        trace = model.run(
            [[*prompts.tokens[t], *prompts.answer_tokens[t][:-1]] for t in group],
            read="attention_stats",
            positions=slice(-count, None),
            logits=list(range(-count, 0)),
            prefix=prefix,
        )
        looked_at = _argmax(trace, model.spec.layers)
        predicted = trace.logits.argmax(-1).tolist()
        steps |= {test: (predicted[row], looked_at[:, row]) for row, test in enumerate(group)}
    return [steps[test] for test in tests]


def _argmax(trace: Any, layers: int) -> Tensor:
    return torch.stack([trace[f"attention_stats.{layer}"].argmax for layer in range(layers)]).cpu()


def copy_scores(
    looked_at: Tensor, predicted: Sequence[int], prompt: Sequence[int], span: tuple[int, int], dedup: Dedup
) -> np.ndarray:
    """The score of one test: which heads looked, when a token was predicted, at that same token in the span.

    `looked_at` `[layer head step]` are key positions, `predicted` the token of each step, `prompt` the prompt's tokens,
    `span` half-open. Returns `[layer head]`.
    """
    start, end = span
    tokens = torch.tensor(prompt)
    keys = looked_at.clamp(max=len(prompt) - 1)
    copied = torch.tensor(predicted)
    hit = (looked_at >= start) & (looked_at < end) & (tokens[keys] == copied)
    if dedup == "code":
        return (hit.sum(-1).double() / (end - start)).numpy()
    needle = torch.unique(tokens[start:end])
    distinct = torch.stack([(hit & (copied == token)).any(-1) for token in needle])
    return (distinct.sum(0).double() / len(needle)).numpy()


def rouge1_recall(response: str, reference: str) -> float:
    """Fraction of the reference's words found in the response, counted with multiplicity, case ignored."""
    wanted, said = Counter(rouge_words(reference)), Counter(rouge_words(response))
    return sum((wanted & said).values()) / max(1, sum(wanted.values()))


def rouge_words(text: str) -> list[str]:
    """Lower-case words and numbers of a text, punctuation dropped."""
    return re.findall(r"[^\W_]+", text.lower())


def _rows(prompts: PromptSet, method: Method) -> list[Sequence[int]]:
    if method == "stepwise":
        return list(prompts.tokens)
    return [[*t, *a[:-1]] for t, a in zip(prompts.tokens, prompts.answer_tokens, strict=True)]


def _check(prompts: PromptSet, method: str, dedup: str, span: str) -> None:
    if method not in ("stepwise", "chunk"):
        raise BadInput(f"there is no method {method!r}; {choose(method, ('stepwise', 'chunk'))}")
    if dedup not in ("code", "paper"):
        raise BadInput(f"there is no counting {dedup!r}; {choose(dedup, ('code', 'paper'))}")
    if span not in prompts.spans:
        raise BadInput(f"these prompts mark no {span!r}; {choose(span, prompts.spans)}")
    if not prompts.answers:
        raise BadInput("retrieval is scored against answers, and these prompts have none")


def _collect(
    model: Model, prompts: PromptSet, results: list[Outcome], gate: float, seed: int, **parameters: Any
) -> HeadScores:
    passed = [result.recall > gate for result in results]
    metadata = prompts.metadata or ({},) * len(prompts)
    tests = pd.DataFrame(
        {**about, "answer": answer, "response": result.response, "recall": result.recall, "passed": ok}
        for about, answer, result, ok in zip(metadata, prompts.answers, results, passed, strict=True)
    )
    shape = (0, model.spec.layers, model.spec.heads)
    kept = [result.scores for result, ok in zip(results, passed, strict=True) if ok]
    return HeadScores(
        method="retrieval-head",
        samples=np.stack(kept) if kept else np.zeros(shape),
        tests=tests,
        model=model_record(model),
        parameters={**parameters, "gate": gate, "prompts": prompts.hash},
        seed=seed,
    )
