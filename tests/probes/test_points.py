"""Jump and converging points, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from interp.errors import BadInput
from probes.points import converging_points, jump_points, with_interval

NONE = float("nan")


@pytest.mark.parametrize(
    ("curve", "jump", "plateau", "formula"),
    [
        ([0.5, 0.5, 0.9, 0.91], 2 / 4, 2 / 4, 3 / 4),
        ([0.5, 0.51, 0.5, 0.98], 3 / 4, 3 / 4, 2 / 4),  # flat before its rise: the formula looks there
        ([0.5, 0.56, 0.6, 0.7], 1 / 4, 3 / 4, NONE),  # still rising at the end
        ([0.9, 0.9, 0.9, 0.9], NONE, 0.0, 3 / 4),
        ([0.5, 0.5, 0.5, 0.5], NONE, NONE, 3 / 4),  # never better than the floor
        ([0.5, 0.9, 0.9, 0.7, 0.7], 1 / 5, 3 / 5, 4 / 5),  # forgets again, and stays there
    ],
)
def test_points_are_where_their_definitions_put_them(
    curve: list[float], jump: float, plateau: float, formula: float
) -> None:
    curves = np.array([curve])
    np.testing.assert_allclose(jump_points(curves), [jump])
    np.testing.assert_allclose(converging_points(curves, floor=0.55), [plateau])
    np.testing.assert_allclose(converging_points(curves, rule="formula"), [formula])


def test_thresholds_are_parameters() -> None:
    curves = np.array([[0.5, 0.53, 0.58, 0.6]])
    assert np.isnan(jump_points(curves)[0])
    assert jump_points(curves, jump=1.09)[0] == 2 / 4
    assert converging_points(curves)[0] == 3 / 4
    assert converging_points(curves, flat=0.05)[0] == 2 / 4


def test_an_interval_is_over_the_samples_that_have_the_point() -> None:
    point = with_interval(0.5, np.array([0.25, 0.5, 0.5, NONE]))
    assert (point.estimate, point.defined) == (0.5, 0.75)
    assert 0.25 <= point.low <= point.high == 0.5
    assert np.isnan(with_interval(NONE, np.array([NONE, NONE])).low)


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(BadInput, match="'plateau' or by 'formula'"):
        converging_points(np.ones((1, 3)), rule="elbow")  # type: ignore[arg-type]
