"""Figures hold the numbers of the results they draw."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from interp.errors import BadInput
from interp.plots.skills import budget_curves, module_map, overlap_map, reliability_diagram
from interp.skills.evaluation import Evaluation
from interp.skills.mask import GraftMask
from interp.skills.multitask import overlap


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    models = pd.DataFrame(
        [("pre-trained", 0.0, 0, 0), ("fine-tuned", 1.0, 0, 100), ("localized", 0.01, 0, 1), ("localized", 0.1, 0, 10),
         ("random", 0.01, 0, 1), ("random", 0.01, 1, 1), ("random", 0.1, 0, 10), ("random", 0.1, 1, 10)],
        columns=["method", "budget", "seed", "parameters"],
    )  # fmt: skip
    logits = np.random.default_rng(0).normal(size=(8, 40, 3))
    logits[1, :, 0] += 3
    return Evaluation(models, {"test": logits}, {"test": np.zeros(40, dtype=int)}, {}, {"task": "topic"})


def test_budget_curves_show_the_mean_over_seeds(evaluation: Evaluation) -> None:
    lines = {trace.name: trace for trace in evaluation.plot().data if trace.name}
    assert lines.keys() == {"localized", "random"}
    frame = evaluation.frame.query("method == 'random'").groupby("budget").accuracy.mean()
    np.testing.assert_allclose(lines["random"].y, frame)
    assert list(lines["random"].x) == [0.01, 0.1]
    levels = [shape.y0 for shape in evaluation.plot().layout.shapes]
    assert levels == evaluation.frame.accuracy.head(2).tolist()
    with pytest.raises(BadInput, match="valid: test"):
        budget_curves(evaluation, "ood")


def test_reliability_shows_the_table_of_both_models_and_the_localized(evaluation: Evaluation) -> None:
    traces = reliability_diagram(evaluation).data[1:]
    assert [trace.name.split(" (")[0] for trace in traces] == [
        "pre-trained", "fine-tuned", "localized 1.000%", "localized 10.000%"]  # fmt: skip
    np.testing.assert_allclose(traces[1].y, evaluation.reliability(1).accuracy)
    assert f"{evaluation.frame.ece_10[1]:.3f}" in traces[1].name
    assert len(evaluation.plot("reliability").data) == 5


def test_the_module_map_is_the_breakdown() -> None:
    shapes = {f"model.layers.{layer}.mlp.{name}": (10, 10) for layer in range(2) for name in ("up", "down")}
    mask = GraftMask({"model.layers.1.mlp.up": torch.arange(6), "model.layers.0.mlp.down": torch.arange(2)}, shapes,
                     "a", "b")  # fmt: skip
    heat = module_map(mask).data[0]
    assert list(heat.x) == ["mlp.up", "mlp.down"]
    np.testing.assert_allclose(heat.z, [[0, 1], [3, 0]])
    assert heat.customdata[1, 0].tolist() == [6, 0.06, 0.75]


def test_the_overlap_map_is_the_matrix() -> None:
    masks = {name: GraftMask({"w": torch.tensor(i)}, {"w": (9,)}, "a", "b") for name, i in (("x", [1, 2]), ("y", [2]))}
    figure = overlap_map(overlap(masks))
    assert figure.data[0].z.tolist() == [[1.0, 1.0], [0.5, 1.0]]
    assert overlap(masks).plot().data[0].customdata.tolist() == [[2, 1], [1, 1]]
