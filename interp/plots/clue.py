"""Figures of CLUE: deltas with their centroids, layers that separate, and re-ranking over k."""

from __future__ import annotations

from typing import TYPE_CHECKING

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from interp.plots.template import COLOURS, INK, TEMPLATE, transparent

if TYPE_CHECKING:
    import pandas as pd

    from probes.clue import Scored
    from probes.reranking import Ranking
    from probes.verification import Verification

RIGHT, WRONG = COLOURS[0], COLOURS[1]
CONTROL = "any order"


def projections(scored: Scored) -> go.Figure:
    """Deltas in the plane of the line through both centroids and the largest remaining variation."""
    figure = go.Figure()
    known = scored.frame.correct
    for kind, colour, chosen in (
        ("right", RIGHT, known.eq(True).fillna(False)),
        ("wrong", WRONG, known.eq(False).fillna(False)),
        ("not checked", INK, known.isna()),
    ):
        rows = chosen.to_numpy(dtype=bool)
        if rows.any():
            figure.add_scatter(
                x=scored.projection[rows, 0],
                y=scored.projection[rows, 1],
                mode="markers",
                name=f"{kind} traces",
                marker={"color": transparent(colour, 0.6), "size": 6},
                text=scored.frame.question[rows],
                hovertemplate="%{text}<extra>" + kind + "</extra>",
            )
    half = float((scored.centroids.gap**2).sum() ** 0.5) / 2
    for kind, colour, place in (("success", RIGHT, half), ("failure", WRONG, -half)):
        figure.add_scatter(
            x=[place],
            y=[0],
            mode="markers",
            name=f"{kind} centroid",
            marker={"color": colour, "size": 16, "symbol": "star", "line": {"color": INK, "width": 1}},
        )
    figure.update_layout(
        template=TEMPLATE,
        title="Hidden-state deltas of held-out traces, projected",
        xaxis_title="from the failure to the success centroid",
        yaxis_title="largest remaining variation",
    )
    return figure


def by_depth(verification: Verification) -> go.Figure:
    """AUC of each layer's margin with its interval, and the distance between centroids, raw and over the spread."""
    layers = verification.layers
    figure = make_subplots(rows=1, cols=2, subplot_titles=("AUC of one layer", "centroids"))
    _band(figure, layers.layer, layers.low, layers.high, COLOURS[0], row=1, col=1)
    figure.add_scatter(x=layers.layer, y=layers.auc, name="AUC", line_color=COLOURS[0], row=1, col=1)
    figure.add_hline(0.5, line_dash="dot", line_color=INK, annotation_text="chance", row=1, col=1)
    for name, label, colour in (("distance", "distance", COLOURS[2]), ("separation", "distance / spread", COLOURS[3])):
        figure.add_scatter(x=layers.layer, y=layers[name], name=label, line_color=colour, row=1, col=2)
    figure.update_xaxes(title_text="layer", dtick=max(1, len(layers) // 12))
    figure.update_yaxes(title_text="AUC", row=1, col=1)
    figure.update_yaxes(type="log", row=1, col=2)
    figure.update_layout(template=TEMPLATE, title="Which layers separate right from wrong traces")
    return figure


def reranking(ranking: Ranking) -> go.Figure:
    """Accuracy of the majority among the k best samples, one line a score, with its interval for CLUE."""
    figure = go.Figure()
    frame = ranking.frame
    best = frame[frame["pick"] == "top-maj"]
    for name, colour in zip(dict.fromkeys(best.score), _cycle(best), strict=False):
        part = best[best.score == name].astype({"k": int})
        if name == "clue":
            _band(figure, part.k, part.low, part.high, colour)
        dash = "dot" if name == CONTROL else "solid"
        figure.add_scatter(
            x=part.k,
            y=part.accuracy,
            name=name,
            mode="lines+markers",
            line={"color": colour, "dash": dash},
            customdata=part[["low", "high"]],
            hovertemplate="k=%{x}: %{y:.3f} [%{customdata[0]:.3f}, %{customdata[1]:.3f}]<extra>" + name + "</extra>",
        )
    for pick in ("majority", "mean", "pass"):
        (value,) = frame[(frame["pick"] == pick) & frame.k.isna()].accuracy
        figure.add_hline(value, line_dash="dash", line_color=INK, annotation_text=f"{pick}@n")
    figure.update_layout(
        template=TEMPLATE,
        title="Majority among the k best samples",
        xaxis={"title": "k", "type": "log", "tickvals": sorted(set(best.k.astype(int)))},
        yaxis_title="questions answered right",
    )
    return figure


def _band(figure: go.Figure, x: pd.Series, low: pd.Series, high: pd.Series, colour: str, **panel: int) -> None:
    figure.add_scatter(
        x=[*x, *x[::-1]],
        y=[*low, *high[::-1]],
        fill="toself",
        fillcolor=transparent(colour),
        line_width=0,
        hoverinfo="skip",
        showlegend=False,
        **panel,
    )


def _cycle(frame: pd.DataFrame) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(frame.score.nunique())]
