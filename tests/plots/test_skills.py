"""Figures hold the numbers of the results they draw."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from interp.errors import BadInput
from interp.plots.graft_masks import enrichment_map, mask_shares, overlap_map
from interp.plots.skills import budget_curves, continual_curves, loss_curves, reliability_diagram
from interp.skills.evaluation import Evaluation
from interp.skills.mask import GraftMask
from interp.skills.multitask import Continual, overlap


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
    lines = {trace.name: trace for trace in evaluation.plot().data}
    assert lines.keys() == {"localized", "random"}
    frame = evaluation.frame.query("method == 'random'").groupby("budget").accuracy.mean()
    np.testing.assert_allclose(lines["random"].y, frame)
    assert [round(row[0], 6) for row in lines["random"].customdata] == [0.01, 0.1]
    np.testing.assert_allclose(np.log10(lines["random"].x.astype(float)), [-2, -1], atol=0.05)
    levels = [shape.y0 for shape in evaluation.plot().layout.shapes]
    assert levels == evaluation.frame.accuracy.head(2).tolist()
    with pytest.raises(BadInput, match="valid: test"):
        budget_curves(evaluation, split="ood")
    with pytest.raises(BadInput, match="valid: accuracy, gain"):
        budget_curves(evaluation, "loss")  # type: ignore[arg-type]


def test_the_share_of_the_gain_has_its_intervals_and_0_and_1_as_levels(evaluation: Evaluation) -> None:
    figure = evaluation.plot("gain")
    line = next(trace for trace in figure.data if trace.name == "localized")
    rows = evaluation.frame[evaluation.frame.method == "localized"]
    np.testing.assert_allclose(line.y, rows.recovered)
    np.testing.assert_allclose(line.y + line.error_y.array, rows.recovered_high)
    np.testing.assert_allclose(line.y - line.error_y.arrayminus, rows.recovered_low)
    assert [shape.y0 for shape in figure.layout.shapes] == [0, 1]


def test_reliability_shows_the_table_of_both_models_and_the_localized(evaluation: Evaluation) -> None:
    traces = reliability_diagram(evaluation).data[1:]
    assert [trace.name.split(" (")[0] for trace in traces] == [
        "pre-trained", "fine-tuned", "localized 1%", "localized 10%"]  # fmt: skip
    np.testing.assert_allclose(traces[1].y, evaluation.reliability(1).accuracy)
    best = evaluation.frame.accuracy[2:4].idxmax()
    assert [trace.visible is True for trace in traces] == [True, True, best == 2, best == 3]
    assert f"{evaluation.frame.ece_10[1]:.3f}" in traces[1].name
    assert len(evaluation.plot("reliability").data) == 5


@pytest.fixture(scope="module")
def mask() -> GraftMask:
    shapes = {f"model.layers.{layer}.mlp.{name}": (10, 10) for layer in range(2) for name in ("up", "down")}
    return GraftMask({"model.layers.1.mlp.up": torch.arange(6), "model.layers.0.mlp.down": torch.arange(2)}, shapes,
                     "a", "b")  # fmt: skip


def test_the_enrichment_map_is_the_breakdown_on_a_scale_symmetric_around_chance(mask: GraftMask) -> None:
    heat = enrichment_map(mask).data[0]
    assert list(heat.x) == ["mlp.up", "mlp.down"]
    np.testing.assert_allclose(heat.z, [[-3, 0], [np.log2(3), -3]])
    assert heat.zmin == -heat.zmax
    assert heat.customdata[1, 0].tolist() == [3, 6, 0.75, 0.25]


def test_shares_stand_beside_those_of_random_masks(mask: GraftMask) -> None:
    layers, random, modules, _ = mask_shares(mask).data
    assert (list(layers.y), list(layers.x)) == (["0", "1"], [0.25, 0.75])
    assert (list(modules.y), list(modules.x)) == (["mlp.up", "mlp.down"], [0.75, 0.25])
    assert list(random.x) == [0.5, 0.5]
    drawn = np.random.default_rng(0).hypergeometric(200, 200, 8, size=20_000) / 8
    bars = (random.x[0] - random.error_x.arrayminus[0], random.x[0] + random.error_x.array[0])
    assert bars == tuple(np.quantile(drawn, [0.025, 0.975]))


def test_the_overlap_map_is_the_matrix() -> None:
    masks = {name: GraftMask({"w": torch.tensor(i)}, {"w": (9,)}, "a", "b") for name, i in (("x", [1, 2]), ("y", [2]))}
    figure = overlap_map(overlap(masks))
    assert figure.data[0].z.tolist() == [[1.0, 1.0], [0.5, 1.0]]
    assert overlap(masks).plot().data[0].customdata.tolist() == [[[2, 1], [1, 2 / 9]], [[1, 1 / 9], [1, 1]]]


def test_learning_is_drawn_by_task() -> None:
    losses = pd.DataFrame({"step": [1, 2, 3], "task": ["<b>x</b>", "y", "<b>x</b>"], "loss": [3.0, 2.0, 1.0]})
    x, y = loss_curves(losses).data
    assert (x.name, list(x.x), list(x.y)) == ("&lt;b&gt;x&lt;/b&gt;", [1, 3], [3.0, 1.0])
    assert list(y.x) == [2]


def test_learning_in_turn_has_a_panel_a_task_and_a_line_a_method() -> None:
    rows = [(m, stage, ["", "x", "y"][stage], task, 0.1 * stage) for m in ("sequential", "grafting")
            for stage in range(3) for task in ("x", "y")]  # fmt: skip
    frame = pd.DataFrame(rows, columns=["method", "stage", "learned", "task", "accuracy"])
    frame = frame.assign(low=frame.accuracy - 0.05, high=frame.accuracy + 0.1, n=40)
    figure = continual_curves(Continual(frame, {"name": "none"}, {"tasks": ["x", "y"]}))
    assert [trace.name for trace in figure.data] == ["sequential", "grafting"] * 2
    assert list(figure.layout.xaxis.ticktext) == ["nothing", "x", "y"]
    np.testing.assert_allclose(figure.data[3].error_y.array, 0.1)
