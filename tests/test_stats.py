"""Intervals cover what they should, say when they cannot, and repeat under a seed."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from interp.errors import BadInput
from interp.stats import bootstrap_interval, bootstrap_means, wilson_interval, wilson_mean


def test_the_bootstrap_of_a_mean_approaches_the_normal_interval() -> None:
    values = np.random.default_rng(1).normal(3.0, 2.0, size=400)
    interval = bootstrap_interval(values, resamples=5_000)
    half = scipy_stats.norm.ppf(0.975) * values.std() / math.sqrt(len(values))
    assert interval.estimate == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - half, abs=0.03)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.03)
    assert interval.n == 400


def test_about_95_of_100_intervals_cover_the_true_mean() -> None:
    rng = np.random.default_rng(2)
    covered = 0
    for seed in range(200):
        interval = bootstrap_interval(rng.exponential(1.0, size=60), resamples=400, seed=seed)
        covered += interval.low <= 1.0 <= interval.high
    assert 0.88 <= covered / 200 <= 0.98


def test_the_same_seed_repeats_and_another_differs() -> None:
    values = np.random.default_rng(3).random(30)
    assert bootstrap_interval(values, seed=7) == bootstrap_interval(values, seed=7)
    assert bootstrap_interval(values, seed=7) != bootstrap_interval(values, seed=8)


def test_a_wider_level_gives_a_wider_interval() -> None:
    values = np.random.default_rng(4).random(50)
    narrow, wide = bootstrap_interval(values, level=0.5), bootstrap_interval(values, level=0.99)
    assert wide.low < narrow.low < narrow.high < wide.high


def test_paired_columns_stay_together() -> None:
    """A ratio of means over pairs that are exactly proportional has no spread at all."""
    baseline = np.random.default_rng(5).random(40) + 0.5
    pairs = np.stack([0.3 * baseline, baseline], axis=1)
    interval = bootstrap_interval(pairs, statistic=lambda x: x[:, 0].mean() / x[:, 1].mean())
    assert (interval.low, interval.high) == pytest.approx((0.3, 0.3))


def test_identical_samples_have_an_interval_without_width() -> None:
    interval = bootstrap_interval(np.ones(12))
    assert (interval.estimate, interval.low, interval.high) == (1.0, 1.0, 1.0)


def test_one_sample_has_no_interval() -> None:
    interval = bootstrap_interval([0.4])
    assert interval.estimate == 0.4
    assert math.isnan(interval.low)
    assert math.isnan(interval.high)


@pytest.mark.parametrize(
    ("values", "level", "said"),
    [([], 0.95, "at least one sample"), ([0.1, float("nan")], 0.95, "finite"), ([0.1, 0.2], 95, "level")],
)
def test_what_cannot_be_resampled_is_refused(values: list[float], level: float, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        bootstrap_interval(values, level=level)


def test_many_means_at_once_get_the_intervals_they_get_alone() -> None:
    samples = np.random.default_rng(6).random((80, 3)) * [1.0, 5.0, 0.0]
    low, high = bootstrap_means(samples, resamples=20_000)
    for column in range(3):
        alone = bootstrap_interval(samples[:, column], resamples=20_000)
        assert (low[column], high[column]) == pytest.approx((alone.low, alone.high), abs=0.02)


def test_the_means_of_one_sample_have_no_bounds() -> None:
    low, high = bootstrap_means(np.ones((1, 4)))
    assert np.isnan(low).all()
    assert np.isnan(high).all()


def test_wilson_agrees_with_its_formula() -> None:
    k, n, z = 18, 25, scipy_stats.norm.ppf(0.975)
    centre = (k / n + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(k / n * (1 - k / n) / n + z**2 / (4 * n**2))
    interval = wilson_interval(k, n)
    assert (interval.estimate, interval.n) == (0.72, 25)
    assert (interval.low, interval.high) == pytest.approx((centre - half, centre + half))


def test_wilson_is_not_certain_after_a_clean_sweep() -> None:
    assert wilson_interval(20, 20).low < 0.9
    assert wilson_interval(20, 20).high == pytest.approx(1.0)
    assert wilson_interval(0, 20).high > 0.1


@pytest.mark.parametrize(("successes", "trials"), [(1, 0), (-1, 5), (6, 5)])
def test_an_impossible_proportion_is_refused(successes: int, trials: int) -> None:
    with pytest.raises(BadInput, match="successes"):
        wilson_interval(successes, trials)


def test_an_interval_prints_as_people_write_it() -> None:
    assert str(wilson_interval(18, 25)) == "0.72 [0.524, 0.857] (n=25)"


def test_the_interval_of_a_mean_share_is_wilsons_where_all_are_right_or_wrong() -> None:
    for right in (0, 3, 12):
        values = np.array([1.0] * right + [0.0] * (12 - right))
        mean, share = wilson_mean(values), wilson_interval(right, 12)
        assert (mean.estimate, mean.low, mean.high, mean.n) == pytest.approx(
            (share.estimate, share.low, share.high, 12)
        )
    halves = wilson_mean(np.full(12, 0.5))
    assert halves.low < 0.3 < 0.7 < halves.high
    for wrong in ([], [0.5, 1.2], [np.nan]):
        with pytest.raises(BadInput, match="between 0 and 1"):
            wilson_mean(wrong)
