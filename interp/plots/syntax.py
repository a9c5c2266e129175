"""Figures of the AST probe: F1 by layer and rank with controls, recovered beside true trees, alike subspaces."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import TYPE_CHECKING

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from interp.plots.template import COLOURS, INK, SEQUENTIAL, TEMPLATE, literal, transparent
from probes.ast.decode import recovered
from probes.ast.metrics import membership
from probes.ast.result import FOLLOWING, PROBE, SHIFTED, UNTRAINED

if TYPE_CHECKING:
    from probes.ast.corpus import Snippet
    from probes.ast.result import AstStudy
    from probes.ast.tree import Constituent, TreeTuple

LINES = {
    PROBE: (COLOURS[0], "solid"),
    FOLLOWING: (COLOURS[2], "solid"),
    UNTRAINED: (COLOURS[1], "dashdot"),
    SHIFTED: (COLOURS[3], "dash"),
    "right-branching": (COLOURS[6], "dot"),
    "balanced": (COLOURS[6], "longdash"),
}
SIDES = ("true", "recovered")
NAMES = {"f1": "F1", "multiset f1": "F1 (multisets)", "unlabelled f1": "F1 without labels"}
MATCH, MISS = COLOURS[0], COLOURS[5]
STATES = {"both": ("in both trees", MATCH, "circle"), "true": ("only in the true tree", MISS, "x"),
          "recovered": ("only in the recovered tree", MISS, "diamond")}  # fmt: skip
"""What is said of a node, its colour and its mark: the marks tell the same to who sees no colours."""
LINE = 22
"""Height of a node's line in pixels."""
INDENTS = 26
"""Of a level, that fit a panel beside the deepest node: room for its name and words."""
WORDS = 36
"""Characters of a node's words that are shown; the hover shows more."""


def by_layer_and_rank(study: AstStudy, metric: str = "f1") -> go.Figure:
    """A metric of held-out functions by layer, with every control; F1 of the best layer by rank, of several ranks."""
    ranks = study.by_rank()
    panels = ("by layer", f"{study.best}, by rank") if len(ranks) > 1 else ("by layer",)
    figure = make_subplots(rows=1, cols=len(panels), subplot_titles=panels, shared_yaxes=True, horizontal_spacing=0.04)
    for series, (colour, dash) in LINES.items():
        part = study.curve(series, metric)
        if len(part):
            _line(figure, part.site, part, series, colour, dash, 1)
    figure.update_xaxes(title_text="states read after", automargin=True, row=1, col=1)
    if len(panels) > 1:
        _by_rank(figure, ranks, study.saturation_rank)
    figure.update_yaxes(title_text=f"mean {NAMES.get(metric, metric)} of functions", rangemode="tozero", row=1, col=1)
    n = study.parameters["functions"]["test"]
    figure.update_layout(
        template=TEMPLATE,
        height=540,
        title=f"Syntax trees in {literal(study.title)}: {n} held-out functions",
        legend={"orientation": "h", "yref": "container", "y": 0.01, "yanchor": "bottom"},
        margin={"b": 150},
    )
    return figure


def trees(snippet: Snippet, predicted: TreeTuple) -> go.Figure:
    """The true tree beside the recovered one, a line a node, what they share on one line.

    A node is marked by whether the other tree has it too, the same label over the same leaves, and so is the edge that
    leads to it.
    """
    sides = {"true": snippet.constituents, "recovered": recovered(predicted)}
    words = [snippet.code[slice(*leaf.span)] for leaf in snippet.leaves]
    lines = _aligned(*sides.values())
    deepest = max(max(_depths(side)) for side in sides.values())
    figure = make_subplots(rows=1, cols=2, subplot_titles=SIDES, horizontal_spacing=0.02, shared_yaxes=True)
    for column, (side, own) in enumerate(sides.items(), 1):
        other = set(sides[SIDES[2 - column]])
        states = ["both" if constituent in other else side for constituent in own]
        _outline(figure, own, words, states, lines[column - 1], column)
    figure.update_xaxes(visible=False, range=[-0.7, deepest + INDENTS], fixedrange=True)
    height = 1 + max(line for side in lines for line in side)
    figure.update_yaxes(visible=False, range=[height - 0.4, -0.6], fixedrange=True)
    score = membership(sides["recovered"], sides["true"])
    figure.update_layout(
        template=TEMPLATE,
        height=130 + LINE * height,
        title=f"Syntax tree: precision {score.precision:.2f}, recall {score.recall:.2f}, F1 {score.f1:.2f}",
        legend={"orientation": "h", "y": 0, "yanchor": "top", "x": 0.5, "xanchor": "center"},
        margin={"l": 10, "r": 10, "t": 80, "b": 50},
    )
    return figure


def alike(similarities: pd.DataFrame, rows: str, columns: str) -> go.Figure:
    """How alike subspaces are (`probes.ast.subspaces.similarities`): 1 the same, the title says what chance gives."""
    table = similarities.pivot_table(index="row", columns="column", values="similarity", sort=False)
    figure = go.Figure(
        go.Heatmap(
            z=table,
            x=table.columns,
            y=table.index,
            colorscale=SEQUENTIAL,
            zmin=0,
            zmax=1,
            texttemplate="%{z:.2f}",
            colorbar_title="mean squared cosine",
            hovertemplate="%{y} and %{x}: %{z:.3f}<extra></extra>",
        )
    )
    figure.update_xaxes(title=literal(columns), showgrid=False, automargin=True)
    figure.update_yaxes(title=literal(rows), showgrid=False, automargin=True, autorange="reversed")
    figure.update_layout(
        template=TEMPLATE,
        height=160 + 48 * len(table),
        title=f"How alike syntactic subspaces are (random ones: {similarities.chance.mean():.2f})",
    )
    return figure


