"""`interp heads roles`: what it prints and what it writes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from interp.heads.roles import ROLES
from interp.runs import load_run

Interp = Callable[..., Any]
SMALL = ("--segment", 12, "-n", 2)


def test_roles_are_printed_and_written_as_a_run(interp: Interp, random_llama: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "roles"
    done = interp("heads", "roles", random_llama, *SMALL, "--seed", 3, "--out", run, "--json")
    assert done.code == 0
    document = done.json
    assert len(document["heads"]) == len(ROLES) * 8
    assert document["parameters"] == {"segment": 12, "repeats": 3, "sequences": 2}
    saved = load_run(run)
    assert (saved.record.kind, saved.record.seed) == ("head-roles", 3)
    np.testing.assert_allclose(saved.frame["score"], [head["score"] for head in document["heads"]])


def test_without_a_place_the_run_is_named_after_the_model(
    interp: Interp, random_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = interp("heads", "roles", random_llama, *SMALL, "--rows", 1)
    assert done.code == 0
    for role in ROLES:
        assert role in done.out
    assert load_run(Path("runs") / "random-llama-roles").record.kind == "head-roles"
    assert "Run: runs/random-llama-roles" in done.out


def test_an_occupied_output_and_an_impossible_segment_are_refused(
    interp: Interp, random_llama: Path, tmp_path: Path
) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    done = interp("heads", "roles", random_llama, "--out", tmp_path / "taken")
    assert done.code == 2
    assert "already holds something" in done.err
    done = interp("heads", "roles", random_llama, "--segment", 1000)
    assert done.code == 2
    assert "different tokens" in done.err
