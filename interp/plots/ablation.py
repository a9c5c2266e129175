"""Figures of ablation studies, from their frames."""

from __future__ import annotations

from textwrap import wrap

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from interp.plots.heads import BAR
from interp.plots.template import COLOURS, DIVERGING, SEQUENTIAL, TEMPLATE, literal, transparent

UNITS = {
    "recall": "recall (fraction of answers)",
    "perplexity": "perplexity",
    "log-probability": "log-probability (nats a token)",
    "logit-difference": "logit difference (logits)",
}
PANELS_ACROSS = 4


def removal_curves(frame: pd.DataFrame, measure: str = "recall", title: str = "") -> go.Figure:
    """The measure against the number of heads removed, one colour an ablation: solid the chosen heads, dotted random.

    `frame` has the columns ablation, heads ("none", "chosen", "random"), removed, low, high and the measure (or
    `value`). Bands: interval of the chosen heads; smallest to largest over the seeds of random ones.
    """
    column = measure if measure in frame else "value"
    figure = go.Figure()
    baseline = frame[frame["heads"] == "none"].iloc[0]
    ablated = frame[frame["heads"] != "none"]
    for colour, (ablation, part) in zip(_cycle(), ablated.groupby("ablation", sort=False), strict=False):
        for kind, dash in (("chosen", "solid"), ("random", "dot")):
            curve = _curve(part[part["heads"] == kind], column, baseline)
            if len(curve) > 1:
                _add_curve(figure, curve, f"{ablation}: {kind} heads", colour, dash)
    figure.update_layout(
        template=TEMPLATE, title=literal(title), xaxis_title="heads removed", yaxis_title=UNITS[measure]
    )
    figure.update_xaxes(rangemode="tozero", dtick=max(1, int(frame.removed.max()) // 10))
    return figure


def _cycle() -> list[str]:
    return list(COLOURS) * 3


def _curve(part: pd.DataFrame, column: str, baseline: pd.Series) -> pd.DataFrame:
    """A row a number of heads from 0 on: value, low, high, and what they are."""
    rows = [{"removed": 0, "value": baseline[column], "low": baseline.low, "high": baseline.high, "of": "all heads"}]
    for removed, steps in part.groupby("removed"):
        one = len(steps) == 1
        low, high = (steps.low, steps.high) if one else (steps[column], steps[column])
        of = f"{int(steps.n.iloc[0])} tests" if one else f"{len(steps)} seeds"
        rows.append({"removed": removed, "value": steps[column].mean(), "low": low.min(), "high": high.max(), "of": of})
    return pd.DataFrame(rows)


def _add_curve(figure: go.Figure, curve: pd.DataFrame, name: str, colour: str, dash: str) -> None:
    figure.add_scatter(
        x=[*curve.removed, *curve.removed[::-1]],
        y=[*curve.high, *curve.low[::-1]],
        mode="lines",
        fill="toself",
        fillcolor=transparent(colour),
        line={"width": 0},
        legendgroup=name,
        showlegend=False,
        hoverinfo="skip",
    )
    figure.add_scatter(
        x=curve.removed,
        y=curve.value,
        name=name,
        mode="lines+markers",
        line={"color": colour, "dash": dash},
        legendgroup=name,
        customdata=curve[["low", "high", "of"]],
        hovertemplate="%{x} heads removed: %{y:.3f} [%{customdata[0]:.3f}, %{customdata[1]:.3f}], %{customdata[2]}",
    )


def length_depth_maps(frame: pd.DataFrame, title: str = "") -> go.Figure:
    """Recall at each length and depth of the needle, a panel a condition, on one colour scale from 0 to 1.

    `frame` is that of `AblationReport.by_length_and_depth`.
    """
    conditions = list(frame.groupby(["ablation", "heads", "removed"], sort=False))
    names = [_condition(*key) for key, _ in conditions]
    across = min(len(conditions), PANELS_ACROSS)
    down = -(-len(conditions) // across)
    figure = make_subplots(rows=down, cols=across, subplot_titles=names, shared_yaxes=True, vertical_spacing=0.2 / down)
    for i, (_, part) in enumerate(conditions):
        cells = part.pivot(index="depth", columns="length")
        figure.add_heatmap(
            z=cells.recall.to_numpy(),
            x=[str(length) for length in cells.recall.columns],
            y=[f"{depth:g}" for depth in cells.recall.index],
            customdata=np.stack([cells[name].to_numpy() for name in ("low", "high", "n")], axis=-1),
            hovertemplate="%{x} tokens, depth %{y} %: recall %{z:.2f} [%{customdata[0]:.2f}, %{customdata[1]:.2f}], "
            "n = %{customdata[2]}<extra></extra>",
            coloraxis="coloraxis",
            row=i // across + 1,
            col=i % across + 1,
        )
    figure.update_xaxes(type="category")
    figure.update_xaxes(title="length (tokens)", row=down)
    figure.update_yaxes(autorange="reversed", type="category")
    figure.update_yaxes(title="depth of the needle (%)", col=1)
    figure.update_annotations(font_size=12)
    scale = {"colorscale": SEQUENTIAL, "cmin": 0, "cmax": 1, "colorbar": {"title": "recall"}}
    figure.update_layout(template=TEMPLATE, title=literal(title), coloraxis=scale, height=160 + 240 * down)
    return figure


def _condition(ablation: str, heads: str, removed: int) -> str:
    return "all heads" if heads == "none" else f"{ablation}, without {removed} {heads}"


def effect_map(frame: pd.DataFrame, quantity: str = "effect", title: str = "") -> go.Figure:
    """Heat map of the effect of every head, layer 0 on top, colours symmetric around 0.

    `frame` has the columns layer, head, effect, low, high, n; heads without an effect stay empty.
    """
    cells = frame.pivot(index="layer", columns="head")
    effects = cells.effect.to_numpy()
    largest = float(np.nanmax(np.abs(effects), initial=0.0)) or 1.0
    figure = go.Figure(
        go.Heatmap(
            z=effects,
            x=list(cells.effect.columns),
            y=list(cells.effect.index),
            zmin=-largest,
            zmax=largest,
            colorscale=DIVERGING,
            colorbar={"title": "<br>".join(map(literal, wrap(quantity, BAR)))},
            customdata=np.stack([cells[name].to_numpy() for name in ("low", "high", "n")], axis=-1),
            hovertemplate="head %{y}.%{x}: %{z:.3f} [%{customdata[0]:.3f}, %{customdata[1]:.3f}], "
            "n = %{customdata[2]}<extra></extra>",
        )
    )
    figure.update_layout(template=TEMPLATE, title=literal(title), xaxis_title="head", yaxis_title="layer")
    figure.update_xaxes(dtick=max(1, effects.shape[1] // 16))
    figure.update_yaxes(autorange="reversed", dtick=max(1, effects.shape[0] // 16))
    return figure


def importance_scatter(
    frame: pd.DataFrame, agreement: pd.DataFrame, order: str = "mean-of-abs", title: str = ""
) -> go.Figure:
    """Importance of every head against the exact effect of ablating it, a colour a layer, with the rank correlation.

    `frame` and `agreement` are those of `HeadImportance`; `order` says where the absolute value was taken.
    """
    row = agreement[(agreement.order == order) & ~agreement.by_layer].iloc[0]
    effect = frame.effect if order == "signed" else frame.effect.abs()
    figure = go.Figure()
    for colour, (layer, part) in zip(_cycle(), frame.groupby("layer"), strict=False):
        figure.add_scatter(
            x=effect[part.index],
            y=part[order.replace("-", "_")],
            mode="markers",
            name=f"layer {layer}",
            marker={"color": colour, "size": 8},
            customdata=part[["layer", "head", "low", "high"]],
            hovertemplate="head %{customdata[0]}.%{customdata[1]}: importance %{y:.3f}, effect %{x:.3f} "
            "[%{customdata[2]:.3f}, %{customdata[3]:.3f}]<extra></extra>",
        )
    correlation = (
        f"Spearman {row.spearman:.2f} [{row.spearman_low:.2f}, {row.spearman_high:.2f}], "
        f"Kendall {row.kendall:.2f} [{row.kendall_low:.2f}, {row.kendall_high:.2f}], n = {row.n}"
    )
    sign = "" if order == "signed" else "absolute "
    unit = UNITS[row.metric].split("(")[-1][:-1]
    figure.update_layout(
        template=TEMPLATE,
        title={"text": literal(title), "subtitle": {"text": correlation}},
        xaxis_title=f"{sign}{row.metric} lost under {row.ablation} ablation ({unit})",
        yaxis_title=f"gradient importance, {order} ({unit})",
    )
    return figure