def _by_rank(figure: go.Figure, ranks: pd.DataFrame, enough: int) -> None:
    """The second panel: F1 by rank, a star at the least one that is enough."""
    _line(figure, ranks["rank"], ranks, PROBE, COLOURS[0], "solid", 2, legend=False)
    full = ranks[ranks["rank"] == enough]
    figure.add_scatter(
        x=full["rank"],
        y=full.value,
        mode="markers",
        marker={"symbol": "star", "size": 15, "color": COLOURS[1], "line": {"color": INK, "width": 1}},
        name="least rank that holds all but 0.01",
        hovertemplate="rank %{x} is enough: %{y:.3f}<extra></extra>",
        row=1,
        col=2,
    )
    figure.update_xaxes(title_text="rank", type="log", tickvals=sorted(set(ranks["rank"])), row=1, col=2)


def _line(
    figure: go.Figure,
    x: pd.Series,
    part: pd.DataFrame,
    name: str,
    colour: str,
    dash: str,
    column: int,
    legend: bool = True,
) -> None:
    about = {"row": 1, "col": column}
    figure.add_scatter(
        x=[*x, *x[::-1]],
        y=[*part.high, *part.low[::-1]],
        mode="lines",
        fill="toself",
        fillcolor=transparent(colour, 0.12),
        line_width=0,
        hoverinfo="skip",
        showlegend=False,
        legendgroup=name,
        **about,
    )
    figure.add_scatter(
        x=x,
        y=part.value,
        mode="lines+markers",
        name=name,
        legendgroup=name,
        showlegend=legend,
        line={"color": colour, "dash": dash},
        customdata=part[["low", "high", "functions"]],
        hovertemplate="%{x}: %{y:.3f} [%{customdata[0]:.3f}, %{customdata[1]:.3f}], n=%{customdata[2]}<extra>"
        + name
        + "</extra>",
        **about,
    )


def _outline(
    figure: go.Figure,
    constituents: Sequence[Constituent],
    words: Sequence[str],
    states: Sequence[str],
    lines: Sequence[int],
    column: int,
) -> None:
    """One tree, indented: elbows from the parents in the colour of the child, then the nodes with name and words."""
    depths, parents = _depths(constituents), _parents(constituents)
    for state, (name, colour, symbol) in reversed(STATES.items()):  # shared edges last: they stay in sight
        own = [i for i, each in enumerate(states) if each == state]
        x, y = [], []
        for i in own:
            if (parent := parents[i]) >= 0:
                x += [depths[parent], depths[parent], depths[i], None]
                y += [lines[parent], lines[i], lines[i], None]
        about = {"row": 1, "col": column, "legendgroup": state}
        edge = {"color": colour, "width": 1.5, "dash": "solid" if state == "both" else "dot"}
        figure.add_scatter(x=x, y=y, mode="lines", line=edge, hoverinfo="skip", showlegend=False, **about)
        said = [(constituents[i][0], *_words(words, constituents[i])) for i in own]
        figure.add_scatter(
            x=[depths[i] for i in own],
            y=[lines[i] for i in own],
            mode="markers+text",
            marker={"size": 8, "color": colour, "symbol": symbol},
            text=[f" <b>{label}</b>  {short}" for label, short, _ in said],
            textposition="middle right",
            textfont={"size": 12},
            customdata=[f"{label}: {whole}" for label, _, whole in said],
            hovertemplate="%{customdata}<extra>" + name + "</extra>",
            name=name,
            showlegend=column == 1 + (state == "recovered"),
            legendrank=list(STATES).index(state),
            **about,
        )


def _words(words: Sequence[str], constituent: Constituent) -> tuple[str, str]:
    """The words of a node as text without markup, short and less short."""
    _, first, last = constituent
    said = " ".join(" ".join(words[first : last + 1]).split())
    short, whole = (said if len(said) <= most else f"{said[: most - 1]}…" for most in (WORDS, 200))
    return literal(short), literal(whole)


def _aligned(true: Sequence[Constituent], recovered: Sequence[Constituent]) -> tuple[list[int], list[int]]:
    """The line of each node of both trees: as beside each other in a list of differences."""
    lines: tuple[list[int], list[int]] = ([], [])
    line = 0
    for _, a, b, c, d in SequenceMatcher(a=true, b=recovered, autojunk=False).get_opcodes():
        lines[0].extend(range(line, line + b - a))
        lines[1].extend(range(line, line + d - c))
        line += max(b - a, d - c)
    return lines


def _parents(constituents: Sequence[Constituent]) -> list[int]:
    """The number of the node above each, -1 of the root; parents come before children."""
    parents: list[int] = []
    path: list[int] = []
    for number, (_, first, _) in enumerate(constituents):
        while path and constituents[path[-1]][2] < first:
            path.pop()
        parents.append(path[-1] if path else -1)
        path.append(number)
    return parents


def _depths(constituents: Sequence[Constituent]) -> list[int]:
    depths: list[int] = []
    for parent in _parents(constituents):
        depths.append(depths[parent] + 1 if parent >= 0 else 0)
    return depths
