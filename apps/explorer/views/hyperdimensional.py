"""Hyperdimensional: which concepts are bound to which in a hidden state, of saved studies and of typed analogies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd
import streamlit as st

from apps.explorer import live, show
from apps.explorer.catalogue import Entry, chosen
from apps.explorer.results import read, result_of
from interp.errors import BadInput, WorkbenchError
from interp.runs import Run

if TYPE_CHECKING:
    from interp.tracing.model import Model
    from probes.vsa.causal import CausalCheck
    from probes.vsa.reading import DecodedText
    from probes.vsa.study import HyperdimensionalProbe

KIND, CAUSAL = "hyperdimensional-probe", "hyperdimensional-causal"
SUBSETS = {"all": "all prompts", "right": "the model's answer is right", "wrong": "the model's answer is wrong"}
MOST = 2_000
"""Characters of a text that is decoded here; `interp probe vsa decode` reads any length."""
IN_ADDRESS = 600
TOP = 5
COMPARED = 6
"""Studies that are compared by task, at most."""
SHOWN = 24
"""Concepts of a codebook that are shown before others are chosen."""
MOST_SHOWN = 60


def section() -> None:
    st.caption(
        "An encoder turns the hidden state of the last token into a hypervector: a bundle of pairs of concepts, each "
        "concept a random direction. Unbinding one concept of a pair should give the other. Precision@1 is the share "
        "of held-out prompts where the concept that is asked for comes first."
    )
    found = show.catalogue()
    names = _of_kind(found, KIND)
    run = show.choose_run("Study", found, names, "vsa", "No hyperdimensional probe is saved yet: interp probe vsa fit.")
    if run is not None:
        probe: HyperdimensionalProbe = result_of(run)
        show.part(lambda: read(run, lambda _path: _saved(run, probe)))
        show.part(_tasks, found, names)
    st.subheader("Does the model use what is read?")
    show.part(_causal, found)
    if run is not None:
        st.subheader("Live: what is bound in the state of your text")
        loaded = live.model()
        if loaded is not None:
            show.part(lambda: read(run, lambda _path: _live(loaded, run, probe)))


def _of_kind(found: Mapping[str, Entry], kind: str) -> list[str]:
    return [name for name, entry in found.items() if entry.run and entry.run.record.kind == kind]


def _saved(run: Run, probe: HyperdimensionalProbe) -> None:
    from interp.plots.vsa import precision_bars, precision_by_layer

    there = [name for name in SUBSETS if name in set(probe.frame.subset)]
    subset = st.segmented_control(
        "Held-out prompts", there, default=there[0], required=True, key="subset", format_func=SUBSETS.__getitem__
    )
    show.figure(precision_by_layer(probe.frame, probe.title, str(subset)), f"layers-{run.path}")
    with st.expander("Every decoder and baseline"):
        st.caption(
            "Decoders by what they are told: key or role, the structure of the prompt; last and new, its text alone; "
            "uncentred, as key or role on the published sign of the prediction; oracle, the target itself, so a bound."
        )
        show.figure(precision_bars(probe.frame, probe.title, str(subset)), f"bars-{run.path}")
        show.table(probe.summary(str(subset)), f"summary-{run.path}")
    if probe.encoders:
        with st.expander("Codebook"):
            _codebook(run, probe)


def _codebook(run: Run, probe: HyperdimensionalProbe) -> None:
    names = list(probe.codebook.concepts)
    st.caption(
        f"{len(names)} concepts, {probe.codebook.dimensions} dimensions. Different concepts are nearly orthogonal."
    )
    wanted = st.multiselect("Concepts", names, names[:SHOWN], key=f"concepts-{run.path}", max_selections=MOST_SHOWN)
    if wanted:
        show.figure(probe.codebook.plot(wanted), f"codebook-{run.path}")


def _tasks(found: Mapping[str, Entry], names: list[str]) -> None:
    """All studies beside each other; damaged ones are left to the Runs page."""
    from interp.plots.vsa import precision_by_task

    frames: dict[str, pd.DataFrame] = {}
    for name in names[:COMPARED]:
        try:
            frames[name] = result_of(chosen(found, name)).frame
        except WorkbenchError:
            continue
    if len(frames) > 1:
        st.subheader("By task")
        show.figure(precision_by_task(frames), "tasks")


def _causal(found: Mapping[str, Entry]) -> None:
    st.caption(
        "The state is moved towards another concept, along the encoder's gradient, along the pattern of states that "
        "goes with it, and along random directions. If the model reads the concept there, its answer follows."
    )
    none = "No causal check is saved yet: interp probe vsa fit --causal resid_post.2."
    run = show.choose_run("Check", found, _of_kind(found, CAUSAL), "causal", none)
    if run is not None:
        check: CausalCheck = result_of(run)
        show.figure(read(run, lambda _path: check.plot()), f"causal-{run.path}")
        with st.expander("How much more often the answer follows than at random"):
            show.table(read(run, lambda _path: check.beyond_random()), f"beyond-{run.path}")
            show.table(check.frame, f"moves-{run.path}")


def _live(loaded: Model, run: Run, probe: HyperdimensionalProbe) -> None:
    if not probe.encoders:
        st.info("This study keeps no encoder, so it cannot read other texts: interp probe vsa fit --keep.")
        return
    if loaded.fingerprint != probe.model["fingerprint"]:
        raise BadInput(f"this probe was fitted to {probe.model['name']}, and the loaded model is {loaded.spec.name}")
    encoder = str(next(iter(probe.encoders)))
    if len(probe.encoders) > 1:
        encoder = str(st.selectbox("Encoder", list(probe.encoders), key="vsa-encoder"))
    show.part(_typed_text, loaded, run, probe, encoder)
    with st.expander(f"The {len(probe.codebook)} concepts it knows"):
        st.text(", ".join(probe.codebook.concepts))


def _typed_text(loaded: Model, run: Run, probe: HyperdimensionalProbe, encoder: str) -> None:
    text = _analogy(loaded, probe) if probe.parameters.get("task") == "analogies" else _text(probe)
    _shown(_decoded(loaded, probe, loaded.fingerprint, str(run.path), run.record.finished, text, encoder))


def _analogy(loaded: Model, probe: HyperdimensionalProbe) -> str:
    """A typed analogy as the prompt that the study's encoder knows."""
    from interp.tasks.analogies import ANALOGY
    from probes.vsa.reading import analogy_words, pieces, require_concepts

    bindings = probe.parameters["example"]["bindings"]
    words = [bindings[0][0], bindings[0][1], bindings[1][0]]
    typed = _typed("analogy", "{} : {} :: {} : ?".format(*words), area=False)
    a, b, c = analogy_words(typed)
    require_concepts((a, b, c), loaded, probe.codebook)
    for word in (a, b, c):
        if len(parts := pieces(loaded, word)) > 1:
            st.caption(f"{show.text(word)} is {len(parts)} tokens for this model: {show.text(' '.join(parts))}.")
    return ANALOGY.format(a=a, b=b, c=c)


