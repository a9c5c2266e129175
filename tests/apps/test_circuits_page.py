"""Circuits: the graph of a run, what was measured of it, what two share, and the repair, as the library has them."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest

from apps.explorer.settings import samples_folder
from apps.explorer.views.circuits import selectable
from interp.circuits.reuse import CircuitReuse
from interp.circuits.study import CircuitStudy
from interp.patching.eap import EdgeScores
from interp.patching.eap_graph import GraphShape
from interp.plots.circuit_graph import circuit_graph
from interp.plots.circuit_reuse import overlap_map
from interp.plots.circuits import faithfulness_plot
from tests.apps.reading import charts, said

SAMPLES = samples_folder()


@pytest.fixture(scope="module")
def study():
    return CircuitStudy.load(SAMPLES / "ioi-circuit")


@pytest.fixture(scope="module")
def reuse():
    return CircuitReuse.load(SAMPLES / "circuit-reuse")


def same(shown, own):
    """Whether a figure on the page is that of the library."""
    own = json.loads(own.to_json())
    return shown["data"] == own["data"] and shown["layout"]["title"] == own["layout"]["title"]


def test_a_circuit_is_shown_with_the_figures_of_the_library_and_its_controls(draw, study):
    test = draw("circuits", model="none")
    assert not test.exception
    assert not test.error
    assert not test.warning
    assert test.selectbox(key="circuit").value == "samples/ioi-circuit"
    graph, kept, curve, completeness, minimality = charts(test)
    size = test.slider(key="size").value
    assert set(study.discovery.roles) <= set(study.discovery.strongest(size))
    assert graph["layout"]["title"]["text"] == "ioi circuit of pocket"
    roles = {(row.layer, row.head): row.role for row in test.dataframe[0].value.itertuples()}
    assert roles == study.discovery.roles
    end = study.evaluations["end"]
    assert same(kept, end.plot())
    assert same(curve, faithfulness_plot(study.curves["end"], size))
    assert same(completeness, end.plot("completeness"))
    assert same(minimality, end.plot("minimality"))
    sentence = next(text.value for text in test.text if "alone keep" in text.value)
    numbers = [float(number) / 100 for number in re.findall(r"(-?\d+)%", sentence)]
    random = end.random["kept"]
    wanted = [end.kept.estimate, end.kept.low, end.kept.high, random.mean(), random.min(), random.max()]
    assert numbers == pytest.approx(wanted, abs=0.005)


def test_the_slider_draws_that_many_heads_and_marks_the_curve(draw, study):
    test = draw("circuits", model="none", size="3", scope="everywhere")
    graph, _, curve = charts(test)[:3]
    heads = {tuple(head) for trace in graph["data"] for head in trace.get("customdata", []) if len(head) == 2}
    assert heads == set(study.discovery.strongest(3))
    assert same(curve, faithfulness_plot(study.curves["everywhere"], 3))
    assert curve["layout"]["shapes"][-1]["x0"] == 3
    test.slider(key="size").set_value(5).run()
    assert charts(test)[2]["layout"]["shapes"][-1]["x0"] == 5


def test_a_click_on_a_head_leads_to_its_page(draw, study):
    place = f"graph-{SAMPLES / 'ioi-circuit'}-3"
    click = {"selection": {"points": [{"customdata": [2, 6]}], "point_indices": [0], "box": [], "lasso": []}}
    test = draw("circuits", model="none", size="3", state={place: click})
    assert not test.exception
    link = test.get("page_link")
    assert [(one.proto.label, one.proto.query_string) for one in link] == [
        ("Open head 2.6 on the Heads page", "head=2.6&a=samples%2Fioi-circuit")
    ]


def test_a_selectable_graph_is_the_same_graph(study):
    own = circuit_graph(study.discovery, 8)
    shown = selectable(own)
    for mine, theirs in zip(own.data, shown.data, strict=True):
        kept = theirs.to_plotly_json()
        assert kept.pop("selected") == kept.pop("unselected")
        assert json.dumps(kept, default=str) == json.dumps(mine.to_plotly_json(), default=str)
    assert own.layout.dragmode is None


def test_a_circuit_of_a_task_that_the_model_does_not_do_says_so(draw):
    test = draw("circuits", model="none", circuit="samples/objects-circuit")
    assert not test.error
    assert "does not tell colored" in test.warning[0].value.replace("\\", "")
    assert "was not evaluated" in said(test)
    assert len(charts(test)) == 1


def test_two_circuits_are_compared_beside_chance(draw, reuse):
    test = draw("circuits", model="none", view="two circuits", share="25%")
    assert not test.exception
    assert not test.error
    curve, members, *graphs = charts(test)
    assert same(curve, reuse.plot())
    assert same(members, overlap_map(reuse, 0.25))
    assert [graph["layout"]["title"]["text"].split()[0] for graph in graphs] == ["ioi", "colored-objects"]
    row = reuse.frame.set_index("share").loc[0.25]
    assert f"{row.shared} of {row.union} heads are in both" in said(test)
    assert f"by chance {row.overlap_chance:.2f}" in said(test)
    table = test.dataframe[0].value
    assert (table["circuit"] == "both").sum() == row.shared
    test.select_slider(key="share").set_value(0.02).run()
    assert same(charts(test)[1], overlap_map(reuse, 0.02))


def test_a_repair_is_shown_before_and_after_beside_random_heads(draw, reuse, own):
    frame = reuse.repair.frame
    reuse.repair.save(own / "alone")
    for name in ("samples/circuit-reuse", "runs/alone"):
        test = draw("circuits", model="none", view="repair", repair=name)
        assert not test.exception
        assert not test.error
        assert same(charts(test)[0], reuse.repair.plot())
        values = {metric.label: metric.value for metric in test.metric}
        assert values["Before"] == f"{frame.accuracy[0]:.0%}"
        assert values["After"] == f"{frame.accuracy[1]:.0%}"
        random = frame[frame.condition.str.startswith("random")].accuracy
        assert values["Random heads instead, on average"] == f"{random.mean():.0%}"
        assert frame.accuracy[1] > random.max()


def test_edges_are_shown_beside_the_answers_of_other_prompts(draw, own, study):
    shape = GraphShape(2, 3, 8)
    drawn = np.random.default_rng(0).normal(size=(3, *shape.edges.shape)) * shape.edges
    model = {**study.discovery.model, "layers": 2, "heads": 3, "width": 8}
    scores = EdgeScores("eap", "logit_difference", shape, drawn[0], abs(drawn[1]), np.ones(4), model, {}, drawn[2] / 9)
    scores.save(own / "edges")
    test = draw("circuits", model="none", view="edges")
    assert not test.exception
    assert not test.error
    assert same(charts(test)[0], scores.plot())
    assert f"no score is larger than {abs(drawn[2] / 9).max():.3g}; the largest for the right ones" in said(test)
    assert test.dataframe[0].value.control[0] == pytest.approx(scores.frame.control[0])


def damaged_curve(folder):
    from safetensors.numpy import load_file, save

    arrays = load_file(folder / "arrays.safetensors") | {"curve.end": np.zeros((2, 3))}
    (folder / "arrays.safetensors").write_bytes(save(arrays))


def no_stages(folder):
    record = json.loads((folder / "run.json").read_text())
    record["parameters"].pop("stages")
    (folder / "run.json").write_text(json.dumps(record))


def half_a_table(folder):
    file = folder / "end-minimality.parquet"
    file.write_bytes(file.read_bytes()[:100])


def no_such_component(folder):
    record = json.loads((folder / "run.json").read_text())
    record["parameters"]["stages"][0]["stage"]["component"] = "<b>"
    (folder / "run.json").write_text(json.dumps(record))


def no_such_head(folder):
    record = json.loads((folder / "run.json").read_text())
    record["parameters"]["stages"][0]["found"][0] = [90, 1, "mover"]
    (folder / "run.json").write_text(json.dumps(record))


def no_score(folder):
    table = pd.read_parquet(folder / "end-minimality.parquet")
    table.drop(columns="score").to_parquet(folder / "end-minimality.parquet")


@pytest.mark.parametrize("damage", [damaged_curve, no_stages, half_a_table, no_such_component, no_such_head, no_score])
def test_a_damaged_run_is_a_sentence_and_leaves_the_page_standing(draw, own, damage):
    damage(shutil.copytree(SAMPLES / "ioi-circuit", own / "broken"))
    test = draw("circuits", model="none", circuit="runs/broken")
    assert not test.exception
    assert len(test.error) == 1
    assert re.search(r"broken|end-minimality", test.error[0].value.replace("\\", ""))
    test.selectbox(key="circuit").select("samples/ioi-circuit").run()
    assert not test.error
    assert charts(test)


def test_without_such_runs_the_page_names_the_command_that_makes_one(draw, monkeypatch, own):
    monkeypatch.setattr("apps.explorer.settings.samples_folder", lambda: own)
    for view, command in (
        ("one circuit", "circuit ioi"),
        ("two circuits", "circuit reuse"),
        ("repair", "circuit reuse"),
        ("edges", "circuit edges"),
    ):
        test = draw("circuits", model="none", view=view)
        assert not test.exception
        assert not test.error
        assert f"interp {command}" in said(test).replace("\\", "")
