"""Figures of scores by head, and of heads with roles."""

from __future__ import annotations

from textwrap import wrap

import numpy as np
import plotly.graph_objects as go

from interp.plots.template import COLOURS, INK, SEQUENTIAL, TEMPLATE, literal, transparent

BAR = 30
"""Letters of a colour bar's name in a line."""


def head_map(scores: np.ndarray, title: str = "", quantity: str = "score") -> go.Figure:
    """Heat map of `scores` `[layer head]`, layer 0 on top; `quantity` says what they are."""
    figure = go.Figure(
        go.Heatmap(
            z=scores,
            colorscale=SEQUENTIAL,
            colorbar={"title": "<br>".join(map(literal, wrap(quantity, BAR)))},
            hovertemplate="layer %{y}, head %{x}: %{z:.3f}<extra></extra>",
        )
    )
    return _by_head(figure, title, *scores.shape)


def role_map(labels: np.ndarray, title: str = "") -> go.Figure:
    """Map of what heads are: a colour for each of the `labels` `[layer head]`, "" for none; layer 0 on top."""
    layers, heads = labels.shape
    names = sorted({str(label) for label in labels.flat if label})
    number = np.array([[names.index(label) + 1 if label else 0 for label in row] for row in labels])
    colours = [transparent(INK, 0.15), *(COLOURS[i % len(COLOURS)] for i in range(len(names)))]
    steps = np.linspace(0, 1, len(colours) + 1)
    scale = [(edge, colour) for i, colour in enumerate(colours) for edge in (steps[i], steps[i + 1])]
    figure = go.Figure(
        go.Heatmap(
            z=number,
            zmin=-0.5,
            zmax=len(names) + 0.5,
            colorscale=scale,
            showscale=False,
            customdata=[[literal(label) or "none" for label in row] for row in labels],
            hovertemplate="layer %{y}, head %{x}: %{customdata}<extra></extra>",
        )
    )
    for name, colour in zip(names, colours[1:], strict=True):
        marker = {"symbol": "square", "size": 12, "color": colour}
        figure.add_scatter(x=[None], y=[None], mode="markers", marker=marker, name=literal(name), showlegend=True)
    figure.update_layout(legend={"orientation": "h", "y": -0.2, "yanchor": "top", "x": 0})
    return _by_head(figure, title, layers, heads)


def _by_head(figure: go.Figure, title: str, layers: int, heads: int) -> go.Figure:
    figure.update_layout(title=literal(title), xaxis_title="head", yaxis_title="layer", template=TEMPLATE)
    figure.update_xaxes(dtick=max(1, heads // 16), range=[-0.5, heads - 0.5], showgrid=False, zeroline=False)
    figure.update_yaxes(dtick=max(1, layers // 16), range=[layers - 0.5, -0.5], showgrid=False, zeroline=False)
    return figure
