"""The whole job on real weights: the bundled model, and models that nobody here trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

import interp as workbench
from interp.heads.formats import read_mask

Interp = Callable[..., Any]


def test_pockets_heads_are_scored_ablated_and_exported(interp: Interp, tmp_path: Path) -> None:
    run = tmp_path / "run"
    grid = ("--lengths", "256", "--depths", "25,75", "--needles", "4")
    done = interp("heads", "score", "pocket", *grid, "--causal", "--out", run, "--json")
    assert done.code == 0
    document = done.json
    assert 0 < len(document["selected"]) < 8
    causal = pd.DataFrame(document["causal"])
    assert causal.recall[0] > 0.8
    assert set(causal.ablation) == {"none", "mean", "zero", "uniform-at-decode"}
    assert (causal.relative[causal.heads == "chosen"] <= 0.2).all()
    assert causal.relative[causal.heads == "random"].mean() >= 0.9
    pd.testing.assert_frame_equal(pd.read_parquet(run / "causal.parquet"), causal, check_dtype=False)

    model = workbench.load("pocket")
    assert read_mask(run / "mask.json").check(model.spec, model.fingerprint).heads
    shown = interp("heads", "show", run).out
    assert "recall under ablation" in shown
    assert "uniform-at-decode" in shown


def test_a_story_model_finds_no_needle_and_says_so(interp: Interp, shared: Path, tmp_path: Path) -> None:
    grid = ("--lengths", "256", "--depths", "0,50", "--needles", "2")
    done = interp("heads", "score", shared / "models" / "stories260k", *grid, "--out", tmp_path / "run")
    assert done.code == 1
    assert "none of 4 tests passed the gate" in done.err


def test_a_story_model_has_heads_that_copy_a_word(interp: Interp, shared: Path, tmp_path: Path) -> None:
    model = shared / "models" / "stories260k"
    arguments = ("--task", "copy", "--needles", "20", "--top", "3", "--out", tmp_path / "run", "--json")
    done = interp("heads", "score", model, *arguments)
    assert done.code == 0
    assert done.json["passed"] >= 5
    assert done.json["heads"][0]["score"] > 0.3
