"""`interp knob`: searched, fitted, measured and turned from the shell."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from interp.knob import Knob, KnobResult
from interp.runs import load_run

Interp = Callable[..., Any]


@pytest.fixture
def knob(tmp_path: Path) -> Path:
    """A knob of the bundled model's shape that nobody fitted."""
    path = tmp_path / "knob.safetensors"
    Knob(1, torch.eye(256)[:1], {"context": 5.0, "prior": -5.0}).save(path)
    return path


def test_a_fit_writes_a_run_that_eval_and_steer_read(interp: Interp, tmp_path: Path) -> None:
    run = tmp_path / "fit"
    few = ("--layers", "1,2", "--n", 40, "--steps", 3)
    done = interp("knob", "fit", "pocket", *few, "--out", run, "--json", "--seed", 2)
    assert done.code == 0
    assert {row["layer"] for row in done.json["layers"]} == {1, 2}
    assert done.json["behaviour"][0]["pair_accuracy"] == 1
    assert KnobResult.load(run).layer == done.json["layer"]

    done = interp(
        "knob", "eval", "pocket", "--knob", run, "--n", 6, "--values=-20,90", "--out", tmp_path / "eval", "--json"
    )
    assert done.code == 0
    assert [row["value"] for row in done.json["values"]] == [-20, 90]
    assert {row["setting"] for row in done.json["settings"]} == {"instructed", "silent", "steered"}
    assert load_run(tmp_path / "eval").record.kind == "knob-behaviour"

    prompt = "Query: Which country is Graz in?\nAnswer:"
    done = interp("knob", "steer", "pocket", "--knob", run, "--prompt", prompt, "--at", "none,0,context", "--json")
    assert done.code == 0
    (row,) = done.json["generations"]
    assert list(row) == ["prompt", "none", "0.0", "context"]
    assert row["none"].strip() == "Austria"
    shown = interp("knob", "steer", "pocket", "--knob", run, "--n", 1)
    assert shown.code == 0
    assert "prior" in shown.out


def test_search_says_the_layers_and_what_they_cost(interp: Interp, tmp_path: Path) -> None:
    done = interp("knob", "search", "pocket", "--n", 40, "--settings", "PC", "--out", tmp_path / "run", "--json")
    assert done.code == 0
    assert 2 in done.json["layers"]["PC"]
    assert done.json["evaluations"] <= 9
    every = interp("knob", "search", "pocket", "--n", 40, "--settings", "PC", "--exhaustive", "--out", tmp_path / "all")
    assert every.code == 0
    assert "'PC': [2" in every.out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("search", "pocket", "--settings", "CPP"), "did you mean 'CP'"),
        (("fit", "pocket", "--task", "nothing.csv"), "neither facts nor arithmetic nor a file"),
        (("fit", "pocket", "--layers", "7"), "layers 0 to 3"),
        (("fit", "pocket", "--layers", "one"), "not a list of numbers"),
        (("eval", "pocket", "--knob", "nowhere"), "cannot be read"),
        (("steer", "pocket", "--knob", "KNOB", "--at", "up"), "neither none, context or prior nor a number"),
        (("steer", "pocket", "--knob", "KNOB", "--at", ","), "names no setting"),
    ],
)
def test_wrong_requests_are_one_sentence(
    interp: Interp, tmp_path: Path, knob: Path, arguments: tuple[str, ...], sentence: str
) -> None:
    given = [str(knob) if each == "KNOB" else each for each in arguments]
    where = [] if "steer" in given else ["--out", tmp_path / "run"]
    done = interp("knob", *given, *where)
    assert done.code == 2
    assert sentence in done.err
    assert not (tmp_path / "run").exists()


def test_a_knob_of_another_width_is_refused(interp: Interp, random_llama: Path, knob: Path) -> None:
    done = interp("knob", "steer", random_llama, "--knob", knob, "--prompt", "abc")
    assert done.code == 2
    assert "same width" in done.err
