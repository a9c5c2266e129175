"""Every page on the sample runs, with the live model, without one, and with one that cannot be loaded."""

from __future__ import annotations

import re
import shutil
from urllib.parse import unquote

import numpy as np
import pytest

import interp
from apps.explorer.settings import samples_folder
from interp.heads.effects import ablation_effects
from interp.heads.scores import HeadScores
from interp.next_token import next_token, one_row
from interp.runs import load_run
from interp.tasks.prompts import PromptSet
from tests.apps.reading import charts, numbers, said

PAGES = (
    "heads",
    "model",
    "needles",
    "patching",
    "circuits",
    "subspaces",
    "probes",
    "skills",
    "runs",
    "export",
    "doctor",
)
LIVE = ("heads", "model", "needles", "patching", "subspaces", "probes", "doctor")
WIDGETS = ("selectbox", "multiselect", "slider", "select_slider", "text_input", "text_area", "toggle", "button")
"""What a screen reader reads out by its label."""
SAMPLES = samples_folder()
PROMPT = "When Alice and Mary went to the market, Mary gave the letter to"


@pytest.fixture(scope="module")
def pocket():
    return interp.load("pocket")


@pytest.mark.parametrize("page", PAGES)
def test_every_page_draws_on_the_sample_runs(draw, page):
    test = draw(page)
    assert not test.exception
    assert not test.error
    assert not test.warning
    assert test.title[0].value.lower() == page


@pytest.mark.parametrize("page", PAGES)
def test_every_page_draws_without_a_model(draw, page):
    test = draw(page, model="none")
    assert not test.exception
    assert not test.error
    assert [widget for kind in WIDGETS for widget in getattr(test, kind) if not widget.label.strip()] == []
    assert ("without a model" in said(test)) == (page in LIVE)
    if page in ("heads", "needles", "patching", "circuits", "runs", "skills"):
        assert charts(test)


@pytest.mark.parametrize("page", LIVE)
def test_a_model_that_cannot_be_loaded_says_why(draw, page, tmp_path):
    test = draw(page, model=str(tmp_path / "nowhere"))
    assert not test.exception
    assert [error for error in test.error if "could not be loaded" in error.value and "nowhere" in error.value]
    assert [button.label for button in test.button].count("Try again") == 1


@pytest.fixture
def opened(draw, root):
    """The whole app as it opens."""
    from streamlit.testing.v1 import AppTest

    def app(model="none"):
        draw("runs", model=model)  # sets the environment
        return AppTest.from_file(str(root / "apps/explorer/app.py"), default_timeout=120).run()

    return app


def test_the_whole_app_opens_on_what_there_is(opened, own):
    shutil.copytree(SAMPLES / "roles", own / "mine")
    test = opened()
    assert not test.exception
    assert not test.error
    assert test.title[0].value == "Start"
    assert "By address" not in said(test)
    assert "1 run of your own" in said(test)
    links = {link.proto.page: link.proto.label for link in test.get("page_link")}
    assert set(PAGES) <= set(links)
    newest = [link.proto.query_string for link in test.get("page_link") if link.proto.query_string]
    assert len(newest) == 8
    names = [unquote(query).rpartition("/")[2] for query in newest if "mine" not in query]
    times = [load_run(SAMPLES / name).record.finished for name in names]
    assert times == sorted(times, reverse=True)


def test_every_page_says_in_a_line_what_it_is_for():
    from apps.explorer import app
    from apps.explorer.views.start import about

    assert set(PAGES) <= set(app.PAGES)
    for address in app.PAGES:
        line = about(address)
        assert line[0].isupper(), address
        assert line.endswith("."), address


def test_a_folder_of_runs_that_is_not_there_is_said_and_the_samples_shown(opened, own):
    own.rmdir()
    assert "is not there yet" in said(opened())
    own.write_text("")
    shown = opened()
    assert "is a file, not a folder" in said(shown)
    assert not shown.exception
    assert len(shown.get("page_link")) > len(PAGES)


def test_no_folder_of_the_app_is_taken_for_streamlits_own_pages(root):
    assert not (root / "apps/explorer/pages").exists()


def test_a_head_in_the_address_is_shown_with_its_numbers_of_every_run(draw):
    test = draw("heads", head="2.1", a="samples/retrieval", b="samples/head-effects", model="none")
    table = test.dataframe[0].value
    scores = HeadScores.load(SAMPLES / "retrieval")
    row = table[(table.run == "samples/retrieval") & (table.metric == "score")].iloc[0]
    assert row.value == pytest.approx(scores.scores[2, 1])
    assert row.n == len(scores.samples)
    effect = load_run(SAMPLES / "head-effects").frame.set_index(["layer", "head"]).effect
    row = table[(table.run == "samples/head-effects") & (table.metric == "effect")].iloc[0]
    assert row.value == pytest.approx(effect[2, 1])
    assert row.place == f"{1 + (effect > effect[2, 1]).sum()} of 32"
    assert set(table.run) >= {"samples/roles", "samples/ioi-heads"}
    assert "samples/retrieval-early" not in set(table.run)  # another model's
    assert test.selectbox(key="head").value == "2.1"


def test_the_heads_open_on_a_score_beside_an_effect_and_on_the_greatest_of_it(draw):
    test = draw("heads", model="none")
    assert (test.selectbox(key="a").value, test.selectbox(key="b").value) == (
        "samples/retrieval",
        "samples/head-effects",
    )
    scores = HeadScores.load(SAMPLES / "retrieval").scores
    assert scores[tuple(map(int, test.selectbox(key="head").value.split(".")))] == scores.max()


