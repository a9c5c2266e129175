"""Depth: at which layer a concept can be read, beside what its controls reach, and what the probes say of a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
import streamlit as st

from apps.explorer import live, show
from apps.explorer.results import read, result_of
from interp.runs import Run

if TYPE_CHECKING:
    from interp.tracing.model import Model
    from probes.depth import ConceptDepth
    from probes.linear_probes import LinearProbes
    from probes.reading import Reading

DEPTH, LINEAR = "concept-depth", "linear-probes"
NONE = "no other study"
DIFFERENCES = {
    "selectivity": "How far the probe beats one of random labels at the same layer. At 0 it only remembers words.",
    "shift": "What a perturbation costs, on the same texts: below 0 the concept is read less well.",
}
MOST = 4_000
"""Characters of a typed text."""


def section() -> None:
    st.caption(
        "A linear probe is fitted to the hidden states of every layer and tested on texts it has not seen. Where it "
        "does better than its controls, the layer holds the concept in a form that a line can separate: control = "
        "random labels, one a word; shuffled = the labels in another order; untrained = the same model before "
        "training; bag of tokens = the words alone."
    )
    found = show.catalogue()
    names = [name for name, entry in found.items() if entry.run and entry.run.record.kind in (DEPTH, LINEAR)]
    left, right = st.columns(2)
    with left:
        run = show.choose_run("Study", found, names, "depth", "No study of depth is saved yet: interp probe depth.")
    if run is None:
        return
    with right:
        other = _other(names)
    first = result_of(run)
    if run.record.kind == LINEAR:
        show.part(lambda: read(run, lambda _path: _linear(run, first)))
    else:
        show.part(lambda: read(run, lambda _path: _curves(run, first, other)))
    st.subheader("Live: a text of your own")
    loaded = live.model()
    if loaded is not None:
        show.part(lambda: read(run, lambda _path: _live(loaded, run, first)))


def _other(names: Sequence[str]) -> str:
    """The study beside the first."""
    show.refuse_unknown("depth_other", [NONE, *names], "run")
    return str(st.selectbox("Beside it", [NONE, *names], key="depth_other", bind="query-params"))


def _curves(run: Run, study: ConceptDepth, other: str) -> None:
    which = _which(study)
    show.figure(study.plot(**which), f"curves-{run.path}")
    st.caption(
        "Solid: the probe, its band the 95 % interval over texts. Triangle: the first layer where accuracy jumps. "
        "Star: the layer from which on it stays (the converging point). Both with their intervals."
    )
    if other != NONE:
        show.part(_beside, run, other, which)
    for name in study.plots[1:]:
        show.figure(study.plot(name, site=which["site"]), f"{name}-{run.path}")
        st.caption(DIFFERENCES[name])
        with st.expander(f"Numbers: {name}"):
            table(study.selectivity() if name == "selectivity" else study.shifts(), f"{name}-table-{run.path}")
    with st.expander("Best layers beside their controls", expanded=True):
        table(study.summary, f"summary-{run.path}")
    with st.expander("All numbers"):
        table(study.frame, f"frame-{run.path}")


def _which(study: ConceptDepth) -> dict[str, Any]:
    """Which curves of a study are drawn, from the page's widgets."""
    frame = study.frame[study.frame.layer >= 0]
    sites, datasets, conditions = ([str(n) for n in frame[c].unique()] for c in ("site", "dataset", "condition"))
    with st.container(horizontal=True, vertical_alignment="bottom"):
        metric = st.selectbox("Metric", list(frame.metric.unique()), key="metric", bind="query-params", width=200)
        site = st.selectbox("Read at", sites, key="site", bind="query-params", width=200)
        chosen = st.multiselect("Tasks", datasets, datasets, key="tasks", bind="query-params", width=400)
        views = st.multiselect(
            "Perturbations",
            conditions,
            conditions,
            key="conditions",
            bind="query-params",
            width=400,
            help="none: texts and weights as they are. tokens:0.1: a tenth of the tokens replaced. rtn-int4: 4 bits.",
        )
        controls = st.toggle("Controls", value=True, key="controls", bind="query-params")
    return {
        "metric": metric,
        "site": site,
        "datasets": chosen or datasets,
        "conditions": views or conditions,
        "controls": controls,
    }


