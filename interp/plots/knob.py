"""Figures of the knob: where it is, what it reads under each intent. What turning it does is in `knob_effects`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from interp.errors import BadInput
from interp.plots.template import COLOURS, SEQUENTIAL, TEMPLATE, literal
from interp.tasks.context_prior import INTENTS

if TYPE_CHECKING:
    from interp.knob.result import KnobResult
    from interp.knob.search_result import ExhaustiveSearch, LayerSearch
    from interp.knob.separation import Correlation

BELOW = {"orientation": "h", "yref": "container", "yanchor": "bottom", "y": 0.01, "xanchor": "left", "x": 0}
"""Where the legend is, so that narrow pages keep the figure's width."""
WITH_SUBTITLE = {"t": 96, "b": 104}
SHARE = (-0.03, 1.03)
"""Of an axis of shares, with room for markers at its ends."""
APART = 0.06
LABELLED = 8
"""Layers up to which a map writes its numbers."""
COLOUR = {"context": COLOURS[0], "prior": COLOURS[1], "other": COLOURS[6]}
"""Of answers and intents, in every figure."""
BINS = 40


def accuracy_by_layer(result: KnobResult) -> go.Figure:
    """Interchange accuracy after every layer with its 95 % interval, the fitted subspace beside its baselines."""
    figure = go.Figure()
    methods = list(result.frame.groupby("method", sort=False))
    for number, (colour, (method, part)) in enumerate(zip(cycle(COLOURS), methods, strict=False)):
        figure.add_scatter(
            x=part.layer + APART * (number - (len(methods) - 1) / 2),  # side by side, so that no bar hides another
            y=part.accuracy,
            error_y=bars(part, "accuracy"),
            mode="lines+markers",
            name="the knob (fitted)" if method == "interchange" else literal(method),
            line={"color": colour, "dash": "solid" if method == "interchange" else "dot"},
            marker={"size": 8},
            customdata=part[["layer", "accuracy_low", "accuracy_high", "target_accuracy", "separation", "n"]],
            hovertemplate="after layer %{customdata[0]}: %{y:.3f} [%{customdata[1]:.3f}, %{customdata[2]:.3f}] take "
            "the twin's answer,<br>%{customdata[3]:.3f} keep their own; separation %{customdata[4]:.2f} standard "
            "deviations; n = %{customdata[5]} pairs",
        )
    n = int(result.frame.n.max())
    figure.update_layout(
        template=TEMPLATE,
        title={
            "text": f"Interchange by layer, rank {result.knob.rank}, {literal(result.model['name'])}",
            "subtitle": {"text": f"last token; 95 % Wilson intervals, {n} pairs"},
        },
        xaxis_title="after layer",
        yaxis_title="take their twin's answer (share)",
        legend=BELOW,
        margin=WITH_SUBTITLE | {"b": 140},
    )
    figure.update_xaxes(dtick=max(1, len(result.layers) // 16), zeroline=False)
    figure.update_yaxes(range=SHARE)
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
            hovertemplate="value about %{x:.3g}: %{y:d} prompts",
        )
    mark_values(figure, result.knob.values)
    figure.update_layout(
        template=TEMPLATE,
        barmode="overlay",
        title={
            "text": f"Value along the knob after layer {result.knob.layer}, {literal(result.model['name'])}",
            "subtitle": {"text": f"last token; {len(coordinates)} pairs that it was not fitted on"},
        },
        xaxis_title="value along the knob (residual-stream units)",
        yaxis_title="prompts",
        legend=BELOW,
        margin=WITH_SUBTITLE,
    )
    return figure


def separation_scatter(correlation: Correlation) -> go.Figure:
    """Accuracy against separation, a colour a model, with both correlations."""
    figure = go.Figure()
    for colour, (model, part) in zip(_colours(), correlation.points.groupby("model", sort=False), strict=False):
        figure.add_scatter(
            x=part.separation,
            y=part.accuracy,
            mode="markers",
            name=literal(model),
            marker={"color": colour, "size": 9},
            customdata=part[["layer"]],
            hovertemplate="layer %{customdata[0]}: separation %{x:.3f}, accuracy %{y:.3f}",
        )
    figure.update_layout(
        template=TEMPLATE,
        title={
            "text": f"Separation and accuracy over {correlation.over}",
            "subtitle": {"text": f"Pearson {correlation.pearson}, Spearman {correlation.spearman}"},
        },
        xaxis_title="distance of answers from context and from memory (standard deviations, d')",
        yaxis_title="interchange accuracy" if correlation.over == "layers" else "pair accuracy as instructed",
        showlegend=True,
        legend=BELOW,
        margin=WITH_SUBTITLE,
    )
    figure.update_yaxes(range=SHARE)
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
                name=f"{setting}: layers {part.patched.iloc[0]}",
                legendgroup=setting,
                showlegend=column == "p_source",
                line={"color": colour, "dash": dash},
                hovertemplate=f"{column.removeprefix('p_')}'s answer after layer %{{x}}: %{{y:.3f}}",
            )
    figure.update_layout(
        template=TEMPLATE,
        title={
            "text": f"What the last token says under the patched layers, {literal(search.model['name'])}",
            "subtitle": {
                "text": "Patchscope read-out; solid: the answer that was patched in, dotted: the prompt's own"
            },
        },
        xaxis_title="read out after layer",
        yaxis_title="mean probability of the answer",
        legend=BELOW,
        margin=WITH_SUBTITLE,
    )
    figure.update_xaxes(dtick=max(1, int(search.frame.layer.max()) // 16), zeroline=False)
    figure.update_yaxes(range=SHARE)
    return figure


def range_maps(search: ExhaustiveSearch) -> go.Figure:
    """Probability of the source's answer under a patch of every range of layers, a panel a setting."""
    settings = list(dict.fromkeys(search.frame.setting))
    figure = make_subplots(rows=1, cols=len(settings), subplot_titles=settings, shared_yaxes=True)
    for column, setting in enumerate(settings, 1):
        part = search.frame[search.frame.setting == setting].assign(last=lambda rows: rows.stop - 1)
        first = part.pivot(index="start", columns="last", values="p_source")
        about = ("p_source_low", "p_source_high", "p_unpatched", "n")
        figure.add_heatmap(
            z=first.to_numpy(),
            x=first.columns,
            y=first.index,
            coloraxis="coloraxis",
            texttemplate="%{z:.2f}" if len(first) <= LABELLED else None,
            customdata=np.stack([part.pivot(index="start", columns="last", values=name) for name in about], axis=-1),
            hovertemplate="layers %{y} to %{x}: %{z:.3f} [%{customdata[0]:.3f}, %{customdata[1]:.3f}],<br>unpatched "
            f"%{{customdata[2]:.3f}}, n = %{{customdata[3]}}<extra>{setting}</extra>",
            row=1,
            col=column,
        )
    step = max(1, int(search.frame.stop.max()) // 8)
    figure.update_xaxes(title_text="to layer", dtick=step, showgrid=False)
    figure.update_yaxes(dtick=step, showgrid=False, autorange="reversed")
    figure.update_yaxes(title_text="from layer", col=1)
    figure.update_layout(
        template=TEMPLATE,
        title=f"Which layers' attention brings the other answer, {literal(search.model['name'])}",
        coloraxis={
            "colorscale": SEQUENTIAL,
            "cmin": 0,
            "cmax": 1,
            "colorbar": {"title": {"text": "probability of the source's answer"}},
        },
        margin={"t": 90},
    )
    return figure


def mark_values(figure: go.Figure, values: Mapping[str, float]) -> None:
    """A dashed line where the knob is set to each of its named values; labels point away from each other."""
    highest = max(values.values(), default=0.0)
    for name, value in values.items():
        figure.add_vline(
            x=value,
            line={"dash": "dash", "color": COLOUR[name]},
            annotation_text=f"set to {name}",
            annotation_position="top",
            annotation_xanchor="left" if value == highest else "right",
        )


def bars(part: pd.DataFrame, column: str) -> dict[str, object]:
    """Error bars from the columns of an interval."""
    return {
        "type": "data",
        "symmetric": False,
        "array": part[f"{column}_high"] - part[column],
        "arrayminus": part[column] - part[f"{column}_low"],
        "thickness": 1.2,
    }


def _colours() -> Iterator[str]:
    return cycle(COLOURS)
