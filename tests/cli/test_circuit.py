"""`interp circuit`: what it finds in pocket, prints as JSON and writes as a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from interp.circuits.reuse import CircuitReuse
from interp.circuits.study import CircuitStudy
from interp.patching.eap import EdgeScores
from interp.runs import load_run

Interp = Callable[..., Any]
FEW = ("-n", 12)


def test_the_ioi_circuit_of_pocket_is_found_evaluated_and_written(interp: Interp, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "ioi"
    arguments = ("--test", 6, "--reference", 32, "--random", 2, "--size", 4, "--out", run, "--seed", 3, "--json")
    done = interp("circuit", "ioi", "pocket", *FEW, *arguments)
    assert done.code == 0
    document = done.json
    assert document["accuracy"] >= 0.9
    assert document["parameters"]["style"] == "pocket"
    assert document["parameters"]["seed"] == 3
    assert document["roles"]["subject suppressor"]
    assert set(document["evaluations"]) == {"end", "everywhere"}
    for scope, evaluation in document["evaluations"].items():
        assert len(evaluation["heads"]) == 4
        assert len(evaluation["random"]) == 2
        assert evaluation["parameters"]["at"] == scope
        assert {"cpr", "cmd", "kept", "curve", "completeness", "minimality"} <= set(evaluation)
    saved = load_run(run)
    assert (saved.record.kind, saved.record.seed) == ("circuit", 3)
    np.testing.assert_allclose(saved.frame["effect"], [head["effect"] for head in document["heads"]])
    kept = pd.read_parquet(run / "end-numbers.parquet").set_index("what").loc["kept, ratio of means", "value"]
    assert kept == pytest.approx(document["evaluations"]["end"]["kept"])
    study = CircuitStudy.load(run)
    for scope, evaluation in document["evaluations"].items():
        for name, value in study.evaluations[scope].summary().items():
            assert evaluation[name] == ([list(head) for head in value] if name == "heads" else pytest.approx(value))
        assert study.curves[scope].cpr == pytest.approx(evaluation["cpr"])


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs without --out are written below the folder the command is run in."""
    monkeypatch.chdir(tmp_path)


def test_without_test_prompts_the_circuit_is_not_evaluated(interp: Interp) -> None:
    done = interp("circuit", "ioi", "pocket", *FEW, "--test", 0)
    assert done.code == 0
    assert "subject suppressor" in done.out
    assert "minimality" not in done.out
    assert CircuitStudy.load("runs/pocket-ioi-circuit").evaluations == {}


def test_a_task_that_the_model_does_not_do_is_said_to_mean_little(interp: Interp) -> None:
    done = interp("circuit", "colored-objects", "pocket", "-n", 24, "--test", 0, "--json")
    assert done.code == 0
    assert "effects are noise" in done.err
    assert done.json["accuracy"] < 0.7


def test_reuse_reports_overlap_with_intervals_and_the_repair(interp: Interp, tmp_path: Path) -> None:
    run = tmp_path / "reuse"
    done = interp("circuit", "reuse", "pocket", *FEW, "--test", 12, "--controls", 2, "--out", run, "--json")
    assert done.code == 0
    document = done.json
    assert set(document["accuracy"]) == {"ioi", "colored-objects"}
    for row in document["overlap"]:
        assert 0 <= row["overlap_low"] <= row["overlap_high"] <= 1
    conditions = [row["condition"] for row in document["repair"]]
    assert conditions[:2] == ["none", "all"]
    assert conditions[-2:] == ["random 0", "random 1"]
    saved = CircuitReuse.load(run)
    assert saved.repair.frame["condition"].tolist() == conditions
    np.testing.assert_allclose(saved.frame["overlap_chance"], [row["overlap_chance"] for row in document["overlap"]])


def test_heads_to_force_can_be_named(interp: Interp) -> None:
    done = interp("circuit", "reuse", "pocket", *FEW, "--test", 6, "--controls", 0, "--force", "2.2,3.1", "--json")
    assert done.code == 0
    assert [row["heads"] for row in done.json["repair"]] == ["", "2.2 3.1", "2.2", "3.1"]


def test_edges_are_scored_beside_other_answers_and_written(interp: Interp, tmp_path: Path) -> None:
    run = tmp_path / "edges"
    done = interp("circuit", "edges", "pocket", "--n", 4, "--method", "eap", "--out", run, "--json")
    assert done.code == 0
    document = done.json
    saved = EdgeScores.load(run)
    assert [edge["score"] for edge in document["edges"]] == pytest.approx(saved.frame["score"].tolist())
    assert document["change"] < 0  # corrupting the subject takes the answer's lead away
    assert abs(saved.scores).max() > 3 * abs(saved.control).max()
    alone = interp("circuit", "edges", "pocket", "--n", 2, "--method", "eap", "--no-control")
    assert alone.code == 0
    assert "other answers" not in alone.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("edges", "pocket", "--metric", "accuracy"), "accuracy"),
        (("edges", "pocket", "--metric", "logit,probability"), "one metric"),
        (("edges", "pocket", "--task", "no-such-file"), "neither a prompt file"),
        (("reuse", "pocket", "--force", "2-2"), "is not a list of heads"),
        (("ioi", "pocket", "--style", "general", "-n", "1"), "--n"),
        (("colored-objects", "pocket", "--style", "title"), "title-case colors"),
        (("ioi", "no-such-model"), "no-such-model"),
    ],
)
def test_what_cannot_be_is_refused(interp: Interp, arguments: tuple[str, ...], message: str) -> None:
    done = interp("circuit", *arguments)
    assert done.code == 2
    assert message in done.err
