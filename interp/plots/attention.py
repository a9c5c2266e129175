"""Figures of attention on one prompt."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go

from interp.attention_summary import STATISTICS
from interp.plots.template import SEQUENTIAL, TEMPLATE, visible

if TYPE_CHECKING:
    from interp.attention_summary import AttentionSummary


def statistic_map(summary: AttentionSummary, statistic: str) -> go.Figure:
    """Heat map of one number a head, layer 0 on top."""
    values = summary.statistic(statistic)
    figure = go.Figure(
        go.Heatmap(
            z=values,
            colorscale=SEQUENTIAL,
            hovertemplate="head %{y}.%{x}: %{z:.3f}<extra></extra>",
        )
    )
    figure.update_layout(
        template=TEMPLATE, title="<br>".join(wrap(f"{STATISTICS[statistic]}, n = {len(summary.ids)}", 44))
    )
    figure.update_xaxes(title="head", dtick=max(1, values.shape[1] // 16))
    figure.update_yaxes(title="layer", autorange="reversed", dtick=max(1, values.shape[0] // 16))
    return figure


def pattern_map(pattern: np.ndarray, tokens: Sequence[str], title: str = "") -> go.Figure:
    """Heat map of attention probabilities `[query key]`, queries downwards."""
    names = [f"{i} {visible(token)}" for i, token in enumerate(tokens)]
    hidden = np.triu(np.ones_like(pattern, dtype=bool), 1) & (pattern == 0)
    figure = go.Figure(
        go.Heatmap(
            z=np.where(hidden, np.nan, pattern),
            colorscale=SEQUENTIAL,
            zmin=0,
            zmax=1,
            colorbar={"title": "attention"},
            hovertemplate="from %{y} to %{x}: %{z:.3f}<extra></extra>",
        )
    )
    step = -(-len(names) // 48)
    ticks = {"tickvals": list(range(0, len(names), step)), "ticktext": names[::step]}
    ticks |= {"showgrid": False, "zeroline": False, "automargin": True}
    figure.update_layout(template=TEMPLATE, title=title, height=max(420, 120 + 14 * len(names)))
    figure.update_xaxes(title="key", **ticks)
    figure.update_yaxes(title="query", autorange="reversed", **ticks)
    return figure
