"""Figures of what a model says: by layer and position, and next."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go

from interp.plots.template import COLOURS, SEQUENTIAL, TEMPLATE, literal, visible

if TYPE_CHECKING:
    from interp.logit_lens import LogitLens
    from interp.next_token import NextToken

LABELLED = 24
"""Positions up to which every cell says its token; beyond, only the hover does."""
CELL = 6
"""Characters of a token that a cell has room for."""


def lens_map(lens: LogitLens) -> go.Figure:
    """Heat map of the probability of the most probable next token: sites upwards, positions to the right."""
    probability = np.exp(lens.log_probabilities[:, :, 0])
    texts = [[lens.said[int(i)] for i in row] for row in lens.ids[:, :, 0]]
    said = np.array([[visible(text) for text in row] for row in texts], dtype=object)
    first = lens.parameters.get("first", 0)
    ticks = [f"{first + i} {visible(token)}" for i, token in enumerate(lens.tokens)]
    positions = np.broadcast_to(np.arange(first, first + len(ticks)), said.shape)
    figure = go.Figure(
        go.Heatmap(
            z=probability,
            y=list(lens.sites),
            text=[[visible(text if len(text) <= CELL else f"{text[: CELL - 1]}…") for text in row] for row in texts],
            texttemplate="%{text}" if len(lens.tokens) <= LABELLED else None,
            textfont={"size": 10},
            customdata=np.stack([lens.entropy, lens.kl, positions, said], axis=-1),
            hovertemplate="%{y}, position %{customdata[2]}<br>says %{customdata[3]} (p = %{z:.3f})<br>entropy "
            "%{customdata[0]:.2f} nats, KL from the model's prediction %{customdata[1]:.2f} nats<extra></extra>",
            colorscale=SEQUENTIAL,
            zmin=0,
            zmax=1,
            colorbar={"title": "probability"},
        )
    )
    step = -(-len(ticks) // 48)
    figure.update_xaxes(
        title="position and token",
        tickvals=list(range(0, len(ticks), step)),
        ticktext=ticks[::step],
        showgrid=False,
        automargin=True,
    )
    figure.update_yaxes(title="read after", showgrid=False, automargin=True)
    figure.update_layout(
        template=TEMPLATE, title=f"logit lens of {literal(lens.model['name'])}", height=220 + 32 * len(lens.sites)
    )
    return figure


def next_token_bars(result: NextToken) -> go.Figure:
    """Probabilities of the most probable next tokens, with edits those under them beside."""
    names = [f"{visible(token)} ({number})" for token, number in zip(result.said, result.ids, strict=True)]
    series = {"as it is": result.log_probabilities}
    if result.edited is not None:
        series["edited"] = result.edited
    figure = go.Figure(
        [
            go.Bar(
                x=np.exp(values),
                y=names,
                orientation="h",
                name=name,
                marker_color=colour,
                hovertemplate="%{y}: %{x:.4f}<extra>" + name + "</extra>",
            )
            for colour, (name, values) in zip(COLOURS, series.items(), strict=False)
        ]
    )
    figure.update_layout(
        template=TEMPLATE,
        title="next token",
        barmode="group",
        showlegend=result.edited is not None,
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 1, "xanchor": "right"},
        height=120 + 26 * len(names),
    )
    figure.update_xaxes(title="probability", range=[0, 1])
    figure.update_yaxes(title="token (id)", autorange="reversed", automargin=True)
    return figure
