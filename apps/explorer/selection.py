"""Clicks on figures. Heat maps report none, so a figure gets a layer of invisible points that do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from interp.plots.template import literal

Cell = tuple[int, int]


def clickable(
    figure: go.Figure,
    values: np.ndarray,
    picked: Cell | None,
    where: str = "head {row}.{column}",
    said: Sequence[str] | None = None,
) -> go.Figure:
    """The figure of `values` `[row column]` with a point in every cell, and a frame around the picked one.

    The figure itself is left as it is; the points are two traces after its own. `said` is what is shown of each cell,
    row by row, instead of its place and value.
    """
    rows, columns = np.indices(values.shape).reshape(2, -1)
    text = [f"{where.format(row=r, column=c)}: {values[r, c]:.3f}" for r, c in zip(rows, columns, strict=True)]
    layered = go.Figure(figure)
    own = layered.data[0] if layered.data else None
    across, down = _places(own, columns, "x"), _places(own, rows, "y")
    layered.add_scatter(
        x=across,
        y=down,
        mode="markers",
        marker={"size": 26, "opacity": 0, "symbol": "square"},
        selected={"marker": {"opacity": 0}},
        unselected={"marker": {"opacity": 0}},
        customdata=np.stack([rows, columns], axis=-1),
        hovertext=text if said is None else list(map(literal, said)),
        hoverinfo="text",
        showlegend=False,
    )
    if picked is not None and picked[0] < values.shape[0] and picked[1] < values.shape[1]:
        index = picked[0] * values.shape[1] + picked[1]
        layered.add_scatter(
            x=[across[index]],
            y=[down[index]],
            mode="markers",
            marker={"size": 22, "symbol": "square-open", "color": "#D55E00", "line": {"width": 3}},
            hoverinfo="skip",
            showlegend=False,
        )
    layered.update_layout(dragmode=False)
    if own is None or own.x is None:  # an axis of numbers would make room for the points
        layered.update_xaxes(range=[-0.5, values.shape[1] - 0.5])
        layered.update_yaxes(range=[values.shape[0] - 0.5, -0.5], autorange=False)
    elif all(isinstance(name, (int, np.integer)) for name in own.x):
        layered.update_xaxes(range=[min(own.x) - 0.5, max(own.x) + 0.5])
        layered.update_yaxes(range=[max(own.y) + 0.5, min(own.y) - 0.5], autorange=False)
    return layered


def picked(event: Any) -> list[Cell]:
    """The cells of a selection that a chart reports, in its order; none for anything that is no selection."""
    selection = event.get("selection") if isinstance(event, Mapping) else getattr(event, "selection", None)
    points = selection.get("points", ()) if isinstance(selection, Mapping) else ()
    cells = [_cell(point.get("customdata")) for point in points if isinstance(point, Mapping)]
    return list(dict.fromkeys(cell for cell in cells if cell is not None))


def _cell(data: Any) -> Cell | None:
    if isinstance(data, Mapping):  # Streamlit turns a list of custom data into {"0": …, "1": …}
        data = [data[key] for key in sorted(data)]
    if not isinstance(data, Sequence) or len(data) < 2:
        return None
    return int(data[0]), int(data[1])


def _places(trace: Any, numbers: np.ndarray, axis: str) -> list[Any]:
    """Where the cells are on an axis: by the names of the heat map, or by number."""
    names = None if trace is None else getattr(trace, axis, None)
    return numbers.tolist() if names is None else [names[i] for i in numbers]
