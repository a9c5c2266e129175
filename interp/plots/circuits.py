"""Figures of head roles and circuits."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.colors import qualitative
from plotly.subplots import make_subplots

from interp.circuits.curve import FaithfulnessCurve
from interp.circuits.discovery import Discovery
from interp.circuits.evaluation import CircuitEvaluation
from interp.circuits.repair import Repair
from interp.circuits.reuse import CircuitReuse
from interp.plots.template import COLOURS, INK, SEQUENTIAL, TEMPLATE, literal, transparent


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
        title=literal(title),
        template=TEMPLATE,
        yaxis_title="layer",
        coloraxis={"colorscale": SEQUENTIAL, "cmin": 0, "cmax": 1, "colorbar": {"title": "score"}},
    )
    return figure


def circuit_graph(discovery: Discovery) -> go.Figure:
    """Heads with roles by layer, coloured by role, an edge from every head to those whose inputs it was found to feed.

    Line widths and dot sizes grow with the effect of the stage that found the head.
    """
    places = _places(discovery)
    figure = go.Figure()
    for result in discovery.stages:
        for head in result.found:
            effect = abs(float(result.effects[head]))
            for target in result.receivers or ("logits",):
                if target not in places or (isinstance(target, tuple) and target[0] <= head[0]):
                    continue  # what a head writes is read in later layers alone
                (x0, y0), (x1, y1) = places[head], places[target]
                figure.add_trace(
                    go.Scatter(
                        x=[x0, x1],
                        y=[y0, y1],
                        mode="lines",
                        line={"color": "lightgray", "width": 1 + 12 * min(effect, 1)},
                        hoverinfo="skip",
                        showlegend=False,
                    )
                )
    palette = dict(zip(discovery.by_role, qualitative.Safe * 3, strict=False))
    for role, heads in discovery.by_role.items():
        own = [head for head in heads if discovery.roles[head] == role]
        if not own:
            continue  # all of them are drawn with the role of an earlier stage
        figure.add_trace(
            go.Scatter(
                x=[places[head][0] for head in own],
                y=[places[head][1] for head in own],
                mode="markers+text",
                name=role,
                text=[f"{layer}.{head}" for layer, head in own],
                textposition="middle right",
                marker={"color": palette[role], "size": [12 + 30 * min(discovery.scores[head], 1) for head in own]},
                hovertext=[f"{role}: effect {discovery.scores[head]:.3f}" for head in own],
                hoverinfo="text",
            )
        )
    x, y = places["logits"]
    figure.add_trace(
        go.Scatter(
            x=[x],
            y=[y],
            mode="markers+text",
            text=["logits"],
            textposition="top center",
            marker={"symbol": "square", "color": INK, "size": 12},
            showlegend=False,
        )
    )
    figure.update_layout(
        title=f"{discovery.task} circuit of {discovery.model['name']}",
        template=TEMPLATE,
        xaxis={"visible": False},
        yaxis={"title": "layer", "dtick": max(1, discovery.model["layers"] // 16), "zeroline": False},
    )
    return figure


def _places(discovery: Discovery) -> dict[object, tuple[float, float]]:
    """Where every head with a role and the logits stand: layers upwards, the heads of a layer spread evenly."""
    places: dict[object, tuple[float, float]] = {"logits": (0.5, float(discovery.model["layers"]))}
    for layer in range(discovery.model["layers"]):
        heads = sorted(head for head in discovery.roles if head[0] == layer)
        places |= {head: ((i + 1) / (len(heads) + 1), float(layer)) for i, head in enumerate(heads)}
    return places


def faithfulness_plot(curve: FaithfulnessCurve) -> go.Figure:
    """Faithfulness over the share of heads kept, with its interval; the whole model is at 1."""
    frame = curve.frame
    figure = go.Figure(_band(frame["share"], frame["low"], frame["high"], COLOURS[0]))
    hover = "%{customdata} heads: %{y:.3f}<extra></extra>"
    figure.add_trace(
        go.Scatter(
            x=frame["share"],
            y=frame["faithfulness"],
            customdata=frame["heads"],
            mode="lines+markers",
            line={"color": COLOURS[0]},
            hovertemplate=hover,
            showlegend=False,
        )
    )
    figure.add_hline(y=1, line_dash="dot", line_color="gray")
    figure.update_layout(
        title=f"faithfulness on {curve.model['name']}: CPR {curve.cpr:.3f}, CMD {curve.cmd:.3f}",
        xaxis_title="share of heads kept",
        yaxis_title="faithfulness",
        template=TEMPLATE,
    )
    return figure


def evaluation_plot(evaluation: CircuitEvaluation) -> go.Figure:
    """Share of the logit difference kept by the circuit, with its interval, and by every random one."""
    kept, random = evaluation.kept, evaluation.random
    figure = go.Figure(
        go.Bar(
            x=["circuit"],
            y=[kept.estimate],
            error_y={"array": [kept.high - kept.estimate], "arrayminus": [kept.estimate - kept.low], "type": "data"},
            hovertext=[str(evaluation.circuit)],
        )
    )
    figure.add_trace(
        go.Box(
            x=["random circuits"] * len(random),
            y=random["kept"],
            text=random["heads"],
            boxpoints="all",
            hovertemplate="%{text}: %{y:.3f}<extra></extra>",
        )
    )
    figure.update_layout(
        title=f"{len(evaluation.circuit.heads)} heads of {evaluation.model['name']}, the others knocked out "
        f"({evaluation.parameters['at']})",
        yaxis_title="share of the logit difference kept",
        template=TEMPLATE,
        showlegend=False,
    )
    return figure


def repair_plot(repair: Repair) -> go.Figure:
    """Accuracy under every condition, with Wilson intervals."""
    frame = repair.frame
    above, below = frame["high"] - frame["accuracy"], frame["accuracy"] - frame["low"]
    figure = go.Figure(
        go.Bar(
            x=frame["condition"],
            y=frame["accuracy"],
            error_y={"array": above, "arrayminus": below, "type": "data"},
            customdata=frame[["heads", "repaired", "broken"]],
            hovertemplate="%{customdata[0]}: %{y:.3f}, %{customdata[1]} repaired, %{customdata[2]} broken"
            "<extra></extra>",
        )
    )
    figure.update_layout(
        title=f"attention forced onto {', '.join(repair.parameters['onto'])} in {repair.model['name']}",
        yaxis={"title": "accuracy", "range": [0, 1]},
        template=TEMPLATE,
    )
    return figure


def threshold_curve(reuse: CircuitReuse) -> go.Figure:
    """Overlap and Jaccard of two circuits over the share of heads that each stage takes in, with their intervals."""
    frame = reuse.frame
    figure = go.Figure()
    for name, colour, dash in (("overlap", COLOURS[0], "solid"), ("jaccard", COLOURS[1], "dot")):
        figure.add_trace(_band(frame["share"], frame[f"{name}_low"], frame[f"{name}_high"], colour))
        figure.add_trace(
            go.Scatter(
                x=frame["share"],
                y=frame[name],
                name=name,
                mode="lines+markers",
                line={"color": colour, "dash": dash},
                customdata=frame[["shared", "union", "which"]],
                hovertemplate=f"{name} %{{y:.3f}} at the top %{{x:.0%}}; "
                "heads: %{customdata[0]} of %{customdata[1]} shared, %{customdata[2]}<extra></extra>",
            )
        )
    figure.update_layout(
        title=f"heads shared by {reuse.a.task} and {reuse.b.task} on {reuse.a.model['name']}",
        xaxis={"title": "share of heads taken at each stage", "tickformat": ".0%"},
        yaxis={"title": "shared over union", "range": [0, 1]},
        template=TEMPLATE,
    )
    return figure


def _band(x: pd.Series, low: pd.Series, high: pd.Series, colour: str) -> go.Scatter:
    """An interval as a shaded band."""
    return go.Scatter(
        x=[*x, *x[::-1]],
        y=[*high, *low[::-1]],
        fill="toself",
        fillcolor=transparent(colour),
        line={"width": 0},
        hoverinfo="skip",
        showlegend=False,
    )
