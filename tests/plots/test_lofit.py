"""The figure shows every condition of a study, with its numbers on hover."""

from __future__ import annotations

import pandas as pd

from interp.plots.lofit import accuracy_by_heads, strength_map
from interp.plots.template import TEMPLATE


def study() -> pd.DataFrame:
    rows = [
        {"condition": "none", "heads": 0, "seed": -1, "accuracy": 0.1, "parameters": 0},
        *({"condition": "lofit", "heads": h, "seed": s, "accuracy": 0.8 + 0.1 * s, "parameters": 32 * h}
          for h in (1, 3) for s in (0, 1)),
        *({"condition": "random", "heads": h, "seed": s, "accuracy": 0.2, "parameters": 32 * h}
          for h in (1, 3) for s in (0, 1)),
        {"condition": "all", "heads": 32, "seed": 0, "accuracy": 0.95, "parameters": 1024},
    ]  # fmt: skip
    frame = pd.DataFrame(rows)
    return frame.assign(low=frame.accuracy - 0.05, high=frame.accuracy + 0.05, n=40)


def test_curves_are_means_over_seeds_with_the_reach_of_their_intervals() -> None:
    figure = accuracy_by_heads(study(), title="memory, pocket")
    curves = {trace.name: trace for trace in figure.data}
    assert list(curves) == ["LoFiT: selected heads", "random heads"]
    chosen = curves["LoFiT: selected heads"]
    assert [row[5] for row in chosen.customdata] == [1, 3] == [round(x) for x in chosen.x]
    assert [round(y, 6) for y in chosen.y] == [0.85, 0.85]
    assert [round(up, 6) for up in chosen.error_y.array] == [0.1, 0.1]
    assert [round(down, 6) for down in chosen.error_y.arrayminus] == [0.1, 0.1]
    assert chosen.customdata[1][2:5].tolist() == [96, 2, 40]
    assert "parameters" in chosen.hovertemplate


def test_the_untouched_model_and_all_heads_are_levels() -> None:
    figure = accuracy_by_heads(study())
    lines = {shape.y0 for shape in figure.layout.shapes if shape.type == "line"}
    assert lines == {0.1, 0.95}
    assert {note.text for note in figure.layout.annotations} == {"untouched model", "all heads"}
    assert figure.layout.template == TEMPLATE
    assert "accuracy" in figure.layout.yaxis.title.text


def test_the_map_says_how_strong_a_head_is_and_how_often_it_was_selected() -> None:
    heads = [(0, 0, 0.1, 0.0), (0, 1, 0.9, 1.0), (1, 0, 0.3, 0.5), (1, 1, 0.2, 0.0)]
    frame = pd.DataFrame(heads, columns=["layer", "head", "strength", "selected"]).assign(low=0.0, high=1.0, n=2)
    heat = strength_map(frame).data[0]
    assert heat.z.tolist() == [[0.1, 0.9], [0.3, 0.2]]
    assert heat.text.tolist() == [["", "100 %"], ["50 %", ""]]
