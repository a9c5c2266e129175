"""What a model answers with some of its heads ablated: recall of whole answers, log-probability, logit difference."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from interp.errors import BadInput, choose
from interp.heads.ablation import FittedAblation, Head
from interp.heads.fed import Fed
from interp.heads.sharing import run_shared
from interp.stats import wilson_interval
from interp.tasks.prompts import PromptSet
from interp.tracing.model import Model

Metric = Literal["recall", "log-probability", "logit-difference"]
METRICS: tuple[Metric, ...] = get_args(Metric)
UNITS = {"recall": "fraction of answers", "log-probability": "nats a token", "logit-difference": "logits"}


@dataclass(frozen=True, eq=False)
class Recall:
    """What a model answers under some intervention, one entry a test.

    `exact` whether greedy decoding would give the whole answer, `tokens` the fraction of its tokens predicted right
    after the true ones before, `log_probability` the mean over its tokens in nats, `logit_difference` of the first
    tokens of answer and distractor (NaN without distractors).
    """

    exact: np.ndarray
    tokens: np.ndarray
    log_probability: np.ndarray
    logit_difference: np.ndarray

    def metric(self, metric: Metric) -> np.ndarray:
        """One number a test, larger being better."""
        by_name = {"recall": self.exact, "log-probability": self.log_probability}
        return by_name.get(metric, self.logit_difference)


def check_metric(metric: str, prompts: PromptSet) -> None:
    """Raise BadInput for a metric that is none, or that these prompts do not have."""
    if metric not in METRICS:
        raise BadInput(f"there is no metric {metric!r}; {choose(metric, METRICS)}")
    if metric == "logit-difference":
        if not prompts.distractors:
            raise BadInput("a logit difference needs distractors, and these prompts have none; valid: log-probability")
        pairs = zip(prompts.answer_tokens, prompts.distractor_tokens, strict=True)
        if same := [i for i, (answer, distractor) in enumerate(pairs) if answer[0] == distractor[0]]:
            raise BadInput(f"answer and distractor of prompt {same[0]} begin with the same token: no logit difference")


def recall_under(
    model: Model,
    prompts: PromptSet,
    ablation: FittedAblation | None = None,
    heads: Sequence[Head] = (),
    *,
    batch_size: int = 8,
) -> Recall:
    """Predict every answer without `heads`, by one teacher-forced pass a test.

    Raises BadInput without prompts or answers, PromptTooLong for more tokens than the model has positions.
    """
    fed = Fed.answering(prompts)
    scores = np.zeros((len(fed), 4))
    for group, logits in _logits(model, fed, ablation if heads else None, heads, batch_size):
        scores[group] = scored(logits, prompts, group).double().cpu()
    return Recall(*scores.T)


@dataclass(frozen=True, eq=False)
class Answering:
    """Recall of the answers of some prompts; a row of samples is a test: the fields of `Recall`."""

    model: Model
    prompts: PromptSet
    batch_size: int = 8
    name: str = "recall"

    @property
    def fed(self) -> Fed:
        return Fed.answering(self.prompts)

    def samples(self, ablation: FittedAblation | None, heads: Sequence[Head]) -> np.ndarray:
        recall = recall_under(self.model, self.prompts, ablation, heads, batch_size=self.batch_size)
        return np.stack([recall.exact, recall.tokens, recall.log_probability, recall.logit_difference], axis=1)

    def row(self, samples: np.ndarray, baseline: np.ndarray, seed: int) -> dict[str, Any]:
        """Wilson intervals: a bootstrap of tests that all end alike has no width. The baseline is taken as it is."""
        recall, whole = Recall(*samples.T), Recall(*baseline.T)
        here = wilson_interval(int(recall.exact.sum()), len(samples))
        before = float(whole.exact.mean()) or float("nan")
        row = {
            "recall": here.estimate,
            "low": here.low,
            "high": here.high,
            "relative": here.estimate / before,
            "relative_low": here.low / before,
            "relative_high": here.high / before,
            "token_recall": float(recall.tokens.mean()),
            "log_probability": float(recall.log_probability.mean()),
        }
        difference = {"logit_difference": float(recall.logit_difference.mean())} if self.prompts.distractors else {}
        return {**row, **difference, "n": len(samples)}


def scored(logits: Tensor, prompts: PromptSet, group: Sequence[int]) -> Tensor:
    """The fields of `Recall` for the prompts of a group, `[batch 4]`, from logits `[batch answer vocab]`."""
    wanted = torch.tensor([prompts.answer_tokens[i] for i in group], device=logits.device)
    right = (logits.argmax(-1) == wanted).float()
    columns = [right.min(-1).values, right.mean(-1), metric_of("log-probability", logits, prompts, group)]
    missing = torch.full_like(columns[0], float("nan"))
    columns.append(metric_of("logit-difference", logits, prompts, group) if prompts.distractors else missing)
    return torch.stack(columns, dim=1)


def metric_of(metric: Metric, logits: Tensor, prompts: PromptSet, group: Sequence[int]) -> Tensor:
    """A differentiable metric of each prompt of a group, `[batch]`, from logits `[batch answer vocab]`."""
    wanted = torch.tensor([prompts.answer_tokens[i] for i in group], device=logits.device)
    if metric == "log-probability":
        return logits.float().log_softmax(-1).gather(-1, wanted[..., None])[..., 0].mean(-1)
    other = torch.tensor([prompts.distractor_tokens[i][0] for i in group], device=logits.device)
    pairs = torch.stack([wanted[:, 0], other], dim=1)
    first = logits[:, 0].float().gather(-1, pairs)
    return first[:, 0] - first[:, 1]


def equal_answers(fed: Fed, batch: Iterable[int]) -> list[list[int]]:
    """The prompts of a batch by the number of tokens of their answers."""
    groups: dict[int, list[int]] = {}
    for i in batch:
        groups.setdefault(fed.decoded[i], []).append(i)
    return list(groups.values())


def by_length(fed: Fed, batch_size: int) -> Iterator[list[int]]:
    """All rows in batches of similar length."""
    order = sorted(range(len(fed)), key=lambda i: len(fed.tokens[i]))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def _logits(
    model: Model, fed: Fed, ablation: FittedAblation | None, heads: Sequence[Head], batch_size: int
) -> Iterator[tuple[list[int], Tensor]]:
    """Prompts that ran together, and the logits of their answers' tokens `[batch answer vocab]`."""
    alike = ablation.edits(heads) if ablation is not None and ablation.ablation.is_alike else []
    if ablation is None or alike or ablation.ablation.spares_prompts:
        batches = run_shared(model, fed.tokens, batch_size, alike)
    else:  # what differs by position leaves no beginning in common
        batches = ((batch, None) for batch in by_length(fed, batch_size))
    for batch, prefix in batches:
        for group in equal_answers(fed, batch):
            edits = alike if ablation is None or alike else ablation.edits(heads, group)
            wanted = list(range(-fed.decoded[group[0]], 0))
            yield group, model.run(fed.rows(group), edits=edits, logits=wanted, prefix=prefix).logits
