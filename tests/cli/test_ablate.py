"""`interp heads ablate`: studies are runs, every row says what was done, and a killed one goes on where it stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from interp.runs import load_run

Interp = Callable[..., Any]

GRID = ("--lengths", "200", "--depths", "0,100", "--needles", "2")
HEADS = ("--heads", "0.1,1-2")


def test_a_study_is_a_run_whose_rows_name_ablation_backend_seeds_and_interval(
    interp: Interp, random_llama: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    command = ("heads", "ablate", random_llama, *HEADS, *GRID, "--controls", 2, "--seed", 3)
    done = interp(*command, "--ablations", "zero,scale:0.5", "--attention", "workbench", "--out", run, "--json")
    assert done.code == 0, done.err
    frame = pd.DataFrame(done.json["frame"])
    assert len(frame) == 1 + 2 * (1 + 2)
    assert frame.ablation.unique().tolist() == ["none", "zero", "scale:0.5"]
    assert set(frame.attention) == {"workbench"}
    assert sorted(frame[frame["heads"] == "random"].seed) == [3, 3, 4, 4]
    assert (frame.n == 4).all()
    assert frame[frame["heads"] == "chosen"].which.unique().tolist() == ["0-1 1-2"]
    said = frame.set_index(["ablation", "heads"]).log_probability
    assert said["zero", "chosen"] != said["none", "none"]
    saved = load_run(run)
    assert (saved.record.kind, saved.record.seed) == ("head-ablation", 3)
    assert saved.record.model["fingerprint"] == done.json["model"]["fingerprint"]
    np.testing.assert_allclose(saved.frame.log_probability, frame.log_probability)
    assert saved.arrays["samples"].shape == (7, 4, 4)
    cells = pd.read_parquet(run / "map.parquet")
    assert cells.groupby("heads", sort=False).size().to_dict() == {"none": 2, "chosen": 4, "random": 4}
    assert not (tmp_path / "run.journal.jsonl").exists()


def test_counts_make_a_curve_of_the_best_heads_of_a_mask(interp: Interp, random_llama: Path, tmp_path: Path) -> None:
    mask = tmp_path / "mask"
    assert interp("heads", "score", random_llama, "--method", "razor", "--top", 1, "--out", mask).code == 0
    done = interp(
        "heads", "ablate", random_llama, "--mask", mask, "--counts", "0,1,2", *GRID, "--ablations", "zero",
        "--controls", 1, "--out", tmp_path / "run", "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    chosen = [row for row in done.json["frame"] if row["heads"] == "chosen"]
    ranking = ["-".join(map(str, head)) for head in done.json["heads"]]
    assert [row["removed"] for row in chosen] == [1, 2]
    assert chosen[1]["which"] == " ".join(ranking[:2])
    shown = interp(
        "heads", "ablate", random_llama, "--mask", mask, *GRID, "--ablations", "zero", "--out", tmp_path / "b"
    )
    assert "1 ablated" in shown.out


def test_all_heads_alone_make_a_map_with_gradients_beside_it(
    interp: Interp, random_llama: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    done = interp("heads", "ablate", random_llama, "--all", "--gradients", *GRID, "--out", run, "--json")
    assert done.code == 0, done.err
    heads = pd.DataFrame(done.json["heads"])
    assert len(heads) == 8
    assert {"effect", "low", "high", "signed", "mean_of_abs", "tokens_by_layer"} <= set(heads)
    assert set(heads.ablation) == {"zero"}
    assert len(done.json["agreement"]) == 8
    assert load_run(run).record.kind == "head-importance"
    table = interp("heads", "ablate", random_llama, "--all", *GRID, "--ablations", "mean", "--out", tmp_path / "plain")
    assert "log-probability lost without each head alone (mean ablation" in table.out


def test_perplexity_of_a_file_is_studied_too(interp: Interp, random_llama: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The ink is dry. " * 30)
    done = interp(
        "heads", "ablate", random_llama, *HEADS, "--task", "text", "--text", text, "--window", 64,
        "--ablations", "zero", "--controls", 1, "--out", tmp_path / "run", "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert done.json["measure"] == "perplexity"
    assert {row["tokens"] for row in done.json["frame"]} == {16 * 30 - 1}
    assert [row["heads"] for row in done.json["frame"]] == ["none", "chosen", "random"]


def test_a_killed_study_goes_on_with_what_is_left(
    interp: Interp, random_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, journal = tmp_path / "run", tmp_path / "run.journal.jsonl"
    grid = ("--lengths", "400", "--needles", "2", "--depths", "0,100", "--controls", "2")
    many = ("--ablations", "resample,uniform,scale:0.5,zero")
    command = ("heads", "ablate", str(random_llama), *HEADS, *grid, *many, "--out", str(run))
    process = subprocess.Popen(
        [sys.executable, "-m", "interp.cli.main", *command],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while process.poll() is None and (not journal.exists() or journal.read_bytes().count(b"\n") < 3):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it finished before it could be killed"
    assert not run.exists()
    kept = journal.read_bytes().count(b"\n") - 1

    assert "attention was" in interp(*command, "--resume", "--attention", "eager").err
    ran: list[str] = []
    from interp.runs import Journal

    append = Journal.append
    monkeypatch.setattr(Journal, "append", lambda self, key, value: (ran.append(key), append(self, key, value)))
    assert interp(*command, "--resume").code == 0
    assert len(ran) == 1 + 4 * 3 - kept
    assert not journal.exists()
    assert len(load_run(run).frame) == 1 + 4 * 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--heads", "0.1", "--ablations", "zeros"), "did you mean 'zero'"),
        (("--heads", "two"), "not a list of LAYER.HEAD"),
        (("--heads", "2.0"), "there is no head 2.0"),
        (("--heads", "0.0,0.0"), "distinct"),
        (("--heads", "0.0,0.1,0.2"), "no equal number of others"),
        (("--heads", "0.1", "--top", "2"), "give one"),
        (("--heads", "0.1", "--counts", "3"), "give one"),
        (("--all", "--top", "1"), "leave out"),
        (("--all", "--ablations", "zero,mean"), "one ablation at a time"),
        (("--heads", "0.1", "--gradients"), "add --all"),
        (("--heads", "0.1", "--task", "text", "--ablations", "uniform-at-decode"), "plain text has none"),
        (("--heads", "0.1", "--task", "text", "--window", "600"), "longer than the model's context"),
        (("--heads", "0.1", "--ablations", "mean-template"), "valid: attribute, depth"),
        (("--heads", "0.1", "--lengths", "900"), "context of 512"),
        (("--all", "--metric", "logit-difference"), "needs distractors"),
    ],
)
def test_a_request_that_cannot_be_served_costs_nothing(
    interp: Interp, random_llama: Path, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    done = interp("heads", "ablate", random_llama, *GRID, *arguments, "--out", tmp_path / "run")
    assert done.code == 2
    assert said in " ".join(done.err.replace("│", " ").split())
    assert list(tmp_path.iterdir()) == []


def test_all_heads_of_a_layer_can_go_where_no_control_is_asked_for(
    interp: Interp, random_llama: Path, tmp_path: Path
) -> None:
    whole = ("--heads", "0.0,0.1,0.2,0.3", "--controls", 0, "--ablations", "zero")
    done = interp("heads", "ablate", random_llama, *whole, *GRID, "--out", tmp_path / "run", "--json")
    assert done.code == 0, done.err
    assert [row["heads"] for row in done.json["frame"]] == ["none", "chosen"]
