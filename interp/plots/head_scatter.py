"""Two numbers of every head against each other."""

from __future__ import annotations

from textwrap import wrap

import pandas as pd
import plotly.graph_objects as go

from interp.plots.template import COLOURS, TEMPLATE, literal

AXIS = 44
"""Letters of an axis' name in a line."""


def head_scatter(frame: pd.DataFrame, x: str, y: str, title: str = "") -> go.Figure:
    """A point a head, a colour a layer; `frame` has the columns layer, head, x and y, and `x` and `y` name the axes.

    Every point carries its layer and head as custom data.
    """
    x, y = ("<br>".join(map(literal, wrap(name, AXIS))) for name in (x, y))
    hover = f"head %{{customdata[0]}}.%{{customdata[1]}}<br>{x} %{{x:.3f}}<br>{y} %{{y:.3f}}<extra></extra>"
    figure = go.Figure()
    for number, (layer, part) in enumerate(frame.groupby("layer")):
        figure.add_scatter(
            x=part.x,
            y=part.y,
            mode="markers",
            name=f"layer {layer}",
            marker={"color": COLOURS[number % len(COLOURS)], "size": 9},
            customdata=part[["layer", "head"]],
            hovertemplate=hover,
        )
    figure.update_layout(template=TEMPLATE, title=literal(title), xaxis_title=x, yaxis_title=y)
    figure.update_xaxes(title_standoff=10, automargin=True)
    figure.update_yaxes(title_standoff=10, automargin=True)
    return figure
