"""Figures are those of the library, numbers by head are those of the tables, and clicks name cells."""

from __future__ import annotations

import ast
import json
import shutil
from importlib import import_module

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file, save

from apps.explorer.catalogue import chosen, entries
from apps.explorer.head_metrics import both, metric_figure, metrics_of, parse_head
from apps.explorer.results import RESULTS, figures_of, result_of
from apps.explorer.selection import clickable, picked
from apps.explorer.settings import samples_folder
from interp.errors import WorkbenchError
from interp.heads.roles import ROLES
from interp.heads.scores import HeadScores
from interp.runs import load_run
from tests.apps.reading import charts

SAMPLES = {"samples": samples_folder()}


def sample(name):
    return chosen(entries(SAMPLES), f"samples/{name}")


RUNS = list(entries(SAMPLES))
UNSAMPLED = {
    "cache-study",
    "circuit-repair",
    "edge-scores",
    "head-pruning",
    "knob-search",
    "knob-search-exhaustive",
    "knob-side-effects",
    "knob-steering",
    "linear-probes",
    "logit-lens",
    "path-patching",
    "skill-fine-tuning",
}
"""Kinds with figures that no sample run shows; each is read back in the tests of its own package."""
TABLES_ONLY = {
    "activations",
    "knob-finetuning",
    "sweep",
    "traces",
}
"""Kinds without a figure of their own."""


@pytest.mark.parametrize("name", RUNS)
def test_every_figure_is_the_one_that_a_notebook_plots(name):
    run = chosen(entries(SAMPLES), name)
    if run.record.kind not in RESULTS:
        assert figures_of(run) == {}
        return
    module, result = RESULTS[run.record.kind].split(":")
    notebook = getattr(import_module(module), result).load(run.path).plot()
    shown = figures_of(run)
    assert shown["result"].to_json() == notebook.to_json()


@pytest.mark.parametrize("name", RUNS)
def test_the_page_of_a_run_shows_its_figures(draw, name):
    run = chosen(entries(SAMPLES), name)
    shown = charts(draw("runs", run=name, model="none"))
    own = [json.loads(figure.to_json()) for figure in figures_of(run).values()]
    assert shown == own


def test_a_run_that_changes_is_read_again(tmp_path):
    run = load_run(shutil.copytree(samples_folder() / "retrieval", tmp_path / "mine"))
    before = figures_of(run)["result"].to_json()
    assert figures_of(run)["result"].to_json() == before
    arrays = tmp_path / "mine" / "arrays.safetensors"
    kept = load_file(arrays)
    arrays.write_bytes(save({**kept, "samples": kept["samples"] / 2}))
    assert figures_of(load_run(run.path))["result"].to_json() != before
    shutil.rmtree(run.path)
    with pytest.raises(WorkbenchError):
        figures_of(run)


def test_every_kind_with_a_figure_has_a_sample_or_is_known_to_have_none():
    sampled = {chosen(entries(SAMPLES), name).record.kind for name in RUNS}
    assert set(RESULTS) - sampled - UNSAMPLED == set()


def kinds_written(root):
    """Every kind of run that the library saves, by the module that calls save_run; None where it could not be told."""
    for path in sorted(file for package in ("interp", "probes") for file in (root / package).rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        if "save_run(" in source and "def save_run(" not in source:
            yield from ((path.name, kind) for kind in kinds_in(ast.parse(source)) or {None})


def kinds_in(tree):
    """The texts, or names of texts, given as `kind` to save_run or under "kind" in a mapping."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "save_run":
            found |= {keyword.value for keyword in node.keywords if keyword.arg == "kind"}
        elif isinstance(node, ast.Dict):
            pairs = zip(node.keys, node.values, strict=True)
            found |= {value for key, value in pairs if isinstance(key, ast.Constant) and key.value == "kind"}
    texts = constants(tree)
    kinds = {node.value if isinstance(node, ast.Constant) else texts.get(getattr(node, "id", "")) for node in found}
    return kinds - {None}


def constants(tree):
    """The texts that a module gives names to."""
    found = {}
    for node in (node for node in tree.body if isinstance(node, ast.Assign)):
        left, right = (getattr(side, "elts", [side]) for side in (node.targets[0], node.value))
        found |= {
            name.id: value.value
            for name, value in zip(left, right, strict=False)
            if isinstance(name, ast.Name) and isinstance(value, ast.Constant)
        }
    return found


def test_every_kind_that_is_written_is_shown_as_figures_or_known_to_be_tables(root):
    written = list(kinds_written(root))
    assert len(written) > 20
    assert [path for path, kind in written if kind is None] == []
    kinds = {kind for _, kind in written}
    assert kinds - set(RESULTS) - TABLES_ONLY == set()


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


def test_only_a_head_reads_as_one():
    assert parse_head("12.3") == (12, 3)
    for wrong in ("12", "a.b", "1.2.3", "-1.2", "", "1." + "1" * 20):
        with pytest.raises(WorkbenchError, match="not a head"):
            parse_head(wrong)
