"""Figures of the hyperdimensional probe: precision of every method, its causal check, and codebooks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.plots.template import COLOURS, DIVERGING, TEMPLATE

PARTS = ["method", "encoder", "decoder", "moment", "ingestion"]


def precision_bars(frame: pd.DataFrame, subset: str = "all") -> go.Figure:
    """Precision at 1, 3 and 5 of every method with its interval; `frame` as of `HyperdimensionalProbe`."""
    rows = frame[(frame.subset == subset) & frame.metric.str.startswith("precision@")]
    rows = rows.assign(label=[_label(row, rows) for row in rows[PARTS].itertuples(index=False)])
    figure = go.Figure()
    for colour, (metric, part) in zip(COLOURS, rows.groupby("metric", sort=True), strict=False):
        figure.add_bar(
            y=part.label,
            x=part.value,
            orientation="h",
            name=metric,
            marker_color=colour,
            error_x=_bars(part, "value", "low", "high"),
            customdata=part[["low", "high", "n"]],
            hovertemplate="%{x:.3f} [%{customdata[0]:.3f}, %{customdata[1]:.3f}], n=%{customdata[2]}<extra>"
            + f"{metric}</extra>",
        )
    figure.update_layout(
        barmode="group",
        xaxis={"title": "share of prompts", "range": [0, 1]},
        yaxis={"autorange": "reversed", "automargin": True},
        height=120 + 60 * rows.label.nunique(),
        title="The target is among the first concepts",
        template=TEMPLATE,
    )
    return figure


def causal_curves(frame: pd.DataFrame) -> go.Figure:
    """How often the answer becomes the other concept, and stays the true one, by strength; `frame` of `CausalCheck`."""
    figure = go.Figure()
    for colour, (direction, part) in zip(COLOURS, frame.groupby("direction", sort=True), strict=False):
        for outcome, dash in (("follows", "solid"), ("kept", "dot")):
            figure.add_scatter(
                x=part.strength,
                y=part[outcome],
                error_y=_bars(part, outcome, f"{outcome}_low", f"{outcome}_high"),
                mode="lines+markers",
                line={"color": colour, "dash": dash},
                name=f"{direction}: {'says the other' if outcome == 'follows' else 'still says the true one'}",
            )
    figure.update_layout(
        xaxis_title="length of the move, in norms of the state",
        yaxis={"title": "share of prompts", "range": [0, 1]},
        title="Moving the state towards another concept",
        template=TEMPLATE,
    )
    return figure


def similarity_map(cosines: np.ndarray, concepts: Sequence[str]) -> go.Figure:
    """Cosine of every concept with every other, `[concept concept]`."""
    figure = go.Figure(
        go.Heatmap(
            z=cosines,
            x=list(concepts),
            y=list(concepts),
            zmin=-1,
            zmax=1,
            colorscale=DIVERGING,
            colorbar_title="cosine",
            hovertemplate="%{y}, %{x}: %{z:.3f}<extra></extra>",
        )
    )
    figure.update_layout(
        title="Similarity of hypervectors", yaxis={"autorange": "reversed", "scaleanchor": "x"}, template=TEMPLATE
    )
    return figure


def _label(row: tuple[str, ...], rows: pd.DataFrame) -> str:
    """What tells a method from the others: parts that all share are left out."""
    parts = [value for name, value in zip(PARTS, row, strict=True) if value and _differs(rows[name])]
    return ", ".join([row[0]] + [part for part in parts if part != row[0]])


def _differs(column: pd.Series) -> bool:
    return column[column != ""].nunique() > 1


def _bars(part: pd.DataFrame, value: str, low: str, high: str) -> dict[str, object]:
    return {
        "type": "data",
        "symmetric": False,
        "array": part[high] - part[value],
        "arrayminus": part[value] - part[low],
    }
