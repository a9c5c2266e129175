"""Figures of head roles and circuits."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots


def role_maps(scores: Mapping[str, np.ndarray], title: str = "") -> go.Figure:
    """Heat maps of `[layer head]` scores between 0 and 1 side by side, one a role, on one colour scale."""
    figure = make_subplots(cols=len(scores), subplot_titles=list(scores), shared_yaxes=True)
    for column, values in enumerate(scores.values(), 1):
        hover = "layer %{y}, head %{x}: %{z:.3f}<extra></extra>"
        figure.add_trace(go.Heatmap(z=values, coloraxis="coloraxis", hovertemplate=hover), row=1, col=column)
    layers = len(next(iter(scores.values())))
    figure.update_yaxes(autorange="reversed", dtick=max(1, layers // 16))
    figure.update_xaxes(title="head")
    figure.update_layout(
        title=title,
        template="plotly_white",
        yaxis_title="layer",
        coloraxis={"colorscale": "Blues", "cmin": 0, "cmax": 1},
    )
    return figure
