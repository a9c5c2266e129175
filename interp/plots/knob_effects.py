"""Figures of a turned knob: what is answered, what is said next, what other tasks pay."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd
import plotly.graph_objects as go

from interp.errors import BadInput
from interp.plots.knob import BELOW, COLOUR, SHARE, WITH_SUBTITLE, bars, mark_values
from interp.plots.template import COLOURS, TEMPLATE, literal, transparent, visible

if TYPE_CHECKING:
    from interp.knob.behaviour import Behaviour
    from interp.knob.side_effects import SideEffects
    from interp.knob.steering import Steering

FAINT = 0.65
"""Opacity of bars, so that their whiskers are seen on them."""


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
            customdata=curve[[f"{outcome}_low", f"{outcome}_high", "n"]],
            hovertemplate="set to %{x:.3g}: %{y:.3f} [%{customdata[0]:.3f}, %{customdata[1]:.3f}], "
            "n = %{customdata[2]}",
        )
    mark_values(figure, behaviour.parameters["knob"]["values"])
    figure.update_layout(
        template=TEMPLATE,
        title={
            "text": f"Answers by value of the knob, {literal(behaviour.model['name'])}",
            "subtitle": {"text": f"no instruction; 95 % Wilson bands, {curve.n.iloc[0]} prompts"},
        },
        xaxis_title="the knob is set to (residual-stream units)",
        yaxis_title="answers (share)",
        legend=BELOW | {"title": {"text": "answered from: "}},
        margin=WITH_SUBTITLE,
    )
    figure.update_yaxes(range=SHARE)
    return figure


def answer_bars(behaviour: Behaviour) -> go.Figure:
    """Rates of answers by setting and what was wanted: as instructed, without instruction, and steered."""
    frame = behaviour.frame
    where = [
        "no instruction" if row.intent == "none" else f"{row.setting},<br>{row.intent} wanted"
        for row in frame.itertuples()
    ]
    figure = go.Figure()
    for outcome, colour in COLOUR.items():
        figure.add_bar(
            x=frame[outcome],
            y=where,
            orientation="h",
            name=outcome,
            marker={"color": colour},
            customdata=frame[["right", "right_low", "right_high", "n"]],
            hovertemplate="%{y}: %{x:.3f}<br>as wanted %{customdata[0]:.3f} [%{customdata[1]:.3f}, "
            "%{customdata[2]:.3f}], n = %{customdata[3]}",
        )
    figure.update_layout(
        template=TEMPLATE,
        barmode="stack",
        title={
            "text": f"What is answered, {literal(behaviour.model['name'])}",
            "subtitle": {"text": f"{frame.n.iloc[0]} items; steered: by the knob alone"},
        },
        xaxis_title="answers (share)",
        yaxis_title={"text": "setting", "standoff": 10},
        legend=BELOW | {"title": {"text": "answered from: "}, "traceorder": "normal"},
        margin=WITH_SUBTITLE,
    )
    figure.update_xaxes(range=[0, 1.03])
    figure.update_yaxes(type="category", autorange="reversed", automargin=True)
    return figure


def steering_bars(steering: Steering) -> go.Figure:
    """Probabilities of the answers without the knob, at its value, and under random directions moved as far.

    The bar of the random directions is their mean, its whiskers their range.
    """
    controls = steering.controls
    mean = controls.mean(0)
    said = [visible(answer) for answer in steering.answers]
    groups = (
        ("without the knob", COLOURS[6], steering.probabilities[0], None),
        (f"set to {steering.value:.3g}", COLOURS[0], steering.probabilities[1], None),
        (
            f"mean of {len(controls)} random directions, moved as far",
            COLOURS[1],
            mean,
            {
                "type": "data",
                "symmetric": False,
                "array": controls.max(0) - mean,
                "arrayminus": mean - controls.min(0),
                "color": COLOURS[1],
            },
        ),
    )
    figure = go.Figure()
    for name, colour, probability, whiskers in groups:
        figure.add_bar(
            x=said,
            y=probability,
            name=name,
            marker={"color": transparent(colour, FAINT)},
            error_y=whiskers,
            hovertemplate="%{x}: %{y:.4f}",
        )
    figure.update_layout(
        template=TEMPLATE,
        barmode="group",
        title={
            "text": f"Next token, {literal(steering.model['name'])}",
            "subtitle": {"text": "one prompt, so no interval; whiskers span the random directions"},
        },
        xaxis_title="first token of the answer",
        yaxis_title="probability",
        legend=BELOW,
        margin=WITH_SUBTITLE,
    )
    figure.update_xaxes(type="category")
    figure.update_yaxes(range=[0, 1.03])
    return figure


def side_effect_bars(effects: SideEffects) -> go.Figure:
    """Right answers of unrelated tasks without the knob and at its two values, with 95 % Wilson intervals."""
    colours = {"none": COLOURS[6], "context": COLOUR["context"], "prior": COLOUR["prior"]}
    figure = go.Figure()
    for setting, part in effects.frame.groupby("setting", sort=False):
        figure.add_bar(
            x=part.task.map(literal),
            y=part.right,
            name="without the knob" if setting == "none" else f"set to {setting}",
            marker={"color": transparent(colours[str(setting)], FAINT)},
            error_y=bars(part, "right") | {"color": colours[str(setting)]},
            customdata=part[["right_low", "right_high", "change", "change_low", "change_high", "n"]],
            hovertemplate="%{x}: %{y:.3f} [%{customdata[0]:.3f}, %{customdata[1]:.3f}] right,<br>change "
            "%{customdata[2]:+.3f} [%{customdata[3]:+.3f}, %{customdata[4]:+.3f}], n = %{customdata[5]}",
        )
    figure.update_layout(
        template=TEMPLATE,
        barmode="group",
        title={
            "text": f"What the knob costs other tasks, {literal(effects.model['name'])}",
            "subtitle": {"text": "95 % Wilson intervals over prompts"},
        },
        xaxis_title="task",
        yaxis_title="right answers (share)",
        legend=BELOW,
        margin=WITH_SUBTITLE,
    )
    figure.update_xaxes(type="category")
    figure.update_yaxes(range=SHARE)
    return figure


def _band(figure: go.Figure, curve: pd.DataFrame, outcome: str, colour: str) -> None:
    figure.add_scatter(
        x=[*curve.value, *curve.value[::-1]],
        y=[*curve[f"{outcome}_high"], *curve[f"{outcome}_low"][::-1]],
        mode="lines",
        fill="toself",
        fillcolor=transparent(colour),
        line={"width": 0},
        hoverinfo="skip",
        showlegend=False,
    )
