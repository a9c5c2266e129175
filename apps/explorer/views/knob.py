"""The knob of the Subspaces page: what a fit found, what turning it does, and turning it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import streamlit as st

from apps.explorer import live, show
from apps.explorer.catalogue import Entry
from apps.explorer.results import result_of
from interp.runs import Run

if TYPE_CHECKING:
    from interp.knob import Knob, KnobResult, Steering
    from interp.tasks.prompts import PromptSet
    from interp.tracing.model import Model

OWN = "one of my own"
QUESTIONS = 12
"""Of the items that a knob was reported on, those that can be asked here."""
CHARACTERS = 1_000
"""Of a typed prompt."""
NEW_TOKENS = 8
BEYOND = 0.25
"""How far the slider goes beyond what was measured, as a share of it."""
NUMBERS = {
    name: st.column_config.NumberColumn(format="%.3f")
    for name in ("accuracy", "95 % low", "95 % high", "separation (d')")
}


def section() -> None:
    found = show.catalogue()
    names = [name for name, entry in found.items() if entry.run and entry.run.record.kind == "knob"]
    run = show.choose_run("Run", found, names, "knob", "No knob is fitted yet: interp knob fit.")
    if run is None:
        return
    result = result_of(run)
    st.caption(
        "Some prompts say whether to answer from the context or from memory. A knob is one direction of the hidden "
        "state that carries this choice: put one prompt's value along it into another prompt, and the answer changes "
        "with it."
    )
    show.part(_facts, result)
    show.part(_measured, result, str(run.path))
    show.part(_behaviour, found, result)
    st.subheader("Turn it")
    show.part(_live, run, result)


def _facts(result: KnobResult) -> None:
    layers = result.model.get("layers")
    best = result.frame[result.frame.layer == result.layer].set_index("method")
    fitted = best.loc["interchange"]
    facts = {
        "model": show.text(result.model.get("name")),
        "after layer": f"{result.layer} (the last is {layers - 1})" if isinstance(layers, int) else str(result.layer),
        "rank": f"{result.knob.rank} of {result.knob.width}",
        "interchange accuracy": f"{fitted.accuracy:.2f} [{fitted.accuracy_low:.2f}, {fitted.accuracy_high:.2f}]",
        "pairs": str(int(fitted.n)),
    }
    with st.container(horizontal=True):
        for name, value in facts.items():
            st.metric(name, value, width="content")
    st.caption(
        "Interchange accuracy: the share of prompts that give their twin's answer when only their value along the "
        "direction is the twin's; in brackets its 95 % interval. Below, directions after the same layer that were not "
        "fitted for this. Separation counts standard deviations between prompts answered from the context and from "
        "memory."
    )
    wanted = ["accuracy", "accuracy_low", "accuracy_high", "separation", "n"]
    table = best[wanted].rename(index={"interchange": "the knob (fitted)"}).reset_index()
    named = {"accuracy_low": "95 % low", "accuracy_high": "95 % high", "separation": "separation (d')", "n": "pairs"}
    show.table(table.rename(columns=named), "knob-controls", column_config=NUMBERS)


def _measured(result: KnobResult, key: str) -> None:
    left, right = st.columns(2)
    with left:
        show.figure(result.plot("layers"), f"layers-{key}")
    with right:
        if result.knob.rank == 1:
            show.figure(result.plot("coordinates"), f"coordinates-{key}")
        else:
            st.info(f"A knob of rank {result.knob.rank} has no one coordinate, so there is no histogram.")


def _behaviour(found: Mapping[str, Entry], result: KnobResult) -> None:
    st.subheader("What turning it does")
    names = [
        name
        for name, entry in found.items()
        if entry.run and entry.run.record.kind == "knob-behaviour" and _turns(entry.run, result.knob)
    ]
    run = show.choose_run("Answers", found, names, "answers", "No answers under this knob are saved: interp knob eval.")
    left, right = st.columns(2)
    if run is not None:
        with left:
            show.figure(result_of(run).plot(), f"answers-{run.path}")
    if result.behaviour is not None:
        with right if run is not None else left:
            show.figure(result.behaviour.plot(), "own-answers")


def _turns(run: Run, knob: Knob) -> bool:
    """Whether the answers of a run were given under this knob."""
    about = run.record.parameters.get("knob")
    return isinstance(about, Mapping) and about.get("layer") == knob.layer and about.get("values") == dict(knob.values)


def _live(run: Run, result: KnobResult) -> None:
    if result.knob.rank != 1:
        st.info(f"A knob of rank {result.knob.rank} has no one value to set; fit one with interp knob fit --rank 1.")
        return
    loaded = live.model()
    if loaded is None:
        return
    if result.model.get("fingerprint") != loaded.fingerprint:
        st.info(
            f"The knob belongs to {show.text(result.model.get('name'))}, and the loaded model is "
            f"{show.text(loaded.spec.name)} with other weights, so it is not turned here."
        )
        return
    _turned(run, result, loaded)


@st.fragment
def _turned(run: Run, result: KnobResult, loaded: Model) -> None:
    """The slider and what follows from it: moving it draws this part alone."""
    show.part(_side_by_side, run, result, loaded)


def _side_by_side(run: Run, result: KnobResult, loaded: Model) -> None:
    prompts, options = _questions(loaded, loaded.fingerprint, str(run.path), run.record.finished, result)
    show.refuse_unknown("question", [*options, OWN], "question")
    chosen = st.selectbox(
        "Prompt, which does not say what to follow", [*options, OWN], key="question", bind="query-params"
    )
    asked: int | str
    if chosen == OWN:
        proposed = prompts.texts[0]
        asked = str(st.text_area("Your prompt", proposed, 140, CHARACTERS, key="own-prompt", bind="query-params"))
        st.text(asked)
    else:
        asked = options.index(chosen)
        st.text(prompts.texts[asked])
    value = _value(result)
    steering = _steered(
        loaded, loaded.fingerprint, str(run.path), run.record.finished, result.knob, prompts, asked, value
    )
    said = (
        ("Without the knob", steering.texts[0]),
        (f"Set to {value:+.3g}", steering.texts[1]),
        ("A random direction, moved as far", steering.texts[2]),
    )
    for column, (condition, words) in zip(st.columns(3), said, strict=True):
        with column.container(border=True):
            st.caption(condition)
            st.text(words or "(nothing)")
    moved = abs(value - steering.coordinate)
    st.caption(
        f"Greedy, at most {NEW_TOKENS} tokens. At the prompt's last token the value is {steering.coordinate:+.3g}; "
        f"setting it moves the hidden state by {moved:.3g}. The control is moved as far along a random direction at "
        "right angles to the knob."
    )
    show.figure(steering.plot(), "steering")
    with st.expander(f"All {len(steering.controls)} random directions"):
        show.table(steering.frame, "steering-table")


def _value(result: KnobResult) -> float:
    """The value to set, by a slider over what was measured and a little beyond, or one of the knob's own."""
    low, high, step = slider_range([*result.coordinates.ravel().tolist(), *result.knob.values.values()])
    own = result.knob.values
    if not low <= st.session_state.get("value", low - 1) <= high:
        st.session_state.pop("value", None)  # of another knob
    first = own.get("context", (low + high) / 2)
    value = st.slider("Value along the knob", low, high, first, step, key="value", format="%+.1f", bind="query-params")

    def set_to(wanted: float) -> None:
        st.session_state["value"] = wanted

    with st.container(horizontal=True, vertical_alignment="center"):
        for name, wanted in own.items():
            label = f"Set to {show.text(name)}: {wanted:+.1f}"
            st.button(label, key=f"set-{name}", on_click=set_to, args=(wanted,))
    context, prior = result.coordinates.mean(axis=(0, 2))
    st.caption(f"Prompts that ask for the context lie at {context:+.1f} on average, those for memory at {prior:+.1f}.")
    return float(value)


