"""JSON that every machine reads, and text that is not taken for markup."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from interp.cli.console import emit, show_facts, show_frame, show_written


def test_json_has_no_nan_and_no_numpy(capsys: pytest.CaptureFixture[str]) -> None:
    emit({"score": np.float64(0.5), "n": np.int64(3), "rows": np.array([1.0, np.nan]), "low": float("-inf")})
    assert json.loads(capsys.readouterr().out) == {"score": 0.5, "n": 3, "rows": [1.0, None], "low": None}


def test_brackets_in_values_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    show_facts("runs/[bold]", {"path": "a[red]b"})
    show_frame("t", pd.DataFrame({"name": ["x[red]y"], "score": [1 / 3]}))
    shown = capsys.readouterr().out
    assert "runs/[bold]" in shown
    assert "a[red]b" in shown
    assert "x[red]y" in shown
    assert "0.333" in shown


def test_a_path_is_on_one_line_whatever_its_length(capsys: pytest.CaptureFixture[str]) -> None:
    path = "runs/" + "very-long-name-" * 20 + "[red]"
    show_written(run=path, mask="mask.json")
    assert capsys.readouterr().out == f"Run:  {path}\nMask: mask.json\n"
