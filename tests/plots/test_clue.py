"""Figures of CLUE show the numbers of their results."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from interp.errors import BadInput
from interp.plots.clue import by_depth, margins, picks
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
    wrong, right, success, failure = made.plot().data
    correct = made.correct
    np.testing.assert_array_equal(right.x, made.projection[correct, 0])
    np.testing.assert_array_equal(wrong.y, made.projection[~correct, 1])
    apart = np.linalg.norm(made.centroids.success - made.centroids.failure)
    assert success.x[0] - failure.x[0] == pytest.approx(apart)


def test_far_outliers_do_not_squeeze_the_clusters_and_are_counted(made: Scored) -> None:
    far = made.projection.copy()
    far[:3] += 1_000
    figure = replace(made, projection=far).plot()
    assert [note.text for note in figure.layout.annotations] == ["3 beyond the axes"]
    assert figure.layout.xaxis.range[1] < 100
    assert len(figure.data[0].x) + len(figure.data[1].x) == len(made)
    half = figure.data[2].x[0]
    assert figure.layout.xaxis.range[0] < -half < half < figure.layout.xaxis.range[1]
    assert not made.plot().layout.annotations


def test_layers_are_drawn_with_their_auc_and_interval(made: Scored) -> None:
    found = verify(made, resamples=50)
    band, area, distance, separation = by_depth(found).data
    np.testing.assert_array_equal(area.y, found.layers.auc)
    assert max(band.y) == found.layers.high.max()
    np.testing.assert_array_equal(distance.y, made.centroids.gap)
    np.testing.assert_array_equal(separation.y, found.layers.separation)


def test_every_score_has_its_curve_over_k_and_the_majority_a_line(made: Scored) -> None:
    found = rank(made, (1, 4, 12), greedy={f"q{i}": i < 4 for i in range(10)})
    figure = found.plot()
    curves = {trace.name: trace for trace in figure.data if trace.name}
    assert set(curves) >= {*scores(made), "any order"}
    best = found.frame[(found.frame["pick"] == "top-maj") & (found.frame.score == "clue")]
    np.testing.assert_array_equal(curves["clue"].y, best.accuracy)
    assert list(curves["clue"].x) == [1, 4, 12]
    (greedy,) = (curve for name, curve in curves.items() if "greedy" in name)
    assert tuple(greedy.y) == (0.4, 0.4)
    for pick in ("majority", "mean", "pass"):
        (line,) = (curve for name, curve in curves.items() if f"{pick}@n" in name)
        row = found.frame[(found.frame["pick"] == pick) & found.frame.k.isna()]
        assert line.y[0] == pytest.approx(row.accuracy.item())


def test_every_score_has_its_auc_and_interval_over_all_and_within_questions(made: Scored) -> None:
    found = verify(made, resamples=50)
    whole, within = found.plot().data
    for trace, metric in ((whole, "auc"), (within, "within")):
        rows = found.frame[found.frame.metric == metric]
        np.testing.assert_array_equal(trace.x, rows.value)
        np.testing.assert_allclose(trace.x + trace.error_x.array, rows.high)
    ticks = dict(zip(found.plot().layout.yaxis.tickvals, found.plot().layout.yaxis.ticktext, strict=True))
    assert [ticks[round(y)] for y in whole.y] == list(scores(made))


def test_margins_count_every_trace_once(made: Scored) -> None:
    right, wrong = margins(made).data
    assert sum(right.customdata) == made.correct.sum()
    assert sum(wrong.customdata) == (~made.correct).sum()
    positive = np.array(right.x) > 0
    taken = (made.frame.to_failure > made.frame.to_success)[made.correct].sum()
    assert abs(np.array(right.customdata)[positive].sum() - taken) <= max(right.customdata)  # but for the bin around 0


def test_picks_are_beside_each_other_and_clue_is_on_top(made: Scored) -> None:
    found = rank(made, (1, 4), greedy={f"q{i}": i < 4 for i in range(10)})
    (points,) = picks(found, 4).data
    shown = dict(zip(points.y, points.x, strict=True))
    assert points.y[-1] == "top-maj@4, clue"
    assert shown["greedy"] == pytest.approx(0.4)
    assert {"majority@n", "mean@n", "pass@n", "top-maj@4, any order"} <= set(shown)
    assert shown["majority@n"] == found.frame[found.frame["pick"] == "majority"].accuracy.item()
    with pytest.raises(BadInput, match="k=3"):
        picks(found, 3)
