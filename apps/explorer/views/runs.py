"""Runs: what was run, with what, and how two runs differ."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import streamlit as st

from apps.explorer import show
from apps.explorer.catalogue import Entry
from apps.explorer.differences import differences, said
from apps.explorer.results import figures_of
from interp.runs import Run


@show.page
def page() -> None:
    st.title("Runs")
    found = show.catalogue()
    show.table(overview(found), "runs-overview")
    for entry in found.values():
        if entry.run is None:
            st.warning(f"{show.text(entry.name)} cannot be opened: {show.text(entry.problem)}")
    readable = [name for name, entry in found.items() if entry.run is not None]
    run = show.choose_run("Run", found, readable, "run", "The folders hold no runs that can be read.")
    if run is None:
        return
    show.part(_result, run)
    with st.expander("Provenance", expanded=True):
        show.provenance(run)
    with st.expander("Table"):
        show.part(lambda: show.table(run.frame, f"table-{run.path}"))
    st.subheader("Beside another run")
    other = show.choose_run("Other run", found, readable, "other")
    if other is not None:
        show.part(_beside, run, other)


def overview(found: Mapping[str, Entry]) -> pd.DataFrame:
    """A row a run."""
    rows = [
        {
            "run": entry.name,
            "kind": entry.run.record.kind,
            "model": said(entry.run.record.model.get("name")),
            "fingerprint": said(entry.run.record.model.get("fingerprint")),
            "seed": entry.run.record.seed,
            "finished": entry.run.record.finished,
        }
        for entry in found.values()
        if entry.run is not None
    ]
    return pd.DataFrame(rows, columns=["run", "kind", "model", "fingerprint", "seed", "finished"])


def _result(run: Run) -> None:
    for name, drawn in figures_of(run).items():
        show.figure(drawn, f"figure-{name}-{run.path}")


def _beside(run: Run, other: Run) -> None:
    from apps.explorer.results import result_of
    from interp.heads.scores import HeadScores, agreement

    different = differences(run.record, other.record)
    if run.path == other.path:
        st.info("This is the same run; choose another to see where the two differ.")
        return
    if different.empty:
        st.success("Both were made with the same model, parameters, seed and versions.")
    show.table(different, "differences")
    both = result_of(run), result_of(other)
    if all(isinstance(result, HeadScores) for result in both):
        numbers = agreement(*both)
        for column, (name, value) in zip(st.columns(len(numbers)), numbers.items(), strict=True):
            column.metric(name.replace("_", " "), f"{value:.3g}")
