"""Figures of localized fine-tuning, from its frame."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from interp.plots.template import COLOURS, INK, TEMPLATE, transparent

NAMES = {
    "lofit": "LoFiT: selected heads",
    "random": "random heads",
    "other": "heads of another skill",
    "iti": "inference-time intervention",
    "lora": "LoRA, at least as many parameters",
}
LEVELS = {"all": ("all heads", "dash"), "none": ("untouched model", "dot")}


def accuracy_by_heads(frame: pd.DataFrame, title: str = "") -> go.Figure:
    """Accuracy against the number of heads, a colour a condition; the untouched model and all heads as levels.

    `frame` is that of `Lofit`. Bars go from the lowest to the highest bound of the seeds' Wilson intervals.
    """
    figure = go.Figure()
    ranges = _over_seeds(frame)
    for colour, (condition, name) in zip(COLOURS, NAMES.items(), strict=False):
        part = ranges[ranges.condition == condition]
        if len(part):
            figure.add_scatter(
                x=part.heads,
                y=part.accuracy,
                name=name,
                mode="lines+markers",
                line={"color": colour, "dash": "solid" if condition == "lofit" else "dot"},
                marker={"size": 9},
                error_y={"array": part.high - part.accuracy, "arrayminus": part.accuracy - part.low, "width": 4},
                customdata=part[["low", "high", "parameters", "seeds", "n"]],
                hovertemplate="%{x} heads, %{customdata[2]} parameters: %{y:.3f} [%{customdata[0]:.3f}, "
                "%{customdata[1]:.3f}], %{customdata[3]} seeds of n = %{customdata[4]}",
            )
    for condition, (name, dash) in LEVELS.items():
        for level in ranges[ranges.condition == condition].itertuples():
            figure.add_hline(y=level.accuracy, line={"color": INK, "dash": dash}, annotation_text=name)
            figure.add_hrect(y0=level.low, y1=level.high, fillcolor=transparent(INK), line_width=0)
    figure.update_layout(template=TEMPLATE, title=title, xaxis_title="heads with an offset", yaxis_title="accuracy")
    figure.update_yaxes(range=[-0.03, 1.03])
    figure.update_xaxes(rangemode="tozero")
    return figure


def _over_seeds(frame: pd.DataFrame) -> pd.DataFrame:
    """A row a condition and number of heads: the mean over seeds, and how far their intervals reach."""
    return frame.groupby(["condition", "heads"], sort=False, as_index=False).agg(
        accuracy=("accuracy", "mean"),
        low=("low", "min"),
        high=("high", "max"),
        parameters=("parameters", "first"),
        seeds=("seed", "nunique"),
        n=("n", "first"),
    )
