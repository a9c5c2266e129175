"""Figures of the AST probe: F1 by layer and rank with controls, recovered beside true trees, alike subspaces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from interp.plots.template import COLOURS, INK, SEQUENTIAL, TEMPLATE, transparent
from probes.ast.decode import recovered
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
RIGHT, WRONG = COLOURS[2], COLOURS[5]
SIDES = ("true", "recovered")


def by_layer_and_rank(study: AstStudy, metric: str = "f1") -> go.Figure:
    """A metric of held-out functions by layer, with every control, and F1 of the best layer by rank."""
    best = study.best
    figure = make_subplots(rows=1, cols=2, subplot_titles=("by layer", f"{best} by rank"), shared_yaxes=True)
    for series, (colour, dash) in LINES.items():
        part = study.curve(series, metric)
        if len(part):
            _line(figure, part.site, part, series, colour, dash, 1)
    ranks = study.by_rank()
    _line(figure, ranks["rank"], ranks, f"{best}, F1", COLOURS[0], "solid", 2)
    figure.add_vline(study.saturation_rank, line_dash="dot", line_color=INK, annotation_text="saturated", row=1, col=2)
    figure.update_xaxes(title_text="rank", type="log", tickvals=sorted(set(ranks["rank"])), row=1, col=2)
    figure.update_yaxes(title_text=metric, rangemode="tozero", row=1, col=1)
    n = study.parameters["functions"]["test"]
    figure.update_layout(
        template=TEMPLATE, title=f"Syntax trees in {study.model['name']}: {n} {study.parameters['language']} functions"
    )
    return figure


def trees(snippet: Snippet, predicted: TreeTuple) -> go.Figure:
    """The true tree above the recovered one, over the same leaves; what the other tree lacks is orange."""
    both = {"true": snippet.constituents, "recovered": recovered(predicted)}
    words = [snippet.code[slice(*leaf.span)] for leaf in snippet.leaves]
    figure = make_subplots(rows=2, cols=1, subplot_titles=SIDES, shared_xaxes=True, vertical_spacing=0.08)
    for row, side in enumerate(SIDES, 1):
        other = set(both[SIDES[2 - row]])
        nodes = _placed(both[side])
        bottom = nodes.y.min() - 1
        edges = [edge for n in nodes.itertuples() if n.parent >= 0 for edge in ((n.x, n.y), nodes.loc[n.parent, "xy"])]
        edges += [
            edge for i, parent in enumerate(_above(both[side], len(words)))
            for edge in ((i, bottom), nodes.loc[parent, "xy"])
        ]  # fmt: skip
        x, y = ([v for at in range(0, len(edges), 2) for v in (edges[at][k], edges[at + 1][k], None)] for k in (0, 1))
        about = {"row": row, "col": 1, "showlegend": False}
        figure.add_scatter(x=x, y=y, mode="lines", line={"color": INK, "width": 1}, hoverinfo="skip", **about)
        figure.add_scatter(
            x=nodes.x,
            y=nodes.y,
            mode="markers",
            marker={"size": 9, "color": [RIGHT if c in other else WRONG for c in both[side]]},
            text=[f"{label}<br>{' '.join(words[a : b + 1])[:80]}" for label, a, b in both[side]],
            hovertemplate="%{text}<extra></extra>",
            **about,
        )
        figure.update_yaxes(visible=False, row=row, col=1)
    figure.update_xaxes(tickvals=list(range(len(words))), ticktext=words, tickangle=-90, row=2, col=1)
    figure.update_layout(template=TEMPLATE, height=700, title="True and recovered tree (orange: not in the other)")
    return figure


def alike(similarities: pd.DataFrame) -> go.Figure:
    """How alike subspaces are (`probes.ast.subspaces.similarities`): 1 the same, the title says what chance gives."""
    table = similarities.pivot_table(index="row", columns="column", values="similarity", sort=False)
    heat = go.Heatmap(z=table, x=table.columns, y=table.index, colorscale=SEQUENTIAL, zmin=0, zmax=1)
    figure = go.Figure(heat)
    figure.update_layout(
        template=TEMPLATE,
        title=f"Mean squared cosine of principal angles (chance {similarities.chance.mean():.2f})",
        yaxis={"autorange": "reversed"},
    )
    return figure


def _line(figure: go.Figure, x: pd.Series, part: pd.DataFrame, name: str, colour: str, dash: str, column: int) -> None:
    about = {"row": 1, "col": column}
    figure.add_scatter(
        x=[*x, *x[::-1]],
        y=[*part.high, *part.low[::-1]],
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
        line={"color": colour, "dash": dash},
        customdata=part[["low", "high", "functions"]],
        hovertemplate="%{x}: %{y:.3f} [%{customdata[0]:.3f}, %{customdata[1]:.3f}], n=%{customdata[2]}<extra>"
        + name
        + "</extra>",
        **about,
    )


def _placed(constituents: Sequence[Constituent]) -> pd.DataFrame:
    """Where each node is drawn and the number of its parent (-1 for the root); parents come before children."""
    rows: list[dict[str, object]] = []
    path: list[int] = []
    for number, (_, first, last) in enumerate(constituents):
        while path and constituents[path[-1]][2] < first:
            path.pop()
        x, y = (first + last) / 2, -len(path)
        rows.append({"x": x, "y": y, "xy": (x, y), "parent": path[-1] if path else -1})
        path.append(number)
    return pd.DataFrame(rows)


def _above(constituents: Sequence[Constituent], n: int) -> list[int]:
    """The number of the innermost node above each leaf."""
    parents = [0] * n
    for number, (_, first, last) in enumerate(constituents):
        parents[first : last + 1] = [number] * (last + 1 - first)
    return parents
