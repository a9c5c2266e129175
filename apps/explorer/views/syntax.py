"""Syntax: whole syntax trees of code in hidden states, of saved studies and of code that is typed here."""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st

from apps.explorer import live, show
from apps.explorer.catalogue import Entry
from apps.explorer.results import read, result_of
from interp.errors import BadInput
from interp.runs import Run

if TYPE_CHECKING:
    from interp.tracing.model import Model
    from probes.ast.reading import ReadCode
    from probes.ast.result import AstStudy

KIND = "ast-probe"
CODE = """\
def sum_values(values, count):
    total = 0
    for item in values:
        if item > 3:
            total += item
    return total
"""
MOST = 1_500
"""Characters of code that are read here; `interp probe ast parse` reads files of any length."""
IN_ADDRESS = 600
UNTRAINED_PARAMETERS = 500_000_000
"""Of a model, up to which the control without training is made and read here."""
READERS = {
    "probe": "the probe",
    "embedding": "a probe of the embedding, which knows only words",
    "untrained": "a probe of the same model without training",
    "shifted": "a probe of the states of other leaves",
    "following token": "a probe that also sees the token after each leaf",
    "right-branching": "the probe's labels in a tree that always branches to the right",
    "balanced": "the probe's labels in a balanced tree",
}
"""What reads a tree beside the probe, in words."""
NUMBERS = {
    name: st.column_config.NumberColumn(format="%.3f")
    for name in ("precision", "recall", "f1", "multiset_f1", "unlabelled_f1", "value", "low", "high", "difference")
}


def section() -> None:
    st.caption(
        "A linear probe projects the hidden states of code into a small subspace. Distances between neighbouring words "
        "in it give the shape of the syntax tree, and their differences the names of its nodes. F1 is the share of "
        "nodes that are right: the same name over the same words."
    )
    found = show.catalogue()
    names = [name for name, entry in found.items() if entry.run and entry.run.record.kind == KIND]
    run = show.choose_run("Study", found, names, "ast", "No study of syntax is saved yet: interp probe ast fit.")
    if run is None:
        return
    study: AstStudy = result_of(run)
    show.part(lambda: read(run, lambda _path: _saved(run, study)))
    st.subheader("Do layers share a subspace?")
    show.part(lambda: read(run, lambda _path: _alike(run, study, found, names)))
    st.subheader("Live: the tree of your code")
    loaded = live.model()
    if loaded is not None:
        show.part(lambda: read(run, lambda _path: _live(loaded, run, study)))


def _saved(run: Run, study: AstStudy) -> None:
    row = study.curve("probe").set_index("site").loc[study.best]
    facts = {
        f"best layer ({study.parameters['functions']['test']} held-out functions)": study.best,
        "its F1 [95 % interval]": f"{row.value:.2f} [{row.low:.2f}, {row.high:.2f}]",
        "rank that is enough": f"{study.saturation_rank} of {study.model['width']}",
    }
    with st.container(horizontal=True):
        for name, value in facts.items():
            st.metric(show.text(name), show.text(value), width="content")
    show.figure(study.plot(), f"curves-{run.path}")
    with st.expander("The best layer beside its controls"):
        st.caption("Beyond: at least 0.10 F1 above the control's own best layer, and the intervals do not overlap.")
        show.table(study.comparisons(), f"comparisons-{run.path}", column_config=NUMBERS)
    with st.expander(f"By type of node, at {show.text(study.best)}"):
        show.table(study.types, f"types-{run.path}", column_config=NUMBERS)
    with st.expander("All numbers"):
        show.table(study.frame, f"frame-{run.path}", column_config=NUMBERS)


def _alike(run: Run, study: AstStudy, found: dict[str, Entry], names: list[str]) -> None:
    from interp.plots.syntax import alike

    st.caption(
        "The mean squared cosine of the principal angles between two layers' subspaces: 1 where one holds the other. "
        "Choose a study of another language or seed to compare with."
    )
    own = str(st.session_state["ast"])
    other = show.choose_run("Beside", found, [own, *(name for name in names if name != own)], "beside")
    beside: AstStudy = study if other is None or other.path == run.path else result_of(other)
    table = study.similarities(None if beside is study else beside)
    show.figure(alike(table, study.title, beside.title), f"alike-{run.path}")


def _live(loaded: Model, run: Run, study: AstStudy) -> None:
    from probes.ast.languages import LANGUAGES
    from probes.ast.reading import require_same

    require_same(loaded, study)
    sites, languages = list(study.probes), list(LANGUAGES)
    left, right = st.columns(2)
    site = left.selectbox("Read after", sites, sites.index(study.best), key="ast-site")
    own = study.parameters["language"]
    language = right.selectbox("Language", languages, languages.index(own), key="ast-language")
    if language != own:
        st.caption(f"The probe was fitted to {show.text(own)}: it can name only what that language has.")
    code = _code()
    if len(code) > MOST:
        raise BadInput(
            f"{len(code):,} characters of code; up to {MOST:,} are read here, more by interp probe ast parse"
        )
    about = (loaded.fingerprint, str(run.path), run.record.finished)
    found = _recovered(loaded, study, *about, code, str(language), str(site))
    table = found.frame
    table.insert(1, "what it is", table.reader.map(READERS))
    show.figure(found.plot(), "tree")
    st.caption("Precision: the share of recovered nodes that are true. Recall: the share of true nodes recovered.")
    show.table(table.drop(columns="reader"), "readers", column_config=NUMBERS)
    if "untrained" not in set(table.reader):
        st.caption("The control without training cannot be made again here; the study above has its numbers.")


@st.cache_resource(max_entries=32, show_spinner="Reading the code …")
def _recovered(
    _loaded: Model, _study: AstStudy, fingerprint: str, path: str, finished: str, code: str, language: str, site: str
) -> ReadCode:
    from probes.ast.corpus import Snippet
    from probes.ast.reading import read_code

    snippet = Snippet.of(code, language)
    small = _loaded.spec.parameters <= UNTRAINED_PARAMETERS
    fresh = _untrained(_loaded, _study, fingerprint, path, finished) if small else None
    (found,) = read_code(_loaded, _study, [snippet], site=site, fresh=fresh)
    return found


@st.cache_resource(max_entries=2, show_spinner=False)
def _untrained(_loaded: Model, _study: AstStudy, fingerprint: str, path: str, finished: str) -> Model | None:
    from probes.ast.reading import fresh_model

    return fresh_model(_loaded, _study)


def _code() -> str:
    """The code, in the address where it is short."""
    if "code" not in st.session_state:
        st.session_state.code = st.query_params.get("code", CODE)
    written = str(st.text_area("Code", key="code", persist_state="session", height=190))
    if len(written) <= IN_ADDRESS and written != CODE:
        st.query_params["code"] = written
    elif "code" in st.query_params:
        del st.query_params["code"]
    return written
