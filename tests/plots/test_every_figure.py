"""What holds of every figure of every sample run, whatever it shows."""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from apps.explorer.results import figures_of
from apps.explorer.settings import samples_folder
from interp.patching.activation import PatchingResult
from interp.plots.attention import pattern_map
from interp.plots.head_scatter import head_scatter
from interp.plots.heads import head_map
from interp.plots.template import COLOURS, DIVERGING, INK, SEQUENTIAL, TEMPLATE, visible
from interp.runs import Run, load_run, run_folders

PAGES = {"white": (255, 255, 255), "dark": (14, 17, 23)}
"""Backgrounds of the two themes."""
CONTRAST = 1.8
"""Below this a line can hardly be told from its background; the palest of the palette has 2.2 on white."""
HOSTILE = '<a href="javascript:alert(1)">x</a><b>y</b>'

CARTESIAN = ("scatter", "scattergl", "bar", "heatmap", "histogram", "box", "violin", "contour")

Figure = dict[str, Any]


def runs() -> list[Run]:
    return [load_run(path) for path in run_folders(samples_folder())]


@pytest.fixture(scope="module")
def figures() -> dict[str, Figure]:
    """Every figure as what a browser gets, by run and name."""
    return {
        f"{run.path.name}: {name}": json.loads(figure.to_json())
        for run in runs()
        for name, figure in figures_of(run).items()
    }


def drawn(figure: Figure) -> Iterator[tuple[int, dict[str, Any]]]:
    """The traces that a person can point at."""
    return ((i, trace) for i, trace in enumerate(figure["data"]) if trace.get("hoverinfo") != "skip")


def array(values: Any) -> np.ndarray:
    """Numbers of a figure, which plotly may have packed."""
    if not isinstance(values, dict):
        return np.array(values, dtype=float)
    flat = np.frombuffer(base64.b64decode(values["bdata"]), dtype=values["dtype"])
    return flat.reshape([int(n) for n in str(values.get("shape", len(flat))).split(",")])


def test_there_are_figures(figures):
    assert len(figures) >= 8


def test_every_figure_wears_the_template_and_has_a_title(figures):
    template = json.loads(go.Figure(layout={"template": TEMPLATE}).to_json())["layout"]["template"]
    assert [name for name, figure in figures.items() if figure["layout"].get("template") != template] == []
    assert [name for name, figure in figures.items() if not figure["layout"].get("title", {}).get("text")] == []


def untitled(figure: Figure) -> set[str]:
    """Axes with a trace that neither have a title nor line up with an axis that has one."""
    layout = figure["layout"]

    def named(axis: str) -> bool:
        return bool(layout.get(axis, {}).get("title", {}).get("text"))

    def beside(axis: str) -> list[str]:
        where = layout.get(axis, {}).get("domain")
        return [other for other in layout if other.startswith(axis[:5]) and layout[other].get("domain") == where]

    used = set()
    for trace in figure["data"]:
        for letter in "xy" if trace["type"] in CARTESIAN else "":
            used.add(f"{letter}axis{trace.get(f'{letter}axis', letter)[1:]}")
    hidden = {axis for axis in used if layout.get(axis, {}).get("visible") is False}
    return {axis for axis in used - hidden if not any(named(other) for other in [axis, *beside(axis)])}


def test_every_axis_says_what_it_measures(figures):
    assert {name: found for name, figure in figures.items() if (found := untitled(figure))} == {}


def tells(trace: dict[str, Any]) -> bool:
    """Whether pointing at a trace shows numbers, rounded by its author."""
    template = trace.get("hovertemplate") or ""
    numbers = re.search(r"%\{(x|y|z|marker\.\w+|customdata\[\d+\]):[^}]+\}", template)
    texts = "%{text}" in template or trace.get("hoverinfo") == "text"
    written = json.dumps(trace.get("text") or trace.get("hovertext") or "")
    return bool(numbers) or (texts and bool(re.search(r"\d", written)))


def test_pointing_at_anything_shows_its_numbers(figures):
    silent = [(name, i) for name, figure in figures.items() for i, trace in drawn(figure) if not tells(trace)]
    assert silent == []


def scales(figure: Figure) -> Iterator[tuple[str, dict[str, Any], np.ndarray]]:
    """Every colour scale in use: where, its settings, and the values it colours."""
    shared = {key: part for key, part in figure["layout"].items() if key.startswith("coloraxis")}
    for i, trace in enumerate(figure["data"]):
        for part, values in ((trace, trace.get("z")), (trace.get("marker", {}), trace.get("marker", {}).get("color"))):
            if values is None or isinstance(values, str):
                continue
            if isinstance(values, list) and any(isinstance(value, str) for value in values):
                continue
            axis = shared.get(part.get("coloraxis", ""))
            yield f"trace {i}", part if axis is None else axis, array(values)


def bounds(scale: dict[str, Any]) -> tuple[float | None, float | None]:
    return scale.get("zmin", scale.get("cmin")), scale.get("zmax", scale.get("cmax"))


def palette(name: str) -> list[list[Any]]:
    return json.loads(go.Figure(go.Heatmap(colorscale=name)).to_json())["data"][0]["colorscale"]


