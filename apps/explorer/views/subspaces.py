"""Subspaces: directions that a model reads from its hidden states, the knob first."""

from __future__ import annotations

import streamlit as st

from apps.explorer import show
from apps.explorer.views import knob, projections

SECTIONS = {"Knob": knob.section, "Projections": projections.section}
"""By name, which is also the word in the address. The first one opens."""


@show.page
def page() -> None:
    st.title("Subspaces")
    show.refuse_unknown("show", list(SECTIONS), "part of this page")
    chosen = st.segmented_control(
        "Part",
        list(SECTIONS),
        default=next(iter(SECTIONS)),
        required=True,
        key="show",
        bind="query-params",
        label_visibility="collapsed",
    )
    if chosen is not None:
        show.part(SECTIONS[chosen])
