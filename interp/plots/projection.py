"""Figures of projections: a point a text, coloured by its label, with the text on hover."""

from __future__ import annotations

from itertools import cycle
from textwrap import wrap
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go

from interp.plots.template import COLOURS, TEMPLATE, literal
from interp.tables import shortened

if TYPE_CHECKING:
    from interp.projection import Projection

SYMBOLS = ("circle", "diamond", "square", "cross", "triangle-up", "x", "star")
"""Told apart also without colours."""
HOVERED, LINE = 400, 70
"""Characters of a text on hover, and of a line of it."""


def projection_scatter(projection: Projection, x: int, y: int) -> go.Figure:
    """Two axes of a projection against each other, a colour and symbol a label."""
    labels = np.array(projection.labels)
    texts = np.array([_lines(text) for text in projection.texts], dtype=object)
    across, up = (literal(projection.axes[axis]) for axis in (x, y))
    figure = go.Figure()
    for colour, symbol, label in zip(cycle(COLOURS), cycle(SYMBOLS), dict.fromkeys(sorted(labels)), strict=False):
        mine = labels == label
        figure.add_scatter(
            x=projection.coordinates[mine, x],
            y=projection.coordinates[mine, y],
            mode="markers",
            name=literal(label),
            marker={"color": colour, "symbol": symbol, "size": 8, "opacity": 0.8},
            customdata=texts[mine],
            hovertemplate=f"%{{customdata}}<br>{across} %{{x:.3g}}, {up} %{{y:.3g}}",
        )
    n = len(projection.texts)
    figure.update_layout(
        template=TEMPLATE,
        title={
            "text": f"{n} texts at {projection.site}, {literal(projection.model['name'])}",
            "subtitle": {"text": _told(projection, x)},
        },
        xaxis_title=_title(projection, x),
        yaxis_title=_title(projection, y),
        showlegend=True,
        legend={"orientation": "h", "yref": "container", "yanchor": "bottom", "y": 0.01, "xanchor": "left", "x": 0},
        margin={"t": 84, "b": 96},
    )
    return figure


def _title(projection: Projection, axis: int) -> str:
    return f"{literal(projection.axes[axis])} ({projection.variance[axis]:.1%} of the variance)"


def _told(projection: Projection, axis: int) -> str:
    """How well the label is told along one axis, beside its controls; nothing of the random one."""
    rows = projection.separation
    rows = rows[rows.axis == projection.axes[axis]]
    if rows.empty or not np.isfinite(rows.accuracy.iloc[0]):
        return ""
    row = rows.iloc[0]
    return (
        f"label told along {literal(row.axis)}: {row.accuracy:.2f} [{row.accuracy_low:.2f}, {row.accuracy_high:.2f}]; "
        f"shuffled labels {row.shuffled:.2f}, random directions {row.random:.2f}"
    )


def _lines(text: str) -> str:
    """A text as lines of a hover label, letter by letter."""
    broken = [part for line in shortened(text, HOVERED).splitlines() for part in wrap(line, LINE) or [""]]
    return "<br>".join(literal(part) for part in broken)