def _text(probe: HyperdimensionalProbe) -> str:
    text = _typed("text", str(probe.parameters["example"]["text"]), area=True)
    if len(text) > MOST:
        raise BadInput(f"{len(text):,} characters; up to {MOST:,} are read here, more by interp probe vsa decode")
    if not text.strip():
        raise BadInput("there is no text to read: write a prompt like those of the study")
    return text


def _typed(name: str, default: str, area: bool) -> str:
    """What is typed, by default a held-out prompt of the study; in the address where it is short."""
    key = f"vsa-{name}"
    if key not in st.session_state:
        st.session_state[key] = st.query_params.get(key, default)
    if area:
        written = str(st.text_area("Text, like the prompts of the study", key=key, persist_state="session", height=120))
    else:
        written = str(st.text_input("Analogy, as A : B :: C : ?", key=key, persist_state="session", max_chars=200))
    if len(written) <= IN_ADDRESS and written != default:
        st.query_params[key] = written
    elif key in st.query_params:
        del st.query_params[key]
    return written


def _shown(found: DecodedText) -> None:
    show.figure(found.plot(), "decoded")
    st.caption(
        f"Blue: above {found.chance:.2f}, what 99 % of the best hits in random codebooks stay below. The mark is what "
        "random codebooks give the same place."
    )
    left, right = st.columns([3, 2])
    with left:
        st.markdown("**Decoded from the state**")
        show.table(found.frame, "decoded-table", column_config=COSINES)
    with right:
        st.markdown("**What the model says next**")
        show.table(found.said.frame.drop(columns="id"), "said-table", column_config=COSINES)


COSINES: dict[str, Any] = {
    name: st.column_config.NumberColumn(format="%.3f") for name in ("cosine", "random", "probability")
}


@st.cache_resource(max_entries=32, show_spinner="Reading the state …")
def _decoded(
    _loaded: Model, _probe: HyperdimensionalProbe, fingerprint: str, path: str, finished: str, text: str, encoder: str
) -> DecodedText:
    from probes.vsa.reading import read_text

    return read_text(_loaded, _probe, text, encoder, top=TOP)
