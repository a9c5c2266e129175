"""Figures of skills: learning them, what a graft carries of one, whether it is as sure as it is right."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from interp.errors import BadInput, choose
from interp.plots.template import COLOURS, INK, TEMPLATE, literal

if TYPE_CHECKING:
    from interp.skills.evaluation import Evaluation
    from interp.skills.multitask import Continual

REFERENCES = ("pre-trained", "fine-tuned")
"""Methods that are horizontal lines, having no budget."""
LOCALIZED = "localized"
MEASURES = {"accuracy": "accuracy (share of examples)", "gain": "share of the gain in accuracy"}
"""What can be drawn against the budget, and its axis."""
CARRIED = {"accuracy": "accuracy of grafts", "gain": "how much of the gain a graft carries"}
STEP = 0.04
"""By which lines stand beside each other, as a share of a factor of ten: their bars would cover each other."""


def loss_curves(losses: pd.DataFrame, title: str = "") -> go.Figure:
    """Loss against step, a colour a task; `losses` has the columns step, task and loss."""
    figure = go.Figure()
    for number, (task, part) in enumerate(losses.groupby("task", sort=False)):
        figure.add_scatter(
            x=part.step,
            y=part.loss,
            name=literal(task),
            showlegend=True,
            line_color=COLOURS[number % len(COLOURS)],
            hovertemplate="step %{x}: %{y:.3f} nats",
        )
    figure.update_layout(
        template=TEMPLATE,
        title=literal(title),
        xaxis_title="step of fine-tuning",
        yaxis_title="cross-entropy of labels (nats)",
    )
    figure.update_yaxes(rangemode="tozero")
    return figure


def budget_curves(
    evaluation: Evaluation, what: Literal["accuracy", "gain"] = "accuracy", split: str = "test"
) -> go.Figure:
    """Accuracy, or the share of the gain, against the share of parameters grafted: a line a method, mean over seeds.

    Bars are 95 % intervals (Wilson's, or bootstrapped for the gain), of a method with several seeds from the lowest to
    the highest. Raises BadInput for a split that nothing was evaluated on.
    """
    if what not in MEASURES:
        raise BadInput(f"{what!r} is not drawn against the budget; {choose(what, MEASURES)}")
    frame = _of_split(evaluation, split)
    column = "recovered" if what == "gain" else "accuracy"
    figure = go.Figure()
    for method in REFERENCES:
        level = float(frame[frame.method == method][column].iloc[0])
        side = "bottom right" if method == "pre-trained" else "top left"
        figure.add_hline(y=level, line={"color": INK, "dash": "dot"}, annotation_text=method, annotation_position=side)
    methods = [method for method in frame.method.unique() if method not in REFERENCES]
    for number, method in enumerate(methods):
        points = _over_seeds(frame[frame.method == method], column)
        figure.add_scatter(
            x=points.budget * 10 ** (STEP * (number - (len(methods) - 1) / 2)),
            y=points.value,
            name=literal(method),
            showlegend=True,
            mode="lines+markers",
            line={"color": COLOURS[number % len(COLOURS)], "dash": "solid" if method == LOCALIZED else "dot"},
            marker_size=9 if method == LOCALIZED else 6,
            error_y={"array": points.high - points.value, "arrayminus": points.value - points.low, "thickness": 1},
            customdata=points[["budget", "parameters", "low", "high", "seeds", "n"]],
            hovertemplate="%{customdata[0]:.3~%} (%{customdata[1]:,} parameters): %{y:.3f} [%{customdata[2]:.3f}, "
            "%{customdata[3]:.3f}], %{customdata[4]} masks, n = %{customdata[5]}",
        )
    figure.update_layout(
        template=TEMPLATE,
        title=_title(evaluation, f"{CARRIED[what]} ({split}, n = {frame.n.iloc[0]})"),
        xaxis={"title": "share of the trainable parameters that is grafted", "type": "log", "tickformat": ".3~%"},
        yaxis={"title": MEASURES[what]},
    )
    figure.update_xaxes(tickvals=sorted(frame.budget[~frame.method.isin(REFERENCES)].unique()))
    return figure


def _of_split(evaluation: Evaluation, split: str) -> pd.DataFrame:
    frame = evaluation.frame
    if split not in set(frame.split):
        raise BadInput(f"nothing was evaluated on {split!r}; {choose(split, frame.split.unique())}")
    return frame[frame.split == split].reset_index(drop=True)


def _title(evaluation: Evaluation, what: str) -> str:
    return f"{literal(evaluation.parameters.get('task', ''))}, {literal(evaluation.model.get('name', ''))}: {what}"


def _over_seeds(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """A row a budget: the mean over seeds, and how far their intervals reach."""
    return rows.groupby("budget", as_index=False).agg(
        value=(column, "mean"),
        low=(f"{column}_low", "min"),
        high=(f"{column}_high", "max"),
        parameters=("parameters", "max"),
        seeds=("seed", "count"),
        n=("n", "first"),
    )


def reliability_diagram(evaluation: Evaluation, split: str = "test", bins: int = 10) -> go.Figure:
    """Accuracy against confidence of the pre-trained, the fine-tuned and every localised model, in bins of equal width.

    On the diagonal a model is right as often as it is sure. Markers grow with the share of examples in their bin; the
    expected calibration error is in the legend. Of the localised models the most accurate is drawn, the others are in
    the legend. Raises BadInput for a split that nothing was evaluated on.
    """
    frame = _of_split(evaluation, split)
    figure = go.Figure()
    figure.add_scatter(
        x=[0, 1],
        y=[0, 1],
        mode="lines",
        line={"color": INK, "dash": "dot"},
        name="as right as it is sure",
        hoverinfo="skip",
    )
    shown = [i for i, method in enumerate(frame.method) if method in (*REFERENCES, LOCALIZED)]
    best = frame.accuracy[frame.method == LOCALIZED].sort_values(ascending=False, kind="stable").index[:1]
    for number, row in enumerate(shown):
        table, about = evaluation.reliability(row, split, bins), frame.iloc[row]
        name = about.method if about.method in REFERENCES else f"{about.method} {100 * about.budget:g}%"
        figure.add_scatter(
            x=table.confidence,
            y=table.accuracy,
            name=f"{name} (ECE {about.ece_10:.3f})" if bins == 10 else name,
            mode="lines+markers",
            visible=True if about.method in REFERENCES or row in best else "legendonly",
            line={"color": COLOURS[number % len(COLOURS)], "width": 1},
            marker_size=6 + 18 * np.sqrt(table.n / table.n.sum()),
            customdata=table.n,
            hovertemplate="confidence %{x:.3f}, accuracy %{y:.3f} (n = %{customdata})",
        )
    figure.update_layout(
        template=TEMPLATE,
        title=_title(evaluation, f"reliability ({split}, {bins} bins, n = {frame.n.iloc[0]})"),
        xaxis={"title": "confidence (probability of the chosen label)", "range": [0, 1.02]},
        yaxis={"title": "accuracy (share of examples)", "range": [-0.03, 1.03]},
    )
    return figure


def continual_curves(continual: Continual) -> go.Figure:
    """Accuracy on every task after each stage of learning them in turn, a panel a task, with Wilson's intervals."""
    frame = continual.frame
    tasks = list(frame.task.unique())
    figure = make_subplots(cols=len(tasks), subplot_titles=[f"on {literal(task)}" for task in tasks], shared_yaxes=True)
    stages = frame.drop_duplicates("stage").sort_values("stage")
    names = [literal(learned) or "nothing" for learned in stages.learned]
    for column, task in enumerate(tasks, 1):
        of_task = frame[frame.task == task].groupby("method", sort=False)
        for colour, (method, part) in zip(COLOURS, of_task, strict=False):
            figure.add_scatter(
                x=part.stage,
                y=part.accuracy,
                name=literal(method),
                legendgroup=str(method),
                showlegend=column == 1,
                mode="lines+markers",
                line={"color": colour, "dash": "solid" if method == "grafting" else "dot"},
                error_y={"array": part.high - part.accuracy, "arrayminus": part.accuracy - part.low, "thickness": 1},
                customdata=part[["low", "high", "n"]],
                hovertemplate="%{y:.3f} [%{customdata[0]:.3f}, %{customdata[1]:.3f}], n = %{customdata[2]}",
                row=1,
                col=column,
            )
    figure.update_xaxes(title="just learned", tickvals=list(stages.stage), ticktext=names)
    figure.update_yaxes(range=[-0.03, 1.03])
    figure.update_yaxes(title="accuracy (share of examples)", col=1)
    figure.update_layout(template=TEMPLATE, title=f"{literal(continual.model['name'])}: one task after the other")
    return figure
