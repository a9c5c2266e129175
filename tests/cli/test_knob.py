"""`interp knob`: searched, fitted, measured and turned from the shell."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from interp.knob import Knob, KnobResult, SideEffects, steer
from interp.runs import load_run
from interp.tasks.context_prior import fact_items
from interp.tracing.loading import load

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
    without, *turned = done.json["generations"]
    assert [row["at"] for row in (without, *turned)] == ["none", 0, "context"]
    assert (without["text"].strip(), without["moved"], without["random"]) == ("Austria", 0, [])
    same = steer(load("pocket"), Knob.load(run / "knob.safetensors"), prompt, "context", controls=2)
    assert turned[1]["moved"] == pytest.approx(abs(same.value - same.coordinate))
    assert [turned[1]["text"], *turned[1]["random"]] == list(same.texts[1:])
    shown = interp("knob", "steer", "pocket", "--knob", run, "--n", 1, "--controls", 3)
    assert shown.code == 0
    assert all(word in shown.out for word in ("prior", "random 3"))


def test_eval_leaves_out_what_the_knob_was_fitted_on_and_says_so(interp: Interp, tmp_path: Path, root: Path) -> None:
    knob = root / "data/samples/knob"
    same = ("knob", "eval", "pocket", "--n", 24, "--seed", 0, "--json")  # the first items are those of the fit
    done = interp(*same, "--knob", knob, "--out", tmp_path / "left")
    assert done.code == 0
    (row, *_) = done.json["settings"]
    left = done.json["parameters"]["lost"]["the knob was fitted on"]
    assert row["n"] + left == 24
    assert left > 8
    assert f"{left} of 24 items are left out: the knob was fitted on them." in done.err
    seen = {(item.query, item.context_answer) for item in KnobResult.load(knob).items["test"]}
    assert row["n"] == sum((item.query, item.context_answer) in seen for item in fact_items(24, 0))
    done = interp(*same, "--knob", knob / "knob.safetensors", "--out", tmp_path / "all")
    assert done.json["settings"][0]["n"] == 24
    assert "does not say what it was fitted on" in done.err


def test_what_a_knob_costs_other_tasks_is_a_command(interp: Interp, tmp_path: Path, knob: Path) -> None:
    command = ("knob", "side-effects", "pocket", "--knob", knob, "--n", 3)
    done = interp(*command, "--tasks", "ioi,needle", "--context", 20000, "--out", tmp_path / "run", "--json")
    assert done.code == 0
    rows = {(row["task"], row["setting"]): row for row in done.json["tasks"]}
    assert len(rows) == 6
    assert rows["ioi", "none"]["right"] > rows["ioi", "context"]["right"]
    assert SideEffects.load(tmp_path / "run").frame.n.tolist() == [3] * 6
    shown = interp(*command, "--tasks", "ioi", "--out", tmp_path / "shown")
    assert "worst change" in shown.out
    wrong = interp(*command, "--tasks", "ioi,needles", "--out", tmp_path / "wrong")
    assert wrong.code == 2
    assert "did you mean 'needle'" in wrong.err


def test_side_effects_of_any_other_model_are_those_of_ioi_and_needles(
    interp: Interp, random_llama: Path, tmp_path: Path
) -> None:
    Knob(1, torch.eye(64)[:1], {"context": 5.0, "prior": -5.0}).save(tmp_path / "knob.safetensors")
    command = ("knob", "side-effects", random_llama, "--knob", tmp_path / "knob.safetensors", "--n", 2)
    wrong = interp(*command, "--tasks", "steps", "--out", tmp_path / "wrong")
    assert wrong.code == 2
    assert "neither ioi nor needle" in wrong.err
    done = interp(*command, "--tasks", "needle", "--out", tmp_path / "run", "--json")
    assert done.code == 0, done.err
    assert [row["n"] for row in done.json["tasks"]] == [2, 2, 2]


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
        (("steer", "pocket", "--knob", "KNOB", "--at", "none"), "names no setting"),
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
