"""Probes: curves beside their controls, a typed text, CLUE beside its baselines; broken runs and hostile texts."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file, save

import interp
from apps.explorer.settings import samples_folder
from interp.runs import load_run
from probes.depth import ConceptDepth
from probes.linear import LinearProbe
from probes.reranking import Ranking
from probes.verification import Verification
from tests.apps.reading import charts, numbers, said

SAMPLES = samples_folder()
SCRIPT = "<script>alert(1)</script><img src=x onerror=alert(2)> ![](http://evil.test/x.png) :red[x] $x$"
DEPTH = {"show": "depth", "depth": "samples/depth"}
CLUE = {"show": "clue", "clue": "samples/clue-verification", "ranking": "samples/clue-ranking"}


def figure(test, title):
    """The figure whose title begins so, as the browser gets it."""
    return next(chart for chart in charts(test) if chart["layout"]["title"]["text"].startswith(title))


def same(shown, drawn):
    own = json.loads(drawn.to_json())
    return shown["data"] == own["data"] and shown["layout"] == own["layout"]


def table(test, *columns):
    """The table that has these columns."""
    return next(frame.value for frame in test.dataframe if set(columns) <= set(frame.value))


def test_what_the_address_asks_for_is_drawn_and_nothing_else(draw):
    assert draw("probes", model="none", show="clue").header[0].value == "Right answers (CLUE)"
    assert draw("probes", model="none").header[0].value == "By depth"
    test = draw("probes", model="none", show="<b>else</b>")
    assert not test.exception
    assert "There is no kind of probe" in test.warning[0].value
    assert test.header[0].value == "By depth"


# --- depth


def test_the_curves_are_those_of_the_run_with_every_control(draw):
    study = ConceptDepth.load(SAMPLES / "depth")
    test = draw("probes", model="none", **DEPTH)
    assert not test.exception
    assert not test.error
    shown = figure(test, "Accuracy of probes at resid_post")
    assert same(shown, study.plot())
    names = {trace.get("name") for trace in shown["data"]}
    assert {"probe", "control", "shuffled", "untrained", "bag of tokens", "tokens:0.1 probe", "rtn-int4 probe"} <= names
    summary = table(test, "best_layer", "control", "converging")
    pd.testing.assert_frame_equal(summary, study.summary, check_dtype=False)
    sentiment = summary.set_index("dataset").loc["sentiment"]
    assert sentiment.low > max(sentiment.control, sentiment.shuffled, sentiment["bag of tokens"])


def test_tasks_perturbations_and_controls_are_chosen_on_the_page_or_in_the_address(draw):
    study = ConceptDepth.load(SAMPLES / "depth")
    test = draw("probes", model="none", **DEPTH)
    test.multiselect(key="tasks").set_value(["sentiment"])
    test.multiselect(key="conditions").set_value(["none"])
    test.toggle(key="controls").set_value(False)
    test.selectbox(key="metric").select("auc").run()
    which = {"metric": "auc", "site": "resid_post", "datasets": ["sentiment"], "conditions": ["none"]}
    assert same(figure(test, "AUC"), study.plot(**which, controls=False))
    address = {"tasks": "sentiment", "conditions": "none", "controls": "false", "metric": "auc"}
    again = draw("probes", model="none", **DEPTH, **address)
    assert same(figure(again, "AUC"), study.plot(**which, controls=False))


def test_another_study_is_drawn_below_as_far_as_it_has_the_same(draw, own):
    study = ConceptDepth.load(SAMPLES / "depth")
    fewer = ConceptDepth(
        study.frame[study.frame.dataset != "country"].reset_index(drop=True),
        tuple(right for right, name in zip(study.correct, study.curves.dataset, strict=True) if name != "country"),
        study.models,
        study.parameters,
    )
    fewer.save(own / "fewer")
    test = draw("probes", model="none", **DEPTH, depth_other="runs/fewer")
    assert not test.error
    below = [chart for chart in charts(test) if chart["layout"]["title"]["text"].startswith("Accuracy of probes at")]
    assert len(below) == 2
    assert same(below[1], fewer.plot())
    assert "This is the same study" in said(draw("probes", model="none", **DEPTH, depth_other="samples/depth"))


def test_a_typed_text_is_read_by_the_probes_and_by_the_controls_of_the_run(draw):
    model, study = interp.load("pocket"), ConceptDepth.load(SAMPLES / "depth")
    text = "Review: The table was not awful.\nSentiment:"
    test = draw("probes", **DEPTH, **{"probes-of": "sentiment"})
    test.text_area(key="text-sentiment").set_value(text).run()
    assert not test.exception
    assert not test.error
    shown = figure(test, "What probes of sentiment say")
    states = model.run(text, read="resid_post", positions=-1)
    for trace, series in zip(shown["data"], ("probe", "control"), strict=True):
        assert trace["name"] == series
        (fitted,) = (each for each in study.directions if (each.dataset, each.series) == ("sentiment", series))
        by_hand = []
        for layer in range(model.spec.layers):
            probe: LinearProbe = fitted.probes[f"resid_post.{layer}"]
            z = probe.weight[0] @ states[f"resid_post.{layer}"][0, -1].numpy() + probe.bias[0]
            by_hand.append(1 / (1 + np.exp(-z)))
        np.testing.assert_allclose(numbers(trace["y"]), by_hand, rtol=1e-3, atol=1e-4)
    test.text_area(key="text-sentiment").set_value(" ").run()
    assert "there is no text to read" in test.error[0].value
    test.text_area(key="text-sentiment").set_value(SCRIPT).run()
    assert not test.exception
    assert not test.error


def test_probes_of_another_model_are_not_read_with_this_one(draw, own):
    shutil.copytree(SAMPLES / "depth", own / "foreign")
    record = json.loads((own / "foreign/run.json").read_text())
    record["parameters"]["models"]["pocket"]["fingerprint"] = "0" * 16
    (own / "foreign/run.json").write_text(json.dumps(record))
    test = draw("probes", show="depth", depth="runs/foreign")
    assert "probes are of pocket, not of pocket" in test.error[0].value.replace("\\", "")
    assert figure(test, "Accuracy of probes")


# --- CLUE


def test_clue_is_shown_beside_its_baselines_and_the_numbers_decide(draw):
    found = Verification.load(SAMPLES / "clue-verification")
    test = draw("probes", model="none", **CLUE)
    assert not test.exception
    assert not test.error
    assert test.text[0].value == found.verdict
    better, _, rest = found.verdict.partition("Worse than: ")
    assert "Better than: nothing." in better  # on the bundled model
    assert rest.startswith("log-probability")
    assert same(figure(test, "Right from wrong traces"), found.plot())
    assert same(figure(test, "Traces around the centroids"), found.scored.plot())
    counted = figure(test, "How much nearer")["data"]
    assert [numbers(bar["customdata"]).sum(dtype=int) for bar in counted] == [
        found.scored.correct.sum(),
        (~found.scored.correct).sum(),
    ]


def test_picks_of_every_k_are_beside_the_majority_and_greedy_answers(draw):
    found = Ranking.load(SAMPLES / "clue-ranking")
    for k in (2, 8):
        test = draw("probes", model="none", **CLUE, k=str(k))
        assert found.verdict(k) in [text.value for text in test.text]
        assert same(figure(test, "Majority answer"), found.plot())
        names = figure(test, "What is picked")["data"][0]["y"]
        assert {"majority@n", "greedy", "mean@n", f"top-maj@{k}, clue", f"top-maj@{k}, any order"} <= set(names)


def test_a_question_shows_its_candidates_by_distance_right_or_not(draw):
    found = Ranking.load(SAMPLES / "clue-ranking")
    test = draw("probes", model="none", **CLUE)
    labels = test.selectbox(key="question").options
    assert len(labels) == len(found.picks)
    test.selectbox(key="question").select(labels[2]).run()
    shown = table(test, "margin", "response")
    expected = found.scored.candidates(found.picks.question[2])
    assert shown.response.tolist() == expected.response.tolist()
    assert shown.to_success.is_monotonic_increasing
    assert found.picks.question[2] in [text.value for text in test.text]


def hostile(own):
    """A ranking whose questions, answers and responses are markup."""
    shutil.copytree(SAMPLES / "clue-ranking", own / "hostile")
    for name in ("traces", "picks"):
        file = own / "hostile" / f"{name}.parquet"
        frame = pd.read_parquet(file)
        renamed = {question: f"{SCRIPT} {i}" for i, question in enumerate(frame.question.unique())}
        frame["question"] = frame.question.map(renamed)
        for column in {"answer", "response", "majority", "top-maj@2"} & set(frame):
            frame[column] = SCRIPT
        frame.to_parquet(file)


def test_markup_in_questions_and_answers_is_text(draw, own):
    hostile(own)
    test = draw("probes", model="none", show="clue", ranking="runs/hostile")
    assert not test.exception
    assert not test.error
    for element in (*test.get("html"), *test.get("plotly_chart")):
        assert "<script" not in str(element.proto)
    shown = next(metric.value for metric in test.metric if metric.label == "majority")
    assert "\\<script\\>" in shown
    assert any(text.value.startswith("<script>") for text in test.text)  # st.text shows it letter by letter


# --- damaged and missing runs


def halved(folder, name):
    file = folder / name
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def reshaped(folder, name):
    arrays = load_file(folder / "arrays.safetensors")
    arrays[name] = arrays[name][:-1]
    (folder / "arrays.safetensors").write_bytes(save(arrays))


@pytest.mark.parametrize(
    ("of", "key", "damage", "problem"),
    [
        ("depth", "depth", lambda run: halved(run, "table.parquet"), "cannot be read"),
        ("depth", "depth", lambda run: reshaped(run, "correct.0"), "has shape"),
        ("depth", "depth", lambda run: reshaped(run, "bias.0.resid_post.1"), "has shape"),
        ("clue-verification", "clue", lambda run: halved(run, "clue_centroids.safetensors"), "not hold centroids"),
        ("clue-verification", "clue", lambda run: reshaped(run, "projection"), "has shape"),
        ("clue-ranking", "ranking", lambda run: (run / "picks.parquet").unlink(), "cannot be read"),
        ("clue-ranking", "ranking", lambda run: reshaped(run, "by_question"), "has shape"),
    ],
)
def test_a_damaged_run_is_a_sentence_and_the_rest_is_drawn(draw, own, of, key, damage, problem):
    shutil.copytree(SAMPLES / of, own / "broken")
    damage(own / "broken")
    test = draw("probes", model="none", show="depth" if of == "depth" else "clue", **{key: "runs/broken"})
    assert not test.exception
    assert [error.value for error in test.error if problem in error.value.replace("\\", "")]
    assert bool(charts(test)) == (of != "depth")


def test_a_run_of_nothing_that_fits_is_a_sentence(draw, own):
    shutil.copytree(SAMPLES / "depth", own / "odd")
    frame = pd.read_parquet(own / "odd/table.parquet")
    frame.drop(columns="depth").to_parquet(own / "odd/table.parquet")
    test = draw("probes", model="none", show="depth", depth="runs/odd")
    assert not test.exception
    assert test.error


def test_folders_without_runs_name_the_commands_that_make_them(draw, own, monkeypatch):
    monkeypatch.setattr("apps.explorer.settings.samples_folder", lambda: own)
    for show, command in (("depth", "interp probe depth"), ("clue", "interp probe verify")):
        test = draw("probes", model="none", show=show)
        assert not test.exception
        assert command in said(test)
        assert not charts(test)


def test_linear_probes_of_own_labels_are_drawn_and_read(draw, own):
    from interp.tasks.concepts import concept
    from probes.activations import collect
    from probes.linear import ProbeSpec
    from probes.linear_probes import LinearProbes, linear_probes

    model, data = interp.load("pocket"), concept("sentiment").texts(60)
    found = linear_probes(collect(model, data.texts, "resid_post.2-3"), data, ProbeSpec(strengths=(0.1,), folds=2))
    found.save(own / "linear")
    assert load_run(own / "linear").record.kind == "linear-probes"
    again = LinearProbes.load(own / "linear")
    pd.testing.assert_frame_equal(again.frame, found.frame)
    assert again.plot().to_json() == found.plot().to_json()
    test = draw("probes", show="depth", depth="runs/linear")
    assert not test.error, test.error[0].value
    assert same(figure(test, "Accuracy of probes by site"), found.plot())
    example = found.parameters["examples"]["sentiment"]["positive"]
    reading = found.read(model, example, "sentiment").frame.set_index(["site", "series", "class"]).probability
    assert reading["resid_post.3", "probe", "positive"] > 0.9
    shown = figure(test, "What probes of sentiment say")
    assert shown["layout"]["xaxis"]["title"]["text"] == "layer"
