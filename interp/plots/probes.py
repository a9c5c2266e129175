"""Figures of probes: what can be read at each site, by depth, with controls and under perturbations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from interp.errors import BadInput, choose
from interp.plots.template import COLOURS, INK, TEMPLATE, literal, transparent

if TYPE_CHECKING:
    from probes.reading import Reading

BAG = "bag of tokens"
CONTROLS: Mapping[str, str] = {"control": "dash", "shuffled": "dot", "untrained": "dashdot", BAG: "longdash"}
"""Lines of the series that are not the probe itself."""
UNPERTURBED = "none"
ACROSS = 3
"""Panels beside each other."""
UNITS: Mapping[str, str] = {
    "accuracy": "accuracy (share of texts)",
    "balanced_accuracy": "balanced accuracy (mean recall)",
    "f1": "F1",
    "auc": "area under the ROC curve",
    "log_loss": "log loss (nats)",
    "ece": "expected calibration error",
    "selectivity": "accuracy beyond the control",
    "shift": "change of accuracy",
}
DEPTH = "depth: layer from 0 / layers"


def by_site(frame: pd.DataFrame, metric: str) -> go.Figure:
    """A metric of every site with its interval, one line a label set; `frame` has the rows of one metric."""
    figure = go.Figure()
    for number, (labels, part) in enumerate(frame.groupby("labels", sort=False)):
        figure.add_scatter(
            x=part["site"],
            y=part["value"],
            error_y=_bars(part),
            mode="lines+markers",
            name=str(labels),
            line={"color": COLOURS[number % len(COLOURS)], "dash": "dash" if labels == "control" else "solid"},
            customdata=part[["low", "high", "n"]],
            hovertemplate="%{x}: %{y:.3f} [%{customdata[0]:.3f}, %{customdata[1]:.3f}], n=%{customdata[2]}"
            f"<extra>{literal(str(labels))}</extra>",
        )
    figure.update_layout(
        template=TEMPLATE,
        title=f"{_words(metric)} of probes by site",
        xaxis_title="site",
        yaxis_title=UNITS.get(metric, metric),
    )
    return figure


def depth_curves(
    frame: pd.DataFrame,
    points: pd.DataFrame,
    *,
    metric: str = "accuracy",
    site: str | None = None,
    datasets: Sequence[str] | None = None,
    conditions: Sequence[str] | None = None,
    controls: bool = True,
) -> go.Figure:
    """A metric over relative depth: a panel a data set, a colour a model and perturbation, dashes for controls.

    `frame` and `points` are those of `probes.depth.ConceptDepth`. Bands are bootstrap intervals; a triangle marks the
    jump point and a star the converging point of each curve without perturbation. Raises BadInput for what the study
    does not hold.
    """
    rows = frame[frame.metric == metric]
    layered = rows[rows.layer >= 0]
    if layered.empty:
        raise BadInput(f"the study has no metric {metric!r}; {choose(metric, frame.metric.unique())}")
    site = _known("site", site or str(layered.site.iloc[0]), layered.site)
    names = [_known("data set", name, rows.dataset) for name in datasets or dict.fromkeys(rows.dataset)]
    shown = [_known("condition", name, rows.condition) for name in conditions or dict.fromkeys(rows.condition)]
    curves = list(dict.fromkeys(zip(layered.model, layered.condition, strict=True)))
    colors = {curve: COLOURS[i % len(COLOURS)] for i, curve in enumerate(curves)}
    figure = _panels(names, rows)
    named: set[str] = set()
    for number, dataset in enumerate(names):
        panel = _panel(number)
        here = layered[(layered.dataset == dataset) & (layered.site == site)]
        for (model, condition), color in colors.items():
            if condition not in shown:
                continue
            part = here[(here.model == model) & (here.condition == condition)]
            for series, curve in part.groupby("series", sort=False):
                if series in CONTROLS and not controls:
                    continue
                label = _label(model, condition, str(series), frame)
                ink = INK if series in CONTROLS and frame.model.nunique() == 1 else color
                _curve(figure, curve, "value", label, ink, CONTROLS.get(str(series)), label not in named, panel)
                named.add(label)
            _mark(figure, points, part, (model, dataset, condition, site), color, metric, panel)
        if controls and UNPERTURBED in shown:
            _bag(figure, rows[(rows.dataset == dataset) & (rows.layer < 0)], here.depth.max(), named, panel)
    figure.update_yaxes(title_text=UNITS.get(metric, metric), col=1)
    return figure.update_layout(title=f"{_words(metric)} of probes at {site}, by depth")


def depth_differences(frame: pd.DataFrame, name: str, *, site: str | None = None) -> go.Figure:
    """Selectivity or shifts over relative depth with their intervals, a panel a data set, around a line at 0.

    `frame` is that of `ConceptDepth.selectivity` or `.shifts`, `name` its column.
    """
    frame = frame[frame.layer >= 0]
    site = _known("site", site or str(frame.site.iloc[0]), frame.site)
    frame = frame[frame.site == site]
    names = list(dict.fromkeys(frame.dataset))
    curves = list(dict.fromkeys(zip(frame.model, frame.condition, strict=True)))
    figure = _panels(names, frame)
    for number, dataset in enumerate(names):
        panel = _panel(number)
        for i, (model, condition) in enumerate(curves):
            same = (frame.dataset == dataset) & (frame.model == model) & (frame.condition == condition)
            label = _label(model, condition, "" if condition != UNPERTURBED else "probe", frame)
            _curve(figure, frame[same], name, label, COLOURS[i % len(COLOURS)], None, number == 0, panel)
        figure.add_hline(0, line_color=INK, line_dash="dot", **panel)
    figure.update_yaxes(title_text=UNITS[name], col=1)
    says = "Accuracy of probes beyond that on random labels" if name == "selectivity" else "Accuracy under perturbation"
    return figure.update_layout(title=f"{says}, at {site}")


def reading(result: Reading, name: str | None = None) -> go.Figure:
    """Probability of a class by layer for one text: the probe solid, the probe of random labels dashed.

    Of two classes the second is drawn, of more each. `name` is that of the sites, the first by default.
    """
    frame = result.frame
    name = _known("site", name or str(frame.name.iloc[0]) if "name" in frame else "", frame["name"])
    part = frame[frame["name"] == name]
    classes = list(dict.fromkeys(part["class"]))
    drawn = classes[1:] if len(classes) == 2 else classes
    figure = go.Figure()
    for i, label in enumerate(drawn):
        for series, rows in part[part["class"] == label].groupby("series", sort=False):
            legend = f"{series}: {label}" if len(drawn) > 1 else str(series)
            figure.add_scatter(
                x=rows["layer"],
                y=rows["probability"],
                mode="lines+markers",
                name=literal(legend),
                line={"color": COLOURS[i % len(COLOURS)] if series == "probe" else INK, "dash": _dash(str(series))},
                hovertemplate="layer %{x}: %{y:.3f}<extra>" + literal(legend) + "</extra>",
            )
    figure.add_hline(1 / len(classes), line_dash="dot", line_color=INK, annotation_text="undecided")
    what = f"probability of {drawn[0]!r}" if len(drawn) == 1 else "probability"
    figure.update_xaxes(title_text="layer", dtick=max(1, int(part.layer.max()) // 12), zeroline=False)
    figure.update_yaxes(title_text=literal(what), range=[-0.03, 1.03])
    title = f"What probes of {literal(result.dataset)} say of the text, at {name}"
    return figure.update_layout(template=TEMPLATE, title=title, height=380)


def _panels(names: Sequence[str], rows: pd.DataFrame) -> go.Figure:
    """A panel a data set, at most `ACROSS` in a row."""
    levels = rows.drop_duplicates("dataset").set_index("dataset").get("level", pd.Series(dtype=object))
    titles = [literal(f"{name} ({levels[name]})" if levels.get(name) else str(name)) for name in names]
    down = -(-len(names) // ACROSS)
    figure = make_subplots(
        rows=down,
        cols=min(ACROSS, len(names)),
        subplot_titles=titles,
        shared_yaxes="all",
        horizontal_spacing=0.03,
        vertical_spacing=0.2 / down,
    )
    figure.update_xaxes(range=[-0.04, 1.0], zeroline=False)
    for number in range(max(0, len(names) - ACROSS), len(names)):  # the lowest panel of every column
        figure.update_xaxes(title_text=DEPTH, **_panel(number))
    figure.update_layout(template=TEMPLATE, height=200 + 260 * down, margin={"t": 90, "b": 120})
    figure.update_layout(legend={"orientation": "h", "y": -0.27 / down, "yanchor": "top"})
    return figure


def _panel(number: int) -> dict[str, int]:
    return {"row": 1 + number // ACROSS, "col": 1 + number % ACROSS}


def _curve(
    figure: go.Figure,
    part: pd.DataFrame,
    column: str,
    label: str,
    color: str,
    dash: str | None,
    legend: bool,
    panel: Mapping[str, int],
) -> None:
    part = part.sort_values("layer")
    if dash is None:
        figure.add_scatter(
            x=[*part.depth, *part.depth[::-1]],
            y=[*part.high, *part.low[::-1]],
            mode="lines",
            fill="toself",
            fillcolor=transparent(color),
            line_width=0,
            hoverinfo="skip",
            showlegend=False,
            legendgroup=label,
            **panel,
        )
    figure.add_scatter(
        x=part.depth,
        y=part[column],
        mode="lines+markers" if dash is None else "lines",
        name=label,
        legendgroup=label,
        showlegend=legend,
        line={"color": color, "dash": dash or "solid"},
        customdata=part[["layer", "low", "high", "n"]],
        hovertemplate="layer %{customdata[0]}, counted from 0 (depth %{x:.2f}): %{y:.3f} "
        "[%{customdata[1]:.3f}, %{customdata[2]:.3f}], n=%{customdata[3]}<extra>" + label + "</extra>",
        **panel,
    )


def _bag(figure: go.Figure, rows: pd.DataFrame, end: float, named: set[str], panel: Mapping[str, int]) -> None:
    """What the tokens alone tell, the same at every depth."""
    for row in rows.drop_duplicates("series").itertuples():
        figure.add_scatter(
            x=[0, end],
            y=[row.value, row.value],
            mode="lines",
            name=str(row.series),
            legendgroup=str(row.series),
            showlegend=row.series not in named,
            line={"color": INK, "dash": CONTROLS[BAG]},
            customdata=[[row.low, row.high, row.n]] * 2,
            hovertemplate="%{y:.3f} [%{customdata[0]:.3f}, %{customdata[1]:.3f}], n=%{customdata[2]}"
            f"<extra>{row.series}</extra>",
            **panel,
        )
        named.add(str(row.series))


def _mark(
    figure: go.Figure,
    points: pd.DataFrame,
    part: pd.DataFrame,
    which: tuple[str, ...],
    color: str,
    metric: str,
    panel: Mapping[str, int],
) -> None:
    """Jump and converging point of a curve, on the curve. They are of accuracy."""
    if which[2] != UNPERTURBED or points.empty or metric != "accuracy":
        return
    same = (points[["model", "dataset", "condition", "site"]] == list(which)).all(axis=1)
    probe = part[part.series == "probe"].set_index("depth").value
    for name, symbol in (("jump", "triangle-up"), ("converging", "star")):
        for _, row in points[same].iterrows():
            if pd.notna(row[name]) and row[name] in probe.index:
                low, high = row[f"{name}_low"], row[f"{name}_high"]
                figure.add_scatter(
                    x=[row[name]],
                    y=[probe[row[name]]],
                    mode="markers",
                    name=f"{name} point",
                    legendgroup=name,
                    showlegend=not any(trace.legendgroup == name for trace in figure.data),
                    marker={"symbol": symbol, "size": 14, "color": color, "line": {"color": INK, "width": 1}},
                    error_x={
                        "type": "data",
                        "symmetric": False,
                        "array": [high - row[name]],
                        "arrayminus": [row[name] - low],
                    },
                    hovertemplate=f"depth %{{x:.2f}} [{low:.2f}, {high:.2f}]<extra>{name} point</extra>",
                    **panel,
                )


def _label(model: str, condition: str, series: str, frame: pd.DataFrame) -> str:
    parts = [model if frame.model.nunique() > 1 else "", condition if condition != UNPERTURBED else "", series]
    return literal(" ".join(filter(None, parts)))


def _known(what: str, name: str, there: pd.Series) -> str:
    if name not in set(there):
        raise BadInput(f"the study has no {what} {name!r}; {choose(name, there.unique())}")
    return name


def _dash(series: str) -> str:
    return CONTROLS.get(series, "solid")


def _words(name: str) -> str:
    return {"f1": "F1", "auc": "AUC"}.get(name, name.replace("_", " ").capitalize())


def _bars(part: pd.DataFrame) -> dict[str, object]:
    return {
        "type": "data",
        "symmetric": False,
        "array": part["high"] - part["value"],
        "arrayminus": part["value"] - part["low"],
    }
