"""`interp runs` reads what `save_run` wrote."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from interp.heads.causal import AblationReport
from interp.runs import save_run

Interp = Callable[..., Any]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for name, seed in (("first", 1), ("second", 2)):
        save_run(
            tmp_path / name,
            kind="retrieval-heads",
            parameters={"method": "chunk"},
            model={"name": "tiny", "fingerprint": "abc"},
            seed=seed,
            frame=pd.DataFrame({"layer": range(30), "score": np.linspace(0, 1, 30)}),
            arrays={"scores": np.zeros((5, 6))},
        )
    return tmp_path


def test_runs_are_listed(interp: Interp, runs: Path) -> None:
    shown = interp("runs", "list", runs)
    assert shown.code == 0
    assert all(word in shown.out for word in ("first", "second", "retrieval-heads", "tiny"))
    listed = interp("runs", "list", runs, "--json").json
    assert [(run["run"], run["seed"]) for run in listed] == [("first", 1), ("second", 2)]


def test_a_damaged_run_does_not_hide_the_others(interp: Interp, runs: Path) -> None:
    (runs / "first" / "run.json").write_text("{")
    listed = interp("runs", "list", runs, "--json")
    assert [run["run"] for run in listed.json] == ["second"]
    assert "first" in listed.err


def test_no_folder_of_runs_is_bad_input(interp: Interp, tmp_path: Path) -> None:
    done = interp("runs", "list", tmp_path / "none")
    assert done.code == 2
    assert "there is no folder" in done.err


def test_an_empty_folder_is_no_error(interp: Interp, tmp_path: Path) -> None:
    assert interp("runs", "list", tmp_path, "--json").json == []
    assert interp("runs", "list", tmp_path).code == 0


def test_a_run_shows_where_it_came_from_and_its_first_rows(interp: Interp, runs: Path) -> None:
    shown = interp("runs", "show", runs / "second", "--rows", 3).out
    assert "first 3 of 30 rows" in shown
    assert all(word in shown for word in ("parameters method", "chunk", "abc"))
    document = interp("runs", "show", runs / "second", "--json").json
    assert len(document["table"]) == 30
    assert document["arrays"] == {"scores": [5, 6]}
    assert document["seed"] == 2


def test_what_is_no_run_is_bad_input(interp: Interp, tmp_path: Path) -> None:
    done = interp("runs", "show", tmp_path)
    assert done.code == 2
    assert "is not a run" in done.err


def test_the_figure_in_a_file_is_the_one_that_the_result_plots(interp: Interp, root: Path, tmp_path: Path) -> None:
    run, file = root / "data/samples/needles", tmp_path / "figure.json"
    done = interp("runs", "figure", run, file)
    assert done.code == 0
    assert file.read_text() == AblationReport.load(run).plot().to_json()
    assert "length and depth" in done.err
    assert interp("runs", "figure", run, file, "--name", "length and depth", "--json").json["figures"] == [
        "result",
        "length and depth",
    ]
    assert "depth of the needle" in file.read_text()


@pytest.mark.parametrize(
    ("run", "file", "name", "sentence"),
    [
        ("needles", "figure.gif", "result", "valid: .html"),
        ("needles", "figure.json", "reslt", "did you mean 'result'"),
        ("nowhere", "figure.json", "result", "is not a run"),
    ],
)
def test_a_figure_that_cannot_be_is_bad_input(
    interp: Interp, root: Path, tmp_path: Path, run: str, file: str, name: str, sentence: str
) -> None:
    done = interp("runs", "figure", root / "data/samples" / run, tmp_path / file, "--name", name)
    assert done.code == 2
    assert sentence in done.err
    assert not any(tmp_path.iterdir())


def test_a_run_of_tables_alone_has_no_figure(interp: Interp, runs: Path, tmp_path: Path) -> None:
    done = interp("runs", "figure", runs / "first", tmp_path / "figure.json")
    assert done.code == 2
    assert "tables and no figure" in done.err
