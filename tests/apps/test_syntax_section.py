"""Syntax trees on the Probes page: saved studies, code that is typed, and what cannot be read."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd
import pytest

import interp
from apps.explorer.settings import samples_folder
from apps.explorer.views.syntax import CODE, MOST
from interp.plots.syntax import alike
from probes.ast.corpus import Snippet
from probes.ast.reading import fresh_model, read_code
from probes.ast.result import AstStudy
from tests.apps.reading import charts, numbers, said

SAMPLE = samples_folder() / "ast"


@pytest.fixture(scope="module")
def study():
    return AstStudy.load(SAMPLE)


@pytest.fixture(scope="module")
def pocket():
    return interp.load("pocket")


def same(shown, figure):
    """Whether a figure on the page is that of the library, but for where the name of its colour bar stands."""
    for trace in shown["data"]:
        trace.get("colorbar", {}).get("title", {}).pop("side", None)
    own = json.loads(figure.to_json())
    return (shown["data"], shown["layout"]["title"]) == (own["data"], own["layout"]["title"])


def test_a_saved_study_is_shown_without_a_model(draw, study):
    test = draw("probes", model="none", show="syntax")
    assert not test.exception
    assert not test.error
    curves, subspaces = charts(test)
    assert same(curves, study.plot())
    assert same(subspaces, alike(study.similarities(), study.title, study.title))
    row = study.curve("probe").set_index("site").loc[study.best]
    shown = {metric.label: metric.value.replace("\\", "") for metric in test.metric}
    assert f"{row.value:.2f} [{row.low:.2f}, {row.high:.2f}]" in shown.values()
    assert study.best in shown.values()
    pd.testing.assert_frame_equal(test.dataframe[0].value, study.comparisons())
    assert "without a model" in said(test)


def test_the_sample_is_beyond_its_controls(study):
    against = study.comparisons().set_index("control")
    assert against.beyond[["embedding", "untrained", "shifted"]].all()


def test_typed_code_is_read_as_the_library_reads_it_beside_its_controls(draw, study, pocket):
    test = draw("probes", show="syntax")
    assert not test.exception
    assert not test.error
    (own,) = read_code(pocket, study, [Snippet.of(CODE)], fresh=fresh_model(pocket, study))
    assert same(charts(test)[-1], own.plot())
    table = test.dataframe[-1].value
    np.testing.assert_allclose(table.f1, own.frame.f1)
    assert len(table) == 7
    assert table["what it is"].notna().all()
    code = "def f(x):\n    return x + 1\n"
    test.text_area(key="code").set_value(code).run()
    assert test.query_params["code"] == code
    (other,) = read_code(pocket, study, [Snippet.of(code)])
    assert same(charts(test)[-1], other.plot())
    test.selectbox(key="ast-site").select("embed").run()
    assert set(test.dataframe[-1].value.site[:1]) == {"embed"}


def test_another_language_says_what_the_probe_cannot_name(draw):
    test = draw("probes", show="syntax", code="function f(x) { return x; }")
    assert "no python that parses" in said(test)
    test.selectbox(key="ast-language").select("javascript").run()
    assert not test.error
    assert "it can name only what that language has" in said(test)


@pytest.mark.parametrize(
    ("code", "wanted"),
    [
        ("def f(x):\n    return (\n", "line 1, column 1"),
        ("x = 1\ny = = 2\n", "line 2, column"),
        ("", "there is no code"),
        ("# only a comment", "there is no code"),
        ("x = " + "[" * 350 + "]" * 350, "levels deep"),
        ("x = 1\n" * 1000, f"up to {MOST:,}"),
    ],
    ids=["unclosed", "second line", "empty", "comment", "deep", "long"],
)
def test_code_that_cannot_be_read_says_where_and_the_page_goes_on(draw, code, wanted):
    test = draw("probes", state={"code": code}, show="syntax")
    assert not test.exception
    assert wanted in "\n".join(error.value for error in test.error).replace("\\", "")
    assert len(charts(test)) == 2


def test_markup_in_code_is_letters(draw):
    code = "x = '<script>alert(1)</script><a href=\"http://evil.test\">y</a> :red[z] $w$'\n"
    test = draw("probes", state={"code": code}, show="syntax")
    assert not test.exception
    assert not test.error
    for figure in charts(test):
        assert "<script" not in json.dumps(figure)
        assert "<a href" not in json.dumps(figure)
    broken = draw("probes", state={"code": f"{code} ("}, show="syntax")
    assert "\\<script\\>" in broken.error[0].value


def test_a_probe_of_another_model_reads_nothing(draw):
    test = draw("probes", model="pocket-early", show="syntax")
    assert not test.exception
    assert "the probes of this study read pocket" in test.error[0].value
    assert len(charts(test)) == 2


def damaged_arrays(folder):
    file = folder / "arrays.safetensors"
    file.write_bytes(file.read_bytes()[:5000])


def damaged_labels(folder):
    (folder / "labels.json").write_text('{"c": []}')


def foreign_table(folder):
    pd.DataFrame({"series": ["probe"], "site": ["embed"]}).to_parquet(folder / "table.parquet")


@pytest.mark.parametrize("damage", [damaged_arrays, damaged_labels, foreign_table])
def test_a_damaged_study_is_a_sentence(draw, own, damage):
    shutil.copytree(SAMPLE, own / "broken")
    damage(own / "broken")
    test = draw("probes", show="syntax", ast="runs/broken")
    assert not test.exception
    assert test.error
    whole = draw("probes", model="none", show="syntax", ast="samples/ast")
    assert not whole.error


def test_a_study_is_compared_with_another(draw, own, study):
    shutil.copytree(SAMPLE, own / "again")
    test = draw("probes", model="none", show="syntax", ast="samples/ast", beside="runs/again")
    grid = numbers(charts(test)[1]["data"][0]["z"])
    np.testing.assert_allclose(np.diagonal(np.reshape(grid, (5, 5))), 1, atol=1e-6)


def test_without_any_study_a_sentence_names_the_command(draw, monkeypatch, tmp_path):
    monkeypatch.setattr("apps.explorer.settings.samples_folder", lambda: tmp_path / "none")
    test = draw("probes", show="syntax")
    assert not test.exception
    assert "interp probe ast fit" in said(test)
