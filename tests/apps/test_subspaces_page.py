"""The Subspaces page: what a knob's run says, what turning it changes, and hidden states from a chosen side."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

import interp
from apps.explorer.settings import samples_folder
from apps.explorer.views.knob import slider_range
from apps.explorer.views.projections import labelled_lines
from interp.errors import BadInput
from interp.knob import Behaviour, KnobResult, steer
from interp.projection import Projection, project
from interp.runs import load_run
from interp.tasks.concepts import concept
from interp.tasks.context_prior import context_prompts
from tests.apps.reading import charts, numbers, said

SAMPLES = samples_folder()
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>"


@pytest.fixture(scope="module")
def knob() -> KnobResult:
    return KnobResult.load(SAMPLES / "knob")


@pytest.fixture(scope="module")
def pocket() -> interp.Model:
    return interp.load("pocket")


def same(shown, figure) -> bool:
    """Whether a chart of the page is a figure of the library."""
    own = json.loads(figure.to_json())
    return shown["data"] == own["data"] and shown["layout"]["title"] == own["layout"]["title"]


def test_a_saved_knob_is_shown_without_a_model(draw, knob):
    test = draw("subspaces", model="none")
    assert not test.exception
    assert not test.error
    facts = {metric.label: metric.value for metric in test.metric}
    fitted = knob.fitted.set_index("layer").loc[knob.layer]
    assert facts["after layer"].startswith(f"{knob.layer} ")
    assert facts["interchange accuracy"].startswith(f"{fitted.accuracy:.2f} [{fitted.accuracy_low:.2f}, ")
    table = test.dataframe[0].value.set_index("method")
    assert {"difference of means", "logistic regression", "random"} < set(table.index)
    assert table.loc["the knob (fitted)", "accuracy"] > table.accuracy.drop("the knob (fitted)").max() + 0.2
    figures = charts(test)
    assert same(figures[0], knob.plot("layers"))
    assert same(figures[1], knob.plot("coordinates"))
    assert same(figures[2], Behaviour.load(SAMPLES / "knob-answers").plot())
    assert same(figures[3], knob.behaviour.plot())
    assert "without a model" in said(test)
    assert not test.slider


def generations(test) -> list[str]:
    """What is said without the knob, at the slider's value, and along a random direction."""
    return [text.value for text in test.text[-3:]]


def test_moving_the_slider_changes_what_is_said_to_what_the_library_says(draw, knob, pocket):
    test = draw("subspaces")
    assert not test.exception
    assert not test.error, test.error[0].value
    item = knob.items["test"][0]
    assert test.selectbox(key="question").value == f"1. {item.query}"
    assert f"Context: {item.context}" in said(test)
    plain, turned, random = generations(test)
    assert item.prior_answer in plain
    assert item.context_answer in turned
    assert random == plain
    prompt = context_prompts(pocket.tokenizer, knob.items["test"], knob.form.silent, ("context",))[0]
    for value in (knob.knob.values["context"], -20.0):
        test.slider(key="value").set_value(value).run()
        assert not test.exception
        own = steer(pocket, knob.knob, prompt, value, new_tokens=8)
        assert generations(test) == [text.strip() for text in own.texts[:3]]
        assert same(charts(test)[-1], own.plot())
    assert generations(test)[1] == plain
    test.button(key="set-context").click().run()
    assert test.slider(key="value").value == pytest.approx(knob.knob.values["context"])
    assert generations(test)[1] == turned


def test_a_shared_address_opens_on_its_question_and_value(draw, knob):
    question = f"2. {knob.items['test'][1].query}"
    test = draw("subspaces", show="Knob", question=question, value="-10")
    assert not test.warning
    assert test.selectbox(key="question").value == question
    assert test.slider(key="value").value == -10
    test = draw("subspaces", question="../../etc/passwd", value="1e99", knob="samples/../secret")
    assert not test.exception
    assert [warning.value for warning in test.warning if "There is no question" in warning.value]
    assert test.slider(key="value").value == pytest.approx(knob.knob.values["context"])


def test_a_prompt_of_ones_own_is_in_the_address(draw, knob):
    test = draw("subspaces", **{"question": "one of my own", "own-prompt": "The city of Graz is in"})
    assert not test.error
    assert test.text_area(key="own-prompt").value == "The city of Graz is in"
    assert generations(test)[0].startswith("Austria")
    test.text_area(key="own-prompt").set_value("").run()
    assert not test.exception


@pytest.mark.parametrize("prompt", [HOSTILE, "word " * 10_000, " **bold** :red[x] $y$"])
def test_a_typed_prompt_is_text_and_answered_or_refused(draw, prompt):
    test = draw("subspaces", question="one of my own", state={"own-prompt": prompt})
    assert not test.exception
    long = len(prompt) > 2_000
    assert bool(test.error) == long
    if long:
        assert "2048" in test.error[0].value
    else:
        assert prompt.strip() in [text.value for text in test.text]
        assert len(charts(test)) == 5
    html = "".join(element.proto.body for element in test.get("html")) + json.dumps(charts(test))
    assert "<script" not in html
    assert "<img" not in html


