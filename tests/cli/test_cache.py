"""`interp heads cache`: a run with the study and the mask it protected, resumable, refused before it starts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from interp.cli import cache
from interp.heads.cache import CacheStudy
from interp.heads.formats import read_mask, write_mask
from interp.heads.mask import HeadMask
from interp.runs import load_run

Interp = Callable[..., Any]
GRID = ("--lengths", "220", "--depths", "50", "--needles", 2, "--sinks", 4, "--window", 16, "--seeds", 2)
"""Two tests; a random model answers none of them, and its cache is as small as any."""


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    """Scores of the query heads of the random model; the best key/value head is 1-1."""
    write_mask(HeadMask(np.array([[0.1, 0.0, 0.2, 0.0], [0.0, 0.3, 0.0, 0.9]])), tmp_path / "mask.json", "json")
    return tmp_path / "mask.json"


def test_a_study_is_a_run_with_its_mask(interp: Interp, random_llama: Path, mask: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = interp(
        "heads", "cache", random_llama, *GRID, "--mask", mask, "--heads", "1,4", "--kv", "mean", "--compensation",
        "--seed", 3, "--out", run, "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    study = CacheStudy.load(run)
    assert load_run(run).record.kind == "cache-study"
    assert study.frame.to_dict("records") == done.json["frame"]
    assert study.frame.which[study.frame.kept == "chosen"].tolist() == ["1-1", "0-0 0-1 1-0 1-1"]
    recorded = {name: study.parameters[name] for name in ("reduction", "sinks", "window", "compensation", "seeds")}
    assert recorded == {"reduction": "mean", "sinks": 4, "window": 16, "compensation": True, "seeds": [0, 1]}
    assert (study.seed, len(study.tests)) == (3, 2 * (1 + 2 * 3))
    assert np.array_equal(read_mask(run / "mask.json").scores, read_mask(mask).scores)
    assert done.json["summary"][0]["saved"] > 0.5
    again = interp("heads", "cache", random_llama, *GRID, "--mask", run, "--heads", "1,4", "--out", tmp_path / "again")
    assert again.code == 0
    assert not list(tmp_path.glob("*.journal.jsonl"))


def test_the_table_says_what_the_full_cache_takes_and_what_every_head_sees(
    interp: Interp, random_llama: Path, mask: Path, tmp_path: Path
) -> None:
    command = ("heads", "cache", random_llama, *GRID, "--mask", mask, "--out", tmp_path / "run")
    done = interp(*command, "--depths", "0,50")
    assert done.code == 0, done.err
    assert "220 tokens: the full cache takes 0.10 MiB, recalls 0.000" in done.out
    assert all(word in done.out for word in ("saved", "random heads", "+0.000 [+0.000, +0.000]"))
    assert "of 4 values lie within sinks and window" not in done.err
    shown = interp(*command[:-1], tmp_path / "wide", "--sinks", 150)
    assert "2 of 2 values lie within sinks and window" in shown.err


@contextmanager
def stopping(task: str) -> Iterator[Callable[[int, int], None]]:
    def report(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    yield report


def test_an_interrupted_study_resumes(
    interp: Interp, random_llama: Path, mask: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("heads", "cache", random_llama, *GRID, "--mask", mask, "--heads", "1", "--out")
    with monkeypatch.context() as patched:
        patched.setattr(cache, "progress", stopping)
        stopped = interp(*command, tmp_path / "run")
    assert stopped.code == 130
    assert "3 tests are kept; the same command with --resume goes on" in stopped.err
    assert "sinks was 4 and is 5" in interp(*command, tmp_path / "run", "--resume", "--sinks", 5).err
    assert interp(*command, tmp_path / "run", "--resume").code == 0
    assert interp(*command, tmp_path / "whole").code == 0
    tests = [pd.read_parquet(tmp_path / name / "tests.parquet") for name in ("run", "whole")]
    pd.testing.assert_frame_equal(*tests)


def test_without_a_mask_the_heads_are_scored_first(interp: Interp, tmp_path: Path) -> None:
    done = interp(
        "heads", "cache", "pocket", "--lengths", 600, "--depths", "50", "--needles", 3, "--heads", 1, "--window", 64,
        "--seeds", 1, "--out", tmp_path / "run", "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    whole, chosen, random = done.json["frame"]
    assert chosen["which"] == "2-0"
    assert whole["recall"] == chosen["recall"] == 1
    assert random["recall"] == 0
    assert read_mask(tmp_path / "run" / "mask.json").method == "retrieval-head"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--window", 0), "--window"),
        (("--sinks", -1), "--sinks"),
        (("--heads", "5"), "has 4 key/value heads, so give numbers from 0 to 4"),
        (("--heads", "one"), "--heads one is not a list of numbers"),
        (("--lengths", "510"), "exceed the model's context of 512"),
        (("--lengths", "-3"), "lengths are whole numbers from 1"),
        (("--kv", "median"), "--kv"),
        (("--mask", "no/such/mask.json"), "--mask"),
    ],
)
def test_bad_requests_are_one_sentence_and_write_nothing(
    interp: Interp, random_llama: Path, mask: Path, tmp_path: Path, arguments: tuple[Any, ...], said: str
) -> None:
    done = interp("heads", "cache", random_llama, "--mask", mask, *GRID, *arguments, "--out", tmp_path / "run")
    assert (done.code, done.out) == (2, "")
    assert said in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["mask.json"]


def test_a_mask_of_another_model_is_refused(interp: Interp, random_llama: Path, tmp_path: Path) -> None:
    write_mask(HeadMask(np.ones((2, 4)), fingerprint="another", model="theirs"), tmp_path / "mask.json", "json")
    done = interp("heads", "cache", random_llama, *GRID, "--mask", tmp_path / "mask.json", "--out", tmp_path / "run")
    assert done.code == 2
    assert "made for theirs (fingerprint another)" in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["mask.json"]
