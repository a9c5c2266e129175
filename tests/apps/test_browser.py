"""The explorer as a person uses it, in Chromium: `pytest -m slow tests/apps/test_browser.py` reports the times."""

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
from urllib.parse import quote

import pytest

import interp
from apps.explorer.settings import samples_folder
from interp.heads.formats import read_mask
from interp.heads.scores import HeadScores
from interp.next_token import next_token
from interp.plots.template import visible

pytestmark = pytest.mark.slow
playwright = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or ""
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
QUIET = "[data-testid=stApp][data-test-script-state=notRunning]"
PAGES = (
    "",
    "heads",
    "model",
    "needles",
    "patching",
    "circuits",
    "subspaces",
    "probes",
    "skills",
    "runs",
    "export",
    "doctor",
)
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
        tab.on("console", lambda m: wrong.append(m.text) if m.type == "error" and not expected(m) else None)
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        tab.on("request", lambda r: None if r.url.startswith((address, "data:", "blob:")) else wrong.append(r.url))
        tab.on("response", lambda r: wrong.append(r.url) if r.status >= 400 and not r.url.endswith(OWN_404) else None)
        yield tab
        browser.close()
    assert wrong == []


def expected(message):
    """Whether a message of the console is of the addresses that Streamlit tries and finds missing."""
    return message.location.get("url", "").endswith(OWN_404)


def opened(page, where):
    """Open an address and wait until it is drawn; the seconds until its title was there."""
    start = time.perf_counter()
    page.goto(where)
    page.wait_for_selector("h1")
    first = time.perf_counter() - start
    settled(page)
    return first


def since(start):
    return time.perf_counter() - start


def settled(page):
    page.wait_for_timeout(700)
    page.wait_for_selector(QUIET)
    page.wait_for_timeout(700)


FIRST_PAINT, SWITCH = 3.0, 1.0
"""Targets in seconds."""
MAP = ".js-plotly-plot .heatmaplayer image"
"""What a heat map draws its cells as."""


def test_the_heads_are_painted(page, address, times):
    for visit in ("in a new browser", "again"):
        start = time.perf_counter()
        page.goto(f"{address}/heads")
        page.wait_for_selector("h1")
        times.append((f"Heads {visit}: title", since(start), FIRST_PAINT))
        page.wait_for_selector(MAP)
        times.append((f"Heads {visit}: map", since(start), FIRST_PAINT))
        page.get_by_text("Without head 2.0").wait_for()
        times.append((f"Heads {visit}: everything", since(start), None))
        settled(page)


def test_every_page_opens_first_by_its_own_address_at_both_sizes(page, address):
    for width, height in ((1280, 800), (390, 844)):
        page.set_viewport_size({"width": width, "height": height})
        for name in PAGES:
            opened(page, f"{address}/{name}")
            assert page.inner_text("h1").lower() == (name or "start")
            assert page.get_by_role("dialog").count() == 0
            assert page.locator('[data-testid="stException"]').count() == 0
            main = "document.querySelector('[data-testid=stMain]')"
            assert page.evaluate(f"{main}.scrollWidth - {main}.clientWidth") <= 0


def test_a_click_on_the_map_chooses_the_head_and_the_address_keeps_it(page, address):
    opened(page, f"{address}/heads?a=samples/retrieval&b=samples/head-effects")
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


def test_pages_are_switched_in_the_menu(page, address, times):
    opened(page, address)
    titles = [name.capitalize() or "Start" for name in PAGES]
    for visit in ("first", "second"):
        for name in (*titles[1:], titles[0]):
            start = time.perf_counter()
            page.get_by_test_id("stSidebarNav").get_by_text(name, exact=True).click()
            page.wait_for_function(f"document.querySelector('h1')?.innerText === '{name}'")
            times.append((f"switch to {name}, {visit} visit: title", since(start), SWITCH))
            page.wait_for_selector(QUIET)
            page.wait_for_timeout(50)
            page.wait_for_selector(QUIET)
            times.append((f"switch to {name}, {visit} visit: everything", since(start), None))
            settled(page)


def test_the_first_page_leads_to_pages_and_runs(page, address):
    opened(page, address)
    page.get_by_test_id("stMain").get_by_role("link", name="Needles", exact=True).click()
    page.wait_for_function("document.querySelector('h1')?.innerText === 'Needles'")
    opened(page, address)
    link = page.get_by_test_id("stMain").get_by_role("link", name="samples/").first
    name = link.inner_text()
    link.click()
    page.wait_for_function("document.querySelector('h1')?.innerText === 'Runs'")
    settled(page)
    assert page.get_by_role("combobox").first.input_value() == name


def test_the_knob_is_turned_with_its_slider(page, address):
    opened(page, f"{address}/subspaces")
    slider = page.get_by_role("slider", name="Value along the knob")
    slider.focus()
    before = float(slider.input_value())
    for _ in range(12):
        page.keyboard.press("ArrowLeft")
    settled(page)
    after = float(slider.input_value())
    assert after < before
    page.get_by_text(f"Set to {after:+.3g}").first.wait_for()
    assert "value=" in page.url
    opened(page, page.url)
    assert float(page.get_by_role("slider", name="Value along the knob").input_value()) == after


def test_two_people_at_once_see_what_they_asked_for(page, address):
    prompts = {
        "first": "When Alice and Bob went to the market, Bob gave the letter to",
        "second": "The number after 3 is",
    }
    model = interp.load("pocket")
    says = {who: visible(next_token(model, prompt).said[0]) for who, prompt in prompts.items()}
    other = page.context.browser.new_context().new_page()
    tabs = {"first": page, "second": other}
    for who, tab in tabs.items():
        tab.goto(f"{address}/model?prompt={quote(prompts[who])}", wait_until="commit")
    for who, tab in tabs.items():
        tab.locator("span[title]").filter(has_text=prompts[who].split()[-2]).first.wait_for()
        tab.locator(".js-plotly-plot .ytick").filter(has_text=f"{says[who]} (").first.wait_for()
    other.context.close()


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


def test_a_downloaded_figure_is_the_one_of_the_run(page, address, tmp_path):
    opened(page, f"{address}/export?export=samples/retrieval")
    files = {}
    for form in ("HTML", "PNG", "SVG", "JSON"):
        with page.expect_download() as download:
            page.get_by_role("button", name=f"result: {form}").click()
        files[form] = tmp_path / download.value.suggested_filename
        download.value.save_as(files[form])
    figure = HeadScores.load(samples_folder() / "retrieval").plot()
    assert files["JSON"].read_text() == figure.to_json()
    assert files["PNG"].read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert "retrieval-head score on pocket" in files["SVG"].read_text()
    alone = page.context.browser.new_page()
    alone.goto(files["HTML"].as_uri())
    alone.wait_for_selector(MAP)
    alone.close()


def test_the_toolbar_of_a_figure_saves_it_as_svg(page, address, tmp_path):
    opened(page, f"{address}/runs?run=samples/retrieval")
    plot = page.locator(".js-plotly-plot").first
    plot.hover()
    with page.expect_download() as download:
        plot.locator('[data-title="Download plot"]').click()
    download.value.save_as(tmp_path / "figure.svg")
    assert "<svg" in (tmp_path / "figure.svg").read_text()


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
