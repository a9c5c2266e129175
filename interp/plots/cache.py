"""Figures of what a key/value cache keeps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import plotly.graph_objects as go

from interp.plots.template import COLOURS, TEMPLATE, literal, transparent

if TYPE_CHECKING:
    import pandas as pd

    from interp.heads.cache import CacheStudy

MIB = 2**20


def bytes_against_recall(study: CacheStudy) -> go.Figure:
    """KV bytes against recall: heads by score with intervals, the band of random heads, a star for the full cache."""
    figure = go.Figure()
    lengths = study.frame.length.unique()
    for i, length in enumerate(lengths):
        part, colour = study.frame[study.frame.length == length], COLOURS[i % len(COLOURS)]
        suffix = f", {length} tokens" if len(lengths) > 1 else ""
        _random_band(figure, part[part.kept == "random"], f"random heads{suffix}", colour)
        _line(figure, part[part.kept == "chosen"], f"heads by score{suffix}", colour)
        _full(figure, part[part.kept == "all"].iloc[0], f"full cache{suffix}", colour)
    n = study.frame.n.iloc[0]
    figure.update_layout(
        title=f"{literal(study.model['name'])}: recall of {n} needle tests{' a length' if len(lengths) > 1 else ''}",
        xaxis={"title": "keys and values (MiB)", "rangemode": "tozero"},
        yaxis={"title": "recall (fraction of answers)", "range": [-0.03, 1.05]},
        template=TEMPLATE,
    )
    return figure


def _line(figure: go.Figure, rows: pd.DataFrame, name: str, colour: str) -> None:
    rows = rows.sort_values("kv_bytes")
    spread = {"array": rows.recall_high - rows.recall, "arrayminus": rows.recall - rows.recall_low}
    figure.add_scatter(
        x=rows.kv_bytes / MIB,
        y=rows.recall,
        error_y={"type": "data", "symmetric": False, **spread},
        mode="lines+markers",
        name=name,
        marker_color=colour,
        customdata=rows[["heads", "saved", "recall_low", "recall_high", "n"]],
        hovertemplate="%{customdata[0]} heads, %{customdata[1]:.0%} saved: %{y:.3f} [%{customdata[2]:.3f}, "
        "%{customdata[3]:.3f}], n = %{customdata[4]}",
    )


def _random_band(figure: go.Figure, rows: pd.DataFrame, name: str, colour: str) -> None:
    """From the least to the greatest recall of the draws, with a dotted line at their mean."""
    if rows.empty:
        return
    by_size = rows.groupby("heads")
    x = by_size.kv_bytes.mean() / MIB
    low, mean, high = (getattr(by_size.recall, statistic)() for statistic in ("min", "mean", "max"))
    figure.add_scatter(
        x=[*x, *x[::-1]],
        y=[*high, *low[::-1]],
        fill="toself",
        mode="lines",
        line_width=0,
        fillcolor=transparent(colour),
        name=f"{name}, {rows.seed.nunique()} draws",
        hoverinfo="skip",
    )
    figure.add_scatter(
        x=x,
        y=mean,
        mode="lines+markers",
        line={"dash": "dot", "color": colour},
        name=f"{name}, mean",
        customdata=[*zip(mean.index, low, high, strict=True)],
        hovertemplate="%{customdata[0]} random heads: %{y:.3f} (%{customdata[1]:.3f} to %{customdata[2]:.3f})",
    )


def _full(figure: go.Figure, row: pd.Series, name: str, colour: str) -> None:
    star = {"symbol": "star", "size": 13, "color": colour}
    figure.add_scatter(x=[row.kv_bytes / MIB], y=[row.recall], mode="markers", marker=star, name=name)
    figure.add_hline(y=row.recall, line={"dash": "dash", "width": 1, "color": colour}, opacity=0.5)
