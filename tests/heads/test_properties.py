"""The five properties, on score tables whose answers are known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from interp.errors import BadInput
from interp.heads.properties import dynamic, intrinsic, properties_report, sparse, universal
from interp.heads.scores import HeadScores

MODEL = {"name": "toy", "family": "llama", "fingerprint": "0", "kv_heads": 2}


def scores_of(samples, name="toy"):
    samples = np.asarray(samples, dtype=float)
    tests = pd.DataFrame({"length": [100, 100, 200, 200][: len(samples)], "passed": True})
    return HeadScores("retrieval-head", samples, tests, {**MODEL, "name": name})


@pytest.fixture
def scores():
    """Head 0.0 copies always, 0.1 only in long contexts, 1.0 hardly ever, 1.1 never."""
    one = [[[0.9, 0.0], [0.0, 0.0]], [[0.7, 0.0], [0.0, 0.0]], [[0.8, 0.6], [0.04, 0.0]], [[0.8, 0.4], [0.0, 0.0]]]
    return scores_of(one)


def test_sparse_counts_the_published_thresholds(scores):
    assert sparse(scores) == {"heads": 4.0, "retrieval": 0.5, "strong": 0.25, "zero": 0.25}


def test_dynamic_tells_heads_that_always_act_from_those_of_some_contexts(scores):
    frame = dynamic(scores)
    assert frame["all"].tolist() == [1.0, 0.5]
    assert frame["length=100"].tolist() == [1.0, 0.0]
    assert frame["length=200"].tolist() == [1.0, 1.0]


def test_dynamic_leaves_out_tests_that_failed_the_gate(scores):
    tests = pd.DataFrame({"length": [100, 999, 100, 200, 200], "passed": [True, False, True, True, True]})
    frame = dynamic(HeadScores(scores.method, scores.samples, tests, scores.model))
    assert "length=999" not in frame
    assert frame["length=100"].tolist() == [1.0, 0.0]


def test_intrinsic_is_one_for_a_rescaled_copy_and_low_for_unrelated_scores(scores):
    copy = scores_of(scores.samples * 0.5)
    assert intrinsic(copy, scores)["pearson"] == pytest.approx(1.0)
    rng = np.random.default_rng(0)
    a, b = (scores_of(rng.random((4, 8, 8))) for _ in range(2))
    unrelated = intrinsic(a, b)
    assert abs(unrelated["pearson"]) < 0.4
    assert unrelated["low"] < 0 < unrelated["high"]


def test_intrinsic_refuses_models_of_other_shapes(scores):
    with pytest.raises(BadInput, match="different heads"):
        intrinsic(scores_of(np.ones((2, 3, 2))), scores)


def test_universal_says_which_models_have_any(scores):
    none = scores_of(np.full((4, 2, 2), 0.01), name="none")
    frame = universal({"toy": scores, "none": none})
    assert frame.has_some.tolist() == [True, False]
    assert frame.retrieval_heads.tolist() == [2, 0]


def test_the_report_prints_what_was_measured_and_nothing_else(scores):
    text = str(properties_report(scores))
    assert "universal" in text
    assert "intrinsic" not in text
    assert "intrinsic: r = 1.00" in str(properties_report(scores, earlier=scores_of(scores.samples, name="early")))
