"""Figures of ablation studies show the numbers of their frames."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from interp.plots.ablation import effect_map, importance_scatter, length_depth_maps, removal_curves
from interp.plots.template import COLOURS, INK


@pytest.fixture
def study():
    rows = [{"ablation": "none", "heads": "none", "removed": 0, "recall": 1.0, "low": 0.9, "high": 1.0, "n": 20}]
    for ablation in ("zero", "mean"):
        for k, value in ((1, 0.6), (2, 0.1)):
            row = {"ablation": ablation, "removed": k, "n": 20}
            rows.append({**row, "heads": "chosen", "recall": value, "low": value - 0.1, "high": value + 0.1})
            rows += [{**row, "heads": "random", "recall": one, "low": 0.0, "high": 1.0} for one in (0.8 - k / 10, 1.0)]
    return pd.DataFrame(rows)


def test_curves_begin_at_the_whole_model_and_have_the_band_of_the_seeds(study):
    figure = removal_curves(study, "recall")
    lines = {trace.name: trace for trace in figure.data if trace.name}
    assert list(lines) == [f"{a}: {k} heads" for a in ("zero", "mean") for k in ("chosen", "random")]
    assert list(lines["zero: chosen heads"].x) == [0, 1, 2]
    np.testing.assert_allclose(lines["zero: chosen heads"].y, [1.0, 0.6, 0.1])
    np.testing.assert_allclose(lines["mean: random heads"].y, [1.0, 0.85, 0.8])
    band = figure.data[2]
    np.testing.assert_allclose(band.y, [1.0, 1.0, 1.0, 0.6, 0.7, 0.9])
    np.testing.assert_allclose(figure.data[0].y, [1.0, 0.7, 0.2, 0.0, 0.5, 0.9])
    assert figure.layout.xaxis.title.text == "heads removed"
    assert figure.layout.yaxis.title.text == "recall (fraction of answers)"


def test_maps_have_a_panel_a_condition_and_lengths_across():
    cells = [(length, depth) for length in (256, 512) for depth in (0.0, 50.0)]
    rows = [
        {
            "ablation": ablation,
            "heads": heads,
            "removed": removed,
            "length": length,
            "depth": depth,
            "recall": i / 4 + removed / 8,
            "low": 0.0,
            "high": 1.0,
            "n": 4,
        }
        for ablation, heads, removed in (("none", "none", 0), ("zero", "chosen", 2))
        for i, (length, depth) in enumerate(cells)
    ]
    figure = length_depth_maps(pd.DataFrame(rows))
    whole, without = figure.data
    np.testing.assert_allclose(whole.z, [[0, 0.5], [0.25, 0.75]])
    np.testing.assert_allclose(without.z, whole.z + 0.25)
    assert list(whole.x) == ["256", "512"]
    assert list(whole.y) == ["0", "50"]
    assert [note.text for note in figure.layout.annotations] == ["all heads", "zero, without 2 chosen"]
    assert (figure.layout.coloraxis.cmin, figure.layout.coloraxis.cmax) == (0, 1)


@pytest.fixture
def heads():
    rng = np.random.default_rng(0)
    layer, head = np.divmod(np.arange(6), 3)
    effect = rng.normal(size=6)
    columns = {"layer": layer, "head": head, "effect": effect, "low": effect - 1, "high": effect + 1, "n": 5}
    return pd.DataFrame({**columns, "mean_of_abs": abs(effect) * 2, "signed": effect * 3}).sample(
        frac=1, random_state=1
    )


def test_effects_are_coloured_symmetrically_around_zero_and_in_place(heads):
    trace = effect_map(heads).data[0]
    assert trace.zmin == -trace.zmax == -heads.effect.abs().max()
    for row in heads.itertuples():
        assert trace.z[row.layer][row.head] == row.effect
        assert list(trace.customdata[row.layer][row.head]) == [row.low, row.high, 5]


def test_heads_without_effect_stay_empty_and_no_effect_at_all_is_no_error(heads):
    heads.loc[heads["head"] == 1, "effect"] = np.nan
    assert np.isnan(np.array(effect_map(heads).data[0].z, dtype=float)[:, 1]).all()
    assert effect_map(heads.assign(effect=0.0)).data[0].zmax == 1.0


def test_importance_is_drawn_against_the_effect_with_the_correlation_named(heads):
    numbers = {"spearman": 0.9, "spearman_low": 0.5, "spearman_high": 1.0}
    numbers |= {"kendall": 0.8, "kendall_low": 0.4, "kendall_high": 1.0, "n": 5}
    about = {"by_layer": False, "metric": "log-probability", "ablation": "zero"}
    agreement = pd.DataFrame([{"order": order, **about, **numbers} for order in ("mean-of-abs", "signed")])
    figure = importance_scatter(heads, agreement, title="pocket")
    assert [trace.name for trace in figure.data] == ["layer 0", "layer 1"]
    for trace in figure.data:
        np.testing.assert_allclose(np.array(trace.y), 2 * np.array(trace.x))
    assert "Spearman 0.90 [0.50, 1.00]" in figure.layout.title.subtitle.text
    assert "(nats a token)" in figure.layout.xaxis.title.text
    signed = importance_scatter(heads, agreement, "signed")
    assert min(min(trace.x) for trace in signed.data) == heads.effect.min()


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("colour", [INK, *COLOURS])
def test_text_and_lines_stand_out_on_light_and_on_dark_pages(colour):
    """WCAG contrast against white and near-black; 3 is asked of text, 2 of thick coloured lines."""
    on_white, on_dark = 1.05 / (luminance(colour) + 0.05), (luminance(colour) + 0.05) / (luminance("#111111") + 0.05)
    assert min(on_white, on_dark) >= (3 if colour == INK else 2)
