"""Figures of probes: what can be read at each site, by depth, with controls and under perturbations."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from interp.plots.template import COLOURS, INK, TEMPLATE, transparent

BAG = "bag of tokens"
CONTROLS: Mapping[str, str] = {"control": "dash", "shuffled": "dot", "untrained": "dashdot", BAG: "longdash"}
"""Lines of the series that are not the probe itself."""
UNPERTURBED = "none"


def by_site(frame: pd.DataFrame, metric: str) -> go.Figure:
    """A metric of every site with its interval, one line a label set; `frame` has the rows of one metric."""
    figure = go.Figure()
    for color, (labels, part) in zip(_colors(), frame.groupby("labels", sort=False), strict=False):
        figure.add_scatter(
            x=part["site"],
            y=part["value"],
            error_y=_bars(part),
            mode="lines+markers",
            name=str(labels),
            line_color=color,
        )
    figure.update_layout(xaxis_title="site", yaxis_title=_words(metric), template=TEMPLATE)
    return figure


def depth_curves(
    frame: pd.DataFrame, points: pd.DataFrame, *, metric: str = "accuracy", site: str | None = None
) -> go.Figure:
    """A metric over relative depth: a panel a data set, a colour a model and perturbation, dashes for controls.

    `frame` and `points` are those of `probes.depth.ConceptDepth`. Bands are bootstrap intervals; a triangle marks the
    jump point and a star the converging point of each curve without perturbation.
    """
    rows = frame[frame.metric == metric]
    layered = rows[rows.layer >= 0]
    site = site or str(layered.site.iloc[0])
    names = list(dict.fromkeys(rows.dataset))
    levels = rows.drop_duplicates("dataset").set_index("dataset").level
    titles = [f"{name} ({levels[name]})" if levels[name] else name for name in names]
    figure = make_subplots(rows=1, cols=len(names), subplot_titles=titles, shared_yaxes=True)
    colors = dict(zip(_curves(layered), _colors(len(_curves(layered))), strict=False))
    shown: set[str] = set()
    for column, dataset in enumerate(names, 1):
        here = layered[(layered.dataset == dataset) & (layered.site == site)]
        for (model, condition), color in colors.items():
            part = here[(here.model == model) & (here.condition == condition)]
            for series, curve in part.groupby("series", sort=False):
                label = _label(model, condition, str(series), frame)
                _curve(figure, curve, label, color, CONTROLS.get(str(series)), label not in shown, column)
                shown.add(label)
            _mark(figure, points, part, (model, dataset, condition, site), color, column)
        for _, bag in rows[(rows.dataset == dataset) & (rows.layer < 0)].iterrows():
            figure.add_hline(
                bag.value,
                line_dash=CONTROLS[BAG],
                line_color=INK,
                row=1,
                col=column,
                annotation_text=str(bag.series),
                annotation_position="bottom right",
            )
    figure.update_xaxes(title_text="relative depth", range=[-0.03, 1.0])
    figure.update_yaxes(title_text=_words(metric), col=1)
    figure.update_layout(template=TEMPLATE, title=f"{_words(metric)} of probes at {site}")
    return figure


def _curve(
    figure: go.Figure, part: pd.DataFrame, label: str, color: str, dash: str | None, legend: bool, column: int
) -> None:
    part = part.sort_values("layer")
    about = {"row": 1, "col": column}
    if dash is None:
        figure.add_scatter(
            x=[*part.depth, *part.depth[::-1]],
            y=[*part.high, *part.low[::-1]],
            mode="lines",
            fill="toself",
            fillcolor=transparent(color),
            line_width=0,
            hoverinfo="skip",
            showlegend=False,
            legendgroup=label,
            **about,
        )
    figure.add_scatter(
        x=part.depth,
        y=part.value,
        mode="lines+markers" if dash is None else "lines",
        name=label,
        legendgroup=label,
        showlegend=legend,
        line={"color": color, "dash": dash or "solid"},
        customdata=part[["layer", "low", "high", "n"]],
        hovertemplate="layer %{customdata[0]}: %{y:.3f} [%{customdata[1]:.3f}, %{customdata[2]:.3f}], "
        "n=%{customdata[3]}<extra>" + label + "</extra>",
        **about,
    )


def _mark(
    figure: go.Figure, points: pd.DataFrame, part: pd.DataFrame, which: tuple[str, ...], color: str, column: int
) -> None:
    """Jump and converging point of a curve, on the curve."""
    if which[2] != UNPERTURBED or points.empty:
        return
    same = (points[["model", "dataset", "condition", "site"]] == list(which)).all(axis=1)
    probe = part[part.series == "probe"].set_index("depth").value
    for name, symbol in (("jump", "triangle-up"), ("converging", "star")):
        for _, row in points[same].iterrows():
            if pd.notna(row[name]) and row[name] in probe.index:
                figure.add_scatter(
                    x=[row[name]],
                    y=[probe[row[name]]],
                    mode="markers",
                    name=f"{name} point",
                    showlegend=False,
                    marker={"symbol": symbol, "size": 14, "color": color, "line": {"color": INK, "width": 1}},
                    error_x={
                        "type": "data",
                        "symmetric": False,
                        "array": [row[f"{name}_high"] - row[name]],
                        "arrayminus": [row[name] - row[f"{name}_low"]],
                    },
                    row=1,
                    col=column,
                )


def _curves(frame: pd.DataFrame) -> list[tuple[str, str]]:
    return list(dict.fromkeys(zip(frame.model, frame.condition, strict=True)))


def _label(model: str, condition: str, series: str, frame: pd.DataFrame) -> str:
    parts = [model if frame.model.nunique() > 1 else "", condition if condition != UNPERTURBED else ""]
    return " ".join([*filter(None, parts), series])


def _colors(n: int = len(COLOURS)) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(n)]


def _words(name: str) -> str:
    return name.replace("_", " ")


def _bars(part: pd.DataFrame) -> dict[str, object]:
    return {
        "type": "data",
        "symmetric": False,
        "array": part["high"] - part["value"],
        "arrayminus": part["value"] - part["low"],
    }