def test_choosing_a_head_changes_the_page(draw):
    test = draw("heads", model="none")
    test.selectbox(key="head").select("3.7").run()
    assert test.subheader[0].value == "Head 3.7 of pocket"


def test_the_effect_of_a_head_on_the_next_token_is_that_of_the_library(draw, pocket):
    test = draw("heads", head="2.1", a="samples/retrieval")
    row, says = one_row(pocket, PROMPT), next_token(pocket, PROMPT)
    answered = PromptSet((PROMPT,), (tuple(row),), (says.said[0],), ((says.ids[0],),))
    effects = ablation_effects(pocket, answered, ablation="mean").effects
    sentence = next(text.value for text in test.text if text.value.startswith("Without head 2.1"))
    assert float(re.search(r"falls by (-?[\d.]+) nats", sentence)[1]) == pytest.approx(effects[2, 1], abs=1e-3)
    assert effects[2, 1] > 1 > np.abs(np.delete(effects[2], 1)).max()
    assert "looks at ' Alice'" in said(test)


def test_attention_is_materialised_only_when_asked_for_and_not_for_long_prompts(draw):
    test = draw("heads", head="2.1", model="pocket")
    before = len(charts(test))
    test.toggle(key="pattern").set_value(True).run()
    assert len(charts(test)) == before + 1
    test.text_area(key="prompt").set_value("the " * 300).run()
    assert "a matrix is shown up to 128" in said(test)
    assert len(charts(test)) == before
    assert not test.exception


def test_the_models_page_shows_what_the_model_says_of_the_prompt(draw, pocket):
    test = draw("model")
    figures = charts(test)
    says = next_token(pocket, PROMPT)
    np.testing.assert_allclose(numbers(figures[0]["data"][0]["x"]), np.exp(says.log_probabilities), rtol=1e-5)
    assert figures[1]["data"][0]["y"] == ["resid_pre.0", *(f"resid_post.{layer}" for layer in range(4))]
    lens = test.dataframe[1].value
    assert lens.iloc[0].token == says.said[0]
    test.select_slider(key="lens-position").set_value(0).run()
    assert test.dataframe[1].value.iloc[0].token != says.said[0]


def test_runs_are_listed_and_their_differences_named(draw):
    test = draw("runs", run="samples/retrieval", other="samples/retrieval-early")
    listed = test.dataframe[0].value
    assert set(listed.run) == {f"samples/{path.name}" for path in SAMPLES.iterdir() if path.is_dir()}
    different = test.dataframe[-1].value.set_index("fact")
    assert tuple(different.loc["model name"]) == ("pocket", "pocket-early")
    assert "parameters gate" not in different.index
    assert {metric.label for metric in test.metric} >= {"pearson", "jaccard"}


def test_a_needle_study_runs_live_and_is_saved_where_it_should(draw, own):
    test = draw("needles")
    test.slider(key="needle-heads").set_value(2)
    test.multiselect(key="needle-lengths").set_value([128])
    test.multiselect(key="needle-depths").set_value([0, 100])
    test.slider(key="needle-count").set_value(2)
    before = len(charts(test))
    next(button for button in test.button if button.label == "Run").click().run()
    assert not test.exception
    assert not test.error
    assert len(charts(test)) == before + 2
    test.text_input(key="needles-name").set_value("../outside")
    next(button for button in test.button if button.label == "Save as a run").click().run()
    assert "is no name of a run" in test.error[0].value.replace("\\", "")
    assert not (own.parent / "outside").exists()
    test.text_input(key="needles-name").set_value("mine")
    next(button for button in test.button if button.label == "Save as a run").click().run()
    frame = load_run(own / "mine").frame
    recall = frame.groupby("heads").recall.mean()
    assert recall["none"] == 1 > recall["random"] - 0.5 > recall["chosen"]


def test_too_many_needles_are_refused_before_anything_runs(draw):
    test = draw("needles")
    test.multiselect(key="needle-lengths").set_value([])
    next(button for button in test.button if button.label == "Run").click().run()
    assert "0 tests" in test.error[0].value
    assert "study-report" not in test.session_state


def test_a_typed_pair_is_patched_and_one_that_does_not_align_is_refused(draw):
    test = draw("patching")
    before = len(charts(test))
    test.selectbox(key="what").select("z, by head")
    patch = next(button for button in test.button if button.label == "Patch")
    patch.click().run()
    assert not test.exception
    assert not test.error, test.error[0].value
    figures = charts(test)
    assert len(figures) == before + 1
    assert len(figures[-1]["data"]) == 2  # the map and the points that can be clicked
    test.text_input(key="corrupt").set_value("When Alice went home, Alice gave the letter to")
    next(button for button in test.button if button.label == "Patch").click().run()
    assert "positions do not match" in test.error[0].value


def test_a_task_is_patched_by_role(draw):
    test = draw("patching", task="ioi")
    test.slider(key="pairs").set_value(2)
    next(button for button in test.button if button.label == "Patch").click().run()
    assert not test.error
    assert charts(test)[-1]["layout"]["xaxis"]["ticktext"] == ["IO", "S1", "S1+1", "S2", "end"]


def test_the_doctor_checks_the_model(draw):
    test = draw("doctor")
    assert not test.success
    test.button(key="check").click().run()
    assert re.fullmatch(r"All \d+ checks passed\.", test.success[0].value)
    assert (test.dataframe[0].value.result != "FAIL").all()
