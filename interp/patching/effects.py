"""How far a metric went from one reference to another, over prompts: ratio of means and mean of ratios, with intervals.

The two differ where prompts differ in how much there is to change (Miller et al. 2024), so both are given and named.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from interp.stats import bootstrap_means

Bounds = tuple[np.ndarray, np.ndarray]
RESAMPLES = 2_000
BLOCK = 512
"""Units whose intervals are computed at a time; the resampled values of a unit take 16 kB."""


def mean_columns(name: str, values: np.ndarray, seed: int = 0) -> dict[str, np.ndarray]:
    """Mean over prompts of `values` `[unit prompt]` with its bootstrap interval: `name`, `name_low`, `name_high`."""
    low, high = _in_blocks(lambda block: bootstrap_means(block.T, resamples=RESAMPLES, seed=seed), values)
    return {name: values.mean(1), f"{name}_low": low, f"{name}_high": high}


def fraction_columns(
    name: str, values: np.ndarray, start: np.ndarray, end: np.ndarray, seed: int = 0
) -> dict[str, np.ndarray]:
    """The fraction of the way from `start` to `end` `[prompt]` that `values` `[unit prompt]` went.

    `name_ratio_of_means` is mean(values - start) / mean(end - start), `name_mean_of_ratios` the mean over the prompts
    in which `start` and `end` differ; both with bootstrap intervals over prompts, NaN where there is no way to go.
    """
    way = end - start
    moved = values - start
    differ = way != 0
    unknown = np.full(len(values), np.nan)
    low, high = _in_blocks(lambda block: _ratio_bounds(block, way, seed), moved)
    columns = {
        f"{name}_ratio_of_means": moved.mean(1) / way.mean() if way.mean() != 0 else unknown,
        f"{name}_ratio_of_means_low": low,
        f"{name}_ratio_of_means_high": high,
    }
    if differ.any():
        return columns | mean_columns(f"{name}_mean_of_ratios", moved[:, differ] / way[differ], seed)
    return columns | {f"{name}_mean_of_ratios{bound}": unknown for bound in ("", "_low", "_high")}


def _ratio_bounds(moved: np.ndarray, way: np.ndarray, seed: int) -> Bounds:
    """Bounds of the ratio of means of every row of `moved` `[unit prompt]`, prompts resampled in pairs with `way`."""
    n = len(way)
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=RESAMPLES)
    total = counts @ way
    if n < 2 or not total.any():
        unknown = np.full(len(moved), np.nan)
        return unknown, unknown
    ratios = (counts @ moved.T)[total != 0] / total[total != 0, None]
    low, high = np.quantile(ratios, [0.025, 0.975], axis=0)
    return low, high


def _in_blocks(bounds: Callable[[np.ndarray], Bounds], values: np.ndarray) -> Bounds:
    parts = [bounds(values[start : start + BLOCK]) for start in range(0, len(values), BLOCK)]
    return np.concatenate([low for low, _ in parts]), np.concatenate([high for _, high in parts])
