"""Conventions of every command: help, exit codes, errors as one sentence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from interp import __version__
from interp.cli import runs
from interp.errors import BadInput, NoTestPassed
from kernels.errors import InvalidRequest

Interp = Callable[..., Any]


def test_the_version_is_the_packages(interp: Interp) -> None:
    assert interp("--version").out.strip() == __version__


def test_no_command_shows_what_there_is(interp: Interp) -> None:
    shown = interp().out
    assert all(name in shown for name in ("info", "heads", "runs"))


def test_a_mistyped_command_is_bad_input_with_a_suggestion(interp: Interp) -> None:
    done = interp("inof")
    assert done.code == 2
    assert "info" in done.err


@pytest.mark.parametrize(
    ("error", "code"), [(BadInput("no such thing"), 2), (NoTestPassed("none did"), 1), (InvalidRequest("window=0"), 2)]
)
def test_an_error_is_one_sentence_and_its_exit_code(
    interp: Interp, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int
) -> None:
    def fail(folder: object) -> None:
        raise error

    monkeypatch.setattr(runs, "run_folders", fail)
    done = interp("runs", "list")
    assert (done.code, done.out, done.err) == (code, "", f"Error: {error}\n")
    with pytest.raises(type(error)):
        interp("--debug", "runs", "list")


def test_an_interrupt_ends_with_130(interp: Interp, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(folder: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "run_folders", interrupt)
    assert interp("runs", "list").code == 130


def test_a_defect_is_not_dressed_up_as_bad_input(interp: Interp, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(folder: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(runs, "run_folders", fail)
    with pytest.raises(ZeroDivisionError):
        interp("runs", "list")
