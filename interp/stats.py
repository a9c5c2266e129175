"""Intervals: how far a number would have moved with other samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from interp.errors import BadInput


@dataclass(frozen=True, repr=False)
class Interval:
    """An estimate with the bounds of its confidence interval and the number of samples behind it."""

    estimate: float
    low: float
    high: float
    n: int

    def __repr__(self) -> str:
        return f"{self.estimate:.3g} [{self.low:.3g}, {self.high:.3g}] (n={self.n})"


def bootstrap_interval(
    values: ArrayLike,
    statistic: Callable[..., np.ndarray | np.floating] = np.mean,
    level: float = 0.95,
    resamples: int = 2_000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap (Efron 1979) of `statistic` over the first axis of `values`.

    `values` is [n] or [n, k]; a row is one independent sample, so paired measurements (ablated and baseline
    of the same prompt) go in as columns and stay together. `statistic` reduces such an array to one number.
    One sample has no spread to resample: its bounds are NaN. Raises BadInput on no samples and on values
    that are not finite.
    """
    samples = np.asarray(values, dtype=float)
    if samples.ndim not in (1, 2) or len(samples) == 0:
        raise BadInput(f"a bootstrap needs at least one sample in an [n] or [n, k] array; got shape {samples.shape}")
    if not np.isfinite(samples).all():
        raise BadInput(f"a bootstrap needs finite values; {(~np.isfinite(samples)).sum()} of them are not")
    _check_level(level)
    estimate = float(statistic(samples))
    if len(samples) == 1:
        return Interval(estimate, float("nan"), float("nan"), 1)
    rows = np.arange(len(samples))
    result = stats.bootstrap(
        (rows,),
        lambda index: float(statistic(samples[index])),
        n_resamples=resamples,
        confidence_level=level,
        method="percentile",  # defined also when every sample is the same, as scores at 0 and 1 often are
        vectorized=False,
        rng=np.random.default_rng(seed),
    )
    low, high = result.confidence_interval
    return Interval(estimate, float(low), float(high), len(samples))


def bootstrap_means(
    samples: np.ndarray, level: float = 0.95, resamples: int = 2_000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile bootstrap bounds of the mean of every column of `samples` `[n k]`, all columns resampled together.

    The bounds of a single sample are NaN, as it has no spread to resample.
    """
    n = len(samples)
    if n < 2:
        unknown = np.full(samples.shape[1], np.nan)
        return unknown, unknown.copy()
    _check_level(level)
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples)
    means = counts @ samples / n
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail], axis=0)
    return low, high


def wilson_interval(successes: int, trials: int, level: float = 0.95) -> Interval:
    """Score interval of a proportion (Wilson 1927): sensible also at 0 and at `trials` successes.

    Raises BadInput unless 0 <= successes <= trials and trials > 0.
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise BadInput(f"a proportion needs 0 <= successes <= trials and trials > 0; got {successes} of {trials}")
    _check_level(level)
    low, high = stats.binomtest(successes, trials).proportion_ci(level, method="wilson")
    return Interval(successes / trials, float(low), float(high), trials)


def wilson_mean(values: ArrayLike, level: float = 0.95) -> Interval:
    """Wilson's interval around the mean of values between 0 and 1, such as the mean share right of several draws.

    Such values vary no more than outcomes of 0 and 1 with the same mean do, for which the interval is made. Raises
    BadInput on no values and on values that are not between 0 and 1.
    """
    shares = np.asarray(values, dtype=float)
    if shares.ndim != 1 or len(shares) == 0 or not ((shares >= 0) & (shares <= 1)).all():
        raise BadInput("a mean of shares needs at least one value, and all of them between 0 and 1")
    _check_level(level)
    n, mean, z = len(shares), float(shares.mean()), float(stats.norm.ppf((1 + level) / 2))
    middle, half = mean + z**2 / (2 * n), z * np.sqrt(mean * (1 - mean) / n + (z / (2 * n)) ** 2)
    low, high = (middle - half) / (1 + z**2 / n), (middle + half) / (1 + z**2 / n)
    return Interval(mean, max(0.0, float(low)), min(1.0, float(high)), n)


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise BadInput(f"a confidence level lies between 0 and 1; got {level}")
