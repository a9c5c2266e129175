"""The explorer as a person uses it, in Chromium: `pytest -m slow tests/apps/test_browser.py -s` reports the times."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from apps.explorer.settings import samples_folder
from interp.heads.formats import read_mask

pytestmark = pytest.mark.slow
playwright = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or ""
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
QUIET = "[data-testid=stApp][data-test-script-state=notRunning]"
PAGES = ("", "model", "needles", "patching", "runs", "export", "doctor")
OWN_404 = ("_stcore/health", "_stcore/host-config")
"""Addresses that Streamlit tries below a deep link before it finds its own."""


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """A running explorer on the bundled model and sample runs."""
    if not CHROMIUM:
        pytest.skip("there is no Chromium here")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    runs = tmp_path_factory.mktemp("runs")
    command = [sys.executable, "-m", "interp.cli.main", "explore", "--runs", str(runs), "--port", str(port)]
    server = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True)
    place = f"http://localhost:{port}"
    for _ in range(300):
        try:
            urllib.request.urlopen(f"{place}/_stcore/health", timeout=5).close()
            break
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.2)
    yield place
    os.killpg(server.pid, signal.SIGINT)
    server.wait(20)


@pytest.fixture
def page(address):
    """A browser page; nothing may be fetched from elsewhere, and nothing may go wrong on the console."""
    wrong: list[str] = []
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        tab = browser.new_page(viewport={"width": 1280, "height": 800})
        tab.set_default_timeout(40_000)
        tab.on("console", lambda m: wrong.append(m.text) if m.type == "error" and "404" not in m.text else None)
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        tab.on("request", lambda r: None if r.url.startswith((address, "data:", "blob:")) else wrong.append(r.url))
        tab.on("response", lambda r: wrong.append(r.url) if r.status >= 400 and not r.url.endswith(OWN_404) else None)
        yield tab
        browser.close()
    assert wrong == []


def opened(page, where):
    """Open an address and wait until it is drawn; the seconds until its title was there."""
    start = time.perf_counter()
    page.goto(where)
    page.wait_for_selector("h1")
    first = time.perf_counter() - start
    settled(page)
    return first


def settled(page):
    page.wait_for_timeout(700)
    page.wait_for_selector(QUIET)
    page.wait_for_timeout(700)


def test_every_page_opens_first_by_its_own_address_at_both_sizes(page, address):
    for width, height in ((1280, 800), (390, 844)):
        page.set_viewport_size({"width": width, "height": height})
        for name in PAGES:
            seconds = opened(page, f"{address}/{name}")
            print(f"{name or 'heads'} at {width}: title after {seconds:.2f} s")
            assert page.inner_text("h1").lower() == (name or "heads")
            assert page.locator('[data-testid="stException"]').count() == 0
            main = "document.querySelector('[data-testid=stMain]')"
            assert page.evaluate(f"{main}.scrollWidth - {main}.clientWidth") <= 0


def test_a_click_on_the_map_chooses_the_head_and_the_address_keeps_it(page, address):
    opened(page, f"{address}/?a=samples/retrieval&b=samples/head-effects")
    plot = page.locator(".js-plotly-plot").first
    plot.wait_for()
    box = plot.locator(".nsewdrag").first.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 1.5 / 8, box["y"] + box["height"] * 2.5 / 4)
    page.wait_for_timeout(300)
    page.mouse.click(box["x"] + box["width"] * 1.5 / 8, box["y"] + box["height"] * 2.5 / 4)
    page.get_by_role("heading", name="Head 2.1 of pocket").wait_for()
    settled(page)
    assert "head=2.1" in page.url
    opened(page, page.url)
    assert page.get_by_role("heading", name="Head 2.1 of pocket").count() == 1
    assert page.get_by_text("Without head 2.1 the log-probability").count() == 1


def test_pages_are_switched_in_the_menu(page, address):
    opened(page, address)
    for name in ("Runs", "Needles", "Heads", "Patching"):
        start = time.perf_counter()
        page.get_by_test_id("stSidebarNav").get_by_text(name, exact=True).click()
        page.wait_for_function(f"document.querySelector('h1')?.innerText === '{name}'")
        print(f"switch to {name}: {time.perf_counter() - start:.2f} s")
        settled(page)


def test_a_downloaded_mask_is_read_back(page, address, tmp_path):
    opened(page, f"{address}/export?export=samples/retrieval")
    with page.expect_download() as download:
        page.get_by_role("button", name="Download the mask").click()
    file = tmp_path / "mask.json"
    download.value.save_as(file)
    own = read_mask(samples_folder() / "retrieval" / "mask.json")
    assert read_mask(file) == own
    page.set_input_files('input[type="file"]', file)
    page.get_by_text(repr(own)).last.wait_for()
    with page.expect_download() as download:
        page.get_by_role("button", name="result: JSON").click()
    download.value.save_as(tmp_path / "figure.json")
    from interp.heads.scores import HeadScores

    figure = HeadScores.load(samples_folder() / "retrieval").plot()
    assert (tmp_path / "figure.json").read_text() == figure.to_json()


def test_a_live_study_can_be_cancelled_and_the_app_goes_on(page, address):
    opened(page, f"{address}/needles")
    page.get_by_text("Needles", exact=True).last.wait_for()
    page.get_by_role("slider").last.focus()
    for _ in range(8):
        page.keyboard.press("ArrowRight")
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_role("button", name="Cancel").click()
    page.wait_for_timeout(500)
    page.wait_for_selector(QUIET)
    settled(page)
    assert page.get_by_role("button", name="Cancel").count() == 0
    assert page.get_by_text("Mean ablation of").count() == 0
    opened(page, f"{address}/model")
    assert page.get_by_text("Logit lens").count() >= 1


def test_a_cell_of_a_patching_map_shows_the_changed_tokens(page, address):
    opened(page, f"{address}/patching")
    page.get_by_role("button", name="Patch", exact=True).click()
    page.get_by_text("Click a cell to see").wait_for()
    settled(page)
    plot = page.locator(".js-plotly-plot").last
    plot.scroll_into_view_if_needed()
    page.wait_for_timeout(500)
    box = plot.locator(".nsewdrag").first.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 8)
    page.wait_for_timeout(300)
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 8)
    page.get_by_text("Next token of the first pair with one patch").wait_for()


def test_markup_in_the_address_runs_nothing(page, address):
    hit: list[str] = []
    page.on("dialog", lambda dialog: (hit.append(dialog.message), dialog.dismiss()))
    opened(page, f"{address}/model?prompt=%3Cscript%3Ealert(1)%3C/script%3E%3Cimg%20src=x%20onerror=alert(2)%3E")
    assert hit == []
    assert "<script>" not in page.locator("span[title]").first.evaluate("e => e.parentElement.innerHTML")