def test_colours_of_both_signs_diverge_around_zero_and_others_do_not_diverge(figures):
    wrong = []
    for name, figure in figures.items():
        for where, scale, values in scales(figure):
            low, high = bounds(scale)
            if scale.get("colorscale") == palette(DIVERGING):
                if low is None or low != -high:
                    wrong.append(f"{name}, {where}: diverges from {low} to {high}")
            elif scale.get("colorscale") != palette(SEQUENTIAL):
                wrong.append(f"{name}, {where}: another scale")
            elif np.nanmin(values, initial=0) < 0 < np.nanmax(values, initial=0):
                wrong.append(f"{name}, {where}: both signs on a scale that does not show them")
    assert wrong == []


def test_every_colour_bar_says_what_it_is_of(figures):
    without = []
    for name, figure in figures.items():
        for where, scale, _ in scales(figure):
            shown = scale.get("showscale", True) is not False
            if shown and not scale.get("colorbar", {}).get("title", {}).get("text"):
                without.append(f"{name}, {where}")
    assert without == []


def colours(part: Any, key: str = "") -> Iterator[str]:
    """Every colour that is named anywhere in a figure, but for its template and scales."""
    if isinstance(part, dict):
        for name, below in part.items():
            if name not in ("template", "colorscale", "coloraxis"):
                yield from colours(below, name)
    elif isinstance(part, list):
        for below in part:
            yield from colours(below, key)
    elif isinstance(part, str) and key.endswith("color"):
        yield part


def red_green_blue(colour: str) -> tuple[float, ...]:
    """Channels from 0 to 255, and the opacity. A colour by its name is none of ours."""
    if re.fullmatch("#[0-9a-fA-F]{6}", colour):
        return tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))
    found = re.fullmatch(r"rgba?\(([\d.,\s]+)\)", colour)
    assert found, f"{colour} is neither #rrggbb nor rgb()"
    return tuple(float(number) for number in found[1].split(","))[:3]


def luminance(colour: tuple[float, ...]) -> float:
    """Relative luminance, WCAG 2.2."""
    linear = [c / 12.92 if (c := channel / 255) <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for channel in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def vanishing(colour: str) -> list[str]:
    if colour == "rgba(0, 0, 0, 0)":
        return []
    return [page for page, paper in PAGES.items() if contrast(red_green_blue(colour), paper) < CONTRAST]


def test_the_palette_is_seen_on_light_and_dark_pages():
    assert {colour: vanishing(colour) for colour in (*COLOURS, INK) if vanishing(colour)} == {}
    assert vanishing("#ffffff") == ["white"]
    assert vanishing("#111111") == ["dark"]


def test_no_colour_vanishes_on_a_light_or_dark_page(figures):
    found = {(name, colour) for name, figure in figures.items() for colour in colours(figure)}
    assert {pair: pages for pair in sorted(found) if (pages := vanishing(pair[1]))} == {}


def markup(figure: Figure) -> bool:
    """Whether the link of HOSTILE, whole or cut, would be drawn as one."""
    return "<a" in json.dumps(figure)


def test_markup_in_the_name_of_a_model_is_text(tmp_path):
    wrong = []
    for run in runs():
        folder = shutil.copytree(run.path, tmp_path / run.path.name)
        record = json.loads((folder / "run.json").read_text())
        record["model"]["name"] = HOSTILE
        (folder / "run.json").write_text(json.dumps(record))
        drawn = figures_of(load_run(folder)).items()
        wrong += [f"{folder.name}: {name}" for name, figure in drawn if markup(json.loads(figure.to_json()))]
    assert wrong == []


@pytest.fixture(scope="module")
def tiny():
    import interp

    return interp.load("pocket")


def test_markup_in_tokens_is_text(tiny):
    from interp.logit_lens import logit_lens
    from interp.next_token import next_token

    tokens = [HOSTILE, "a\n", ' "&lt;b&gt;"']
    assert [visible(token) for token in tokens[1:]] == ["a⏎", '·"&amp;lt;b&amp;gt;"']
    prompt = f"Alice says <a {HOSTILE} <a <a"
    attention = tiny.run(prompt, read="pattern.0.0")["pattern.0.0"][0].float().numpy()
    parts = [token + "<a" for token in tiny.tokens(prompt)]
    for figure in (
        pattern_map(attention, parts, "one head"),
        replace(logit_lens(tiny, prompt), tokens=tuple(parts)).plot(),
        replace(next_token(tiny, prompt), said=(HOSTILE,) * len(next_token(tiny, prompt).said)).plot(),
    ):
        assert not markup(json.loads(figure.to_json()))
        assert "&lt;a" in figure.to_json().replace("\\u003c", "<").replace("\\u0026", "&")


def test_markup_in_labels_of_positions_and_axes_is_text():
    saved = PatchingResult.load(samples_folder() / "ioi-positions")
    labelled = replace(saved, labels=(HOSTILE, *saved.labels[1:]))
    heads = pd.DataFrame({"layer": [0, 1], "head": [0, 1], "x": [0.1, 0.2], "y": [0.3, 0.4]})
    for figure in (labelled.plot(), head_scatter(heads, HOSTILE, "effect", HOSTILE), head_map(np.eye(2), HOSTILE)):
        assert not markup(json.loads(figure.to_json()))
