"""What every page shows the same way: problems as sentences, foreign text as text, figures, tables, which run."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import pandas as pd
import streamlit as st

from apps.explorer.catalogue import Entry, chosen, entries
from apps.explorer.differences import facts, said
from apps.explorer.settings import settings
from interp.errors import WorkbenchError
from interp.plots.template import visible
from interp.runs import Run
from kernels.errors import InvalidRequest

if TYPE_CHECKING:
    import plotly.graph_objects as go

PROBLEMS = (WorkbenchError, InvalidRequest)
ROWS = 1_000
"""Of a table that are sent to the browser."""
TOKENS = 400
"""Of a prompt that are shown."""
TOOLBAR = {"displaylogo": False, "toImageButtonOptions": {"format": "svg"}}


def text(value: object) -> str:
    """Any text as markdown that shows it letter by letter: no markup, links, pictures or directives."""
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", " ".join(str(value).split()))


def page(draw: Callable[[], None]) -> Callable[[], None]:
    """A page whose problems are sentences on it."""

    @functools.wraps(draw)
    def drawn() -> None:
        try:
            draw()
        except PROBLEMS as error:
            st.error(text(error))

    return drawn


def part(draw: Callable[..., None], *arguments: Any) -> None:
    """One part of a page; a problem in it leaves the others alone."""
    try:
        draw(*arguments)
    except PROBLEMS as error:
        st.error(text(error))


def catalogue() -> dict[str, Entry]:
    """The runs as they are now; the folders are read again when one of them changes."""
    folders = settings().folders
    state = tuple((name, str(path), _state(path)) for name, path in folders.items())
    return _catalogue(state)


@st.cache_resource(max_entries=4, show_spinner=False)
def _catalogue(state: tuple[tuple[str, str, Any], ...]) -> dict[str, Entry]:
    del state  # only says whether the folders are the same
    return entries(settings().folders)


def _state(folder: Any) -> tuple[tuple[str, int], ...]:
    if not folder.is_dir():
        return ()
    return tuple(sorted((path.name, path.lstat().st_mtime_ns) for path in folder.iterdir()))


def choose_run(
    label: str, found: Mapping[str, Entry], names: Sequence[str], key: str, none: str = "there is no such run yet"
) -> Run | None:
    """The run that is chosen among `names`, kept in the page's address under `key`."""
    refuse_unknown(key, names, "run")
    if not names:
        st.info(text(none))
        return None
    name = st.selectbox(label, names, key=key, bind="query-params")
    return None if name is None else chosen(found, name)


def refuse_unknown(key: str, names: Sequence[str], what: str) -> None:
    """Say so where the address asks for something that is not among `names`."""
    wanted = st.query_params.get(key)
    if wanted is not None and wanted not in names:
        st.warning(f"There is no {what} {text(wanted[:80])} here, so another is shown.")


def choose_one(
    names: Sequence[str],
    key: str,
    what: str,
    label: str = "",
    said: Callable[[str], str] = str,
    help: str | None = None,
) -> str:
    """One of a few names beside each other, the first at first, kept in the page's address under `key`."""
    refuse_unknown(key, names, what)
    chosen = st.segmented_control(
        label or what.capitalize(),
        list(names),
        default=names[0],
        required=True,
        key=key,
        bind="query-params",
        format_func=said,
        help=help,
        label_visibility="visible" if label else "collapsed",
    )
    return str(chosen)


def figure(drawn: go.Figure, key: str, **more: Any) -> Any:
    """A figure as the library drew it, with a toolbar that saves what is seen as SVG, which any browser can."""
    return st.plotly_chart(drawn, key=key, theme=None, config=TOOLBAR, **more)


def table(frame: pd.DataFrame, key: str, **more: Any) -> Any:
    """A table; a long one by its first rows, which is said."""
    if len(frame) > ROWS:
        st.caption(f"The first {ROWS:,} of {len(frame):,} rows; all of them are on the Export page.")
    return st.dataframe(frame.head(ROWS), key=key, hide_index=True, **more)


def provenance(run: Run) -> None:
    """Everything a run says of how it came to be."""
    rows = [(name, said(value)) for name, value in facts(run.record).items()]
    table(pd.DataFrame(rows, columns=["fact", "value"]), f"facts-{run.path}")


def tokens(found: Sequence[str], marked: Mapping[int, str] | None = None, first: int = 0) -> None:
    """Tokens one after the other, with their positions on hover; `marked` ones in the colour of a class."""
    marked = marked or {}
    shown = [
        f'<span title="{first + i}" style="{_style(marked.get(first + i))}">{visible(token)}</span>'
        for i, token in enumerate(found[:TOKENS])
    ]
    more = f"<span> … {len(found) - TOKENS:,} more</span>" if len(found) > TOKENS else ""
    st.html(f'<div style="line-height:1.9;overflow-wrap:anywhere">{" ".join(shown)}{more}</div>')


def _style(mark: str | None) -> str:
    colours = {"target": "#D55E00", "source": "#0072B2", "different": "#E69F00"}
    box = "padding:1px 3px;border-radius:3px;font-family:monospace;"
    if mark is None:
        return f"{box}background:rgba(128,128,128,.15)"
    ink = "#000" if mark == "different" else "#fff"
    return f"{box}background:{colours[mark]};color:{ink};font-weight:600"


def legend(**marks: str) -> None:
    """What the colours of `tokens` mean."""
    shown = " ".join(f'<span style="{_style(mark)}">{escape(meaning)}</span>' for mark, meaning in marks.items())
    st.html(f"<div>{shown}</div>")
