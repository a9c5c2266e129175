"""Figures of patching: every patch in its cell, white at no change, with its numbers on hover."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import interp
from interp.errors import BadInput
from interp.metrics import logit_difference
from interp.patching.activation import activation_patching
from interp.patching.attribution import attribution_patching
from interp.patching.eap import edge_scores
from interp.patching.path import path_patching
from tests.families import build, word_tokenizer
from tests.patching.random_pairs import random_pairs

PAIRS = random_pairs()


@pytest.fixture(scope="module")
def model() -> interp.Model:
    return interp.wrap(build("gpt2"), word_tokenizer())


def only(figure: Any) -> Any:
    (trace,) = figure.data
    assert trace.zmin == -trace.zmax
    assert trace.zmax == pytest.approx(np.nanmax(np.abs(trace.z)))
    return trace


@pytest.mark.parametrize(
    ("arguments", "shape", "columns"),
    [
        ({"site": "resid_pre", "by": "position"}, (2, 9), [str(i) for i in range(9)]),
        ({"site": "resid_pre", "by": "position", "positions": ["first", "end"]}, (2, 2), ["first", "end"]),
        ({"site": "z", "by": "head"}, (2, 4), ["0", "1", "2", "3"]),
        ({"site": "z", "by": "head_position", "positions": ["first", "end", 4]}, (8, 3), ["first", "end", "4"]),
        ({"site": "mlp_out", "by": "layer"}, (2, 1), ["all"]),
        ({"site": "mlp_post", "by": "neuron", "neurons": [4, 90]}, (2, 2), ["4", "90"]),
    ],
)
def test_cells_are_the_frame(model: interp.Model, arguments: Any, shape: Any, columns: Any) -> None:
    result = activation_patching(model, PAIRS, **arguments, metrics=[logit_difference()])
    figure = result.plot()
    trace = only(figure)
    assert np.shape(trace.z) == shape
    np.testing.assert_allclose(np.ravel(trace.z), result.frame.normalised_ratio_of_means, atol=1e-9)
    assert [column.split(" '")[0] for column in figure.layout.xaxis.ticktext] == columns
    assert figure.layout.yaxis.autorange == "reversed"
    row = result.frame.iloc[-1]
    assert f"{row.normalised_ratio_of_means:.3f} [{row.normalised_ratio_of_means_low:.3f}" in trace.text[-1][-1]
    assert f"layer {row.layer}" in trace.text[-1][-1]
    assert "n=3" in trace.text[-1][-1]


def test_metrics_are_drawn_as_changes_from_the_run_that_was_patched(model: interp.Model) -> None:
    for direction in ("denoise", "noise"):
        result = activation_patching(model, PAIRS, "z", "head", direction)  # type: ignore[arg-type]
        values = np.ravel(only(result.plot("log_probability")).z)
        np.testing.assert_allclose(values, result.frame.log_probability - result.base[1].mean(), atol=1e-9)
        normalised = np.ravel(only(result.plot()).z)
        shift = 1 if direction == "noise" else 0
        np.testing.assert_allclose(normalised, result.frame.normalised_ratio_of_means - shift, atol=1e-9)
    with pytest.raises(BadInput, match="did you mean 'accuracy'"):
        result.plot("accurracy")


def test_an_estimate_says_that_it_is_one(model: interp.Model) -> None:
    assert "estimated (attribution)" in attribution_patching(model, PAIRS, "z", "head").plot().layout.title.text
    assert "estimated" not in activation_patching(model, PAIRS, "z", "head").plot().layout.title.text


def test_paths_are_drawn_by_layer_and_head(model: interp.Model) -> None:
    result = path_patching(model, PAIRS, "logits", [(0, 1), (1, 3)], metrics=[logit_difference()])
    figure = result.plot()
    trace = only(figure)
    np.testing.assert_array_equal(np.array(trace.z), result.effects)
    assert np.isfinite(np.array(trace.z)).sum() == 2
    assert trace.text[0][0] == "not a sender"
    assert f"{result.effects[1, 3]:.3f}" in trace.text[1][3]
    assert "resid_post.1" in figure.layout.title.text


def test_edges_are_drawn_from_source_to_destination(model: interp.Model) -> None:
    scores = edge_scores(model, PAIRS, logit_difference())
    figure = scores.plot()
    trace = only(figure)
    values = np.array(trace.z)
    np.testing.assert_array_equal(np.isfinite(values), scores.shape.edges)
    np.testing.assert_array_equal(values[scores.shape.edges], scores.scores[scores.shape.edges])
    assert trace.text[1][-1].startswith("a0.h0->logits<br>")
    assert trace.text[-1][0] == "no edge"
    assert list(figure.layout.yaxis.ticktext) == scores.shape.sources


def test_a_patch_without_any_effect_is_white(model: interp.Model) -> None:
    result = activation_patching(model, PAIRS, "z.1", "position", positions=["first"], metrics=[logit_difference()])
    (trace,) = result.plot("logit_difference").data
    assert (trace.zmin, trace.zmax) == (-1e-4, 1e-4)
    np.testing.assert_allclose(trace.z, 0, atol=1e-5)
