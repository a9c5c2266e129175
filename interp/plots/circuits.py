"""Figures of head roles and of how well a circuit explains a behaviour. The graph is in `circuit_graph.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
from numpy.typing import ArrayLike
from plotly.subplots import make_subplots

from interp.circuits.curve import FaithfulnessCurve
from interp.circuits.evaluation import CircuitEvaluation
from interp.plots.template import COLOURS, INK, SEQUENTIAL, TEMPLATE, literal, transparent

CIRCUIT, RANDOM = COLOURS[0], COLOURS[1]
SCOPES = {"everywhere": "at every position", "end": "at the last position"}
ROW_PIXELS = 26


def role_maps(scores: Mapping[str, np.ndarray], title: str = "") -> go.Figure:
    """Heat maps of `[layer head]` scores between 0 and 1 side by side, one a role, on one colour scale."""
    names = list(map(literal, scores))
    figure = make_subplots(cols=len(scores), subplot_titles=names, shared_yaxes=True, horizontal_spacing=0.02)
    for column, (role, values) in enumerate(zip(names, scores.values(), strict=True), 1):
        hover = f"{role}<br>head %{{y}}.%{{x}}: %{{z:.3f}}<extra></extra>"
        figure.add_trace(go.Heatmap(z=values, coloraxis="coloraxis", hovertemplate=hover), row=1, col=column)
    layers, heads = next(iter(scores.values())).shape
    figure.update_yaxes(autorange="reversed", dtick=max(1, layers // 16), showgrid=False)
    figure.update_xaxes(title="head", dtick=max(1, -(-heads // 8)), showgrid=False)
    figure.update_layout(
        title=literal(title),
        template=TEMPLATE,
        yaxis_title="layer",
        margin={"t": 90},
        coloraxis={"colorscale": SEQUENTIAL, "cmin": 0, "cmax": 1, "colorbar": {"title": "score"}},
    )
    return figure


def faithfulness_plot(curve: FaithfulnessCurve, size: int | None = None) -> go.Figure:
    """Faithfulness over the number of heads kept, with its interval; the whole model is at 1. A `size` is marked."""
    frame = curve.frame
    figure = go.Figure(band(frame["heads"], frame["low"], frame["high"], CIRCUIT))
    figure.add_trace(
        go.Scatter(
            x=frame["heads"],
            y=frame["faithfulness"],
            customdata=frame[["share", "low", "high", "n"]],
            mode="lines+markers",
            line={"color": CIRCUIT},
            hovertemplate="%{x} heads (%{customdata[0]:.0%}): %{y:.3f} [%{customdata[1]:.3f}, %{customdata[2]:.3f}], "
            "n=%{customdata[3]}<extra></extra>",
            showlegend=False,
        )
    )
    figure.add_hline(y=1, line_dash="dot", line_color=INK, annotation_text="whole model")
    if size is not None:
        figure.add_vline(x=size, line_color=COLOURS[5], annotation_text=f"{size} heads", annotation_position="top left")
    figure.update_layout(
        title={
            "text": literal(f"faithfulness on {curve.model['name']}, {_knocked_out(curve.parameters)}"),
            "subtitle": {"text": f"area below the curve (CPR) {curve.cpr:.3f}, between it and 1 (CMD) {curve.cmd:.3f}"},
        },
        xaxis_title="heads kept, those with the largest effects first",
        yaxis_title="faithfulness (0: no head, 1: all heads)",
        margin={"t": 80},
        template=TEMPLATE,
    )
    return figure


def evaluation_plot(evaluation: CircuitEvaluation) -> go.Figure:
    """Share of the logit difference kept by the circuit, with its interval, and by every random one."""
    kept, random = evaluation.kept, evaluation.random
    heads = len(evaluation.circuit.heads)
    layers, width = evaluation.model["layers"], evaluation.model["heads"]
    figure = go.Figure(
        go.Scatter(
            x=[kept.estimate],
            y=["the circuit"],
            error_x=error_bars([kept.estimate], [kept.low], [kept.high]),
            mode="markers",
            marker={"color": CIRCUIT, "size": 12, "symbol": "diamond"},
            hovertemplate=f"{evaluation.circuit}<br>%{{x:.3f}} [{kept.low:.3f}, {kept.high:.3f}], n={kept.n}"
            "<extra></extra>",
        )
    )
    figure.add_trace(
        go.Box(
            x=random["kept"],
            y=[f"{len(random)} random<br>circuits"] * len(random),
            text=random["heads"].map(literal),
            orientation="h",
            boxpoints="all",
            pointpos=0,
            jitter=0.6,
            fillcolor="rgba(0, 0, 0, 0)",
            line={"color": "rgba(0, 0, 0, 0)"},
            marker={"color": RANDOM, "size": 9, "opacity": 0.8},
            hoveron="points",
            hovertemplate="%{text}<br>%{x:.3f}<extra></extra>",
        )
    )
    for value, name in ((0, "nothing kept"), (1, "whole model")):
        figure.add_vline(x=value, line_dash="dot", line_color=INK, annotation=above(name))
    figure.update_layout(
        title={
            "text": literal(f"what {heads} of {layers * width} heads of {evaluation.model['name']} keep"),
            "subtitle": {"text": f"all other heads replaced by their means {_knocked_out(evaluation.parameters)}"},
        },
        xaxis_title="share of the logit difference kept (ratio of means over prompts)",
        yaxis={"title": {"text": "heads kept", "standoff": 12}, "autorange": "reversed", "automargin": True},
        height=320,
        margin={"t": 120},
        template=TEMPLATE,
        showlegend=False,
    )
    return figure


def completeness_plot(evaluation: CircuitEvaluation) -> go.Figure:
    """Circuit against model with the same heads taken out of both: a complete circuit lies on the diagonal."""
    frame = evaluation.completeness
    figure = go.Figure(
        go.Scatter(
            x=frame["model"],
            y=frame["circuit"],
            mode="markers+text",
            text=frame["K"].map(literal),
            textposition="top center",
            customdata=frame[["heads", "low", "high", "n"]].assign(heads=frame["heads"].map(literal)),
            hovertemplate="without %{text}: %{customdata[0]}<br>model %{x:.3f}, circuit %{y:.3f}, circuit less model "
            "[%{customdata[1]:.3f}, %{customdata[2]:.3f}], n=%{customdata[3]}<extra></extra>",
            marker={"color": CIRCUIT, "size": 11},
            cliponaxis=False,
            showlegend=False,
        )
    )
    ends = [float(f(f(frame["model"]), f(frame["circuit"]), 0)) for f in (min, max)]
    figure.add_trace(
        go.Scatter(
            x=ends, y=ends, mode="lines", line={"color": INK, "dash": "dot"}, name="as in the model", hoverinfo="skip"
        )
    )
    figure.update_layout(
        title={
            "text": "completeness: the same heads taken out of both",
            "subtitle": {"text": f"heads replaced by their means {_knocked_out(evaluation.parameters)}"},
        },
        xaxis={"title": "logit difference of the model without them"},
        yaxis={"title": "logit difference of the circuit without them"},
        showlegend=True,
        legend={"x": 0, "y": 1},
        margin={"t": 80},
        template=TEMPLATE,
    )
    return figure


def minimality_plot(evaluation: CircuitEvaluation) -> go.Figure:
    """What every head of the circuit is worth to it, with its interval; one at 0 is not needed."""
    frame = evaluation.minimality.sort_values("score", ascending=False)
    names = [literal(f"{row.layer}.{row.head} {row.role or '(no role)'}") for row in frame.itertuples()]
    # the interval is that of the signed share, whose size the score is
    bounds = np.sort(np.abs(frame[["low", "high"]].to_numpy()), axis=1)
    low = np.where(frame["low"] * frame["high"] <= 0, 0, bounds[:, 0])
    figure = go.Figure(
        go.Scatter(
            x=frame["score"],
            y=names,
            error_x=error_bars(frame["score"], low, bounds[:, 1]),
            mode="markers",
            marker={"color": CIRCUIT, "size": 11},
            customdata=np.column_stack([low, bounds[:, 1], frame["K"].map(literal), frame["n"]]),
            hovertemplate="%{y}: %{x:.3f} [%{customdata[0]:.3f}, %{customdata[1]:.3f}], n=%{customdata[3]}"
            "<br>largest without %{customdata[2]}<extra></extra>",
        )
    )
    figure.add_vline(x=0, line_dash="dot", line_color=INK)
    figure.update_layout(
        title={
            "text": "minimality: what the circuit loses without a head",
            "subtitle": {"text": f"heads replaced by their means {_knocked_out(evaluation.parameters)}"},
        },
        xaxis_title="change as a share of the model's logit difference",
        yaxis={
            "title": {"text": "head of the circuit", "standoff": 12},
            "type": "category",
            "autorange": "reversed",
            "automargin": True,
            "dtick": 1,
        },
        height=170 + ROW_PIXELS * len(frame),
        margin={"t": 80},
        template=TEMPLATE,
    )
    figure.update_yaxes(autorange="reversed", automargin=True)
    return figure


def above(text: str) -> dict[str, object]:
    """A name of a vertical line, over the figure and not in it."""
    return {"text": text, "yref": "paper", "y": 1, "yanchor": "bottom", "xanchor": "center", "showarrow": False}


def band(x: Sequence[float], low: Sequence[float], high: Sequence[float], colour: str) -> go.Scatter:
    """An interval as a shaded band."""
    return go.Scatter(
        x=[*x, *list(x)[::-1]],
        y=[*high, *list(low)[::-1]],
        fill="toself",
        fillcolor=transparent(colour),
        mode="lines",
        line={"width": 0},
        hoverinfo="skip",
        showlegend=False,
    )


def error_bars(values: ArrayLike, low: ArrayLike, high: ArrayLike) -> dict[str, object]:
    """Bounds as plotly's distances from the values."""
    middle, below, above = (np.asarray(each, dtype=float) for each in (values, low, high))
    return {"type": "data", "array": above - middle, "arrayminus": middle - below, "thickness": 1.5}


def _knocked_out(parameters: Mapping[str, object]) -> str:
    at = str(parameters.get("at", "everywhere"))
    return literal(SCOPES.get(at, f"at {at}"))
