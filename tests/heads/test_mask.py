"""HeadMask: selection rules, reduction to key/value heads, and the model it belongs to."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from interp.errors import BadInput, MaskMismatch
from interp.heads.mask import HeadMask

SCORES = np.array([[0.1, 0.9, 0.1, 0.5], [0.9, 0.0, 0.1, 0.2]])
MASK = HeadMask(
    SCORES,
    method="retrieval-head",
    model="pocket",
    family="llama",
    fingerprint="f00d",
    kv_heads=2,
    metadata={"a": (1, 2)},
)
SPEC = SimpleNamespace(name="pocket", family="llama", layers=2, heads=4, kv_heads=2)

shapes = st_numpy.array_shapes(min_dims=2, max_dims=2, max_side=6)
score_arrays = st_numpy.arrays(np.float64, shapes, elements=st.sampled_from([0.0, 0.25, 0.5, 1.0]))


def test_the_ranking_is_best_first_and_equal_scores_go_by_layer_and_head() -> None:
    assert MASK.ranking == [(0, 1), (1, 0), (0, 3), (1, 3), (0, 0), (0, 2), (1, 2), (1, 1)]


def test_nothing_is_selected_until_a_rule_selects() -> None:
    assert MASK.heads == []
    assert MASK.threshold(0.1).heads == [(0, 1), (1, 0), (0, 3), (1, 3), (0, 0), (0, 2), (1, 2)]
    assert MASK.threshold(0.1).rule == "threshold>=0.1"
    assert MASK.threshold(2).heads == []
    assert MASK.select(SCORES == 0.5, "by hand").heads == [(0, 3)]


@given(score_arrays, st.data())
def test_top_k_selects_exactly_k_heads_whatever_the_ties(scores: np.ndarray, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, scores.size))
    mask = HeadMask(scores).top(k)
    assert len(mask.heads) == k
    assert mask.heads == mask.ranking[:k]
    assert mask.rule == f"top-{k}"


@given(
    st_numpy.arrays(np.float64, shapes, elements=st.floats(0, 1), unique=True),
    st.integers(0, 100).map(lambda percent: percent / 100),
)
def test_the_quantile_of_distinct_scores_is_numpys(scores: np.ndarray, sparsity: float) -> None:
    expected = scores >= (np.inf if sparsity == 1 else np.quantile(scores, sparsity))
    # The quantile between two scores that differ in the last digits may be rounded to either.
    if np.diff(np.sort(scores, axis=None)).min(initial=1) > 1e-12:
        assert np.array_equal(HeadMask(scores).quantile(sparsity).selected, expected)


@given(score_arrays, st.integers(0, 100).map(lambda percent: percent / 100))
def test_the_quantile_rule_keeps_duo_attentions_number_of_heads_under_ties(scores: np.ndarray, sparsity: float) -> None:
    # As DuoAttention does it: noise breaks the ties, then heads at or above the quantile stay full.
    noisy = scores + np.random.default_rng(0).uniform(0, 1e-6, scores.shape)
    threshold = 2 if sparsity == 1 else np.quantile(noisy, sparsity)
    assert len(HeadMask(scores).quantile(sparsity).heads) == (noisy >= threshold).sum()


def test_sparsity_is_the_share_of_heads_left_out() -> None:
    assert [len(MASK.quantile(s).heads) for s in (0, 0.25, 0.5, 0.75, 1)] == [8, 6, 4, 2, 0]


@pytest.mark.parametrize(
    ("select", "complaint"),
    [
        (lambda: MASK.top(9), "top 9 heads .* there are 8"),
        (lambda: MASK.top(-1), "top -1 heads"),
        (lambda: MASK.quantile(1.5), "Sparsity 1.5"),
        (lambda: MASK.quantile(float("nan")), "Sparsity nan"),
        (lambda: MASK.threshold(float("nan")), "must be a number"),
        (lambda: MASK.select(np.ones((2, 2)), "x"), r"selection has shape \(2, 2\), the scores \(2, 4\)"),
    ],
)
def test_an_impossible_selection_is_refused(select: Any, complaint: str) -> None:
    with pytest.raises(BadInput, match=complaint):
        select()


def test_query_heads_reduce_to_the_key_value_heads_they_read() -> None:
    most, mean = MASK.to_kv("max"), MASK.to_kv("mean")
    assert np.array_equal(most.scores, [[0.9, 0.5], [0.9, 0.2]])
    assert np.allclose(mean.scores, [[0.5, 0.3], [0.45, 0.15]])
    assert (most.kind, most.reduction, mean.reduction) == ("kv", "max", "mean")
    assert (most.model, most.fingerprint, most.kv_heads) == ("pocket", "f00d", 2)


def test_reduction_leaves_selection_and_samples_behind() -> None:
    mask = HeadMask.from_samples(np.stack([SCORES, SCORES]), kv_heads=2).top(2).to_kv("max")
    assert (mask.selected, mask.rule, mask.samples) == (None, "", None)


def test_a_reduction_that_cannot_be_is_refused() -> None:
    with pytest.raises(BadInput, match="does not say how many"):
        HeadMask(SCORES).to_kv("max")
    with pytest.raises(BadInput, match="already"):
        MASK.to_kv("max").to_kv("max")
    with pytest.raises(BadInput, match="did you mean 'mean'"):
        MASK.to_kv("meen")  # type: ignore[arg-type]


def test_scores_are_the_mean_of_samples_where_heads_have_them() -> None:
    samples = np.array([[[1.0, 0.5]], [[0.0, np.nan]]])
    assert np.array_equal(HeadMask.from_samples(samples).scores, [[0.5, 0.5]])
    with pytest.raises(BadInput, match="do not give every head a score"):
        HeadMask.from_samples(samples[:0])


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"scores": SCORES[0]}, r"shape \(4,\)"),
        ({"scores": SCORES[:0]}, r"shape \(0, 4\)"),
        ({"scores": np.where(SCORES == 0.5, np.nan, SCORES)}, "score of head 0.3 is nan"),
        ({"kind": "value"}, "kind of head 'value'; .*query, kv"),
        ({"kv_heads": 3}, "4 query heads do not belong to 3"),
        ({"kv_heads": 0}, "do not belong to 0"),
        ({"kind": "kv"}, "4 kv heads do not belong to 2"),
        ({"samples": SCORES}, r"samples have shape \(2, 4\)"),
        ({"samples": np.stack([np.full_like(SCORES, np.nan), SCORES])}, "at least one a head"),
        ({"samples": np.stack([SCORES, np.full_like(SCORES, np.nan)])}, "NaN only after the last"),
        ({"samples": np.stack([SCORES, SCORES * np.nan, SCORES])}, "NaN only after the last"),
        ({"metadata": {"x": object()}}, "plain JSON"),
        ({"metadata": {"x": float("inf")}}, "plain JSON"),
    ],
)
def test_a_mask_that_does_not_fit_together_is_refused(change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(BadInput, match=complaint):
        dataclasses.replace(MASK, **change)


def test_a_mask_is_a_value() -> None:
    own = SCORES.copy()
    mask = HeadMask(own)
    own[0, 0] = 7
    assert mask == HeadMask(SCORES) != MASK
    assert mask != mask.top(1) == HeadMask(SCORES).top(1)
    with pytest.raises(ValueError, match="read-only"):
        mask.scores[0, 0] = 7
    assert MASK.metadata == {"a": [1, 2]}  # as it will be read back


def test_a_mask_fits_its_own_model() -> None:
    assert MASK.check(SPEC, "f00d") is MASK
    kv = MASK.to_kv("max")
    assert kv.check(SPEC, "f00d") is kv
    foreign = HeadMask(SCORES)
    assert foreign.check(SPEC, "f00d") is foreign


@pytest.mark.parametrize(
    ("mask", "change", "complaint"),
    [
        (MASK, {"layers": 3}, "made for pocket, scores 2 layers of 4 query heads; other has 3 layers of 4"),
        (MASK, {"heads": 8}, "other has 2 layers of 8"),
        (MASK, {"kv_heads": 1}, "expects 2 key/value heads; other has 1"),
        (MASK.to_kv("max"), {"kv_heads": 4}, "2 kv heads; other has 2 layers of 4"),
        (MASK, {"family": "gpt2"}, "made for a llama model .*; other is gpt2"),
        (HeadMask(SCORES), {"layers": 3}, "made for another model"),
    ],
)
def test_a_mask_of_another_model_is_refused(mask: HeadMask, change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(MaskMismatch, match=complaint):
        mask.check(SimpleNamespace(**{**vars(SPEC), "name": "other", **change}))


def test_other_weights_are_refused_only_where_the_fingerprint_is_asked_for() -> None:
    with pytest.raises(MaskMismatch, match=r"fingerprint f00d.*same shape and other weights \(fingerprint beef\)"):
        MASK.check(SPEC, "beef")
    assert MASK.check(SPEC) is MASK
