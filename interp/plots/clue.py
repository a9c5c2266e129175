"""Figures of CLUE: deltas with their centroids, margins, scores beside baselines, layers, and re-ranking over k."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from interp.errors import BadInput
from interp.plots.template import COLOURS, INK, TEMPLATE, literal, transparent

if TYPE_CHECKING:
    from probes.clue import Scored
    from probes.reranking import Ranking
    from probes.verification import Verification

RIGHT, WRONG = COLOURS[0], COLOURS[1]
CONTROL = "any order"
BINS = 40


def projections(scored: Scored) -> go.Figure:
    """Deltas in the plane of the line through both centroids and the largest remaining variation.

    The axes leave out what lies beyond three times the distance between the quartiles; a double click shows it.
    """
    figure = go.Figure()
    for kind, colour, rows in [*_kinds(scored)][::-1]:  # right ones on top: many are the same text at the same place
        frame = scored.frame[rows]
        figure.add_scatter(
            x=scored.projection[rows, 0],
            y=scored.projection[rows, 1],
            mode="markers",
            name=f"{kind} traces",
            marker={"color": transparent(colour, 0.6), "size": 7, "symbol": _symbol(kind)},
            customdata=np.stack([frame.to_success, frame.to_failure], axis=-1),
            text=[_short(question) for question in frame.question],
            hovertemplate="%{text}<br>to success %{customdata[0]:.3f}, to failure %{customdata[1]:.3f}"
            f"<extra>{kind}</extra>",
        )
    half = float((scored.centroids.gap**2).sum() ** 0.5) / 2
    across, up = _central(scored.projection[:, 0], half), _central(scored.projection[:, 1], 0.0)
    x, y = scored.projection.T
    beyond = int(((x < across[0]) | (x > across[1]) | (y < up[0]) | (y > up[1])).sum())
    for kind, colour, place in (("success", RIGHT, half), ("failure", WRONG, -half)):
        figure.add_scatter(
            x=[place],
            y=[0],
            mode="markers",
            name=f"{kind} centroid",
            marker={"color": colour, "size": 18, "symbol": "star", "line": {"color": INK, "width": 2}},
            hovertemplate="%{x:.3f}<extra>" + f"{kind} centroid</extra>",
        )
    if beyond:
        text = f"{beyond} beyond the axes"
        figure.add_annotation(
            x=1, y=1, xref="paper", yref="paper", xanchor="right", yanchor="bottom", text=text, showarrow=False
        )
    return figure.update_layout(
        template=TEMPLATE,
        title="Traces around the centroids",
        xaxis={"title": "towards the success centroid (L2)", "range": across, "zeroline": False},
        yaxis={"title": "largest remaining variation (L2)", "range": up, "zeroline": False},
        legend=_BELOW,
        height=460,
        margin_b=110,
    )


def margins(scored: Scored) -> go.Figure:
    """How many traces lie how much nearer to the success than to the failure centroid, right and wrong ones apart."""
    margin = (scored.frame.to_failure - scored.frame.to_success).to_numpy(dtype=float)
    edges = np.histogram_bin_edges(margin, BINS)
    figure = go.Figure()
    for kind, colour, rows in _kinds(scored):
        counts, _ = np.histogram(margin[rows], edges)
        figure.add_bar(
            x=(edges[1:] + edges[:-1]) / 2,
            y=counts / max(1, rows.sum()),
            width=np.diff(edges),
            name=f"{kind} ({rows.sum():,} traces)",
            marker={"color": transparent(colour, 0.55), "line": {"color": colour, "width": 1}},
            customdata=counts,
            hovertemplate="margin %{x:.3f}: %{customdata} traces, %{y:.1%}" + f"<extra>{kind}</extra>",
        )
    figure.add_vline(0, line_dash="dot", line_color=INK, annotation_text="taken for right →")
    return figure.update_layout(
        template=TEMPLATE,
        title="How much nearer to the success centroid",
        barmode="overlay",
        xaxis_title="distance to failure − to success (mean L2)",
        yaxis={"title": "share of its kind", "tickformat": ".0%"},
        legend=_BELOW,
        height=460,
        margin_b=110,
    )


def aucs(verification: Verification) -> go.Figure:
    """AUC of every score with its interval: over all traces, and among the traces of one question."""
    figure = go.Figure()
    names = list(dict.fromkeys(verification.frame.score))[::-1]
    places = {name: i for i, name in enumerate(names)}
    for metric, label, symbol, shift in (
        ("auc", "over all traces", "circle", 0.12),
        ("within", "among the traces of one question", "diamond", -0.12),
    ):
        part = verification.frame[verification.frame.metric == metric]
        colours = [COLOURS[0] if name.startswith("clue") else COLOURS[5] for name in part.score]
        figure.add_scatter(
            x=part.value,
            y=[places[name] + shift for name in part.score],
            error_x=_bars(part, "value"),
            mode="markers",
            name=label,
            marker={"color": colours, "size": 10, "symbol": symbol},
            customdata=part[["low", "high", "questions", "score"]],
            hovertemplate="%{customdata[3]}: %{x:.3f} [%{customdata[0]:.3f}, %{customdata[1]:.3f}], "
            f"%{{customdata[2]}} questions<extra>{label}</extra>",
        )
    figure.add_vline(0.5, line_dash="dot", line_color=INK, annotation_text="chance", annotation_position="top")
    return figure.update_layout(
        template=TEMPLATE,
        title="Right from wrong traces: CLUE (blue) beside its baselines",
        xaxis_title="area under the ROC curve, 95 % interval over questions",
        yaxis={
            "tickvals": list(places.values()),
            "ticktext": names,
            "title": {"text": "score", "standoff": 12},
            "automargin": True,
            "zeroline": False,
        },
        legend=_BELOW,
        height=200 + 45 * len(names),
        margin_b=110,
    )


def by_depth(verification: Verification) -> go.Figure:
    """AUC of each layer's margin with its interval, and the distance between centroids, raw and over the spread."""
    layers = verification.layers
    titles = ("AUC of one layer's margin", "distance between the centroids")
    figure = make_subplots(rows=1, cols=2, subplot_titles=titles, horizontal_spacing=0.12)
    _band(figure, layers.layer, layers.low, layers.high, COLOURS[0], row=1, col=1)
    figure.add_scatter(
        x=layers.layer,
        y=layers.auc,
        name="AUC",
        mode="lines+markers",
        line_color=COLOURS[0],
        customdata=layers[["low", "high", "questions"]],
        hovertemplate="layer %{x}: %{y:.3f} [%{customdata[0]:.3f}, %{customdata[1]:.3f}], "
        "%{customdata[2]} questions<extra>AUC</extra>",
        row=1,
        col=1,
    )
    figure.add_hline(0.5, line_dash="dot", line_color=INK, annotation_text="chance", row=1, col=1)
    for name, label, colour, dash in (
        ("distance", "distance", COLOURS[2], "solid"),
        ("separation", "distance / spread within a class", COLOURS[3], "dash"),
    ):
        figure.add_scatter(
            x=layers.layer,
            y=layers[name],
            name=label,
            mode="lines+markers",
            line={"color": colour, "dash": dash},
            hovertemplate="layer %{x}: %{y:.3g}" + f"<extra>{label}</extra>",
            row=1,
            col=2,
        )
    figure.update_xaxes(title_text="layer", dtick=max(1, len(layers) // 12), zeroline=False)
    figure.update_yaxes(title_text="AUC, 95 % interval", row=1, col=1)
    figure.update_yaxes(title_text="L2, and ratio (log scale)", type="log", row=1, col=2)
    title = "Which layers separate right from wrong traces"
    return figure.update_layout(template=TEMPLATE, title=title, legend=_BELOW, height=460, margin={"t": 90, "b": 110})


def reranking(ranking: Ranking) -> go.Figure:
    """Accuracy of the majority among the k best samples, one line a score, with its interval for CLUE.

    Raises BadInput where nobody checked the traces.
    """
    if not ranking.checked:
        raise BadInput("the traces are not known to be right or wrong, so nothing says how good the picks are")
    figure = go.Figure()
    frame = ranking.frame
    best = frame[frame["pick"] == "top-maj"]
    for i, name in enumerate(dict.fromkeys(best.score)):
        part = best[best.score == name].astype({"k": int})
        colour = INK if name == CONTROL else COLOURS[i % len(COLOURS)]
        if name == "clue":
            _band(figure, part.k, part.low, part.high, colour)
        figure.add_scatter(
            x=part.k,
            y=part.accuracy,
            name=name,
            mode="lines+markers",
            line={"color": colour, "dash": "dot" if name == CONTROL else "solid", "width": 4 if name == "clue" else 2},
            marker={"symbol": i},
            customdata=part[["low", "high", "questions"]],
            hovertemplate="k=%{x}: %{y:.3f} [%{customdata[0]:.3f}, %{customdata[1]:.3f}], %{customdata[2]} questions"
            f"<extra>{name}</extra>",
        )
    ends = [int(best.k.min()), int(best.k.max())]
    for (name, value), dash in zip(_lines(frame), ("dash", "dashdot", "longdash", "longdashdot"), strict=False):
        figure.add_scatter(
            x=ends,
            y=[value] * 2,
            mode="lines",
            name=name,
            line={"color": INK, "dash": dash, "width": 1.5},
            hovertemplate="%{y:.3f}<extra>" + name + "</extra>",
        )
    return figure.update_layout(
        template=TEMPLATE,
        title="Majority answer of the k samples a score puts first",
        xaxis={"title": "k (samples that vote)", "type": "log", "tickvals": sorted(set(best.k.astype(int)))},
        yaxis_title="share of questions answered right",
        legend=_BELOW,
        height=500,
        margin_b=150,
    )


def picks(ranking: Ranking, k: int) -> go.Figure:
    """What every way of picking answers right, with its interval: CLUE's top-maj@k first, those it must beat below.

    Raises BadInput where k was not ranked.
    """
    ranking.against(k)  # refuses a k that is not there
    frame = ranking.frame
    same = frame.k.eq(k).fillna(False).astype(bool) & (frame["pick"] == "top-maj")
    whole = frame["pick"].isin(["greedy", "mean", "majority", "pass"]) & frame.k.isna()
    part = frame[same | whole]
    names = [
        f"top-maj@{k}, {row.score}" if row.pick == "top-maj" else "greedy" if row.pick == "greedy" else f"{row.pick}@n"
        for row in part.itertuples()
    ]
    own = f"top-maj@{k}, clue"
    order = sorted(range(len(part)), key=lambda i: (names[i] == own, -i))  # the last is drawn on top
    part, names = part.iloc[order], [names[i] for i in order]
    figure = go.Figure()
    figure.add_scatter(
        x=part.accuracy,
        y=names,
        error_x=_bars(part, "accuracy"),
        mode="markers",
        marker={"size": 11, "color": [COLOURS[0] if name == own else INK for name in names]},
        customdata=part[["low", "high", "questions"]],
        hovertemplate="%{y}: %{x:.3f} [%{customdata[0]:.3f}, %{customdata[1]:.3f}], %{customdata[2]} questions"
        "<extra></extra>",
        showlegend=False,
    )
    return figure.update_layout(
        template=TEMPLATE,
        title="What is picked, beside what needs no hidden state",
        xaxis_title="share of questions answered right, 95 % interval",
        yaxis={"title": {"text": "way of picking", "standoff": 12}, "automargin": True},
        height=160 + 32 * len(names),
    )


_BELOW = {"orientation": "h", "y": -0.22, "yanchor": "top"}


def _kinds(scored: Scored) -> Iterator[tuple[str, str, np.ndarray]]:
    """Right, wrong and unchecked traces, where there are some: their name, colour and rows."""
    known = scored.frame.correct
    for kind, colour, chosen in (
        ("right", RIGHT, known.eq(True).fillna(False)),
        ("wrong", WRONG, known.eq(False).fillna(False)),
        ("not checked", INK, known.isna()),
    ):
        rows = chosen.to_numpy(dtype=bool)
        if rows.any():
            yield kind, colour, rows


def _central(values: np.ndarray, always: float) -> list[float]:
    """A range that holds plus and minus `always` and all but far outliers: three times the quartiles' distance away."""
    known = values[np.isfinite(values)]
    if not len(known):
        return [-always, always]
    lower, upper = np.quantile(known, [0.25, 0.75])
    far = 3 * (upper - lower)
    kept = known[(known >= lower - far) & (known <= upper + far)]
    low, high = min(kept.min(), -always), max(kept.max(), always)
    room = 0.08 * max(high - low, np.finfo(float).tiny)
    return [float(low - room), float(high + room)]


def _symbol(kind: str) -> str:
    return {"right": "circle", "wrong": "x"}.get(kind, "diamond")


def _lines(frame: pd.DataFrame) -> Iterator[tuple[str, float]]:
    """What needs no k: the names and accuracies, those that are the same together."""
    found: dict[float, list[str]] = {}
    for row in frame[frame.k.isna()].itertuples():
        found.setdefault(round(row.accuracy, 6), []).append("greedy" if row.pick == "greedy" else f"{row.pick}@n")
    for value, names in found.items():
        yield ", ".join(names), value


def _band(figure: go.Figure, x: pd.Series, low: pd.Series, high: pd.Series, colour: str, **panel: int) -> None:
    figure.add_scatter(
        x=[*x, *x[::-1]],
        y=[*low, *high[::-1]],
        fill="toself",
        fillcolor=transparent(colour),
        mode="lines",
        line_width=0,
        hoverinfo="skip",
        showlegend=False,
        **panel,
    )


def _bars(part: pd.DataFrame, value: str) -> dict[str, object]:
    return {
        "type": "data",
        "symmetric": False,
        "array": part["high"] - part[value],
        "arrayminus": part[value] - part["low"],
        "color": INK,
    }


def _short(text: object) -> str:
    """The beginning of a question, as text that is shown letter by letter."""
    whole = " ".join(str(text).split())
    return literal(whole if len(whole) <= 100 else f"{whole[:100]}…")
