"""Figures of graft masks: where their parameters are, and how much of them they share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from interp.plots.template import COLOURS, DIVERGING, INK, SEQUENTIAL, TEMPLATE, literal

if TYPE_CHECKING:
    from interp.skills.mask import GraftMask
    from interp.skills.multitask import Overlap

OUTSIDE = "outside"
"""What is in no block: embeddings, last norm, head."""
FEWEST, MOST = 1 / 8, 8
"""Times as dense as chance, between which colours differ."""


def mask_shares(mask: GraftMask, title: str = "") -> go.Figure:
    """Which share of a mask each layer and each module has, beside the shares of random masks of its size.

    Random masks: their mean, with bars where 95 % of them lie.
    """
    figure = make_subplots(cols=2, subplot_titles=["by layer", "by module"], horizontal_spacing=0.3)
    bys: tuple[Literal["layer", "module"], ...] = ("layer", "module")
    for column, by in enumerate(bys, 1):
        table = mask.shares(by)
        names = [_layer(name) if by == "layer" else _module(name) for name in table[by]]
        bar = {"y": names, "orientation": "h", "showlegend": column == 1}
        figure.add_bar(
            **bar,
            x=table.share,
            name="this mask",
            legendgroup="mask",
            marker_color=COLOURS[0],
            customdata=table[["chosen", "size"]],
            hovertemplate="%{y}: %{x:.1%}, %{customdata[0]:,} of %{customdata[1]:,} parameters",
            row=1,
            col=column,
        )
        spread = {"array": table.chance_high - table.by_chance, "arrayminus": table.by_chance - table.chance_low}
        figure.add_bar(
            **bar,
            x=table.by_chance,
            name="random masks of its size",
            legendgroup="random",
            marker_color=COLOURS[-1],
            error_x={**spread, "color": INK, "thickness": 1.5, "width": 3},
            customdata=table[["chance_low", "chance_high"]],
            hovertemplate="%{y}: %{x:.1%} on average, 95 % of them %{customdata[0]:.1%} to %{customdata[1]:.1%}",
            row=1,
            col=column,
        )
        figure.update_yaxes(
            title=by if column == 1 else None,  # beside the long names of modules it would lie over the other panel
            type="category",
            autorange="reversed",
            automargin=True,
            showgrid=False,
            row=1,
            col=column,
        )
    figure.update_xaxes(title="share of the mask (%)", tickformat=".0%", rangemode="tozero")
    figure.update_layout(
        template=TEMPLATE,
        title=f"{literal(title)}: where {len(mask):,} grafted parameters are",
        height=520,
        legend={"orientation": "h", "y": -0.2, "yanchor": "top", "x": 0},
        margin_t=90,
    )
    return figure


def enrichment_map(mask: GraftMask, title: str = "") -> go.Figure:
    """Heat map of how many times as dense as a random mask a mask is, layers downwards, modules to the right.

    Colours are logarithmic, white where it is as dense as chance; a parameter without any entry has the last blue.
    """
    frame = mask.breakdown()
    tables = {
        column: frame.pivot(index="layer", columns="module", values=column)[frame.module.unique()]
        for column in ("enrichment", "chosen", "share", "by_chance")
    }
    times = tables["enrichment"]
    ticks = [FEWEST, 1 / 4, 1 / 2, 1, 2, 4, MOST]
    figure = go.Figure(
        go.Heatmap(
            z=np.log2(np.clip(times.to_numpy(dtype=float), FEWEST, MOST)),
            x=[_module(name) for name in times.columns],
            y=[_layer(layer) for layer in times.index],
            customdata=np.stack([tables[column] for column in ("enrichment", "chosen", "share", "by_chance")], axis=-1),
            colorscale=DIVERGING,
            zmin=np.log2(FEWEST),
            zmax=np.log2(MOST),
            colorbar={
                "title": "times as dense<br>as by chance",
                "tickvals": np.log2(ticks).tolist(),
                "ticktext": ["≤ 1/8", "1/4", "1/2", "1", "2", "4", "≥ 8"],
            },
            hovertemplate=(
                "layer %{y}, %{x}: %{customdata[0]:.2f} times as dense as by chance<br>%{customdata[1]:,} parameters, "
                "%{customdata[2]:.1%} of the mask, by chance %{customdata[3]:.1%}<extra></extra>"
            ),
        )
    )
    title = f"{literal(title)}: where {len(mask):,} grafted parameters are dense"
    figure.update_layout(template=TEMPLATE, title=title, height=480)
    figure.update_yaxes(title="layer", autorange="reversed", type="category")
    figure.update_xaxes(title="module", tickangle=45, automargin=True)
    return figure


def overlap_map(overlap: Overlap) -> go.Figure:
    """Heat map of which share of each mask (column) lies in each other (row), with what chance would give on hover."""
    names = [literal(name) for name in overlap.names]
    figure = go.Figure(
        go.Heatmap(
            z=overlap.matrix,
            x=names,
            y=names,
            customdata=np.stack([overlap.shared, overlap.by_chance], axis=-1),
            colorscale=SEQUENTIAL,
            zmin=0,
            zmax=1,
            texttemplate="%{z:.2f}",
            colorbar_title="share of<br>the column",
            hovertemplate="%{customdata[0]:,} parameters of %{x} are in %{y} too: %{z:.1%}, by chance "
            "%{customdata[1]:.1%}<extra></extra>",
        )
    )
    figure.update_layout(
        template=TEMPLATE, title=f"grafted parameters that masks of {literal(overlap.model['name'])} share"
    )
    figure.update_xaxes(title="share of the mask", type="category", automargin=True)
    figure.update_yaxes(title="that is in the mask", type="category", autorange="reversed", automargin=True)
    return figure


def _layer(number: int) -> str:
    return str(number) if number >= 0 else OUTSIDE


def _module(name: str) -> str:
    """Weights go without saying; biases do not."""
    return literal(name.removesuffix(".weight"))