def _beside(run: Run, name: str, which: dict[str, Any]) -> None:
    """The same curves of another study, as far as it has them."""
    from apps.explorer.catalogue import chosen

    other = chosen(show.catalogue(), name)
    if other.record.kind != DEPTH:
        st.info(f"{show.text(name)} is a study of single sites; choose one of depth to see the two together.")
        return
    if other.path == run.path:
        st.info("This is the same study; choose another one.")
        return
    study: ConceptDepth = result_of(other)
    there = study.frame[study.frame.layer >= 0]
    shared = {
        "datasets": [each for each in which["datasets"] if each in set(there.dataset)],
        "conditions": [each for each in which["conditions"] if each in set(there.condition)],
    }
    if not all(shared.values()) or which["site"] not in set(there.site):
        st.info(f"{show.text(name)} has none of these tasks, perturbations or sites.")
        return
    st.subheader(f"{show.text(name)}: {show.text(', '.join(map(str, study.models)))}")
    show.figure(read(other, lambda _path: study.plot(**{**which, **shared})), f"beside-{other.path}")
    with st.expander("Its best layers"):
        table(study.summary, f"summary-{other.path}")


def _linear(run: Run, probes: LinearProbes) -> None:
    metric = st.selectbox("Metric", list(probes.frame.metric.unique()), key="metric", bind="query-params", width=200)
    show.figure(probes.plot(str(metric)), f"sites-{run.path}")
    with st.expander("All numbers"):
        table(probes.frame, f"frame-{run.path}")


def _live(loaded: Model, run: Run, study: ConceptDepth | LinearProbes) -> None:
    datasets = list(dict.fromkeys(each.dataset for each in study.directions))
    if not datasets:
        st.info("The run keeps no probes to read a text with.")
        return
    dataset = str(st.selectbox("Probes of", datasets, key="probes-of", bind="query-params"))
    examples = study.parameters.get("examples", {}).get(dataset, {})
    if examples:
        st.caption("The probes know texts like these, one of each class; what they say of other texts means little.")
        for label, text in examples.items():
            st.text(f"{label}: {text}")
    text = st.text_area(
        "Text", next(iter(examples.values()), ""), key=f"text-{dataset}", bind="query-params", max_chars=MOST
    )
    result = _reading(loaded, loaded.fingerprint, str(run.path), run.record.finished, study, dataset, str(text))
    names = list(dict.fromkeys(result.frame["name"]))
    name = names[0] if len(names) == 1 else str(st.selectbox("At", names, key="reading-at"))
    show.figure(result.plot(name), f"reading-{dataset}")
    where = "its last token" if result.at == "last" else "the mean over its tokens"
    st.caption(
        f"Read at {where}, of {len(result.tokens)} tokens. One text, so no interval: the dashed control shows how sure "
        "a probe of random labels is of it. The control knows the examples by heart; write another text to surprise it."
    )
    with st.expander("Numbers"):
        table(result.frame, f"reading-table-{dataset}")


@st.cache_resource(max_entries=32, show_spinner="Reading every layer …")
def _reading(
    _loaded: Model, fingerprint: str, path: str, finished: str, _study: Any, dataset: str, text: str
) -> Reading:
    del fingerprint, path, finished  # only say whether it is the same question
    found: Reading = _study.read(_loaded, text, dataset)
    return found


def table(frame: pd.DataFrame, key: str) -> None:
    """A table whose fractions have three digits."""
    fractions = [str(name) for name in frame if frame[name].dtype.kind == "f"]
    config = {name: st.column_config.NumberColumn(format="%.3f") for name in fractions}
    show.table(frame, key, column_config=config)
