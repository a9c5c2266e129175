"""Probes: what can be read from hidden states, by four kinds of probe."""

from __future__ import annotations

import streamlit as st

from apps.explorer import show
from apps.explorer.views import clue, depth, hyperdimensional, syntax

SECTIONS = {
    "depth": ("By depth", depth.section),
    "syntax": ("Syntax trees", syntax.section),
    "hyperdimensional": ("Bound concepts (hypervectors)", hyperdimensional.section),
    "clue": ("Right answers (CLUE)", clue.section),
}
"""By the word in the address: the heading, and what draws it. The first one opens."""


@show.page
def page() -> None:
    st.title("Probes")
    heading, section = SECTIONS[show.choose_one(list(SECTIONS), "show", "kind of probe")]
    st.header(heading)
    show.part(section)
