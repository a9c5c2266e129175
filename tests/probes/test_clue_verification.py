"""Verification has the accuracy and AUC that theory gives, and intervals that know what a question is."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file, save
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from interp.errors import BadInput, UnreadableFile
from probes.centroids import Centroids, RunningMeans
from probes.clue import Scored
from probes.verification import OverQuestions, Verification, scores, verify, within_questions

MODEL = {"name": "planted", "fingerprint": "0"}


def planted(
    n: int, layers: int, width: int, gap: float, seed: int, right: float = 0.5
) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian deltas of unit variance whose class means are `gap` apart at every layer; labels."""
    rng = np.random.default_rng(seed)
    correct = rng.random(n) < right
    direction = rng.normal(size=(layers, width))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    common = 50 * rng.normal(size=(layers, width))
    values = (
        common + rng.normal(size=(n, layers, width)) + gap * np.where(correct, 0.5, -0.5)[:, None, None] * direction
    )
    return values, correct


def learned(values: np.ndarray, correct: np.ndarray, **baselines: tuple[float, float]) -> Centroids:
    means = RunningMeans()
    means.add(values, correct.tolist())
    success, failure = means.means()
    about = {"tokens": (10.0, 14.0), "log_probability": (-0.1, -0.3), "self_certainty": (2.0, 1.0), **baselines}
    counts = int(correct.sum()), int((~correct).sum())
    return Centroids(success, failure, means.spread(), counts, about, frozenset(), None, "refuse", MODEL)


def scored(
    centroids: Centroids, values: np.ndarray, correct: np.ndarray, samples: int = 10, **columns: object
) -> Scored:
    to_success, to_failure = centroids.distances(values)
    frame = pd.DataFrame(
        {
            "question": [f"q{i // samples}" for i in range(len(values))],
            "answer": ["1"] * len(values),
            "correct": pd.array(correct, dtype="boolean"),
            "tokens": 10.0,
            "log_probability": 0.0,
            "self_certainty": np.nan,
            "to_success": to_success.mean(1),
            "to_failure": to_failure.mean(1),
            "response": "so it is 1",
            **columns,
        }
    )
    return Scored(frame, to_success, to_failure, np.zeros((len(values), 2)), centroids, {"both": len(values)})


@pytest.mark.parametrize("gap", [0.0, 1.0, 2.0])
def test_gaussian_deltas_are_told_apart_as_often_as_theory_says(gap: float) -> None:
    """One layer: nearest mean is Fisher's rule, right with probability Phi(gap / 2); AUC is Phi(gap / sqrt 2)."""
    values, correct = planted(20_000, 1, 16, gap, seed=1)
    half = len(values) // 2
    found = verify(scored(learned(values[:half], correct[:half]), values[half:], correct[half:]), resamples=50)
    expected = norm.cdf(gap / 2)
    for metric in ("accuracy", "tpr", "tnr"):
        assert found.value("clue margin", metric).estimate == pytest.approx(expected, abs=0.02), metric
    assert found.value("clue margin", "auc").estimate == pytest.approx(norm.cdf(gap / math.sqrt(2)), abs=0.015)


def test_layers_add_up_and_each_is_told_by_its_own_auc() -> None:
    """L layers of one gap in many dimensions: gap sqrt(L) for all, gap for each; a layer without a gap is chance."""
    gap, layers = 0.8, 4
    values, correct = planted(12_000, layers, 96, gap, seed=2)
    values[:, 3] = np.random.default_rng(3).normal(size=values[:, 3].shape)
    half = len(values) // 2
    found = verify(scored(learned(values[:half], correct[:half]), values[half:], correct[half:]), resamples=200)
    separation = gap * math.sqrt(3) / math.sqrt(2)
    assert found.value("clue margin", "auc").estimate == pytest.approx(norm.cdf(separation), abs=0.02)
    np.testing.assert_allclose(found.layers.auc[:3], norm.cdf(gap / math.sqrt(2)), atol=0.025)
    last = found.layers.iloc[3]
    assert last.low < 0.5 < last.high or abs(last.auc - 0.5) < 0.02
    np.testing.assert_allclose(found.layers.distance[:3], gap, atol=0.15)
    np.testing.assert_allclose(found.layers.spread, math.sqrt(96), rtol=0.02)
    assert (found.layers.separation[:3] > 2 * last.separation).all()


def test_counts_of_verdicts_and_auc_are_scikit_learns() -> None:
    values, correct = planted(300, 3, 5, 1.0, seed=4, right=0.3)
    made = scored(learned(values, correct), values, correct)
    margin = scores(made)["clue margin"]
    found = verify(made, resamples=20)
    said = margin > 0
    assert found.value("clue margin", "tpr").estimate == pytest.approx(said[correct].mean())
    assert found.value("clue margin", "tnr").estimate == pytest.approx((~said)[~correct].mean())
    assert found.value("clue margin", "auc").estimate == pytest.approx(roc_auc_score(correct, margin))
    assert found.value("clue", "auc").estimate == pytest.approx(roc_auc_score(correct, -made.frame.to_success))
    inside = [
        roc_auc_score(correct[q : q + 10], margin[q : q + 10])
        for q in range(0, 300, 10)
        if 0 < correct[q : q + 10].sum() < 10
    ]
    within = found.value("clue margin", "within")
    assert (within.estimate, within.n) == (pytest.approx(np.mean(inside)), len(inside))


