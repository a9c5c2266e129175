"""Metrics against their formulas in float64, and the refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import log_softmax

from interp.errors import BadInput
from interp.metrics import (
    Metric,
    accuracy,
    bind,
    kl,
    log_probability,
    logit,
    logit_difference,
    probability,
)
from interp.tracing.batch import encode

VOCAB = 11
ROWS = [[1, 2, 3], [4, 5, 6, 7, 8]]
SPANS = {"S": [(0, 2), (1, 4)]}


class Prompts:
    tokens = ROWS
    spans = SPANS
    answer_tokens = ((3, 9), (4,))
    distractor_tokens = ((5,), (6, 3))


def bound(*metrics: Metric):
    return bind(metrics, encode(Prompts(), None), Prompts(), VOCAB)


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(2, VOCAB, generator=torch.Generator().manual_seed(0))


def test_every_metric_is_its_formula(logits: torch.Tensor) -> None:
    base = torch.randn(2, VOCAB, generator=torch.Generator().manual_seed(1))
    x, before = log_softmax(logits.double().numpy(), 1), log_softmax(base.double().numpy(), 1)
    row, answer, distractor = np.arange(2), np.array([3, 4]), np.array([5, 6])
    wanted = {
        "logit_difference": x[row, answer] - x[row, distractor],
        "logit": logits.double().numpy()[row, answer],
        "log_probability": x[row, answer],
        "probability": np.exp(x[row, answer]),
        "accuracy": (x.argmax(1) == answer).astype(float),
        "kl": (np.exp(before) * (before - x)).sum(1),
    }
    metrics = bound(logit_difference(), logit(), log_probability(), probability(), accuracy(), kl())
    assert [m.metric.name for m in metrics] == list(wanted)
    for metric in metrics:
        np.testing.assert_allclose(metric(logits, base=base), wanted[metric.metric.name], atol=1e-6)


def test_accuracy_tells_right_from_wrong(logits: torch.Tensor) -> None:
    logits[0, 3] = 9.0
    logits[1, 5] = 9.0
    assert bound(accuracy())[0](logits).tolist() == [1.0, 0.0]


def test_kl_of_a_prediction_from_itself_is_zero_and_a_reference_takes_the_place_of_the_base(
    logits: torch.Tensor,
) -> None:
    other = logits.flip(1)
    assert bound(kl())[0](logits, base=logits).abs().max() < 1e-6
    metric = bound(kl(reference=other))[0]
    assert metric(logits, base=logits).min() > 0.01
    assert metric(other).abs().max() < 1e-6


def test_rows_may_repeat_prompts_and_the_logits_of_the_tokens_alone_are_enough(logits: torch.Tensor) -> None:
    metric = bound(logit_difference())[0]
    rows = torch.tensor([1, 0, 1])
    wanted = metric(logits)[rows]
    assert torch.equal(metric(logits[rows], rows), wanted)
    picked = logits[rows].gather(1, metric.tokens[rows])
    assert torch.equal(metric(logits[rows][:, :0], rows, picked=picked), wanted)


def test_positions_count_from_either_end_and_a_role_is_its_last_token() -> None:
    positions = [m.positions.tolist() for m in bound(logit(), logit(position=1), logit(position="S"))]
    assert positions == [[2, 4], [1, 1], [1, 3]]
    assert [m.metric.name for m in bound(logit(), logit(position="S"))] == ["logit", "logit@S"]


def test_given_tokens_take_the_place_of_the_prompts_own() -> None:
    (metric,) = bound(logit_difference(7, [8, 9]))
    assert metric.tokens.tolist() == [[7, 8], [7, 9]]


def test_metrics_are_differentiable(logits: torch.Tensor) -> None:
    logits.requires_grad_()
    bound(logit_difference())[0](logits).sum().backward()
    wanted = torch.zeros(2, VOCAB)
    wanted[[0, 1], [3, 4]] = 1.0
    wanted[[0, 1], [5, 6]] = -1.0
    assert torch.equal(logits.grad, wanted)


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        (logit(VOCAB), "answer token 11 does not exist; the vocabulary has 11"),
        (logit(-1), "answer token -1 does not exist"),
        (logit_difference(3, [3, 4]), "answer and distractor of prompt 0 are .* the same token 3"),
        (logit([1, 2, 3]), "3 answer tokens for 2 prompts"),
        (logit(position=3), "position 3 is outside a prompt of 3 tokens"),
        (logit(position="verb"), "no token position is called 'verb'"),
        (kl(torch.zeros(2, 4)), r"reference has shape \(2, 4\)"),
    ],
)
def test_what_does_not_fit_is_refused(metric: Metric, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        bound(metric)


def test_bad_metrics_are_refused() -> None:
    with pytest.raises(BadInput, match="no metric 'loss'"):
        Metric("loss")
    with pytest.raises(BadInput, match="one position"):
        logit(position=(1, 2))  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="different names"):
        bound(logit(1), logit(2))
    with pytest.raises(BadInput, match="different names"):
        bound()
    with pytest.raises(BadInput, match="needs answers"):
        bind(logit(), encode(ROWS, None), ROWS, VOCAB)
    with pytest.raises(BadInput, match="is not a metric"):
        bind("logit", encode(ROWS, None), ROWS, VOCAB)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="logits of the base run"):
        bound(kl())[0](torch.zeros(2, VOCAB))
