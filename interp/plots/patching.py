"""Figures of patching: heat maps over layers, heads and positions, white where a patch changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.errors import BadInput, choose
from interp.plots.template import DIVERGING, TEMPLATE, literal

if TYPE_CHECKING:
    from interp.patching.activation import PatchingResult
    from interp.patching.eap import EdgeScores
    from interp.patching.path import PathPatchingResult

AXES = {"position": "position", "head": "head", "head_position": "position", "neuron": "neuron", "layer": ""}
"""What runs from left to right, by what was patched."""
ROW_PIXELS = 18
ROUNDING = 1e-4
"""Changes smaller than this are those of single precision, and no colour scale ends below it."""


def patching_map(result: PatchingResult, column: str = "normalised_ratio_of_means") -> go.Figure:
    """Heat map of a column of the result's frame: layers (or heads) downwards, tokens, roles or heads to the right.

    Values of a metric are shown as changes from the run that was patched. Raises BadInput for an unknown column.
    """
    frame = result.frame
    valid = [name[: -len("_low")] for name in frame if name.endswith("_low")]
    if column not in valid:
        raise BadInput(f"there is no column {column!r} to draw; {choose(column, valid)}")
    shift = result.base[result.metrics.index(column)].mean() if column in result.metrics else 0.0
    if column.startswith("normalised") and result.direction == "noise":
        shift = 1.0
    rows = [f"{u.layer}.{u.head}" if result.by == "head_position" else str(u.layer) for u in result.units]
    ticks: Sequence[str] = result.labels if result.by in ("position", "head_position") else ()
    across = _across(frame, result.by, ticks)
    what = column.replace("_", " ")
    base = "corrupted" if result.direction == "denoise" else "clean"
    estimate = "" if result.method == "exact" else f", estimated ({result.method})"
    figure = heat_map(
        _spread(frame[column].to_numpy() - shift, rows, across),
        _spread(_hover(frame, column), rows, across),
        list(dict.fromkeys(rows)),
        list(dict.fromkeys(across)),
        title=f"{result.site} by {result.by.replace('_', ' and ')}, {result.direction}{estimate} (n={result.n})",
        colour=f"{what}<br>less the {base} run",
    )
    figure.update_xaxes(title=AXES[result.by])
    figure.update_yaxes(title="layer.head" if result.by == "head_position" else "layer")
    return figure


def path_map(result: PathPatchingResult) -> go.Figure:
    """Heat map of the effect of every sender, layer by head; empty where a head was no sender."""
    frame = result.frame
    hover = np.full(result.effects.shape, "not a sender", dtype=object)
    hover[frame.layer, frame["head"]] = _hover(frame, "effect_ratio_of_means")
    figure = heat_map(
        result.effects,
        hover,
        list(map(str, range(frame.layer.max() + 1))),
        list(map(str, range(result.effects.shape[1]))),
        title=f"what heads do through {', '.join(result.receivers)} (n={result.n})",
        colour="effect<br>(ratio of means)",
    )
    figure.update_xaxes(title="head")
    figure.update_yaxes(title="layer")
    return figure


def edge_map(scores: EdgeScores) -> go.Figure:
    """Heat map of edge scores, sources downwards and destinations to the right; empty where there is no edge.

    Pointing at an edge also shows its score under the answers of other prompts, where the result has that control.
    """
    shape = scores.shape
    hover = np.full(shape.edges.shape, "no edge", dtype=object)
    for s, d in np.argwhere(shape.edges):
        value = f"{scores.scores[s, d]:.4f} (standard error {scores.standard_errors[s, d]:.4f})"
        beside = "" if scores.control is None else f"<br>{scores.control[s, d]:.4f} under the answers of other prompts"
        hover[s, d] = f"{shape.sources[s]}->{shape.destinations[d]}<br>{value}{beside}<br>n={scores.n}"
    figure = heat_map(
        np.where(shape.edges, scores.scores, np.nan),
        hover,
        shape.sources,
        shape.destinations,
        title=f"{scores.method}: estimated change of {scores.metric.replace('_', ' ')} without an edge (n={scores.n})",
        colour="change",
    )
    figure.update_xaxes(title="into")
    figure.update_yaxes(title="from")
    return figure


def heat_map(
    values: np.ndarray, hover: np.ndarray, rows: Sequence[str], columns: Sequence[str], *, title: str, colour: str
) -> go.Figure:
    """`values` `[row column]`, the first row on top, on a diverging scale that is symmetric around 0."""
    finite = np.abs(values[np.isfinite(values)])
    limit = max(float(finite.max(initial=0.0)), ROUNDING)
    figure = go.Figure(
        go.Heatmap(
            z=values[: len(rows)],
            text=hover[: len(rows)],
            hovertemplate="%{text}<extra></extra>",
            colorscale=DIVERGING,
            zmin=-limit,
            zmax=limit,
            colorbar={"title": colour},
        )
    )
    figure.update_layout(title=title, template=TEMPLATE)
    if len(rows) > 25:
        figure.update_layout(height=150 + ROW_PIXELS * len(rows))
    figure.update_xaxes(**_ticks(columns), showgrid=False)
    figure.update_yaxes(**_ticks(rows), autorange="reversed", showgrid=False)
    return figure


def _ticks(names: Sequence[str], most: int = 60) -> dict[str, object]:
    """All names as ticks, or evenly chosen ones where they are many."""
    chosen = list(range(0, len(names), -(-len(names) // most)))
    return {"tickvals": chosen, "ticktext": [literal(names[i]) for i in chosen], "automargin": True}


def _across(frame: pd.DataFrame, by: str, labels: Sequence[str]) -> list[str]:
    """The column of every unit; positions by their labels."""
    if by == "layer":
        return ["all"] * len(frame)
    if labels:
        return [labels[i % len(labels)] for i in range(len(frame))]
    return frame[AXES[by]].astype(str).tolist()


def _spread(values: np.ndarray, rows: Sequence[str], columns: Sequence[str]) -> np.ndarray:
    """One value a unit as a grid, rows and columns in the order in which they first come."""
    grid = pd.DataFrame({"row": rows, "column": columns, "value": values})
    wide = grid.pivot(index="row", columns="column", values="value")
    return wide.loc[list(dict.fromkeys(rows)), list(dict.fromkeys(columns))].to_numpy()


def _hover(frame: pd.DataFrame, column: str) -> np.ndarray:
    places = [name for name in ("layer", "head", "position", "neuron") if name in frame]
    lines = []
    for row in frame.to_dict("records"):
        where = ", ".join(f"{place} {literal(row[place])}" for place in places)
        value = f"{row[column]:.3f} [{row[f'{column}_low']:.3f}, {row[f'{column}_high']:.3f}]"
        lines.append(f"{where}<br>{column.replace('_', ' ')} {value}<br>n={row['n']}")
    return np.array(lines, dtype=object)
