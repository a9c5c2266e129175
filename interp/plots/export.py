"""A figure as a file: HTML that needs nothing else, JSON, PNG or SVG."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import plotly.graph_objects as go

from interp.errors import BadInput, UnwritableOutput, choose
from interp.runs import require_writable, staged

PICTURES = (".png", ".svg")
"""Formats that a browser draws."""
SUFFIXES = (".html", ".json", *PICTURES)


def save_figure(
    figure: go.Figure, path: str | Path, *, width: int | None = None, height: int | None = None, scale: float = 2.0
) -> Path:
    """Write a figure in the format that the suffix of `path` names; what is there already is replaced.

    `.html` opens in any browser without a network, `.json` is what `plotly.io.read_json` reads. `width` and `height`
    (CSS pixels; as the figure says, else 700 x 500) and `scale` (PNG pixels for each of them) are those of pictures.
    Raises BadInput for another suffix or size, UnwritableOutput, also for a picture where no browser can draw it.
    """
    path = Path(path)
    require_format(path)
    require_writable(path)
    content = figure_bytes(figure, path.suffix.lower(), width=width, height=height, scale=scale)
    with staged(path) as partial:
        partial.write_bytes(content)
    return path


def figure_bytes(
    figure: go.Figure, suffix: str, *, width: int | None = None, height: int | None = None, scale: float = 2.0
) -> bytes:
    """The content of such a file. Raises as `save_figure` does."""
    require_format(f"figure{suffix}")
    if suffix == ".html":
        return figure.to_html(include_plotlyjs=True).encode()
    if suffix == ".json":
        return figure.to_json().encode()
    for name, value in (("width", width), ("height", height), ("scale", scale)):
        if value is not None and not 0 < value <= 10_000:
            raise BadInput(f"{name} {value} is no size of a picture; valid: above 0 and up to 10000")
    return _picture(figure, suffix.removeprefix("."), width, height, scale)


def require_format(path: str | Path) -> None:
    """Raise unless a figure can be written to a file of this name: BadInput, UnwritableOutput (no browser)."""
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise BadInput(f"{str(path)!r} names no format of figures by its suffix; {choose(suffix, SUFFIXES)}")
    if suffix in PICTURES and (lacking := lacking_for_pictures()):
        raise UnwritableOutput(lacking)


def lacking_for_pictures() -> str:
    """What is missing here for PNG and SVG, as a sentence; "" where nothing is."""
    if find_spec("kaleido") is None:
        return "PNG and SVG need kaleido, which is not installed: pip install 'interp-workbench[explorer]'"
    browsers = import_module("choreographer.browsers.chromium")  # what kaleido looks for a browser with
    if browsers.Chromium.find_browser(skip_local=False) is None:
        return (
            "PNG and SVG are drawn by Chrome or Chromium, and none was found: install one, or name it in the variable "
            "BROWSER_PATH, or write .html, whose toolbar saves pictures"
        )
    return ""


def _picture(figure: go.Figure, form: str, width: int | None, height: int | None, scale: float) -> bytes:
    kaleido = import_module("kaleido")  # optional, and without types
    size = {"width": width or figure.layout.width or 700, "height": height or figure.layout.height or 500}
    try:
        # without MathJax, which would be fetched from the network
        drawn: bytes = kaleido.calc_fig_sync(
            figure, opts={"format": form, "scale": scale, **size}, kopts={"mathjax": False}
        )
    except Exception as error:  # a browser fails in many ways
        raise UnwritableOutput(
            f"the browser did not draw the {form.upper()} ({type(error).__name__}: {error}); .html needs none"
        ) from error
    return drawn
