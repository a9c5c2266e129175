"""Figures are those of the library, numbers by head are those of the tables, and clicks name cells."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from apps.explorer.catalogue import chosen, entries
from apps.explorer.head_metrics import both, metric_figure, metrics_of, parse_head
from apps.explorer.results import figures_of, result_of
from apps.explorer.selection import clickable, picked
from apps.explorer.settings import samples_folder
from interp.errors import WorkbenchError
from interp.heads.roles import ROLES
from interp.heads.scores import HeadScores
from interp.patching.activation import PatchingResult
from tests.apps.reading import charts

SAMPLES = {"samples": samples_folder()}


def sample(name):
    return chosen(entries(SAMPLES), f"samples/{name}")


@pytest.mark.parametrize(
    ("name", "load"),
    [("retrieval", HeadScores.load), ("ioi-heads", PatchingResult.load), ("ioi-positions", PatchingResult.load)],
)
def test_a_figure_is_the_one_that_a_notebook_plots(name, load):
    assert figures_of(sample(name))["result"].to_json() == load(samples_folder() / name).plot().to_json()


@pytest.mark.parametrize("name", ["retrieval", "roles", "head-effects", "needles", "ioi-heads"])
def test_a_result_read_back_has_the_table_that_was_saved(name):
    run = sample(name)
    again = result_of(run).frame.reset_index(drop=True)
    columns = [column for column in run.frame if column in again]
    assert len(columns) > 4
    for column in columns:
        if pd.api.types.is_numeric_dtype(run.frame[column]):
            np.testing.assert_allclose(again[column].astype(float), run.frame[column].astype(float), atol=1e-9)
        else:
            assert again[column].astype(str).tolist() == run.frame[column].astype(str).tolist()


def test_needles_are_drawn_by_length_and_depth():
    figures = figures_of(sample("needles"))
    assert list(figures) == ["result", "length and depth"]
    assert {tuple(trace.x) for trace in figures["length and depth"].data} == {("256", "512", "1024")}


def test_every_sample_has_numbers_by_head_where_its_table_has():
    by_head = {name: list(metrics_of(sample(name.split("/")[1]), name)) for name in entries(SAMPLES)}
    assert by_head["samples/retrieval"] == ["score", "activation_frequency"]
    assert [name.split(":")[0] for name in by_head["samples/roles"]] == list(ROLES)
    assert "effect" in by_head["samples/head-effects"]
    assert "normalised_ratio_of_means" in by_head["samples/ioi-heads"]
    assert any("effect" in name for name in by_head["samples/ioi-circuit"])
    assert by_head["samples/needles"] == by_head["samples/ioi-positions"] == []


def test_a_metric_by_head_is_the_column_of_the_table():
    run = sample("roles")
    metric = metrics_of(run, "r")["induction: score"]
    rows = run.frame[run.frame.role == "induction"]
    assert len(rows) == metric.values.size
    for row in rows.itertuples():
        assert metric.values[row.layer, row.head] == row.score
        assert metric.low[row.layer, row.head] == row.low
    best = rows.iloc[0]
    assert metric.rank((best.layer, best["head"])) == 1


def test_the_map_of_a_score_is_what_its_result_plots():
    run = sample("retrieval")
    metric = metrics_of(run, "r")["score"]
    assert metric_figure(run, metric).to_json() == HeadScores.load(run.path).plot().to_json()


def test_two_metrics_are_paired_head_by_head():
    x = metrics_of(sample("retrieval"), "x")["score"]
    y = metrics_of(sample("head-effects"), "y")["effect"]
    frame = both(x, y)
    assert len(frame) == 32
    for row in frame.itertuples():
        assert (row.x, row.y) == (x.values[row.layer, row.head], y.values[row.layer, row.head])


def test_a_clickable_figure_is_the_same_with_points_in_every_cell():
    run = sample("head-effects")
    metric = metrics_of(run, "r")["effect"]
    own = metric_figure(run, metric)
    shown = clickable(own, metric.values, (2, 1))
    assert shown.data[0].to_plotly_json().keys() == own.data[0].to_plotly_json().keys()
    assert json.loads(shown.to_json())["data"][0] == json.loads(own.to_json())["data"][0]
    points, frame = shown.data[1:]
    assert [tuple(cell) for cell in points.customdata] == [(i, j) for i in range(4) for j in range(8)]
    assert (frame.x, frame.y) == ((1,), (2,))
    assert points.hovertext[2 * 8 + 1] == f"head 2.1: {metric.values[2, 1]:.3f}"
    assert len(own.data) == 1


def test_a_selection_is_read_as_cells():
    click = {"selection": {"points": [{"customdata": {"0": 2, "1": 5}}, {"customdata": [1, 0]}, {"x": 3}]}}
    assert picked(click) == [(2, 5), (1, 0)]
    assert picked({"selection": {"points": [{"customdata": [1, 0]}] * 2}}) == [(1, 0)]
    for nothing in (None, {}, {"selection": {}}, "x", {"selection": {"points": [None]}}):
        assert picked(nothing) == []


def test_the_page_shows_the_figure_of_the_run(draw):
    shown = charts(draw("runs", run="samples/ioi-heads", model="none"))[0]
    own = json.loads(PatchingResult.load(samples_folder() / "ioi-heads").plot().to_json())
    shown["data"][0]["colorbar"]["title"].pop("side")  # the one thing that the page moves
    assert shown["data"] == own["data"]
    assert shown["layout"]["title"] == own["layout"]["title"]


def test_only_a_head_reads_as_one():
    assert parse_head("12.3") == (12, 3)
    for wrong in ("12", "a.b", "1.2.3", "-1.2", "", "1." + "1" * 20):
        with pytest.raises(WorkbenchError, match="not a head"):
            parse_head(wrong)
