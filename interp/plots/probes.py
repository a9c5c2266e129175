"""Figures of probes: what can be read at each site, by depth, with controls and under perturbations."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

TEMPLATE = "plotly_white"


def by_site(frame: pd.DataFrame, metric: str) -> go.Figure:
    """A metric of every site with its interval, one line a label set; `frame` has the rows of one metric."""
    figure = go.Figure()
    for labels, part in frame.groupby("labels", sort=False):
        figure.add_scatter(
            x=part["site"],
            y=part["value"],
            error_y=_bars(part),
            mode="lines+markers",
            name=str(labels),
        )
    figure.update_layout(xaxis_title="site", yaxis_title=metric.replace("_", " "), template=TEMPLATE)
    return figure


def _bars(part: pd.DataFrame) -> dict[str, object]:
    return {
        "type": "data",
        "symmetric": False,
        "array": part["high"] - part["value"],
        "arrayminus": part["value"] - part["low"],
    }
