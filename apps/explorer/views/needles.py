"""Needles: recall by length and depth, with all heads, without the retrieval heads, and without as many random ones."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import streamlit as st

from apps.explorer import live, show
from apps.explorer.catalogue import Entry, chosen
from apps.explorer.results import has_map, length_and_depth, result_of
from apps.explorer.settings import settings
from interp.errors import BadInput, WorkbenchError
from interp.runs import Run

if TYPE_CHECKING:
    from interp.heads.causal import AblationReport
    from interp.heads.mask import HeadMask
    from interp.tracing.model import Model

DEPTHS = (0, 25, 50, 75, 100)
LENGTHS = (128, 256, 512, 1024, 2048, 4096, 8192)
MOST_TESTS = 200
RUN_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,63}")


@show.page
def page() -> None:
    st.title("Needles")
    found = show.catalogue()
    st.subheader("Saved")
    show.part(_saved, found)
    st.subheader("Live")
    loaded = live.model()
    if loaded is not None:
        show.part(_live, loaded, found)


def _saved(found: Mapping[str, Entry]) -> None:
    names = [name for name, entry in found.items() if entry.run and entry.run.record.kind == "head-ablation"]
    run = show.choose_run("Study", found, names, "study", "No study of heads is saved yet: interp heads ablate.")
    if run is not None:
        _report(result_of(run), f"saved-{run.path}")


def _report(report: AblationReport, key: str) -> None:
    if has_map(report):
        show.figure(length_and_depth(report), f"map-{key}")
    show.figure(report.plot(), f"curves-{key}")
    with st.expander("Numbers"):
        show.table(report.summary(), f"summary-{key}")
        show.table(report.frame, f"frame-{key}")


def _live(loaded: Model, found: Mapping[str, Entry]) -> None:
    masks = _rankings(found, loaded.fingerprint)
    if not masks:
        st.info(f"No run scores the heads of {show.text(loaded.spec.name)} yet: interp heads score.")
        return
    limit = loaded.spec.context or max(LENGTHS)
    lengths = [length for length in LENGTHS if length < limit]
    with st.form("needles"):
        name = st.selectbox("Heads ranked by", list(masks), key="ranking")
        mask = masks[name]
        most = loaded.spec.heads // 2
        heads = st.slider("Heads to ablate", 1, max(1, min(16, most * loaded.spec.layers)), 4, key="needle-heads")
        wanted = st.multiselect("Lengths (tokens)", lengths, lengths[:2], key="needle-lengths")
        depths = st.multiselect("Depths (%)", DEPTHS, (0, 50, 100), key="needle-depths")
        needles = st.slider("Needles", 1, 10, 2, key="needle-count")
        go = st.form_submit_button("Run", type="primary")
    if go:
        tests = len(wanted) * len(depths) * needles
        if not 0 < tests <= MOST_TESTS:
            raise BadInput(f"{tests} tests: choose lengths, depths and needles for 1 to {MOST_TESTS}")
        st.session_state["study-report"] = None
        st.button("Cancel", key="cancel")  # a click runs the page again, which ends the study at its next step
        bar = st.progress(0.0, "building the prompts …")

        def advance(done: int, total: int) -> None:
            bar.progress(done / total, f"condition {done} of {total}")

        report = _study(loaded, mask, heads, wanted, depths, needles, advance)
        bar.empty()
        st.session_state["study-report"] = report
    measured = st.session_state.get("study-report")
    if measured is not None:
        st.caption(f"Mean ablation of {len(measured.heads)} heads, beside as many random ones of their layers.")
        _report(measured, "live")
        _save(measured)


def _rankings(found: Mapping[str, Entry], fingerprint: str) -> dict[str, HeadMask]:
    """The scores of this model's heads, by run; damaged runs are left to the Runs page."""
    masks = {}
    for name, entry in found.items():
        record = entry.run.record if entry.run else None
        if record is None or record.kind != "head-scores" or record.model.get("fingerprint") != fingerprint:
            continue
        try:
            masks[name] = result_of(chosen(found, name)).mask()
        except WorkbenchError:
            continue
    return masks


def _study(
    loaded: Model,
    mask: HeadMask,
    heads: int,
    lengths: list[int],
    depths: list[int],
    needles: int,
    progress: Callable[[int, int], None],
) -> AblationReport:
    from interp.heads.causal import ablation_report
    from interp.tasks.needle import needle_prompts

    prompts = needle_prompts(loaded.tokenizer, lengths, depths, n_needles=needles, seed=1, context=loaded.spec.context)
    return ablation_report(loaded, prompts, mask.ranking[:heads], ablations=["mean"], seeds=(0, 1), progress=progress)


def _save(report: AblationReport) -> Run | None:
    with st.form("save-needles"):
        name = st.text_input("Name of the run", "needles-live", key="needles-name", max_chars=64)
        if not st.form_submit_button("Save as a run"):
            return None
    if not RUN_NAME.fullmatch(name):
        raise BadInput(f"{name!r} is no name of a run: letters, digits, dots, dashes and underscores")
    run = report.save(settings().own / name)
    st.success(f"Saved as {show.text(run.path.name)}.")
    return run
