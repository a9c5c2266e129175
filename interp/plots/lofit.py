"""Figures of localized fine-tuning, from its frame."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.plots.template import COLOURS, INK, SEQUENTIAL, TEMPLATE, literal, transparent

NAMES = {
    "lofit": "LoFiT: selected heads",
    "random": "random heads",
    "other": "heads of another skill",
    "iti": "inference-time intervention",
    "lora": "LoRA, at least as many parameters",
}
STEP = 0.05
"""In heads, by which conditions stand beside each other: their bars would cover each other."""
LEVELS = {"all": ("all heads", "dash"), "none": ("untouched model", "dot")}


def accuracy_by_heads(frame: pd.DataFrame, title: str = "") -> go.Figure:
    """Accuracy against the number of heads, a colour a condition; the untouched model and all heads as levels.

    `frame` is that of `Lofit`. Bars go from the lowest to the highest bound of the seeds' Wilson intervals.
    """
    figure = go.Figure()
    across = (len(NAMES) - 1) / 2
    ranges = _over_seeds(frame)
    for number, (colour, (condition, name)) in enumerate(zip(COLOURS, NAMES.items(), strict=False)):
        part = ranges[ranges.condition == condition]
        if len(part):
            figure.add_scatter(
                x=part.heads + STEP * (number - across),
                y=part.accuracy,
                name=name,
                showlegend=True,
                mode="lines+markers",
                line={"color": colour, "dash": "solid" if condition == "lofit" else "dot"},
                marker={"size": 9},
                error_y={"array": part.high - part.accuracy, "arrayminus": part.accuracy - part.low, "width": 4},
                customdata=part[["low", "high", "parameters", "seeds", "n", "heads"]],
                hovertemplate="%{customdata[5]} heads, %{customdata[2]} parameters: %{y:.3f} [%{customdata[0]:.3f}, "
                "%{customdata[1]:.3f}], %{customdata[3]} seeds of n = %{customdata[4]}",
            )
    for condition, (name, dash) in LEVELS.items():
        for level in ranges[ranges.condition == condition].itertuples():
            figure.add_hline(y=level.accuracy, line={"color": INK, "dash": dash}, annotation_text=name)
            figure.add_hrect(y0=level.low, y1=level.high, fillcolor=transparent(INK), line_width=0)
    figure.update_layout(
        template=TEMPLATE,
        title=f"{literal(title)}, n = {int(frame.n.iloc[0])}",
        xaxis_title="heads with an offset",
        yaxis_title="accuracy (share of test prompts)",
    )
    figure.update_yaxes(range=[-0.03, 1.03])
    figure.update_xaxes(rangemode="tozero", tickvals=sorted(ranges.heads[ranges.condition.isin(NAMES)].unique()))
    return figure


def strength_map(frame: pd.DataFrame, title: str = "") -> go.Figure:
    """Heat map of how strongly LoFiT scales every head, with the share of seeds that selected it written in.

    `frame` is `Lofit.by_head`.
    """
    cells = frame.pivot(index="layer", columns="head")
    selected = cells.selected.to_numpy()
    figure = go.Figure(
        go.Heatmap(
            z=cells.strength.to_numpy(),
            x=list(cells.strength.columns),
            y=list(cells.strength.index),
            text=np.where(selected > 0, np.char.mod("%d %%", 100 * selected), ""),
            texttemplate="%{text}",
            colorscale=SEQUENTIAL,
            zmin=0,
            colorbar={"title": "norm of A"},
            customdata=np.stack([cells[name].to_numpy() for name in ("low", "high", "selected", "n")], axis=-1),
            hovertemplate="head %{y}.%{x}: %{z:.3f}, of %{customdata[3]} seeds %{customdata[0]:.3f} to "
            "%{customdata[1]:.3f}, selected in %{customdata[2]:.0%}<extra></extra>",
        )
    )
    figure.update_layout(
        template=TEMPLATE,
        title={
            "text": f"{literal(title)}: which heads LoFiT selects",
            "subtitle": {"text": "written in: in how many of the seeds a head was selected"},
        },
        xaxis_title="head",
        yaxis_title="layer",
    )
    figure.update_xaxes(dtick=max(1, selected.shape[1] // 16))
    figure.update_yaxes(autorange="reversed", dtick=max(1, selected.shape[0] // 16))
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
