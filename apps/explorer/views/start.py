"""Start: what is loaded, what there is to see, and the newest runs."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import streamlit as st

from apps.explorer import show
from apps.explorer.catalogue import Entry
from apps.explorer.differences import said
from apps.explorer.settings import Settings, settings

NEWEST = 8
MAKE = """# which heads copy what a question asks for, and recall without them
interp heads score pocket --causal
# what every head does alone
interp heads ablate pocket --all
# which heads tell the indirect object
interp patch pocket --task ioi --site z --by head"""


def page(pages: Mapping[str, Any]) -> None:
    """Draw the page; `pages` are the other ones, by their address."""
    st.title("Start")
    st.write(
        "Browse what has been measured of a model's attention heads, layers and subspaces, and ask the model itself. "
        "Every figure here is the one that a notebook shows for the same run."
    )
    found, now = show.catalogue(), settings()
    show.part(_loaded, found, now)
    st.subheader("Pages")
    for address, each in pages.items():
        left, right = st.columns([1, 5], vertical_alignment="center")
        left.page_link(each, label=f"**{each.title}**")
        right.markdown(show.text(about(address)))
    st.subheader("Newest runs")
    show.part(_newest, found, pages["runs"])
    st.subheader("Make one")
    st.write("In a terminal, in the folder that the explorer was started in; it is here as soon as it is done:")
    st.code(MAKE, language="bash")


def about(address: str) -> str:
    """What a page says of itself: the first line of its module, without the name in front."""
    line = str(sys.modules[f"apps.explorer.views.{address}"].__doc__).splitlines()[0]
    said = line.partition(": ")[2]
    return said[:1].upper() + said[1:]


def _loaded(found: Mapping[str, Entry], now: Settings) -> None:
    model = "no model, so saved runs alone are shown" if now.model is None else f"the model {show.text(now.model)}"
    samples = sum(name.startswith("samples/") for name in found)
    own = len(found) - samples
    st.markdown(f"**Loaded:** {model}; {own} run{'s' * (own != 1)} of your own and {samples} samples.")
    if not now.own.is_dir():
        what = "is a file, not a folder" if now.own.exists() else "is not there yet"
        st.info(f"The folder of your own runs, {show.text(now.own)}, {what}: the runs that ship are shown.")
    if damaged := [name for name, entry in found.items() if entry.run is None]:
        st.warning(f"{len(damaged)} of these runs cannot be opened; the page Runs says why.")


def _newest(found: Mapping[str, Entry], runs: Any) -> None:
    readable = [(name, entry.run.record) for name, entry in found.items() if entry.run is not None]
    newest = sorted(readable, key=lambda pair: str(pair[1].finished), reverse=True)[:NEWEST]
    if not newest:
        st.info("There is no run yet.")
    for name, record in newest:
        left, right = st.columns([1, 3], vertical_alignment="center")
        left.page_link(runs, label=f"**{show.text(name)}**", query_params={"run": name})
        when = said(record.finished).replace("T", " ").removesuffix("+00:00")
        right.markdown(
            f"{show.text(record.kind)} of {show.text(said(record.model.get('name')))}, {show.text(when)} UTC"
        )