def test_a_knob_of_other_weights_is_shown_and_not_turned(draw, own):
    shutil.copytree(SAMPLES / "knob", own / "other")
    record = json.loads((own / "other" / "run.json").read_text())
    record["model"] |= {"fingerprint": "0" * 16, "name": HOSTILE}
    (own / "other" / "run.json").write_text(json.dumps(record))
    test = draw("subspaces", knob="runs/other")
    assert not test.exception
    assert not test.error
    assert "is not turned here" in said(test)
    assert not test.slider
    assert "<script" not in json.dumps(charts(test)).replace("&lt;script", "")


@pytest.mark.parametrize("file", ["knob.safetensors", "items.parquet", "arrays.safetensors", "table.parquet"])
def test_a_damaged_knob_is_a_sentence(draw, own, file):
    shutil.copytree(SAMPLES / "knob", own / "broken")
    (own / "broken" / file).write_bytes(b"\xff" * 64)
    test = draw("subspaces", model="none", knob="runs/broken")
    assert not test.exception
    assert "cannot be read" in test.error[0].value
    test.segmented_control(key="show").set_value("Projections").run()
    assert not test.exception
    assert charts(test)


def test_a_saved_projection_is_shown_from_the_chosen_side(draw):
    test = draw("subspaces", show="Projections", model="none")
    assert not test.exception
    assert not test.error
    saved = Projection.load(SAMPLES / "projection")
    assert same(charts(test)[0], saved.plot())
    test.selectbox(key="saved-x").select("PC 2")
    test.selectbox(key="saved-y").select("random direction").run()
    assert same(charts(test)[0], saved.plot("PC 2", "random direction"))
    table = test.dataframe[0].value
    np.testing.assert_allclose(table["label told"], saved.separation.accuracy)
    np.testing.assert_allclose(table["shuffled labels"], saved.separation.shuffled)
    assert "without a model" in said(test)


def test_texts_are_projected_live_on_what_a_run_found(draw, pocket):
    test = draw("subspaces", show="Projections", layer="1", along="samples/knob")
    assert not test.exception
    assert not test.error, test.error[0].value
    assert not test.warning
    data = concept("sentiment").texts(120)
    knob = load_run(SAMPLES / "knob").array("bases", 4, 1, 256)[1, 0]
    axes = {"knob after layer 1": knob}
    own = project(pocket, data.texts, data.labels, "resid_post.1", directions=axes, components=3, groups=data.groups)
    live = charts(test)[-1]
    assert live["layout"]["title"] == json.loads(own.plot().to_json())["layout"]["title"]
    np.testing.assert_allclose(numbers(live["data"][0]["x"]), own.plot().data[0].x, rtol=1e-3, atol=1e-2)
    assert live["layout"]["xaxis"]["title"]["text"].startswith("knob after layer 1")
    test.selectbox(key="layer").select("3").run()  # where that knob has a basis too
    assert not test.exception
    test.selectbox(key="site").select("mlp_out").run()  # where no run has one
    assert not test.exception
    assert test.selectbox(key="along").value == "principal components"
    assert "Runs with directions at other sites: samples" in said(test)
    test.selectbox(key="along").select("difference of the labels' means").run()
    assert not test.error
    assert charts(test)[-1]["layout"]["xaxis"]["title"]["text"].startswith("mean difference")


def test_pasted_texts_are_projected_and_shown_as_text(draw):
    test = draw("subspaces", show="Projections", concept="texts of my own")
    assert not test.error, test.error[0].value
    pasted = "\n".join(f"{'ab'[i % 2]}{HOSTILE}\t{HOSTILE} {i}" for i in range(8))
    test.text_area(key="own-texts").set_value(pasted).run()
    assert not test.exception
    assert not test.error
    drawn = json.dumps(charts(test)[-1])
    assert "<script" not in drawn
    assert "<img" not in drawn
    test.text_area(key="own-texts").set_value("no tab here\n" * 8).run()
    assert "each needs a label" in test.error[0].value


def test_pasted_lines_are_checked():
    texts = labelled_lines("\n".join(f"l{i % 2}\t text {i}\tand a tab" for i in range(6)) + "\n\n")
    assert texts.labels == ("l0", "l1") * 3
    assert texts.texts[2] == "text 2\tand a tab"
    for pasted, sentence in (
        ("a\tb\n" * 3, "3 texts were pasted"),
        ("a\tb\n" * 500, "reads up to 400"),
        ("a\t" + "b" * 50_000, "reads up to 40,000"),
        ("a\tb\na\t \n" + "a\tb\n" * 6, "line 2 is"),
        ("\tb\n" * 7, "line 1 is"),
    ):
        with pytest.raises(BadInput, match=sentence):
            labelled_lines(pasted)


def test_the_slider_has_round_ends_beyond_what_was_measured():
    for values in ((-14.6, 81.4), (0.001, 0.0042), (3.0, 3.0), (-5e6, 12.0)):
        low, high, step = slider_range(values)
        assert low < min(values)
        assert high > max(values)
        assert np.log10(step) == pytest.approx(round(np.log10(step)))
        assert (high - low) / step == pytest.approx(round((high - low) / step))
        assert 20 < (high - low) / step < 1000