def slider_range(measured: Sequence[float]) -> tuple[float, float, float]:
    """Ends and step of a slider over some values and a little beyond, all round numbers; 50 to 750 steps."""
    low, high = min(measured), max(measured)
    span = max(high - low, 1e-6)
    step = 10.0 ** np.floor(np.log10(span / 50))
    ends = np.floor((low - BEYOND * span) / step), np.ceil((high + BEYOND * span) / step)
    return float(ends[0] * step), float(ends[1] * step), float(step)


@st.cache_resource(max_entries=8, show_spinner=False)
def _questions(
    _loaded: Model, fingerprint: str, path: str, finished: str, _result: KnobResult
) -> tuple[PromptSet, list[str]]:
    """Items that the knob was not fitted on, asked without an instruction, and a name for each."""
    from interp.tasks.context_prior import context_prompts

    items = _result.items["test"]
    few = items.take(range(min(QUESTIONS, len(items))))
    prompts = context_prompts(_loaded.tokenizer, few, _result.form.silent, ("context",))
    return prompts, [f"{number}. {item.query}" for number, item in enumerate(few, 1)]


@st.cache_resource(max_entries=256, show_spinner=False)
def _steered(
    _loaded: Model,
    fingerprint: str,
    path: str,
    finished: str,
    _knob: Knob,
    _prompts: PromptSet,
    asked: int | str,
    value: float,
) -> Steering:
    from interp.knob import steer

    prompt: Any = asked if isinstance(asked, str) else _prompts[asked]
    return steer(_loaded, _knob, prompt, value, new_tokens=NEW_TOKENS)