def test_intervals_over_questions_are_wider_when_samples_of_a_question_are_alike() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 25)
    alike = np.repeat(rng.random(40) < 0.6, 25)
    apart = rng.random(1000) < 0.6

    def width(values: np.ndarray) -> float:
        found = OverQuestions(groups, 2_000).interval(lambda weights: weights @ values / weights.sum(1))
        assert found.estimate == pytest.approx(values.mean())
        assert found.n == 40
        return found.high - found.low

    # The standard error of a mean of 40 draws is 5 times that of 1,000.
    assert width(alike) == pytest.approx(2 * 1.96 * alike.std() / math.sqrt(40), rel=0.12)
    assert width(apart) == pytest.approx(2 * 1.96 * apart.std() / math.sqrt(1000), rel=0.25)


def test_a_bootstrap_in_steps_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    values, correct = planted(200, 2, 4, 1.0, seed=5)
    made = scored(learned(values, correct), values, correct)
    whole = verify(made, resamples=100)
    monkeypatch.setattr("probes.verification.AT_ONCE", 200 * 7)
    pd.testing.assert_frame_equal(verify(made, resamples=100).frame, whole.frame)


def test_a_score_of_difficulty_alone_is_chance_within_questions() -> None:
    rng = np.random.default_rng(1)
    difficulty = np.repeat(rng.random(200), 20)
    correct = rng.random(4000) < difficulty
    groups = np.repeat(np.arange(200), 20)
    values = difficulty + 1e-9 * rng.normal(size=4000)
    assert roc_auc_score(correct, values) > 0.8
    inside = within_questions(values, correct, groups)
    assert np.nanmean(inside) == pytest.approx(0.5, abs=0.03)
    assert within_questions(correct.astype(float), correct, groups)[~np.isnan(inside)].min() == 1.0


def test_length_is_a_baseline_in_the_direction_that_was_learned() -> None:
    values, correct = planted(400, 1, 4, 0.0, seed=6)
    rng = np.random.default_rng(2)
    tokens = np.where(correct, 10.0, 14.0) + rng.normal(size=400)
    longer = scored(learned(values, correct, tokens=(14.0, 10.0)), values, correct, tokens=24 - tokens)
    shorter = scored(learned(values, correct), values, correct, tokens=tokens)
    for made in (shorter, longer):
        found = verify(made, resamples=50)
        assert found.value("length", "auc").estimate > 0.98
        assert found.value("length", "accuracy").estimate == pytest.approx(norm.cdf(2), abs=0.03)
        assert found.value("clue margin", "auc").estimate < 0.75
    np.testing.assert_allclose(scores(shorter)["usual length"], -np.abs(tokens - 10))
    assert "self-certainty" not in scores(shorter)


def test_clue_is_held_against_every_baseline_in_pairs_and_the_verdict_follows_the_intervals() -> None:
    values, correct = planted(400, 1, 4, 1.0, seed=8)
    rng = np.random.default_rng(3)
    tokens = np.where(correct, 10.0, 14.0) + 0.1 * rng.normal(size=400)
    found = verify(
        scored(learned(values, correct), values, correct, tokens=tokens, log_probability=rng.normal(size=400))
    )
    against = found.against.set_index(["score", "metric"])
    own, length = (found.value(name, "auc").estimate for name in ("clue margin", "length"))
    assert against.value["length", "auc"] == pytest.approx(own - length)
    assert against.high["length", "auc"] < 0 < against.low["log-probability", "auc"]
    better, worse, _ = re.findall(r"(?:Better than|Worse than|Not told apart from): (.*?[\])g])\.", found.verdict)
    assert "log-probability" in better
    assert "length (-0." in worse
    assert found.verdict.startswith("CLUE's margin has AUC 0.7")


def test_a_verification_comes_back_from_disk(tmp_path: Path) -> None:
    values, correct = planted(60, 3, 4, 1.0, seed=9)
    found = verify(scored(learned(values, correct), values, correct), resamples=50)
    run = found.save(tmp_path / "run")
    assert run.record.kind == "clue-verification"
    again = Verification.load(tmp_path / "run")
    for before, after in (
        (found.frame, again.frame),
        (found.layers, again.layers),
        (found.against, again.against),
        (found.scored.frame, again.scored.frame),
    ):
        pd.testing.assert_frame_equal(before, after, check_dtype=False)
    assert again.plot().to_json() == found.plot().to_json()
    assert again.scored.plot().to_json() == found.scored.plot().to_json()
    assert again.verdict == found.verdict
    arrays = load_file(run.path / "arrays.safetensors")
    (run.path / "arrays.safetensors").write_bytes(save({**arrays, "to_failure": arrays["to_failure"][:, :2]}))
    with pytest.raises(UnreadableFile, match=r"'to_failure' has shape \(60, 2\), not \[60 3\]"):
        Verification.load(tmp_path / "run")


def test_one_kind_of_trace_is_refused() -> None:
    values, correct = planted(100, 1, 4, 1.0, seed=7)
    centroids = learned(values, correct)
    with pytest.raises(BadInput, match=r"all \d+ traces are wrong"):
        verify(scored(centroids, values[~correct], correct[~correct]))
