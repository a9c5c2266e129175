"""Figures of scores by head."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from interp.plots.template import SEQUENTIAL, TEMPLATE, literal


def head_map(
    scores: np.ndarray, title: str = "", quantity: str = "score", labels: np.ndarray | None = None
) -> go.Figure:
    """Heat map of `scores` `[layer head]`, layer 0 on top; `labels` `[layer head]` are written into the cells."""
    figure = go.Figure(
        go.Heatmap(
            z=scores,
            colorscale=SEQUENTIAL,
            colorbar={"title": literal(quantity)},
            hovertemplate="layer %{y}, head %{x}: %{z:.3f}<extra></extra>",
        )
    )
    if labels is not None:
        text = [[literal(label).replace(" ", "<br>") for label in row] for row in labels]
        figure.update_traces(text=text, texttemplate="%{text}", textfont_size=10)
    figure.update_layout(title=literal(title), xaxis_title="head", yaxis_title="layer", template=TEMPLATE)
    figure.update_xaxes(dtick=max(1, scores.shape[1] // 16))
    figure.update_yaxes(autorange="reversed", dtick=max(1, scores.shape[0] // 16))
    return figure
