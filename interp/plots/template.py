"""How every figure looks: readable on light and dark pages, told apart by the colour-blind, numbers on hover."""

from __future__ import annotations

from html import escape

import plotly.graph_objects as go

INK = "#7a7f87"
"""Of text and lines: enough contrast on white and on black."""

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8A8D91")
"""Okabe and Ito's palette (2008), without black and yellow, which vanish on dark and light pages."""

DIVERGING = "RdBu_r"
"""Around 0: blue below, white, red above."""
SEQUENTIAL = "Viridis"

_axis = {"gridcolor": "rgba(128, 128, 128, 0.25)", "linecolor": INK, "zerolinecolor": INK, "ticks": "outside"}
_bar = {"colorbar": {"title": {"side": "right"}}}
"""Above a colour bar its name would take the map's room."""

TEMPLATE = go.layout.Template(
    layout={
        "font": {"color": INK, "size": 13},
        "paper_bgcolor": "rgba(0, 0, 0, 0)",
        "plot_bgcolor": "rgba(0, 0, 0, 0)",
        "colorway": COLOURS,
        "xaxis": _axis,
        "yaxis": _axis,
        "hoverlabel": {"namelength": -1},
        "margin": {"l": 60, "r": 20, "t": 60, "b": 50},
        "coloraxis": _bar,
    },
    data={"heatmap": [_bar], "scatter": [{"marker": _bar}]},
)


def literal(text: object) -> str:
    """Foreign text (a model's name, a label) as a figure shows it letter by letter: its markup and links are text."""
    return escape(str(text), quote=False)  # plotly knows no entities for quotes


def visible(token: str) -> str:
    """A token as a figure shows it: markup as text, spaces and line ends to be seen."""
    return literal(token.replace("\n", "⏎").replace("\t", "⇥").replace(" ", "·") or "∅")


def transparent(colour: str, opacity: float = 0.2) -> str:
    """A `#rrggbb` colour for bands."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red}, {green}, {blue}, {opacity})"
