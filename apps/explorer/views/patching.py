"""Patching: which layers, positions or heads carry what differs between a prompt and its twin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import streamlit as st

from apps.explorer import live, show
from apps.explorer.catalogue import Entry
from apps.explorer.results import result_of
from apps.explorer.selection import Cell, clickable, picked

if TYPE_CHECKING:
    from interp.patching.activation import PatchingResult
    from interp.tasks.prompts import PromptSet
    from interp.tracing.model import Model

SITES = {
    "resid_pre, by position": ("resid_pre", "position"),
    "z, by head": ("z", "head"),
    "attn_out, by position": ("attn_out", "position"),
    "mlp_out, by position": ("mlp_out", "position"),
}
TYPED = "a pair of my own"
TASKS = (TYPED, "ioi", "colored-objects")
CLEAN = "When Alice and Mary went to the market, Mary gave the letter to"
CORRUPT = "When Alice and Mary went to the market, Alice gave the letter to"
MOST_TOKENS = 64
"""Of a typed pair: patching by position runs once a token and layer."""


@show.page
def page() -> None:
    st.title("Patching")
    found = show.catalogue()
    st.subheader("Saved")
    show.part(_saved, found)
    st.subheader("Live")
    loaded = live.model()
    if loaded is not None:
        show.part(_live, loaded)


def _saved(found: Mapping[str, Entry]) -> None:
    names = [name for name, entry in found.items() if entry.run and entry.run.record.kind == "patching"]
    run = show.choose_run("Run", found, names, "patching", "No patching is saved yet: interp patch.")
    if run is not None:
        result = result_of(run)
        _facts(result)
        show.figure(_map(result, f"saved-{run.path}"), f"saved-map-{run.path}")


def _facts(result: PatchingResult) -> None:
    for column, name, clean, corrupted in zip(
        st.columns(len(result.metrics)), result.metrics, result.clean.mean(1), result.corrupted.mean(1), strict=True
    ):
        column.metric(
            f"{name.replace('_', ' ')}, clean",
            f"{clean:.3f}",
            f"{corrupted:.3f} corrupted",
            "off",
            delta_arrow="off",
            border=True,
        )


def _map(result: PatchingResult, key: str) -> Any:
    columns = [name.removesuffix("_low") for name in result.frame if name.endswith("_low")]
    default = columns.index("normalised_ratio_of_means")
    column = st.selectbox("Number", columns, default, key=f"number-{key}", format_func=lambda c: c.replace("_", " "))
    return result.plot(column)


def _live(loaded: Model) -> None:
    task = st.selectbox("Prompts", TASKS, key="task", bind="query-params")
    with st.form("patching"):
        what = st.selectbox("Patch", list(SITES), key="what")
        direction = st.segmented_control(
            "Direction", ["denoise", "noise"], default="denoise", required=True, key="direction"
        )
        if task == TYPED:
            clean = st.text_input("Clean prompt", CLEAN, key="clean")
            corrupt = st.text_input("Corrupted prompt, with as many tokens", CORRUPT, key="corrupt")
            left, right = st.columns(2)
            answer = left.text_input("Answer to the clean prompt", " Alice", key="answer")
            distractor = right.text_input("Answer to the corrupted one", " Mary", key="distractor")
            pairs: Any = (clean, corrupt, answer, distractor)
        else:
            pairs = st.slider("Pairs", 2, 32, 8, key="pairs")
        go = st.form_submit_button("Patch", type="primary")
    request = (task, what, direction, pairs)
    if go:
        st.session_state["patched"] = request
    if st.session_state.get("patched") is None:
        return
    request = st.session_state["patched"]
    prompts, result = _patched(loaded, loaded.fingerprint, *request)
    _facts(result)
    show.part(_pair, loaded, prompts)
    _clicked(loaded, prompts, result, request)


@st.cache_resource(max_entries=8, show_spinner="Patching …")
def _patched(
    _loaded: Model, fingerprint: str, task: str, what: str, direction: Any, pairs: Any
) -> tuple[PromptSet, PatchingResult]:
    from interp.patching.activation import activation_patching

    prompts = _typed(_loaded, *pairs) if task == TYPED else _drawn(_loaded, task, pairs)
    site, by = SITES[what]
    roles = tuple(prompts.spans) if by == "position" else ()
    return prompts, activation_patching(_loaded, prompts, site, by, direction, positions=roles)  # type: ignore[arg-type]


def _typed(loaded: Model, clean: str, corrupt: str, answer: str, distractor: str) -> PromptSet:
    from interp.errors import BadInput, PromptTooLong
    from interp.tasks.prompts import PromptSet

    if not (answer and distractor):
        raise BadInput("patching measures one answer against another: write both")
    twin = PromptSet.build(loaded.tokenizer, [corrupt])
    if len(twin.tokens[0]) > MOST_TOKENS:
        raise PromptTooLong(f"the pair has {len(twin.tokens[0])} tokens; the explorer patches up to {MOST_TOKENS}")
    return PromptSet.build(loaded.tokenizer, [clean], [answer], distractors=[distractor], counterfactual=twin)


def _drawn(loaded: Model, task: str, n: int) -> PromptSet:
    from interp.cli.patch import task_prompts

    return task_prompts(loaded, str(live.settings().model), task, n, 0, None, "S2->IO")


def _pair(loaded: Model, prompts: PromptSet) -> None:
    """The first pair, token under token."""
    from interp.next_token import decoded

    assert prompts.counterfactual is not None
    rows = prompts.tokens[0], prompts.counterfactual.tokens[0]
    different = {i: "different" for i, (a, b) in enumerate(zip(*rows, strict=True)) if a != b}
    for name, row in zip(("Clean", "Corrupted"), rows, strict=True):
        st.caption(name if len(prompts) == 1 else f"{name}, the first of {len(prompts)}")
        show.tokens([decoded(loaded, token) for token in row], different)


def _clicked(loaded: Model, prompts: PromptSet, result: PatchingResult, request: tuple[Any, ...]) -> None:
    drawn = _map(result, "live")
    shape = (len({unit.layer for unit in result.units}), -1)
    grid = np.array(drawn.data[0].z, dtype=float).reshape(shape)
    place = f"patched-{request}"
    cell = next(iter(picked(st.session_state.get(place))), None)
    show.figure(
        clickable(drawn, grid, cell, "row {row}, column {column}"), place, on_select="rerun", selection_mode="points"
    )
    if cell is None:
        st.caption("Click a cell to see which next tokens the patch changes.")
    else:
        show.part(_changed, loaded, prompts, result, cell, grid.shape[1])


def _changed(loaded: Model, prompts: PromptSet, result: PatchingResult, cell: Cell, across: int) -> None:
    """What the run that was patched says next in the first pair, and what it says under this one patch."""
    from interp.next_token import next_token
    from interp.patching.activation import unit_edits
    from interp.patching.pairs import corrupted

    unit = result.units[cell[0] * across + cell[1]]
    sides = prompts[0], corrupted(prompts[0])
    base, donor = sides[::-1] if result.direction == "denoise" else sides
    trace = loaded.run(donor, read=f"{unit.site}.{unit.layer}")
    where = ", ".join(f"{name} {value}" for name, value in unit._asdict().items() if value is not None)
    st.text(f"Next token of the first pair with one patch: {where}")
    changed = next_token(loaded, base, edits=unit_edits(unit, trace, ()), top=6)
    show.figure(changed.plot(), "changed")
