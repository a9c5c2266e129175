"""Heads: every head's scores, two runs beside each other, and one head on the current prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import streamlit as st

from apps.explorer import live, show
from apps.explorer.catalogue import Entry, chosen
from apps.explorer.head_metrics import Head, HeadMetric, both, head_table, metric_figure, metrics_of, parse_head
from apps.explorer.selection import clickable, picked
from interp.errors import WorkbenchError
from interp.runs import Run

if TYPE_CHECKING:
    from interp.tracing.model import Model

NUMBERS = {name: st.column_config.NumberColumn(format="%.4f") for name in ("value", "low", "high")}
ABLATIONS = {
    "mean": "mean over this prompt's tokens",
    "zero": "zero",
    "uniform": "uniform attention",
}


FIRST = {"a": "head-scores", "b": "head-effects"}
"""The kinds of run that the page opens with: what heads look at, and what is lost without them."""


@show.page
def page() -> None:
    st.title("Heads")
    found = show.catalogue()
    metrics = _all_metrics(tuple((name, str(entry.run and entry.run.path)) for name, entry in found.items()))
    names = list(metrics)
    if not names:
        st.info("No run has a row a head yet: interp heads score, heads roles, heads ablate --all, patch --by head.")
        return
    left, right = st.columns(2)
    with left:
        first = _choose_metric("Run", found, metrics, "a")
    with right:
        second = _choose_metric("Beside it", found, metrics, "b")
    head = _chosen_head(first[1].values)
    tabs = st.tabs(["Maps", "Scatter"])
    with tabs[0]:
        for column, (run, metric), key in zip(st.columns(2), (first, second), "ab", strict=True):
            with column:
                show.part(_map, run, metric, head, key)
    with tabs[1]:
        show.part(_scatter, first[1], second[1])
    st.selectbox("Head", _names(first[1].values.shape), key="head", bind="query-params", help="Or click one above.")
    show.part(_scores, metrics, parse_head(st.session_state["head"]), first[0])
    show.part(_on_prompt, parse_head(st.session_state["head"]), first[0])


@st.cache_resource(max_entries=4, show_spinner="Reading the runs …")
def _all_metrics(state: tuple[tuple[str, str], ...]) -> dict[str, dict[str, HeadMetric]]:
    """The metrics of every run that has some; damaged runs are shown on the Runs page."""
    del state
    found = show.catalogue()
    metrics: dict[str, dict[str, HeadMetric]] = {}
    for name in found:
        try:
            of_run = metrics_of(chosen(found, name), name)
        except WorkbenchError:
            continue
        if of_run:
            metrics[name] = of_run
    return metrics


def _choose_metric(
    label: str, found: Mapping[str, Entry], metrics: Mapping[str, Mapping[str, HeadMetric]], key: str
) -> tuple[Run, HeadMetric]:
    names = list(metrics)
    show.refuse_unknown(key, names, "run")
    run = st.selectbox(label, names, index=_first(found, names, FIRST[key]), key=key, bind="query-params")
    of_run = metrics[run]
    metric = st.selectbox("Metric", list(of_run), key=f"{key}_metric", bind="query-params")
    return chosen(found, run), of_run[metric]


def _first(found: Mapping[str, Entry], names: list[str], kind: str) -> int:
    """The place of the first run of a kind, or of the first run."""
    runs = [found[name].run for name in names]
    return next((i for i, run in enumerate(runs) if run is not None and run.record.kind == kind), 0)


def _names(shape: tuple[int, ...]) -> list[str]:
    return [f"{layer}.{head}" for layer, head in np.ndindex(*shape)]


def _chosen_head(values: np.ndarray) -> Head:
    """The head in the state or the address, if this model has it, else the one with the greatest value."""
    names = _names(values.shape)
    show.refuse_unknown("head", names, "head")
    name = st.session_state.get("head") or st.query_params.get("head")
    if name not in names:
        st.session_state["head"] = name = names[int(np.nanargmax(values))]
    return parse_head(name)


def _map(run: Run, metric: HeadMetric, head: Head, key: str) -> None:
    drawn = clickable(metric_figure(run, metric), metric.values, head, said=metric.said())
    place = f"map-{key}-{metric}"

    def clicked() -> None:
        for layer, number in picked(st.session_state.get(place)):
            st.session_state["head"] = f"{layer}.{number}"

    show.figure(drawn, place, on_select=clicked, selection_mode="points")


def _scatter(x: HeadMetric, y: HeadMetric) -> None:
    from interp.plots.head_scatter import head_scatter

    frame = both(x, y)
    drawn = head_scatter(frame, x.axis, y.axis, f"{len(frame)} heads")
    event = show.figure(drawn, f"scatter-{x}-{y}", on_select="rerun", selection_mode=("points", "box", "lasso"))
    if chosen_heads := picked(event):
        wanted = pd.MultiIndex.from_tuples(chosen_heads, names=["layer", "head"])
        listed = frame.set_index(["layer", "head"]).loc[wanted].reset_index()
        st.caption(f"{len(listed)} heads selected: {' '.join(f'{a}.{b}' for a, b in chosen_heads)}")
        show.table(listed.rename(columns={"x": str(x), "y": str(y)}), "selected")
    else:
        st.caption("Select points with the box or the lasso to list them.")


def _scores(metrics: Mapping[str, Mapping[str, HeadMetric]], head: Head, run: Run) -> None:
    about = run.record.model
    st.subheader(f"Head {head[0]}.{head[1]} of {show.text(about.get('name'))}")
    every = [metric for of_run in metrics.values() for metric in of_run.values()]
    same = [metric for metric in every if metric.fingerprint == str(about.get("fingerprint"))]
    show.table(head_table(same, head), "head-scores", column_config=NUMBERS)


def _on_prompt(head: Head, run: Run) -> None:
    st.subheader("On a prompt")
    found = live.model()
    if found is None:
        return
    if run.record.model.get("fingerprint") != found.fingerprint:
        st.info(
            f"The run is of {show.text(run.record.model.get('name'))}; the loaded model is "
            f"{show.text(found.spec.name)} with other weights, and what follows is of that one."
        )
    if head[0] >= found.spec.layers or head[1] >= found.spec.heads:
        st.info(f"{show.text(found.spec.name)} has no head {head[0]}.{head[1]}.")
        return
    prompt = live.prompt()
    show.part(_copies, found, prompt, head)
    show.part(_without, found, prompt, head)
    show.part(_attention, found, prompt, head)


def _copies(found: Model, prompt: str, head: Head) -> None:
    summary = live.summary(found, prompt)
    frame = summary.head(*head)
    copied = frame[frame["copied"]]
    position = len(frame) - 1
    if len(frame) > 1:
        position = st.slider("From position", 0, len(frame) - 1, len(frame) - 1, key=f"from-{len(frame)}")
    row = frame.iloc[position]
    first = max(0, min(position, int(row["looks at"])) - show.TOKENS // 4) if len(frame) > show.TOKENS else 0
    show.tokens(summary.tokens[first:], {position: "target", int(row["looks at"]): "source"}, first)
    show.legend(target="it looks from here", source="at this token most")
    says = "which is what the model says next" if row["copied"] else f"and the model says {row['model says']!r} next"
    st.text(f"{row['token']!r} looks at {row['its token']!r} with attention {row['attention']:.3f}, {says}.")
    st.caption(f"At {len(copied)} of {len(frame)} positions this head looks most at the token the model says next.")
    with st.expander("Every position"):
        show.table(frame, "head-positions")


def _without(found: Model, prompt: str, head: Head) -> None:
    ablation = st.selectbox("Ablation", ABLATIONS, key="ablation", format_func=ABLATIONS.__getitem__)
    effects = live.effects(found, prompt, ablation)
    after = live.without_head(found, prompt, ablation, head)
    values = effects.effects
    others = np.delete(values[head[0]], head[1])
    st.text(
        f"Without head {head[0]}.{head[1]} the log-probability of {live.said_next(found, prompt).said[0]!r} falls by "
        f"{_nats(values[head])} nats; without one of the other heads of its layer by {_nats(np.median(others))} "
        f"(median), {_nats(others.min())} to {_nats(others.max())}. One prompt, so no interval."
    )
    left, right = st.columns(2)
    with left:
        show.figure(after.plot(), "without")
    with right:
        show.figure(effects.plot(), "prompt-effects")


def _nats(value: float) -> str:
    return f"{round(float(value), 3) + 0.0:.3f}"  # no minus before nothing


def _attention(found: Model, prompt: str, head: Head) -> None:
    if not st.toggle("Show its attention matrix", key="pattern"):
        return
    summary = live.summary(found, prompt)
    if len(summary.tokens) > live.PATTERN:
        st.info(
            f"The prompt has {len(summary.tokens):,} tokens; a matrix is shown up to {live.PATTERN}. "
            "The table above has every position."
        )
        return
    from interp.plots.attention import pattern_map

    title = f"attention of head {head[0]}.{head[1]}"
    show.figure(pattern_map(live.pattern(found, prompt, *head), summary.tokens, title), "pattern-map")
