"""Figures of skill localization: accuracy against budget, where a mask sits, reliability, overlap of masks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go

from interp.errors import BadInput, choose
from interp.plots.template import COLOURS, INK, SEQUENTIAL, TEMPLATE, transparent

if TYPE_CHECKING:
    from interp.skills.evaluation import Evaluation
    from interp.skills.mask import GraftMask
    from interp.skills.multitask import Overlap

REFERENCES = ("pre-trained", "fine-tuned")
"""Methods that are horizontal lines, having no budget."""


def budget_curves(evaluation: Evaluation, split: str = "test") -> go.Figure:
    """Accuracy against the share of parameters grafted, one line a method, mean over seeds.

    Bands are Wilson intervals of the accuracy, of a method with several seeds from the lowest to the highest.
    """
    frame = evaluation.frame
    if split not in set(frame.split):
        raise BadInput(f"nothing was evaluated on {split!r}; {choose(split, frame.split.unique())}")
    frame = frame[frame.split == split]
    figure = go.Figure()
    methods = [method for method in frame.method.unique() if method not in REFERENCES]
    for number, method in enumerate(methods):
        colour = COLOURS[number % len(COLOURS)]
        by_budget = (
            frame[frame.method == method]
            .groupby("budget")
            .agg(
                accuracy=("accuracy", "mean"),
                low=("accuracy_low", "min"),
                high=("accuracy_high", "max"),
                recovered=("recovered", "mean"),
                parameters=("parameters", "max"),
                runs=("seed", "count"),
            )
        )
        x = by_budget.index.to_numpy()
        figure.add_scatter(
            x=np.concatenate([x, x[::-1]]),
            y=np.concatenate([by_budget.high, by_budget.low[::-1]]),
            fill="toself",
            fillcolor=transparent(colour, 0.15),
            line_width=0,
            hoverinfo="skip",
            showlegend=False,
            legendgroup=method,
        )
        figure.add_scatter(
            x=x,
            y=by_budget.accuracy,
            name=method,
            legendgroup=method,
            mode="lines+markers",
            line_color=colour,
            customdata=by_budget[["parameters", "recovered", "runs"]],
            hovertemplate=(
                "%{x:.3%} (%{customdata[0]:,} parameters)<br>accuracy %{y:.3f}, gain recovered "
                "%{customdata[1]:.1%}, mean of %{customdata[2]}"
            ),
        )
    for method in REFERENCES:
        accuracy = float(frame[frame.method == method].accuracy.iloc[0])
        figure.add_hline(y=accuracy, line={"color": INK, "dash": "dot"}, annotation_text=method)
    figure.update_layout(
        template=TEMPLATE,
        title=f"{evaluation.parameters.get('task', '')}: what a graft carries ({split}, n={int(frame.n.iloc[0])})",
        xaxis={"title": "share of the trainable parameters that is grafted", "type": "log", "tickformat": ".3~%"},
        yaxis={"title": "accuracy"},
    )
    return figure


def module_map(mask: GraftMask) -> go.Figure:
    """Heat map of where a mask's entries are: layers downwards, modules to the right, coloured by enrichment."""
    frame = mask.breakdown()
    tables = {
        column: frame.pivot(index="layer", columns="module", values=column)[frame.module.unique()]
        for column in ("enrichment", "chosen", "density", "share")
    }
    values = tables["enrichment"]
    figure = go.Figure(
        go.Heatmap(
            z=values.to_numpy(),
            x=list(values.columns),
            y=[str(layer) if layer >= 0 else "outside" for layer in values.index],
            customdata=np.stack([tables[column] for column in ("chosen", "density", "share")], axis=-1),
            colorscale=SEQUENTIAL,
            zmin=0,
            colorbar_title="density over<br>the mask's",
            hovertemplate=(
                "layer %{y}, %{x}<br>%{customdata[0]:,} entries: %{customdata[1]:.3%} of the parameter, "
                "%{customdata[2]:.1%} of the mask<br>enrichment %{z:.2f}<extra></extra>"
            ),
        )
    )
    figure.update_layout(template=TEMPLATE, title=f"where {len(mask):,} grafted parameters are")
    figure.update_yaxes(title="layer", autorange="reversed", type="category")
    figure.update_xaxes(tickangle=45)
    return figure


def reliability_diagram(evaluation: Evaluation, split: str = "test", bins: int = 10) -> go.Figure:
    """Accuracy against confidence of the pre-trained, the fine-tuned and every localised model, in bins of equal width.

    On the diagonal a model is right as often as it is sure. Markers grow with the share of examples in their bin.
    """
    figure = go.Figure()
    figure.add_scatter(x=[0, 1], y=[0, 1], mode="lines", line={"color": INK, "dash": "dot"}, showlegend=False)
    frame = evaluation.frame
    frame = frame[frame.split == split].reset_index(drop=True)
    shown = [i for i, method in enumerate(frame.method) if method in (*REFERENCES, "localized")]
    for number, row in enumerate(shown):
        table = evaluation.reliability(row, split, bins)
        about = frame.iloc[row]
        name = about.method if about.method in REFERENCES else f"{about.method} {about.budget:.3%}"
        figure.add_scatter(
            x=table.confidence,
            y=table.accuracy,
            name=f"{name} (ECE {about.ece_10:.3f})" if bins == 10 else name,
            mode="lines+markers",
            line_color=COLOURS[number % len(COLOURS)],
            marker_size=6 + 18 * np.sqrt(table.n / table.n.sum()),
            customdata=table.n,
            hovertemplate="confidence %{x:.3f}, accuracy %{y:.3f} (n=%{customdata})",
        )
    figure.update_layout(
        template=TEMPLATE,
        title=f"{evaluation.parameters.get('task', '')}: reliability ({split}, {bins} bins)",
        xaxis={"title": "confidence", "range": [0, 1]},
        yaxis={"title": "accuracy", "range": [0, 1.02]},
    )
    return figure


def overlap_map(overlap: Overlap) -> go.Figure:
    """Heat map of which share of each mask (column) lies in each other (row)."""
    figure = go.Figure(
        go.Heatmap(
            z=overlap.matrix,
            x=list(overlap.names),
            y=list(overlap.names),
            customdata=overlap.shared,
            colorscale=SEQUENTIAL,
            zmin=0,
            zmax=1,
            texttemplate="%{z:.2f}",
            colorbar_title="share of<br>the column",
            hovertemplate="%{customdata:,} entries of %{x} are in %{y} too: %{z:.1%}<extra></extra>",
        )
    )
    figure.update_layout(template=TEMPLATE, title="overlap of grafted regions")
    figure.update_xaxes(title="of the mask of")
    figure.update_yaxes(title="in the mask of", autorange="reversed")
    return figure
