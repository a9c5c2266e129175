"""Figures of CLUE show the numbers of their results."""

from __future__ import annotations

import numpy as np
import pytest

from probes.clue import Scored
from probes.reranking import rank
from probes.verification import scores, verify
from tests.probes.test_clue_verification import learned, planted, scored


@pytest.fixture(scope="module")
def made() -> Scored:
    values, correct = planted(120, 3, 6, 1.0, seed=1)
    answers = np.where(correct, "1", "2")
    whole = scored(learned(values, correct), values, correct, samples=12, answer=answers)
    whole.projection[:] = values[:, 0, :2]
    return whole


def test_deltas_lie_where_they_are_projected_and_centroids_as_far_apart_as_they_are(made: Scored) -> None:
    right, wrong, success, failure = made.plot().data
    correct = made.correct
    np.testing.assert_array_equal(right.x, made.projection[correct, 0])
    np.testing.assert_array_equal(wrong.y, made.projection[~correct, 1])
    apart = np.linalg.norm(made.centroids.success - made.centroids.failure)
    assert success.x[0] - failure.x[0] == pytest.approx(apart)


def test_layers_are_drawn_with_their_auc_and_interval(made: Scored) -> None:
    found = verify(made, resamples=50)
    band, area, distance, separation = (trace for trace in found.plot().data)
    np.testing.assert_array_equal(area.y, found.layers.auc)
    assert max(band.y) == found.layers.high.max()
    np.testing.assert_array_equal(distance.y, made.centroids.gap)
    np.testing.assert_array_equal(separation.y, found.layers.separation)


def test_every_score_has_its_curve_over_k_and_the_majority_a_line(made: Scored) -> None:
    found = rank(made, (1, 4, 12))
    figure = found.plot()
    curves = {trace.name: trace for trace in figure.data if trace.name}
    assert set(curves) == {*scores(made), "any order"}
    best = found.frame[(found.frame["pick"] == "top-maj") & (found.frame.score == "clue")]
    np.testing.assert_array_equal(curves["clue"].y, best.accuracy)
    assert list(curves["clue"].x) == [1, 4, 12]
    assert {note.text for note in figure.layout.annotations} == {"majority@n", "mean@n", "pass@n"}
