"""`interp probe`: a study leaves a run, an interrupted one goes on, and bad requests cost nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from interp.cli import probe
from interp.runs import load_run
from interp.tasks.concepts import CONCEPTS
from probes.depth import ConceptDepth
from probes.linear_probes import LinearProbes

Interp = Callable[..., Any]


@pytest.mark.parametrize("command", [("probe", "depth"), ("project",)])
def test_help_names_every_concept(interp: Interp, command: tuple[str, ...]) -> None:
    shown = interp(*command, "--help").out
    assert all(name in shown for name in CONCEPTS)


@pytest.fixture
def sentences(tmp_path: Path) -> Path:
    """Texts whose last letter is their label."""
    file = tmp_path / "data.jsonl"
    rows = [{"text": f"number {i} {'xy'[i % 2]}", "label": "xy"[i % 2]} for i in range(60)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_a_depth_study_is_a_run(interp: Interp, random_llama: Path, sentences: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = ("probe", "depth", random_llama, "--data", sentences, "--strengths", "0.1", "--perturb", "rtn-int4")
    done = interp(*command, "--out", run, "--seed", 3, "--json")
    assert done.code == 0
    document = done.json
    assert document["run"] == str(run)
    saved = load_run(run)
    assert (saved.record.kind, saved.record.seed) == ("concept-depth", 3)
    assert len(document["curves"]) == len(saved.frame)
    assert {point["condition"] for point in document["points"]} == {"none", "rtn-int4"}
    last = saved.frame[(saved.frame.series == "probe") & (saved.frame.metric == "accuracy")]
    assert (last.value > 0.9).all()
    assert ConceptDepth.load(run).curve().shape == (2, 60)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data.jsonl", "run"]
    again = interp(*command, "--out", run)
    assert again.code == 2
    assert "already holds a run" in again.err


def test_generated_concepts_are_shown_as_tables(interp: Interp, random_llama: Path, tmp_path: Path) -> None:
    command = ("--data", "sentiment", "-n", 60, "--strengths", "0.1", "--no-controls", "--out", tmp_path / "run")
    done = interp("probe", "depth", random_llama, *command)
    assert done.code == 0
    assert "accuracy by layer" in done.out
    assert "jump and converging points" in done.out
    assert f"Run: {tmp_path / 'run'}" in done.out


def test_linear_probes_keep_their_directions(
    interp: Interp, random_llama: Path, sentences: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    done = interp("probe", "linear", random_llama, "--data", sentences, "--sites", "resid_post,z.1", "--out", run)
    assert done.code == 0
    assert "out-of-fold accuracy" in done.out
    saved = load_run(run)
    assert set(saved.frame.labels) == {"label", "control"}
    result = LinearProbes.load(run)
    assert [each.series for each in result.directions] == ["probe", "control"]
    probe = result.directions[0].probes["z.1"]
    assert probe.weight.shape == (1, 64)
    assert probe.classes.tolist() == saved.record.parameters["classes"] == ["x", "y"]
    own = saved.frame[(saved.frame.labels == "label") & (saved.frame.metric == "accuracy")]
    assert (own.value > 0.9).all()
    out_of_fold = saved.arrays["scores.label"].argmax(-1)
    assert np.mean(out_of_fold[0] == np.arange(60) % 2) == own.value.iloc[0]


def test_an_interrupted_study_goes_on_with_resume(
    interp: Interp, random_llama: Path, sentences: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def stopping(task: str) -> Iterator[Callable[[int, int], None]]:
        def report(done: int, total: int) -> None:
            raise KeyboardInterrupt

        yield report

    run = tmp_path / "run"
    command = ("probe", "depth", random_llama, "--data", sentences, "--strengths", "0.1", "--no-controls", "--out", run)
    with monkeypatch.context() as patched:
        patched.setattr(probe, "progress", stopping)
        stopped = interp(*command)
    assert stopped.code == 130
    assert "--resume" in stopped.err
    again = interp(*command)
    assert again.code == 2
    assert "interrupted job" in again.err
    assert interp(*command, "--resume").code == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data.jsonl", "run"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--data", "sentimant"), "did you mean 'sentiment'"),
        (("--perturb", "tokens"), "tokens:0.1"),
        (("--perturb", "rtn-int3"), "no perturbation"),
        (("--overwritten-prompt",), "give their --folder"),
        (("--strengths", "a"), "--strengths a is not a list of numbers"),
        (("--strengths", "-1"), "strengths are positive"),
        (("--sites", "resid_past"), "did you mean 'resid_post'"),
        (("--data", "nowhere.csv"), "cannot be read"),
        (("--classifier", "tree"), "forest"),
    ],
)
def test_a_request_that_cannot_be_served_costs_nothing(
    interp: Interp, random_llama: Path, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    data = () if "--data" in arguments else ("--data", "sentiment")
    done = interp("probe", "depth", random_llama, *data, *arguments, "--out", tmp_path / "run")
    assert done.code == 2
    assert said in " ".join(done.err.replace("│", " ").split())
    assert [p for p in tmp_path.iterdir() if any(p.iterdir())] == []


def test_one_class_and_too_few_examples_are_refused(interp: Interp, random_llama: Path, tmp_path: Path) -> None:
    file = tmp_path / "one.csv"
    file.write_text("text,label\n" + "".join(f"t{i},a\n" for i in range(20)))
    done = interp("probe", "linear", random_llama, "--data", file, "--no-control", "--out", tmp_path / "run")
    assert done.code == 2
    assert "holds only the class 'a'" in done.err
    file.write_text("text,label\n" + "".join(f"t{i},{'ab'[i > 17]}\n" for i in range(20)))
    done = interp(
        "probe", "linear", random_llama, "--data", file, "--no-control", "--resume", "--out", tmp_path / "run"
    )
    assert done.code == 2
    assert "the rarest class of 'label' has 2 of 20" in done.err
    assert [p.name for p in tmp_path.iterdir()] == ["one.csv"]
