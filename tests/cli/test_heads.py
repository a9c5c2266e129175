"""`interp heads`: scoring leaves a run with a mask, an interrupted one goes on, and masks travel between formats."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from interp.cli import score
from interp.heads.formats import FORMATS, read_mask
from interp.runs import load_run

Interp = Callable[..., Any]

GRID = ("--lengths", "200", "--depths", "0,50,100", "--needles", "2")
"""Six tests, on which a random model fails."""


@pytest.fixture(scope="module")
def scored(random_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of RazorAttention's probe, which scores any model."""
    from interp.cli.main import main

    run = tmp_path_factory.mktemp("runs") / "razor"
    with pytest.raises(SystemExit) as stop:
        main(["heads", "score", str(random_llama), "--method", "razor", "--top", "3", "--out", str(run)])
    assert not stop.value.code
    return run


# --- score


def test_a_score_is_a_run_with_a_mask(interp: Interp, random_llama: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "razor"
    done = interp("heads", "score", random_llama, "--method", "razor", "--top", 3, "--seed", 5, "--out", run, "--json")
    assert done.code == 0
    document = done.json
    assert (document["run"], document["mask"]) == (str(run), str(run / "mask.json"))
    assert len(document["heads"]) == 8
    mask = read_mask(run / "mask.json")
    assert [list(head) for head in mask.heads] == document["selected"]
    assert len(mask.heads) == 3
    saved = load_run(run)
    assert (saved.record.kind, saved.record.seed) == ("head-scores", 5)
    assert saved.record.model["fingerprint"] == mask.fingerprint == document["model"]["fingerprint"]
    assert saved.frame["score"].tolist() == [head["score"] for head in document["heads"]]


def test_the_table_shows_heads_best_first_and_which_are_selected(interp: Interp, scored: Path) -> None:
    shown = interp("heads", "show", scored).out
    assert "3 selected (top-3)" in shown
    rows = [line.replace("│", " ").split() for line in shown.splitlines() if line.startswith("│")]
    assert [(int(row[0]), int(row[1])) for row in rows] == read_mask(scored / "mask.json").ranking
    assert [row[-1] == "yes" for row in rows] == [True] * 3 + [False] * 5


def test_a_model_that_finds_no_needle_ends_with_a_statement(interp: Interp, random_llama: Path, tmp_path: Path) -> None:
    done = interp("heads", "score", random_llama, *GRID, "--out", tmp_path / "run")
    assert done.code == 1
    assert "none of 6 tests passed the gate" in done.err
    tests = pd.read_parquet(tmp_path / "run" / "tests.parquet")
    assert (len(tests), tests.passed.any()) == (6, False)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@contextmanager
def stopping_after(tests: int) -> Iterator[Callable[[int, int], None]]:
    def report(done: int, total: int) -> None:
        if done >= tests:
            raise KeyboardInterrupt

    yield report


def test_an_interrupted_score_resumes_where_it_stopped(
    interp: Interp, random_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    command = ("heads", "score", random_llama, *GRID, "--out", run)
    with monkeypatch.context() as patched:
        patched.setattr(score, "progress", lambda task: stopping_after(2))
        stopped = interp(*command)
    assert stopped.code == 130
    assert "--resume" in stopped.err
    assert not run.exists()
    journal = tmp_path / "run.journal.jsonl"
    kept = journal.read_text().splitlines()
    assert 3 <= len(kept) < 7

    again = interp(*command)
    assert again.code == 2
    assert "interrupted job" in again.err
    other = interp(*command, "--resume", "--seed", 1)
    assert other.code == 2
    assert "seed was 0 and is 1" in other.err
    assert journal.read_text().splitlines() == kept

    ran: list[str] = []
    monkeypatch.setattr(
        "interp.runs.Journal.append", lambda self, key, value: (ran.append(key), self.done.update({key: value}))
    )
    assert interp(*command, "--resume").code == 1  # finished; no test passed
    assert len(ran) == 6 - (len(kept) - 1)
    assert not journal.exists()

    whole = tmp_path / "whole"
    interp("heads", "score", random_llama, *GRID, "--out", whole)
    pd.testing.assert_frame_equal(pd.read_parquet(run / "tests.parquet"), pd.read_parquet(whole / "tests.parquet"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--threshold", "0.1", "--top", "2"), "give one"),
        (("--top", "9"), "more heads than"),
        (("--lengths", "12,many"), "--lengths 12,many is not a list of numbers"),
        (("--depths", "0,120"), "depths go from 0 to 100"),
        (("--lengths", "20"), "leaves no room"),
        (("--lengths", "900"), "context of 512"),
        (("--haystack", "nowhere"), "does not exist"),
        (("--method", "qrhead", "--causal"), "--top"),
        (("--method", "razor", "--resume"), "only the retrieval score can be resumed"),
        (("--method", "attention"), "retrieval"),
    ],
)
def test_a_request_that_cannot_be_served_costs_nothing(
    interp: Interp, random_llama: Path, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    done = interp("heads", "score", random_llama, *arguments, "--out", tmp_path / "run")
    assert done.code == 2
    assert said in " ".join(done.err.replace("│", " ").split())
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_output_is_refused_before_the_model_is_loaded(interp: Interp, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = interp("heads", "score", tmp_path / "no-model", "--out", tmp_path / "file" / "run")
    assert done.code == 2
    assert "is a file, not a folder" in done.err


def test_an_empty_haystack_is_refused(interp: Interp, random_llama: Path, tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    arguments = ("--haystack", tmp_path / "texts", "--out", tmp_path / "run")
    assert "holds no .txt file" in interp("heads", "score", random_llama, *arguments).err
    (tmp_path / "texts" / "empty.txt").write_text(" \n")
    done = interp("heads", "score", random_llama, *arguments)
    assert done.code == 2
    assert "haystack is empty" in done.err


def test_a_finished_run_is_not_overwritten(interp: Interp, random_llama: Path, scored: Path) -> None:
    before = (scored / "run.json").read_bytes()
    done = interp("heads", "score", random_llama, "--method", "razor", "--out", scored)
    assert done.code == 2
    assert "already holds a run" in done.err
    assert (scored / "run.json").read_bytes() == before


# --- show, export, import


def test_help_names_every_format(interp: Interp) -> None:
    shown = interp("heads", "export", "--help").out
    assert all(name in shown for name in FORMATS)


def test_a_mask_goes_out_to_kvpress_and_comes_back(
    interp: Interp, random_llama: Path, scored: Path, tmp_path: Path
) -> None:
    done = interp(
        "heads",
        "export",
        scored,
        "--format",
        "duo",
        "--kv",
        "max",
        "--sparsity",
        0.5,
        "--out",
        tmp_path / "duo",
        "--json",
    )
    assert done.code == 0
    table = np.loadtxt(tmp_path / "duo" / "full_attention_heads.tsv", delimiter="\t", ndmin=2)
    query = read_mask(scored / "mask.json").scores
    np.testing.assert_array_equal(table, query.reshape(2, 2, 2).max(-1))
    assert len(done.json["selected"]) == 2

    back = interp(
        "heads", "import", tmp_path / "duo", "--model", random_llama, "--out", tmp_path / "back.json", "--json"
    )
    assert back.code == 0
    mask = read_mask(tmp_path / "back.json")
    assert (mask.kind, mask.family, mask.model) == ("kv", "llama", "random-llama")
    np.testing.assert_array_equal(mask.scores, table)
    assert "4 kv heads" in interp("heads", "show", tmp_path / "back.json").out


def test_what_a_format_cannot_keep_is_said(interp: Interp, scored: Path, tmp_path: Path) -> None:
    done = interp("heads", "export", scored, "--format", "npy", "--out", tmp_path / "scores.npy")
    assert done.code == 0
    assert done.err.startswith("Not kept: ")
    assert "fingerprint" in done.err
    np.testing.assert_array_equal(np.load(tmp_path / "scores.npy"), read_mask(scored / "mask.json").scores)


def test_a_mask_of_another_model_is_refused(interp: Interp, random_llama: Path, scored: Path, tmp_path: Path) -> None:
    relative = tmp_path / "relative"
    shutil.copytree(random_llama, relative)
    config = json.loads((relative / "config.json").read_text())
    (relative / "config.json").write_text(json.dumps(config | {"rope_theta": 5.0, "rms_norm_eps": 0.1}))
    done = interp("heads", "import", scored / "mask.json", "--model", relative, "--out", tmp_path / "mask.json")
    assert done.code == 2
    assert "other weights" in done.err
    assert not (tmp_path / "mask.json").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--format", "duo2"), "duo"),
        (("--format", "npy", "--top", "1", "--threshold", "0"), "give one"),
        (("--format", "npy", "--top", "99"), "99"),
        (("--format", "duo"), "key/value"),
    ],
)
def test_an_export_that_cannot_be_is_refused(
    interp: Interp, scored: Path, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    done = interp("heads", "export", scored, *arguments, "--out", tmp_path / "out")
    assert done.code == 2
    assert said in done.err
    assert list(tmp_path.iterdir()) == []


def test_what_is_neither_run_nor_mask_is_refused(interp: Interp, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    for source in (tmp_path / "none", tmp_path / "notes.txt", tmp_path):
        done = interp("heads", "show", source)
        assert done.code == 2
        assert done.err.startswith("Error: ")
