"""Figures of the knob: where it is, what it reads under each intent, what turning it does."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle
from typing import TYPE_CHECKING

import pandas as pd
import plotly.graph_objects as go

from interp.errors import BadInput
from interp.plots.template import COLOURS, INK, TEMPLATE, transparent
from interp.tasks.context_prior import INTENTS

if TYPE_CHECKING:
    from interp.knob.behaviour import Behaviour
    from interp.knob.result import KnobResult
    from interp.knob.search import LayerSearch
    from interp.knob.separation import Correlation

COLOUR = {"context": COLOURS[0], "prior": COLOURS[1], "other": COLOURS[6]}
"""Of answers and intents, in every figure."""
BINS = 40


def accuracy_by_layer(result: KnobResult) -> go.Figure:
    """Interchange accuracy after every layer with its 95 % interval, the fitted subspace beside its baselines."""
    figure = go.Figure()
    for colour, (method, part) in zip(cycle(COLOURS), result.frame.groupby("method", sort=False), strict=False):
        figure.add_scatter(
            x=part.layer,
            y=part.accuracy,
            error_y={
                "type": "data",
                "symmetric": False,
                "array": part.accuracy_high - part.accuracy,
                "arrayminus": part.accuracy - part.accuracy_low,
            },
            mode="lines+markers",
            name=str(method),
            line={"color": colour, "dash": "solid" if method == "interchange" else "dot"},
            customdata=part[["target_accuracy", "separation", "n"]],
            hovertemplate="layer %{x}: %{y:.3f}, unchanged %{customdata[0]:.3f}, separation %{customdata[1]:.2f}, "
            "n=%{customdata[2]}",
        )
    figure.update_layout(
        template=TEMPLATE,
        title=f"rank {result.knob.rank} interchange at the last token, {result.model['name']}",
        xaxis_title="after layer",
        yaxis_title="prompts that give their twin's answer",
    )
    figure.update_xaxes(dtick=max(1, len(result.layers) // 16))
    figure.update_yaxes(range=[-0.03, 1.03])
    return figure


def coordinate_histograms(result: KnobResult) -> go.Figure:
    """The coordinate at the last token of test prompts by intent, and the calibrated values.

    Raises BadInput for a rank above 1.
    """
    if result.knob.rank != 1:
        raise BadInput(f"a knob of rank {result.knob.rank} has no one coordinate to draw")
    coordinates = result.coordinates[:, :, 0]
    low, high = float(coordinates.min()), float(coordinates.max())
    size = max(high - low, 1e-6) / BINS
    figure = go.Figure()
    for column, intent in enumerate(INTENTS):
        figure.add_histogram(
            x=coordinates[:, column],
            xbins={"start": low, "end": high + size, "size": size},
            name=f"asked for {intent}",
            marker={"color": COLOUR[intent]},
            opacity=0.7,
            hovertemplate="%{x}: %{y} prompts",
        )
    for name, value in result.knob.values.items():
        figure.add_vline(x=value, line={"dash": "dash", "color": COLOUR[name]}, annotation_text=f"set to {name}")
    figure.update_layout(
        template=TEMPLATE,
        barmode="overlay",
        title=f"coordinate after layer {result.knob.layer}, {result.model['name']} (n={len(coordinates)} pairs)",
        xaxis_title="coordinate along the knob",
        yaxis_title="prompts",
    )
    return figure


def answer_rates(behaviour: Behaviour) -> go.Figure:
    """Rates of answers without instruction along the value of the coordinate, with 95 % bands.

    Raises BadInput where no values were measured.
    """
    if not behaviour.settings:
        raise BadInput("no values of the coordinate were measured; evaluate(…, values=…)")
    curve = behaviour.curve.sort_values("value")
    figure = go.Figure()
    for outcome, colour in COLOUR.items():
        _band(figure, curve, outcome, colour)
        figure.add_scatter(
            x=curve.value,
            y=curve[outcome],
            mode="lines+markers",
            name=outcome,
            line={"color": colour},
            hovertemplate="set to %{x:.3g}: %{y:.3f}",
        )
    for name, value in behaviour.parameters["knob"]["values"].items():
        figure.add_vline(x=value, line={"dash": "dash", "color": INK}, annotation_text=name)
    figure.update_layout(
        template=TEMPLATE,
        title=f"answers without instruction, {behaviour.model['name']} (n={curve.n.iloc[0]})",
        xaxis_title="coordinate set to",
        yaxis_title="rate of answers",
    )
    figure.update_yaxes(range=[-0.03, 1.03])
    return figure


def separation_scatter(correlation: Correlation) -> go.Figure:
    """Accuracy against separation, a colour a model, with both correlations."""
    figure = go.Figure()
    for colour, (model, part) in zip(_colours(), correlation.points.groupby("model", sort=False), strict=False):
        figure.add_scatter(
            x=part.separation,
            y=part.accuracy,
            mode="markers",
            name=str(model),
            marker={"color": colour, "size": 9},
            customdata=part[["layer"]],
            hovertemplate="layer %{customdata[0]}: separation %{x:.3f}, accuracy %{y:.3f}",
        )
    figure.update_layout(
        template=TEMPLATE,
        title={
            "text": f"separation and accuracy over {correlation.over}",
            "subtitle": {"text": f"Pearson {correlation.pearson}, Spearman {correlation.spearman}"},
        },
        xaxis_title="separation of context and prior answers (d')",
        yaxis_title="interchange accuracy" if correlation.over == "layers" else "pair accuracy as instructed",
    )
    return figure


def search_map(search: LayerSearch) -> go.Figure:
    """The read-out after every block under the layers that were found: the source's and the target's answer."""
    figure = go.Figure()
    chosen = search.frame[search.frame.chosen]
    for colour, (setting, part) in zip(_colours(), chosen.groupby("setting", sort=False), strict=False):
        for column, dash in (("p_source", "solid"), ("p_target", "dot")):
            figure.add_scatter(
                x=part.layer,
                y=part[column],
                mode="lines+markers",
                name=f"{setting} [{part.patched.iloc[0]}] {column.removeprefix('p_')}",
                line={"color": colour, "dash": dash},
                hovertemplate="after layer %{x}: %{y:.3f}",
            )
    figure.update_layout(
        template=TEMPLATE,
        title=f"Patchscope read-out under the patched layers, {search.model['name']}",
        xaxis_title="read out after layer",
        yaxis_title="probability of the answer",
    )
    figure.update_yaxes(range=[-0.03, 1.03])
    return figure


def _band(figure: go.Figure, curve: pd.DataFrame, outcome: str, colour: str) -> None:
    figure.add_scatter(
        x=[*curve.value, *curve.value[::-1]],
        y=[*curve[f"{outcome}_high"], *curve[f"{outcome}_low"][::-1]],
        fill="toself",
        fillcolor=transparent(colour),
        line={"width": 0},
        hoverinfo="skip",
        showlegend=False,
    )


def _colours() -> Iterator[str]:
    return cycle(COLOURS)
