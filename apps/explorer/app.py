"""The explorer: `interp explore`, or `streamlit run apps/explorer/app.py`."""

from __future__ import annotations

import streamlit as st

from apps.explorer.pages import doctor, export, heads, model, needles, patching, runs

PAGES = {
    "heads": (heads.page, "Heads", ":material/grid_on:"),
    "model": (model.page, "Model", ":material/psychology:"),
    "needles": (needles.page, "Needles", ":material/search:"),
    "patching": (patching.page, "Patching", ":material/healing:"),
    "runs": (runs.page, "Runs", ":material/folder_open:"),
    "export": (export.page, "Export", ":material/download:"),
    "doctor": (doctor.page, "Doctor", ":material/stethoscope:"),
}


def main() -> None:
    """Draw the page that the address asks for."""
    st.set_page_config(page_title="interp explorer", layout="wide")
    pages = [
        st.Page(page, title=title, icon=icon, url_path=path, default=path == "heads")
        for path, (page, title, icon) in PAGES.items()
    ]
    st.navigation(pages).run()


main()
