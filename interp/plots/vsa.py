"""Figures of the hyperdimensional probe: precision of every method, its causal check, decoded states, codebooks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from interp.plots.template import COLOURS, DIVERGING, INK, TEMPLATE, literal

PARTS = ["method", "encoder", "decoder", "moment", "ingestion"]
LINES = {
    "hypervector, linear encoder": (COLOURS[0], "solid"),
    "hypervector, network": (COLOURS[4], "solid"),
    "linear probe": (COLOURS[2], "dash"),
    "next token": (COLOURS[1], "dash"),
    "DLA": (COLOURS[3], "dash"),
    "random codebook": (INK, "dot"),
    "commonest target": (INK, "longdash"),
}
"""What is compared by layer and by task: the probe (without an oracle), baselines, and chance."""
FAMILIES = {
    "the probe": COLOURS[0],
    "the probe, told the target (a bound)": COLOURS[4],
    "baseline on the same prompts": COLOURS[1],
    "chance": COLOURS[6],
}
ROW = 24
"""Height of a row of bars in pixels."""
BELOW = {"orientation": "h", "xref": "container", "x": 0.01, "yref": "container", "y": 0, "yanchor": "bottom"}


def precision_bars(frame: pd.DataFrame, title: str = "", subset: str = "all") -> go.Figure:
    """Precision at 1 of every method with its interval, and at 3 and 5; `frame` as of `HyperdimensionalProbe`."""
    rows = frame[(frame.subset == subset) & frame.metric.str.startswith("precision@")]
    rows = rows.assign(label=[_label(row, rows) for row in rows[PARTS].itertuples(index=False)], family=_family(rows))
    figure = go.Figure()
    first = rows[rows.metric == "precision@1"]
    for family, colour in FAMILIES.items():
        part = first[first.family == family]
        if len(part):
            figure.add_bar(
                y=part.label,
                x=part.value,
                orientation="h",
                name=f"at 1, {family}",
                marker_color=colour,
                error_x=_bars(part, "value", "low", "high"),
                **_numbers(part, "%{x:.3f}", "precision@1"),
            )
    for metric, symbol in (("precision@3", "diamond-open"), ("precision@5", "circle-open")):
        part = rows[rows.metric == metric]
        figure.add_scatter(
            y=part.label,
            x=part.value,
            mode="markers",
            marker={"symbol": symbol, "size": 8, "color": INK},
            name=metric.replace("precision@", "at "),
            **_numbers(part, "%{x:.3f}", metric),
        )
    figure.update_xaxes(title="precision: share of prompts", range=[0, 1.02], side="top")
    figure.update_yaxes(
        title="method",
        automargin=True,
        categoryorder="array",
        categoryarray=list(dict.fromkeys(first.label)),
        range=[first.label.nunique() - 0.5, -0.5],
    )
    figure.update_layout(
        height=260 + ROW * first.label.nunique(),
        title={
            "text": _titled("Is the target among the first concepts?", title, first),
            "yref": "container",
            "y": 0.995,
            "yanchor": "top",
            "pad": {"t": 8},
        },
        legend=BELOW,
        margin={"t": 110, "b": 140},
        template=TEMPLATE,
    )
    return figure


def precision_by_layer(
    frame: pd.DataFrame, title: str = "", subset: str = "all", metric: str = "precision@1"
) -> go.Figure:
    """A precision by the vector that was read, of the probe, its baselines and chance; a panel a moment."""
    rows = _compared(frame, subset, metric)
    moments = list(dict.fromkeys(rows.moment[rows.ingestion != ""]))
    names = [f"state {moment} the answer" for moment in moments] if len(moments) > 1 else None
    figure = make_subplots(rows=1, cols=len(moments), shared_yaxes=True, subplot_titles=names, horizontal_spacing=0.03)
    for column, moment in enumerate(moments, 1):
        read = sorted(dict.fromkeys(rows.ingestion[(rows.moment == moment) & (rows.ingestion != "")]), key=_depth)
        for reader, (colour, dash) in LINES.items():
            part = rows[(rows.reader == reader) & rows.moment.isin([moment, "before"])]
            part = part[(part.ingestion == "") | (part.moment == moment)]
            if not len(part):
                continue
            if (part.ingestion == "").all():  # knows nothing of layers
                part = pd.concat([part.assign(ingestion=name) for name in read])
            part = part.set_index("ingestion").loc[read].reset_index()
            figure.add_scatter(
                x=part.ingestion,
                y=part.value,
                error_y=_bars(part, "value", "low", "high", colour),
                mode="lines+markers",
                line={"color": colour, "dash": dash},
                name=reader,
                legendgroup=reader,
                showlegend=column == 1,
                row=1,
                col=column,
                **_numbers(part, "%{x}: %{y:.3f}", reader),
            )
    figure.update_xaxes(title="vector that is read", automargin=True)
    figure.update_yaxes(title=f"{metric}: share of prompts", range=[-0.02, 1.02], col=1)
    figure.update_layout(
        height=520, title=_titled("Concepts by layer:", title, rows), legend=BELOW, margin={"b": 150}, template=TEMPLATE
    )
    return figure


def precision_by_task(frames: Mapping[str, pd.DataFrame], metric: str = "precision@1") -> go.Figure:
    """A precision of several studies by name before the answer: each method at the vector where it reads best."""
    parts = []
    for name, frame in frames.items():
        rows = _compared(frame, "all", metric)
        rows = rows[rows.moment == "before"] if "before" in set(rows.moment) else rows
        best = rows.sort_values("value", ascending=False).drop_duplicates("reader")
        parts.append(best.assign(study=literal(name)))
    rows = pd.concat(parts)
    figure = go.Figure()
    for reader, (colour, _) in LINES.items():
        part = rows[rows.reader == reader]
        if len(part):
            figure.add_bar(
                x=part.study,
                y=part.value,
                name=reader,
                marker_color=colour,
                error_y=_bars(part, "value", "low", "high"),
                **_numbers(part, "%{x}: %{y:.3f}", reader),
            )
    figure.update_xaxes(title="study", automargin=True)
    figure.update_yaxes(title=f"{metric}: share of prompts", range=[0, 1.02])
    figure.update_layout(
        barmode="group",
        height=480,
        title="Concepts by task, each method at the layer where it reads best",
        legend=BELOW,
        margin={"b": 130},
        template=TEMPLATE,
    )
    return figure


def causal_curves(frame: pd.DataFrame, title: str = "") -> go.Figure:
    """How often the answer becomes the other concept, and stays the true one, by strength; `frame` of `CausalCheck`."""
    outcomes = {"follows": "says the other concept", "kept": "still says the true one"}
    figure = make_subplots(
        rows=1, cols=2, shared_yaxes=True, subplot_titles=list(outcomes.values()), horizontal_spacing=0.03
    )
    looks = {"encoder": (COLOURS[0], "solid"), "pattern": (COLOURS[5], "solid"), "random": (COLOURS[6], "dot")}
    for direction, part in frame.groupby("direction", sort=True):
        colour, dash = looks.get(str(direction), (COLOURS[2], "solid"))
        for column, outcome in enumerate(outcomes, 1):
            figure.add_scatter(
                x=part.strength,
                y=part[outcome],
                error_y=_bars(part, outcome, f"{outcome}_low", f"{outcome}_high", colour),
                mode="lines+markers",
                line={"color": colour, "dash": dash},
                name=f"{literal(direction)} direction",
                legendgroup=str(direction),
                showlegend=column == 1,
                customdata=part[[f"{outcome}_low", f"{outcome}_high", "n"]],
                hovertemplate="moved by %{x}: %{y:.3f} [%{customdata[0]:.3f}, %{customdata[1]:.3f}], "
                "n=%{customdata[2]}",
                row=1,
                col=column,
            )
    figure.update_xaxes(title="length of the move, in norms of the state")
    figure.update_yaxes(title="share of prompts", range=[-0.02, 1.02], col=1)
    figure.update_layout(
        height=440,
        title=": ".join(filter(None, ["Moving the state towards another concept", literal(title)])),
        legend=BELOW,
        margin={"b": 110},
        template=TEMPLATE,
    )
    return figure


def decoded_bars(frame: pd.DataFrame, chance: float) -> go.Figure:
    """Cosine of the first concepts of every query; a dot is what random codebooks give that place."""
    queries = list(dict.fromkeys(frame["query"]))
    titles = [f"bound to {literal(query)}" if query else "in the state itself" for query in queries]
    figure = make_subplots(rows=1, cols=len(queries), shared_xaxes=True, subplot_titles=titles, horizontal_spacing=0.09)
    for column, query in enumerate(queries, 1):
        part = frame[frame["query"] == query]
        names = [literal(name) for name in part.concept]
        about = {"row": 1, "col": column, "showlegend": column == 1}
        figure.add_bar(
            y=names,
            x=part.cosine,
            orientation="h",
            marker_color=[COLOURS[0] if beyond else COLOURS[6] for beyond in part.beyond],
            name="this codebook (grey: within chance)",
            hovertemplate="%{y}: %{x:.3f}<extra></extra>",
            **about,
        )
        figure.add_scatter(
            y=names,
            x=part.random,
            mode="markers",
            marker={"symbol": "line-ns-open", "size": 14, "color": COLOURS[5], "line": {"width": 3}},
            name="the same place in random codebooks",
            hovertemplate="random codebooks: %{x:.3f}<extra></extra>",
            **about,
        )
        figure.add_vline(chance, line_dash="dot", line_color=INK, row=1, col=column)
    figure.update_xaxes(title="cosine", range=[min(0.0, float(frame.cosine.min())), 1])
    figure.update_yaxes(title="concept", autorange="reversed", automargin=True)
    figure.update_layout(
        height=200 + ROW * int(frame.groupby("query").size().max()),
        title=f"Concepts in the hidden state (dotted: chance, {chance:.2f})",
        legend=BELOW,
        margin={"b": 110},
        template=TEMPLATE,
    )
    return figure


def similarity_map(cosines: np.ndarray, concepts: Sequence[str]) -> go.Figure:
    """Cosine of every concept with every other, `[concept concept]`."""
    names = [literal(concept) for concept in concepts]
    figure = go.Figure(
        go.Heatmap(
            z=cosines,
            x=names,
            y=names,
            zmin=-1,
            zmax=1,
            colorscale=DIVERGING,
            colorbar_title="cosine",
            hovertemplate="%{y}, %{x}: %{z:.3f}<extra></extra>",
        )
    )
    figure.update_xaxes(title="concept", showgrid=False, automargin=True)
    figure.update_yaxes(title="concept", showgrid=False, automargin=True, autorange="reversed")
    figure.update_layout(
        title="Similarity of the concepts' hypervectors", height=min(900, 220 + 16 * len(names)), template=TEMPLATE
    )
    return figure


def _compared(frame: pd.DataFrame, subset: str, metric: str) -> pd.DataFrame:
    """The rows that `LINES` names, once each vector: of decoders the one that knows the structure, but no target."""
    rows = frame[(frame.subset == subset) & (frame.metric == metric)]
    probe = (rows.method == "hypervector") & rows.decoder.isin(["key", "role"])
    chance = (rows.method == "random codebook") & (rows.encoder == "linear")
    others = ~rows.method.isin(["hypervector", "random codebook"])
    rows = rows[probe | chance | others]
    encoder = rows.encoder.map({"linear": "linear encoder", "network": "network"})
    return rows.assign(reader=rows.method.where(rows.method != "hypervector", "hypervector, " + encoder.fillna("")))


def _depth(name: str) -> tuple[int, str]:
    """Sites by layer, and what is made of several after them."""
    layer = name.rpartition(".")[2]
    return (int(layer), name) if layer.isdecimal() else (10**9, name)


def _family(rows: pd.DataFrame) -> list[str]:
    own, told, baseline, chance = FAMILIES
    kinds = {"random codebook": chance, "commonest target": chance}
    return [
        (told if decoder == "oracle" else own) if method == "hypervector" else kinds.get(method, baseline)
        for method, decoder in zip(rows.method, rows.decoder, strict=True)
    ]


def _label(row: tuple[str, ...], rows: pd.DataFrame) -> str:
    """What tells a method from the others: parts that all share are left out."""
    parts = [value for name, value in zip(PARTS, row, strict=True) if value and _differs(rows[name])]
    return literal(", ".join([row[0]] + [part for part in parts if part != row[0]]))


def _differs(column: pd.Series) -> bool:
    return column[column != ""].nunique() > 1


def _titled(what: str, title: str, rows: pd.DataFrame) -> str:
    return f"{what} {', '.join(filter(None, [literal(title), f'n={rows.n.max()}']))}"


def _numbers(part: pd.DataFrame, value: str, name: str) -> dict[str, object]:
    """Hover with interval and count."""
    hover = value + " [%{customdata[0]:.3f}, %{customdata[1]:.3f}], n=%{customdata[2]}<extra>" + name + "</extra>"
    return {"customdata": part[["low", "high", "n"]], "hovertemplate": hover}


def _bars(part: pd.DataFrame, value: str, low: str, high: str, colour: str = INK) -> dict[str, object]:
    return {
        "type": "data",
        "symmetric": False,
        "array": part[high] - part[value],
        "arrayminus": part[value] - part[low],
        "thickness": 1,
        "color": colour,
    }
