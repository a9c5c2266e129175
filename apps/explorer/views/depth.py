"""Depth: at which layer a concept can be read, beside what its controls reach."""

from __future__ import annotations

import streamlit as st

from apps.explorer import show
from apps.explorer.results import result_of

KINDS = ("concept-depth", "linear-probes")


def section() -> None:
    found = show.catalogue()
    names = [name for name, entry in found.items() if entry.run and entry.run.record.kind in KINDS]
    run = show.choose_run("Study", found, names, "study", "No study of depth is saved yet: interp probe depth.")
    if run is not None:
        result = result_of(run)
        show.figure(result.plot(), f"curves-{run.path}")
        with st.expander("Numbers"):
            show.table(result.frame, f"frame-{run.path}")
