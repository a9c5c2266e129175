"""The explorer: `interp explore`, or `streamlit run apps/explorer/app.py`."""

from __future__ import annotations

import streamlit as st

from apps.explorer import show
from apps.explorer.views import (
    circuits,
    doctor,
    export,
    heads,
    model,
    needles,
    patching,
    probes,
    runs,
    skills,
    start,
    subspaces,
)

# By address. Without icons, which browsers would fetch from the network. (Streamlit shows bare strings of this file.)
PAGES = {
    "heads": (heads.page, "Heads"),
    "model": (model.page, "Model"),
    "needles": (needles.page, "Needles"),
    "patching": (patching.page, "Patching"),
    "circuits": (circuits.page, "Circuits"),
    "subspaces": (subspaces.page, "Subspaces"),
    "probes": (probes.page, "Probes"),
    "skills": (skills.page, "Skills"),
    "runs": (runs.page, "Runs"),
    "export": (export.page, "Export"),
    "doctor": (doctor.page, "Doctor"),
}
# Less room above the title; on a phone a figure keeps a width at which it can be read, and is moved sideways.
STYLE = """
<style>
[data-testid="stMainBlockContainer"] { padding-top: 3rem; }
@media (max-width: 640px) {
  [data-testid="stElementContainer"]:has([data-testid="stPlotlyChart"]) { overflow-x: auto; }
  [data-testid="stFullScreenFrame"]:has([data-testid="stPlotlyChart"]) { min-width: 720px; }
}
</style>
"""


def main() -> None:
    """Draw the page that the address asks for."""
    st.set_page_config(page_title="interp explorer", layout="wide")
    st.html(STYLE)
    pages = {path: st.Page(page, title=title, url_path=path) for path, (page, title) in PAGES.items()}

    @show.page
    def first() -> None:
        start.page(pages)

    # The first page alone has no address of its own, so that every other can be opened by its.
    st.navigation([st.Page(first, title="Start", default=True), *pages.values()]).run()


main()
