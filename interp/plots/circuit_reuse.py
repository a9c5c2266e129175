"""Figures of what two circuits share, and of repairing one task with heads of another."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from interp.circuits.repair import Repair
from interp.circuits.reuse import PUBLISHED_SHARE, CircuitReuse
from interp.plots.circuits import ROW_PIXELS, above, band, error_bars
from interp.plots.template import COLOURS, INK, TEMPLATE, literal


def threshold_curve(reuse: CircuitReuse) -> go.Figure:
    """Overlap and Jaccard of two circuits over the share of heads that each stage takes in, and overlap by chance."""
    frame = reuse.frame
    figure = go.Figure()
    curves = (
        ("overlap", "overlap", COLOURS[0], "solid"),
        ("jaccard", "the same, stage by stage", COLOURS[1], "dash"),
        ("overlap_chance", "overlap by chance", COLOURS[6], "dot"),
    )
    for name, said, colour, dash in curves:
        if name != "jaccard":  # its interval is on hover: a third band would hide the others
            figure.add_trace(band(frame["share"], frame[f"{name}_low"], frame[f"{name}_high"], colour))
        figure.add_trace(
            go.Scatter(
                x=frame["share"],
                y=frame[name],
                name=said,
                mode="lines+markers",
                line={"color": colour, "dash": dash},
                customdata=frame[[f"{name}_low", f"{name}_high", "shared", "union", "which", "n_a", "n_b"]].assign(
                    which=frame["which"].map(literal)
                ),
                hovertemplate=f"{said} at the top %{{x:.0%}}: %{{y:.3f}} "
                "[%{customdata[0]:.3f}, %{customdata[1]:.3f}], n=%{customdata[5]} and %{customdata[6]}"
                + ("" if "chance" in name else "<br>%{customdata[2]} of %{customdata[3]} heads: %{customdata[4]}")
                + "<extra></extra>",
            )
        )
    figure.update_layout(
        title={
            "text": literal(f"heads shared by {' and '.join(reuse.names)} on {reuse.a.model['name']}"),
            "subtitle": {"text": "by chance: the heads of one circuit exchanged for random ones of their layers"},
        },
        xaxis={
            "title": "share of all heads taken at each stage",
            "tickformat": ".0%",
            "tickvals": [share for share in frame["share"] if share > PUBLISHED_SHARE / 2],
        },
        yaxis={"title": "shared heads / heads in either circuit", "range": [-0.02, 1.02]},
        legend={"orientation": "h", "y": 1, "yanchor": "bottom", "x": 1, "xanchor": "right"},
        margin={"t": 110},
        template=TEMPLATE,
    )
    return figure


def overlap_map(reuse: CircuitReuse, share: float = PUBLISHED_SHARE) -> go.Figure:
    """Layers by heads: which are in both circuits at a share, in one, or in none."""
    members, (a, b) = reuse.members(share), map(literal, reuse.names)
    members = members.rename(columns=literal).map(lambda value: literal(value) if isinstance(value, str) else value)
    layers, heads = reuse.a.scores.shape
    layer, head = (index.ravel() for index in np.indices((layers, heads)))
    figure = go.Figure(
        go.Scatter(
            x=head,
            y=layer,
            mode="markers",
            name="neither",
            marker={"color": INK, "size": 5, "opacity": 0.5},
            hovertemplate="head %{y:d}.%{x:d}: in neither circuit<extra></extra>",
        )
    )
    kinds = (
        ("both", COLOURS[0], "circle"),
        (a, COLOURS[1], "square"),
        (b, COLOURS[3], "diamond"),
    )
    for kind, colour, symbol in kinds:
        part = members[members["circuit"] == kind]
        columns = [f"{task} {what}" for task in (a, b) for what in ("effect", "role")]
        figure.add_trace(
            go.Scatter(
                x=part["head"],
                y=part["layer"],
                mode="markers",
                name=f"{kind if kind == 'both' else f'{kind} alone'} ({len(part)})",
                marker={"color": colour, "symbol": symbol, "size": 16},
                customdata=part[columns],
                hovertemplate=f"head %{{y}}.%{{x}}<br>{a}: effect %{{customdata[0]:.3f}} %{{customdata[1]}}"
                f"<br>{b}: effect %{{customdata[2]:.3f}} %{{customdata[3]}}<extra></extra>",
                showlegend=True,
            )
        )
    figure.update_layout(
        title=f"heads of the two circuits at the top {share:.0%} of each stage",
        xaxis={
            "title": "head",
            "dtick": max(1, heads // 16),
            "range": [-0.7, heads - 0.3],
            "showgrid": False,
            "zeroline": False,
        },
        yaxis={
            "title": "layer",
            "dtick": max(1, layers // 16),
            "range": [layers - 0.3, -0.7],
            "showgrid": False,
            "zeroline": False,
        },
        height=max(340, 170 + ROW_PIXELS * layers),
        template=TEMPLATE,
    )
    figure.update_xaxes(showgrid=False, zeroline=False)
    figure.update_yaxes(showgrid=False, zeroline=False)
    return figure


def repair_plot(repair: Repair) -> go.Figure:
    """Accuracy before, after, and under random heads, with Wilson intervals: a row a condition."""
    frame = repair.frame
    frame["kind"] = ["random" if name.startswith("random") else "chosen" for name in frame["condition"]]
    frame.loc[0, "kind"] = "none"
    frame["label"] = [_label(condition, heads) for condition, heads in frame[["condition", "heads"]].to_numpy()]
    figure = go.Figure()
    looks = {
        "none": ("nothing forced", COLOURS[6], "circle"),
        "chosen": ("chosen heads forced", COLOURS[0], "diamond"),
        "random": ("random heads of the same layers forced", COLOURS[1], "circle-open"),
    }
    for kind, (name, colour, symbol) in looks.items():
        part = frame[frame["kind"] == kind]
        if part.empty:
            continue
        figure.add_trace(
            go.Scatter(
                x=part["accuracy"],
                y=part["label"],
                name=name,
                mode="markers",
                marker={"color": colour, "size": 11, "symbol": symbol},
                error_x=error_bars(part["accuracy"], part["low"], part["high"]),
                customdata=part[["low", "high", "n", "repaired", "broken", "logit_difference"]],
                hovertemplate="%{y}: %{x:.3f} [%{customdata[0]:.3f}, %{customdata[1]:.3f}], n=%{customdata[2]}<br>"
                "%{customdata[3]} repaired, %{customdata[4]} broken, logit difference %{customdata[5]:.2f}"
                "<extra></extra>",
            )
        )
    before = float(frame["accuracy"].iloc[0])
    figure.add_vline(x=before, line_dash="dot", line_color=INK, annotation=above("before"))
    onto = " and ".join(role.replace("_", " ") for role in repair.parameters["onto"])
    figure.update_layout(
        title={
            "text": literal(f"accuracy of {repair.model['name']} with the attention of some heads forced"),
            "subtitle": {"text": f"at the last position, evenly onto {literal(onto)}; bars are 95 % intervals"},
        },
        xaxis={"title": "share of prompts answered rightly", "range": [-0.02, 1.02], "tickformat": ".0%"},
        yaxis={
            "title": {"text": "heads forced", "standoff": 12},
            "type": "category",
            "autorange": "reversed",
            "automargin": True,
            "dtick": 1,
        },
        legend={"orientation": "h", "y": -90 / (ROW_PIXELS * len(frame)), "yanchor": "top", "x": 0},
        height=240 + ROW_PIXELS * len(frame),
        margin={"t": 110, "b": 100},
        template=TEMPLATE,
    )
    figure.update_yaxes(autorange="reversed", automargin=True)
    return figure


def _label(condition: str, heads: str) -> str:
    if condition == "none":
        return "before"
    kind = "random" if condition.startswith("random") else condition
    return literal(heads if kind == heads else f"{kind}: {heads}")
