"""`interp project`: labelled texts on a few directions, from the shell."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from interp.projection import Projection

Interp = Callable[..., Any]


def test_a_concept_is_projected_and_the_run_read_back(interp: Interp, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = interp("project", "pocket", "--n", 24, "--mean-difference", "--out", run, "--json", "--seed", 3)
    assert done.code == 0, done.err
    found = Projection.load(run)
    assert found.site == "resid_post.3"
    assert found.axes == ("mean difference", "PC 1", "PC 2", "random direction")
    assert [row["axis"] for row in done.json["separation"]] == found.separation.axis.tolist()
    assert len(found.texts) + found.parameters["fitted_on"] == 24

    again = ("project", "pocket", "--n", 24, "--components", 0, "--directions-of", run)
    shown = interp(*again, "--out", tmp_path / "again")
    assert shown.code == 0, shown.err
    assert "mean difference" in shown.out
    assert Projection.load(tmp_path / "again").axes[:3] == ("run: mean difference", "run: PC 1", "run: PC 2")
    twice = interp(*again, "--directions-of", run, "--out", tmp_path / "twice")
    assert (twice.code, "have a direction called 'run: PC 1'" in twice.err) == (2, True)


def test_texts_of_a_file_are_projected_along_a_knob(interp: Interp, tmp_path: Path, root: Path) -> None:
    data = tmp_path / "mine.csv"
    data.write_text("text,label\nOne,a\nTwo,b\nThree,a\nFour,b\n")
    knob = root / "data/samples/knob"
    command = ("project", "pocket", "--data", data, "--components", 1, "--directions-of", knob)
    done = interp(*command, "--site", "resid_post.1", "--out", tmp_path / "run")
    assert done.code == 0, done.err
    found = Projection.load(tmp_path / "run")
    assert found.axes[:2] == ("knob after layer 1", "PC 1")
    assert found.texts == ("One", "Two", "Three", "Four")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--data", "sentiments"), "did you mean 'sentiment'"),
        (("--data", "nowhere.csv"), "cannot be read"),
        (("--site", "resid_post.7"), "7"),
        (("--directions-of", "nowhere"), "is not a run"),
        (
            ("--directions-of", "KNOB", "--site", "mlp_out.1"),
            "have none at mlp_out.1; they have some at resid_post.0",
        ),
    ],
)
def test_wrong_requests_are_one_sentence(
    interp: Interp, tmp_path: Path, root: Path, arguments: tuple[str, ...], sentence: str
) -> None:
    given = [str(root / "data/samples/knob") if each == "KNOB" else each for each in arguments]
    done = interp("project", "pocket", "--n", 8, *given, "--out", tmp_path / "run")
    assert done.code == 2
    assert sentence in done.err
    assert not (tmp_path / "run").exists()
