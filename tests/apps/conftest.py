"""Draws a page of the explorer in this process, on the sample runs and a folder of the test's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

testing = pytest.importorskip("streamlit.testing.v1", reason="the explorer is an extra")

from apps.explorer.settings import MODEL, RUNS  # noqa: E402 - not without streamlit

Draw = Callable[..., Any]
TIMES = pytest.StashKey[list[tuple[str, float, float | None]]]()


@pytest.fixture(scope="session")
def times(pytestconfig: pytest.Config) -> list[tuple[str, float, float | None]]:
    """Where a test puts what took how many seconds, and the target if any; shown at the end, never asserted."""
    return pytestconfig.stash.setdefault(TIMES, [])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if rows := config.stash.get(TIMES, []):
        terminalreporter.section("seconds in the browser")
        for what, seconds, target in rows:
            wanted = "" if target is None else f"target {target:g}{'' if seconds <= target else '  missed'}"
            terminalreporter.write_line(f"{what:<58}{seconds:>7.2f}  {wanted}")


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """The person's folder of runs, empty at first."""
    folder = tmp_path / "own"
    folder.mkdir()
    return folder


@pytest.fixture
def draw(own: Path, monkeypatch: pytest.MonkeyPatch) -> Draw:
    """`draw("heads", head="2.1")`: a page after its first run, with these query parameters."""

    def drawn(page: str, model: str = "pocket", state: dict[str, Any] | None = None, **query: str) -> Any:
        monkeypatch.setenv(RUNS, str(own))
        monkeypatch.setenv(MODEL, model)
        script = f"from apps.explorer.views import {page}\n{page}.page()"
        test = testing.AppTest.from_string(script, default_timeout=120)
        test.query_params.update(query)
        for name, value in (state or {}).items():
            test.session_state[name] = value
        return test.run()

    return drawn
