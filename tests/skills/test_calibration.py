"""Calibration error against tables made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from interp.errors import BadInput
from interp.skills.calibration import confidences, expected_calibration_error, reliability

# Ten answers of a model: how sure it was, and whether it was right.
SURE = [0.55, 0.55, 0.60, 0.65, 0.75, 0.75, 0.85, 0.95, 0.95, 1.00]
RIGHT = [1, 0, 0, 1, 1, 1, 0, 1, 1, 1]


def test_bins_of_equal_width_by_hand() -> None:
    table = reliability(SURE, RIGHT, 10)
    # (.5, .6]: .55 .55 .60 with 1/3 right; (.6, .7]: .65, right; (.7, .8]: both right; (.8, .9]: wrong; then 3 right.
    assert table.n.tolist() == [3, 1, 2, 1, 3]
    assert table.low.tolist() == pytest.approx([0.5, 0.6, 0.7, 0.8, 0.9])
    gaps = [1.7 / 3 - 1 / 3, 0.65 - 1, 0.75 - 1, 0.85 - 0, 2.9 / 3 - 1]
    assert table.gap.tolist() == pytest.approx(gaps)
    by_hand = (3 * gaps[0] + 0.35 + 2 * 0.25 + 0.85 + 3 * -gaps[4]) / 10
    assert expected_calibration_error(SURE, RIGHT, 10) == pytest.approx(by_hand) == pytest.approx(0.25)


def test_fifteen_bins_by_hand() -> None:
    # Edges at multiples of 1/15: .55 .55 .60 fall into (.533, .6], .65 into (.6, .667], .75 into (.733, .8], .85 into
    # (.8, .867], .95 and 1 into (.933, 1].
    table = reliability(SURE, RIGHT, 15)
    assert table.n.tolist() == [3, 1, 2, 1, 3]
    assert expected_calibration_error(SURE, RIGHT, 15) == pytest.approx(0.25)


def test_bins_of_equal_mass_by_hand() -> None:
    table = reliability(SURE, RIGHT, 5, "mass")
    assert table.n.tolist() == [2, 2, 2, 2, 2]
    gaps = [0.55 - 0.5, 0.625 - 0.5, 0.75 - 1, 0.90 - 0.5, 0.975 - 1]
    assert table.gap.tolist() == pytest.approx(gaps)
    assert expected_calibration_error(SURE, RIGHT, 5, "mass") == pytest.approx(np.abs(gaps).mean())


def test_a_calibrated_model_has_none_and_one_that_is_always_wrong_all_of_it() -> None:
    rng = np.random.default_rng(0)
    sure = rng.uniform(0.5, 1, 40_000)
    assert expected_calibration_error(sure, rng.uniform(size=40_000) < sure) < 0.01
    assert expected_calibration_error([1.0, 1.0], [0, 0]) == 1.0


def test_confidence_is_the_largest_probability_among_the_labels() -> None:
    assert confidences([[0.0, np.log(3)], [800.0, 0.0]]) == pytest.approx([0.75, 1.0])


@pytest.mark.parametrize(
    ("sure", "right", "bins"), [([], [], 10), ([0.5], [1], 0), ([1.5], [1], 10), ([0.5], [1, 0], 5)]
)
def test_what_has_no_calibration_is_refused(sure: list[float], right: list[int], bins: int) -> None:
    with pytest.raises(BadInput):
        expected_calibration_error(sure, right, bins)
