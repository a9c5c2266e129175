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
    show.part(SECTIONS[show.choose_one(list(SECTIONS), "show", "part of this page")])
