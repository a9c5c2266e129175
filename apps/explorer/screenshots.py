"""Takes the pictures of the README: `python -m apps.explorer.screenshots`, with Playwright and a Chromium.

The explorer on the sample runs with a head open, and the figure of a run as a notebook shows it.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from apps.explorer.results import result_of
from apps.explorer.settings import MODEL, RUNS, samples_folder
from interp.errors import BadInput, UnwritableOutput
from interp.plots.export import save_figure
from interp.runs import load_run

PAGE = "heads?head=2.1&a=samples/retrieval&b=samples/head-effects"
SIZE = {"width": 1280, "height": 800}
FLAGS = ["--no-sandbox", "--disable-gpu", "--force-color-profile=srgb", "--disable-background-networking"]
DONE = "[data-testid=stApp][data-test-script-state=notRunning]"
RUN = "needles"
FIGURE = {"width": 900, "height": 460}
PATIENCE = 60.0
"""Seconds until the server has to answer."""


def take(folder: Path) -> None:
    """Write explorer.png and figure.png to the folder. Raises BadInput without a browser, UnwritableOutput."""
    folder.mkdir(parents=True, exist_ok=True)
    with served() as address:
        photograph(f"{address}/{PAGE}", folder / "explorer.png")
    save_figure(result_of(load_run(samples_folder() / RUN)).plot(), folder / "figure.png", **FIGURE, scale=1.5)


@contextmanager
def served() -> Iterator[str]:
    """The address of an explorer on the bundled model and the sample runs alone."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as empty:
        chosen = {RUNS: empty, MODEL: "pocket"}
        command = [sys.executable, str(Path(__file__).with_name("serve.py")), f"--server.port={port}"]
        server = subprocess.Popen([*command, "--server.headless=true"], env={**os.environ, **chosen})
        try:
            address = f"http://localhost:{port}"
            _wait(f"{address}/_stcore/health")
            yield address
        finally:
            server.terminate()
            server.wait()


def _wait(address: str) -> None:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        with suppress(OSError):
            urllib.request.urlopen(address, timeout=5).close()
            return
        time.sleep(0.2)
    raise UnwritableOutput(f"the explorer did not answer within {PATIENCE:g} seconds")


def photograph(address: str, file: Path) -> None:
    """A page as it is first seen, once everything on it is drawn."""
    from playwright.sync_api import sync_playwright

    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        raise BadInput("no Chromium or Chrome was found to take a picture with")
    with sync_playwright() as started, started.chromium.launch(executable_path=browser, args=FLAGS) as window:
        page = window.new_page(viewport=SIZE, color_scheme="light", reduced_motion="reduce")
        page.goto(address)
        page.wait_for_selector("h1")
        page.get_by_text("Without head").wait_for(timeout=PATIENCE * 1000)
        page.wait_for_selector(DONE)
        page.wait_for_timeout(1500)
        page.screenshot(path=file)


if __name__ == "__main__":
    take(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("docs/images"))
