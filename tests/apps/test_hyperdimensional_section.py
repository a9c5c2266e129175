"""Bound concepts on the Probes page: saved studies, typed analogies and texts, and what cannot be read."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd
import pytest

import interp
from apps.explorer.settings import samples_folder
from interp.plots.vsa import precision_bars, precision_by_layer, precision_by_task
from probes.vsa.causal import CausalCheck
from probes.vsa.reading import read_text
from probes.vsa.study import HyperdimensionalProbe
from tests.apps.reading import charts, said

SAMPLES = samples_folder()
ANALOGIES, KEY_VALUE = "samples/vsa-analogies", "samples/vsa-key-value"
CHECK = "vsa-analogies-causal-resid_post.2"


@pytest.fixture(scope="module")
def probe():
    return HyperdimensionalProbe.load(SAMPLES / "vsa-analogies")


@pytest.fixture(scope="module")
def pocket():
    return interp.load("pocket")


def same(shown, figure):
    own = json.loads(figure.to_json())
    return (shown["data"], shown["layout"]["title"]) == (own["data"], own["layout"]["title"])


def test_saved_studies_are_shown_without_a_model(draw, probe):
    test = draw("probes", model="none", show="hyperdimensional")
    assert not test.exception
    assert not test.error
    layers, bars, _codebook, tasks, causal = charts(test)
    assert same(layers, precision_by_layer(probe.frame, probe.title))
    assert same(bars, probe.plot())
    other = HyperdimensionalProbe.load(SAMPLES / "vsa-key-value")
    assert same(tasks, precision_by_task({ANALOGIES: probe.frame, KEY_VALUE: other.frame}))
    assert same(causal, CausalCheck.load(SAMPLES / CHECK).plot())
    assert "without a model" in said(test)


def test_the_samples_read_far_above_chance_and_the_answer_follows(probe):
    for study in (probe, HyperdimensionalProbe.load(SAMPLES / "vsa-key-value")):
        rows = study.frame[(study.frame.metric == "precision@1") & (study.frame.subset == "all")]
        rows = rows[(rows.encoder == "linear") & (rows.moment == "before") & (rows.ingestion == "resid_post.3")]
        read = rows[rows.decoder.isin(["key", "role"])].iloc[0]
        assert read.low > 0.5 > 0.1 > rows[rows.method == "random codebook"].high.iloc[0]
        assert read.value >= rows[rows.decoder == "uncentred"].value.iloc[0] - 0.02
    beyond = CausalCheck.load(SAMPLES / CHECK).beyond_random().set_index(["direction", "strength"])
    assert beyond.loc[("pattern", 2.0), "low"] > 0.1


def test_prompts_are_told_apart_by_whether_the_model_is_right(draw, probe):
    test = draw("probes", model="none", show="hyperdimensional")
    test.segmented_control(key="subset").set_value("wrong").run()
    assert not test.exception
    assert same(charts(test)[0], precision_by_layer(probe.frame, probe.title, "wrong"))
    assert same(charts(test)[1], precision_bars(probe.frame, probe.title, "wrong"))


def test_a_typed_analogy_is_decoded_as_the_library_does(draw, probe, pocket):
    test = draw("probes", show="hyperdimensional")
    assert not test.exception
    assert not test.error
    example = probe.parameters["example"]
    name = next(iter(probe.encoders))
    own = read_text(pocket, probe, example["text"], name)
    assert same(charts(test)[-1], own.plot())
    assert own.frame.iloc[0].concept == example["target"]
    shown, model = test.dataframe[-2].value, test.dataframe[-1].value
    pd.testing.assert_frame_equal(shown, own.frame, check_dtype=False)
    assert model.token.tolist() == list(own.said.said)
    test.text_input(key="vsa-analogy").set_value("Paris : France :: Rome : ?").run()
    assert test.query_params["vsa-analogy"] == "Paris : France :: Rome : ?"
    shown = test.dataframe[-2].value
    again = read_text(pocket, probe, "Analogy: Paris : France = Rome :", name)
    np.testing.assert_allclose(shown.cosine, again.frame.cosine, atol=1e-6)
    assert shown[shown["query"] == "Rome"].concept.iloc[0] == "Italy"


@pytest.mark.parametrize(
    ("typed", "wanted"),
    [
        ("Paris France Rome", "an analogy reads A : B :: C : ?"),
        ("Paris : France :: rome : ?", "did you mean 'Rome'"),
        ("Paris : France :: Constantinople : ?", "no single one"),
        ("<script>alert(1)</script> : <b>x</b> :: y : ?", "is not in the codebook"),
        ("", "an analogy reads"),
    ],
)
def test_words_that_are_unknown_are_named_and_the_page_goes_on(draw, typed, wanted):
    test = draw("probes", state={"vsa-analogy": typed}, show="hyperdimensional")
    assert not test.exception
    assert wanted in test.error[0].value.replace("\\", "")
    assert "\\<script\\>" in test.error[0].value or "script" not in typed
    assert len(charts(test)) == 5
    assert "Paris" in said(test)  # the concepts that are known


def test_a_text_is_decoded_by_roles(draw, pocket):
    test = draw("probes", show="hyperdimensional", vsa=KEY_VALUE)
    assert not test.error
    probe = HyperdimensionalProbe.load(SAMPLES / "vsa-key-value")
    own = read_text(pocket, probe, probe.parameters["example"]["text"], next(iter(probe.encoders)))
    assert same(charts(test)[-1], own.plot())
    assert set(own.frame["query"]) == {"role:key", "role:value"}
    for text, wanted in (("", "there is no text"), ("word " * 1000, "up to 2,000")):
        test.text_area(key="vsa-text").set_value(text).run()
        assert not test.exception
        assert wanted in test.error[0].value.replace("\\", "")


def test_a_probe_of_another_model_reads_nothing(draw):
    test = draw("probes", model="pocket-early", show="hyperdimensional")
    assert not test.exception
    assert "this probe was fitted to pocket" in test.error[0].value
    assert len(charts(test)) == 5


def test_a_study_without_encoders_says_how_to_keep_them(draw, own, probe):
    probe.keeping([]).save(own / "bare")
    test = draw("probes", show="hyperdimensional", vsa="runs/bare")
    assert not test.error
    assert "keeps no encoder" in said(test)


def damaged_arrays(folder):
    file = folder / "arrays.safetensors"
    file.write_bytes(file.read_bytes()[:3000])


def foreign_concepts(folder):
    record = json.loads((folder / "run.json").read_text())
    record["parameters"]["concepts"] = {"<b>x</b>": 1}
    (folder / "run.json").write_text(json.dumps(record))


def foreign_table(folder):
    pd.DataFrame({"method": ["hypervector"], "subset": ["all"]}).to_parquet(folder / "table.parquet")


@pytest.mark.parametrize("damage", [damaged_arrays, foreign_concepts, foreign_table])
def test_a_damaged_study_is_a_sentence_and_the_others_are_shown(draw, own, damage):
    shutil.copytree(SAMPLES / "vsa-analogies", own / "broken")
    damage(own / "broken")
    test = draw("probes", show="hyperdimensional", vsa="runs/broken")
    assert not test.exception
    assert test.error
    whole = draw("probes", model="none", show="hyperdimensional", vsa=ANALOGIES)
    assert not whole.exception
    assert charts(whole)


def test_without_any_study_a_sentence_names_the_command(draw, monkeypatch, tmp_path):
    monkeypatch.setattr("apps.explorer.settings.samples_folder", lambda: tmp_path / "none")
    test = draw("probes", show="hyperdimensional")
    assert not test.exception
    assert "interp probe vsa fit" in said(test)
