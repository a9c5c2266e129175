"""Probes: what can be read from hidden states, by four kinds of probe."""

from __future__ import annotations

import streamlit as st

from apps.explorer import show
from apps.explorer.views import depth, syntax

SECTIONS = {
    "depth": ("By depth", depth.section),
    "syntax": ("Syntax trees", syntax.section),
}
"""By the word in the address: the name on the page, and what draws it. The first one opens."""


@show.page
def page() -> None:
    st.title("Probes")
    show.refuse_unknown("show", list(SECTIONS), "kind of probe")
    chosen = st.segmented_control(
        "Kind of probe",
        list(SECTIONS),
        default=next(iter(SECTIONS)),
        required=True,
        key="show",
        bind="query-params",
        format_func=lambda name: SECTIONS[name][0],
        label_visibility="collapsed",
    )
    if chosen is not None:
        show.part(SECTIONS[chosen][1])
