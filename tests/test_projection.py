"""Projections are what linear algebra says, their pictures are of texts nobody fitted, their numbers have controls."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

import interp
from interp.directions import Direction, directions_of, halves, principal_components, share_of_variance
from interp.discriminant import discriminated, label_folds, separation, told
from interp.errors import BadInput, UnknownSite, UnreadableFile
from interp.projection import MEANS, RANDOM, TOGETHER, Projection, hidden_states, project
from interp.runs import save_run
from interp.tasks.concepts import concept
from interp.tasks.ioi import ioi_prompts

HOSTILE = '<a href="javascript:alert(1)">x</a>'


@pytest.fixture(scope="module")
def pocket() -> interp.Model:
    return interp.load("pocket")


@pytest.fixture(scope="module")
def data():
    return concept("sentiment").texts(48, 1, seed=0)


@pytest.fixture(scope="module")
def states(pocket, data) -> np.ndarray:
    return hidden_states(pocket, data.texts, "resid_post.3")


@pytest.fixture(scope="module")
def found(pocket, data) -> Projection:
    vector = np.arange(256) - 100.0
    return project(pocket, data.texts, data.labels, "resid_post.3", directions={"mine": vector}, groups=data.groups)


def test_hidden_states_are_those_of_single_runs(pocket, data, states):
    for i in (0, 17, 47):
        alone = pocket.run(data.texts[i], read="resid_post.3", positions=-1)["resid_post.3"][0, 0]
        np.testing.assert_allclose(states[i], alone.numpy(), rtol=1e-3, atol=1e-2)
    heads = hidden_states(pocket, data.texts[:3], "z.1", position=0)
    assert heads.shape == (3, pocket.spec.heads * pocket.spec.head_dim)


def test_a_role_is_its_own_token_in_every_prompt(pocket):
    prompts = ioi_prompts(pocket.tokenizer, 4, seed=1)
    read = hidden_states(pocket, prompts, "embed", "S2")
    places = [span[1] - 1 for span in prompts.spans["S2"]]
    weights = pocket.hf.get_input_embeddings().weight.detach().double()
    np.testing.assert_allclose(
        read, weights[[row[p] for row, p in zip(prompts.tokens, places, strict=True)]], rtol=1e-5
    )


def test_principal_components_are_scikit_learns(states):
    ours = principal_components(states, 4)
    theirs = PCA(4).fit(states)
    agreement = np.abs(np.sum(ours * theirs.components_, axis=1))
    np.testing.assert_allclose(agreement, 1, atol=1e-6)
    np.testing.assert_allclose(share_of_variance(states, ours), theirs.explained_variance_ratio_, rtol=1e-6)
    assert (ours[np.arange(4), np.abs(ours).argmax(1)] > 0).all()
    with pytest.raises(BadInput, match="3 texts have 0 to 2"):
        principal_components(states[:3], 3)


def test_coordinates_are_inner_products_with_the_vectors(found, states):
    assert found.axes == ("mine", "PC 1", "PC 2", RANDOM)
    vector = np.arange(256) - 100.0
    assert found.norms[0] == pytest.approx(np.linalg.norm(vector))
    np.testing.assert_allclose(found.vectors[0] * found.norms[0], vector)
    np.testing.assert_allclose(found.coordinates[:, [0, 3]], states @ found.vectors[[0, 3]].T)
    np.testing.assert_allclose(found.coordinates[:, 1:3], (states - states.mean(0)) @ found.vectors[1:3].T, atol=1e-6)
    spread = found.coordinates.var(0) / states.var(0).sum()
    np.testing.assert_allclose(found.variance, spread)
    assert found.frame.columns.tolist() == ["text", "label", *found.axes]


def test_what_the_model_reads_last_is_told_and_its_controls_are_beside_it(found, data):
    rows = found.separation.set_index("axis")
    assert rows.index.tolist() == ["mine", "PC 1", "PC 2", TOGETHER]
    best = rows.loc["PC 1"]
    assert best.accuracy == 1
    assert best.accuracy_low < 1 == pytest.approx(best.accuracy_high)
    assert best.shuffled < 0.65
    assert best.random < best.accuracy
    assert (rows.n == len(data)).all()


def test_the_discriminant_is_scikit_learns():
    rng = np.random.default_rng(0)
    for kinds, width in ((2, 1), (2, 3), (4, 3)):
        labels = rng.integers(kinds, size=90)
        points = (
            rng.normal(size=(90, width)) @ rng.normal(size=(width, width))
            + 1.5 * rng.normal(size=(kinds, width))[labels]
        )
        new = rng.normal(scale=3, size=(400, width))
        theirs = LinearDiscriminantAnalysis(solver="lsqr").fit(points, labels).predict(new)
        np.testing.assert_array_equal(discriminated(points, labels, new, kinds), theirs)
    only = discriminated(np.ones((4, 1)), np.array([1, 1, 1, 1]), np.zeros((2, 1)), 3)
    assert only.tolist() == [1, 1]


def test_folds_part_no_group_and_noise_is_told_by_chance():
    rng = np.random.default_rng(1)
    labels = np.array(["a", "b"] * 60)
    groups = np.array([f"g{i // 4}" for i in range(120)])
    folds = label_folds(labels, groups)
    assert sorted(np.concatenate([test for _, test in folds]).tolist()) == list(range(120))
    for train, test in folds:
        assert not set(groups[train]) & set(groups[test])
    noise = rng.normal(size=(120, 64))
    frame = separation(noise[:, :2], {"noise": [0, 1]}, noise, labels, groups)
    row = frame.iloc[0]
    assert row.accuracy_low < 0.5 < row.accuracy_high
    assert row.shuffled_low < row.shuffled < row.shuffled_high
    assert row.random_low < 0.5 < row.random_high
    alone = label_folds(np.array(["a", "a", "b"]), np.array(["1", "2", "3"]))
    few = np.array(["a", "a", "b"])
    assert np.isnan(separation(noise[:3, :1], {"x": [0]}, noise[:3], few, np.arange(3).astype(str)).accuracy[0])
    assert np.isnan(told(noise[:3, :1], few, alone)).all()


def test_a_difference_of_means_is_shown_on_texts_it_was_not_taken_of(pocket, data, states):
    shown = project(
        pocket, data.texts, data.labels, "resid_post.3", mean_difference=True, components=0, groups=data.groups
    )
    labels, groups = np.array(data.labels), np.array(data.groups)
    fitting, kept = halves(labels, groups, 0)
    assert not set(groups[fitting]) & set(groups[kept])
    assert shown.texts == tuple(data.texts[i] for i in kept)
    assert (shown.axes, shown.parameters["fitted_on"]) == ((MEANS, RANDOM), len(fitting))
    own = states[fitting]
    difference = own[labels[fitting] == "positive"].mean(0) - own[labels[fitting] == "negative"].mean(0)
    np.testing.assert_allclose(shown.vectors[0] * shown.norms[0], difference, rtol=1e-3, atol=1e-2)
    assert shown.separation.accuracy[0] == 1
    # Of these very texts the difference would part labels that mean nothing, which on other texts it cannot.
    noise = np.random.default_rng(0).normal(size=(60, 256))
    random = np.array(["a", "b"] * 30)
    fitted = noise[random == "b"].mean(0) - noise[random == "a"].mean(0)
    folds = label_folds(random, np.arange(60).astype(str))
    assert told((noise @ fitted)[:, None], random, folds).mean() > 0.95


def test_a_projection_survives_its_run_and_the_seed_decides_it(found, pocket, data, tmp_path):
    found.save(tmp_path / "run")
    again = Projection.load(tmp_path / "run")
    assert again.frame.equals(found.frame)
    assert again.separation.equals(found.separation)
    assert (repr(again), again.parameters) == (repr(found), found.parameters)
    assert again.plot().to_json() == found.plot().to_json()
    assert again.plot("PC 2", RANDOM).to_json() == found.plot("PC 2", RANDOM).to_json()
    few = data.texts[:12], data.labels[:12]
    first, second, other = (project(pocket, *few, "embed", seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.coordinates, second.coordinates)
    assert np.abs(first.coordinates[:, -1] - other.coordinates[:, -1]).max() > 1e-3
    np.testing.assert_allclose(first.coordinates[:, :2], other.coordinates[:, :2])


def test_the_figure_shows_every_text_at_its_place_with_its_label(found):
    figure = found.plot("PC 2", "mine")
    assert [trace.name for trace in figure.data] == ["negative", "positive"]
    assert sum(len(trace.x) for trace in figure.data) == len(found.texts)
    frame = found.frame
    np.testing.assert_allclose(figure.data[1].x, frame[frame.label == "positive"]["PC 2"])
    np.testing.assert_allclose(figure.data[1].y, frame[frame.label == "positive"]["mine"])
    assert f"{found.variance[2]:.1%} of the variance" in figure.layout.xaxis.title.text
    assert found.texts[0].split("\n")[0] in "".join(found.plot().data[found.labels[0] == "positive"].customdata)
    with pytest.raises(BadInput, match="no axis 'PC 3'"):
        found.plot("PC 3")


def test_foreign_texts_labels_and_names_are_literal(found):
    n = len(found.texts)
    hostile = replace(found, texts=(HOSTILE,) * n, labels=(HOSTILE, *found.labels[1:]), axes=(HOSTILE, *found.axes[1:]))
    drawn = json.dumps(json.loads(hostile.plot().to_json()), ensure_ascii=False)
    assert "<a" not in drawn
    assert "&lt;a" in drawn
    assert "<a" not in replace(found, model={**found.model, "name": HOSTILE})._repr_html_()


def test_directions_are_read_from_the_runs_that_found_them(found, tmp_path, root):
    found.save(tmp_path / "projection")
    mine = directions_of(tmp_path / "projection")
    assert list(mine) == ["projection: mine", "projection: PC 1", "projection: PC 2"]
    np.testing.assert_allclose(mine["projection: mine"].vector, found.vectors[0])
    assert mine["projection: mine"].site == "resid_post.3"

    knob = directions_of(root / "data/samples/knob")
    best, direction = next(iter(knob.items()))
    assert (best, direction.site) == ("knob after layer 1", "resid_post.1")
    assert direction.fingerprint == found.model["fingerprint"]
    assert len(knob) == 4

    weight = np.arange(8.0)[None]
    about = {"parameters": {"classes": ["no", "yes"]}, "model": {"fingerprint": "f"}, "seed": 0}
    save_run(
        tmp_path / "p", kind="linear-probes", frame=pd.DataFrame({"a": [1]}), arrays={"weight.z.1": weight}, **about
    )
    ((name, probe),) = directions_of(tmp_path / "p").items()
    assert (name, probe.site, probe.fingerprint) == ("probe for yes at z.1", "z.1", "f")
    np.testing.assert_array_equal(probe.vector, weight[0])
    assert isinstance(probe, Direction)
    save_run(tmp_path / "q", kind="head-roles", frame=pd.DataFrame({"a": [1]}), **about)
    with pytest.raises(BadInput, match="directions are in knob, linear-probes, projection"):
        directions_of(tmp_path / "q")


def test_a_knob_read_back_as_a_direction_gives_the_coordinates_of_the_knob(pocket, root):
    from interp.knob import KnobResult
    from interp.tasks.context_prior import context_prompts

    knob = KnobResult.load(root / "data/samples/knob")
    few = knob.items["test"].take(range(4))
    prompts = context_prompts(pocket.tokenizer, few, knob.form)
    labels = [row["intent"] for row in prompts.metadata]
    (name, direction), *_ = directions_of(root / "data/samples/knob").items()
    shown = project(pocket, prompts, labels, direction.site, directions={name: direction.vector}, components=0)
    wanted = knob.coordinates[:4, :, 0].ravel()
    np.testing.assert_allclose(shown.coordinates[:, 0], wanted, rtol=1e-3, atol=1e-2)
    assert shown.separation.accuracy[0] == 1


TEXTS, LABELS = ["a b", "c d", "e f", "g h"], ["x", "y", "x", "y"]


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        ({"texts": TEXTS[:2], "labels": LABELS[:2]}, BadInput, "of 3 to 5,000 texts; got 2"),
        ({"texts": "abcd"}, BadInput, "several texts"),
        ({"labels": LABELS[:3]}, BadInput, "4 texts have 3 labels"),
        ({"groups": ["g"]}, BadInput, "4 labels and 1 groups"),
        ({"labels": ["x"] * 4}, BadInput, "all texts have the label 'x'"),
        ({"labels": list("xyzx"), "mean_difference": True}, BadInput, "these are 3: x, y, z"),
        ({"site": "resid_post"}, UnknownSite, "names 4 sites"),
        ({"site": "resid_post.9"}, UnknownSite, "resid_post.9|layer 9"),
        ({"site": "pattern.1"}, BadInput, "no vector a token"),
        ({"components": 0}, BadInput, "nothing to project on"),
        ({"components": 4}, BadInput, "4 texts have 0 to 3"),
        ({"directions": {"d": np.ones(7)}}, BadInput, r"shape \(7,\), and resid_post.1 holds 256"),
        ({"directions": {"d": np.zeros(256)}}, BadInput, "zero or not finite"),
        ({"directions": {"PC 1": np.ones(256)}}, BadInput, "cannot be called 'PC 1'"),
        ({"texts": TEXTS, "groups": ["g"] * 4, "mean_difference": True}, BadInput, "a half without both labels"),
        ({"position": 7}, BadInput, "7"),
    ],
)
def test_wrong_requests_are_refused(pocket, arguments, error, sentence):
    given = {"texts": TEXTS, "labels": LABELS, "site": "resid_post.1"} | arguments
    with pytest.raises(error, match=sentence):
        project(pocket, given.pop("texts"), given.pop("labels"), given.pop("site"), **given)


def test_a_damaged_run_is_refused(found, tmp_path):
    from safetensors.numpy import save

    found.save(tmp_path / "run")
    frame = pd.read_parquet(tmp_path / "run" / "table.parquet")
    frame.drop(columns="label").to_parquet(tmp_path / "run" / "table.parquet")
    with pytest.raises(UnreadableFile, match="lacks the columns label"):
        Projection.load(tmp_path / "run")
    frame.to_parquet(tmp_path / "run" / "table.parquet")
    (tmp_path / "run" / "arrays.safetensors").write_bytes(save({"coordinates": np.zeros((3, 4))}))
    with pytest.raises(UnreadableFile, match=r"has shape \(3, 4\)"):
        Projection.load(tmp_path / "run")
