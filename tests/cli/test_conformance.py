"""`interp conformance`: a table or records, and refusals before any work."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.families import build, word_tokenizer

Interp = Callable[..., Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    build("qwen3").save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


def test_the_table_names_what_was_tried(interp: Interp, folder: Path) -> None:
    done = interp("conformance", folder, "--backend", "hooks")
    assert done.code == 0
    assert "hooks backend, sdpa attention" in done.out
    assert "swap_subspace" in done.out
    assert "0 fail" in done.err


def test_the_records_hold_every_group(interp: Interp, folder: Path) -> None:
    done = interp("conformance", folder, "--backend", "hooks", "--kernel", "workbench", "--json")
    groups = {"equation", "read", "edit at", "edit kind", "gradient", "generation", "kernel"}
    assert {record["group"] for record in done.json} == groups
    assert {record["result"] for record in done.json} == {"pass"}


@pytest.mark.parametrize(
    ("arguments", "said"), [(["no/such/folder"], "no folder"), (["pocket", "--backend", "hook"], "there is no backend")]
)
def test_a_wrong_request_is_refused_with_a_sentence(interp: Interp, arguments: list[str], said: str) -> None:
    done = interp("conformance", *arguments)
    assert done.code == 2
    assert said in done.err


def test_the_package_runs_as_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["conformance", "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("interp.conformance", run_name="__main__")
    assert ended.value.code == 0
    assert "on every backend" in capsys.readouterr().out
