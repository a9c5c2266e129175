"""Importance, LoFiT and membership of circuits are numbers by head, beside every other score."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from apps.explorer.catalogue import chosen, entries
from apps.explorer.head_metrics import both, metrics_of
from apps.explorer.results import result_of
from apps.explorer.settings import samples_folder
from interp.runs import save_run

SAMPLES = {"samples": samples_folder()}


def sample(name):
    return chosen(entries(SAMPLES), f"samples/{name}")


def test_importance_lofit_and_membership_of_a_circuit_are_numbers_by_head():
    importance = metrics_of(sample("head-importance"), "i")
    assert importance["mean_of_abs"].quantity == "gradient importance, mean of absolute values (nats a token)"
    assert importance["effect"].low[2, 0] < importance["effect"].values[2, 0] < importance["effect"].high[2, 0]
    strength = metrics_of(sample("lofit"), "l")["strength"]
    of_lofit = result_of(sample("lofit"))
    for row in of_lofit.by_head.itertuples():
        assert strength.values[row.layer, row.head] == row.strength
    selected = metrics_of(sample("lofit"), "l")["selected"].values
    assert selected.sum() == pytest.approx(max(of_lofit.parameters["counts"]))
    frame = both(importance["mean_of_abs"], strength)
    assert len(frame) == 32


def test_a_head_belongs_to_a_circuit_where_it_has_a_role():
    run = sample("ioi-circuit")
    metric = metrics_of(run, "c")["circuit membership"]
    roles = run.frame[run.frame.role.fillna("") != ""]
    members = {(layer, head) for layer, head in np.argwhere(metric.values == 1).tolist()}
    assert members == set(zip(roles.layer, roles["head"], strict=True))
    assert set(np.unique(metric.values)) == {0.0, 1.0}
    first = roles.iloc[0]
    assert first.role in metric.labels[first.layer, first["head"]]
    assert metric.said()[first.layer * 8 + first["head"]].endswith(metric.labels[first.layer, first["head"]])
    figure = metric.figure()
    assert {trace.name for trace in figure.data[1:]} == set(roles.role)
    assert figure.data[0].customdata[first.layer][first["head"]] == metric.labels[first.layer, first["head"]]
    assert (np.array(figure.data[0].z) > 0).tolist() == (metric.values == 1).tolist()


def test_a_circuit_with_further_columns_and_roles_of_many_stages_is_read(tmp_path):
    where = {"stage": ["a", "b", "a"], "layer": [0, 0, 1], "head": [1, 1, 0]}
    what = {"effect": [0.5, 0.2, 0.1], "role": ["mover", "<b>second</b>", None], "new {column}": [1.0, 2.0, 3.0]}
    frame = pd.DataFrame({**where, **what, "n": 4})
    about = {"name": "tiny", "fingerprint": "0", "layers": 2, "heads": 2}
    run = save_run(tmp_path / "run", kind="circuit", parameters={}, model=about, seed=0, frame=frame)
    found = metrics_of(run, "r")
    metric = found["circuit membership"]
    assert metric.values[0].tolist()[1] == 1
    assert metric.values[1].tolist()[0] == 0
    assert np.isnan(metric.values[0, 0])
    assert metric.labels[0, 1] == "<b>second</b>, mover"
    assert "<b>" not in metric.figure().to_json()
    assert found["b: effect"].quantity == "b: effect"
    assert found["a: new {column}"].values[1, 0] == 3.0
