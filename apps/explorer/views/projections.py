"""The projections of the Subspaces page: hidden states of labelled texts along a few directions, saved or live."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import streamlit as st

from apps.explorer import live, show
from apps.explorer.catalogue import Entry, chosen
from apps.explorer.results import read, result_of
from interp.directions import KINDS
from interp.errors import BadInput, WorkbenchError
from interp.runs import Run

if TYPE_CHECKING:
    from interp.directions import Direction
    from interp.projection import Projection
    from interp.tasks.labelled import LabelledTexts
    from interp.tracing.model import Model

OWN = "texts of my own"
CONCEPTS = ("sentiment", "truth", "country", "comparison", "residence", OWN)
PROPOSED = "\n".join(
    f"{label}\tReview: The {what} was {said}.\nSentiment:".replace("\n", " ")
    for label, what, said in (
        ("good", "movie", "wonderful"),
        ("bad", "movie", "terrible"),
        ("good", "meal", "great"),
        ("bad", "meal", "awful"),
        ("good", "song", "lovely"),
        ("bad", "song", "boring"),
    )
)
CHARACTERS = 40_000
MOST_TEXTS = 400
SITES = ("resid_post", "resid_mid", "attn_out", "mlp_out", "mlp_post")
SAVED_AXES, LIVE_AXES = ("saved-x", "saved-y"), ("live-x", "live-y")
"""Words of the address for the axes across and upwards."""
PCA_ONLY, MEANS = "principal components", "difference of the labels' means"
TOLD = {
    name: st.column_config.NumberColumn(format="%.3f")
    for name in ("label told", "95 % low", "95 % high", "shuffled labels", "random directions")
}


def section() -> None:
    found = show.catalogue()
    st.caption(
        "After reading a text, the model's hidden state is a point in a space of many dimensions. A projection shows "
        "such points from one side: along the directions in which they vary most, or along one that means something."
    )
    show.part(_saved, found)
    st.subheader("Live")
    show.part(_live, found)


def _saved(found: Mapping[str, Entry]) -> None:
    names = [name for name, entry in found.items() if entry.run and entry.run.record.kind == "projection"]
    run = show.choose_run("Run", found, names, "projection", "No projection is saved yet: interp project.")
    if run is not None:
        _shown(result_of(run), SAVED_AXES)


def _shown(projection: Projection, keys: tuple[str, str]) -> None:
    """The scatter of two axes, and how well labels are told along each, beside its controls."""
    left, right = st.columns(2)
    for key in keys:
        if st.session_state.get(key, projection.axes[0]) not in projection.axes:
            del st.session_state[key]  # of another projection
    x = _choice(left, "Across", projection.axes, keys[0])
    y = _choice(right, "Upwards", projection.axes, keys[1], 1)
    show.figure(projection.plot(x, y), f"scatter-{keys[0]}")
    held = projection.parameters.get("fitted_on")
    aside = f" The difference of means is of {held} other texts." if held else ""
    st.caption(
        "Point at a dot to read its text. The table says for how many texts a linear discriminant tells the label from "
        "its place along an axis, having been fitted on other texts; beside it the same for shuffled labels and along "
        f"random directions (means of 20 draws).{aside} A direction fitted on these very texts looks better than it is."
    )
    wanted = {
        "axis": "axis",
        "accuracy": "label told",
        "accuracy_low": "95 % low",
        "accuracy_high": "95 % high",
        "shuffled": "shuffled labels",
        "random": "random directions",
        "n": "texts",
    }
    show.table(projection.separation[list(wanted)].rename(columns=wanted), f"told-{keys[0]}", column_config=TOLD)


def _live(found: Mapping[str, Entry]) -> None:
    loaded = live.model()
    if loaded is None:
        return
    concept = _choice(st, "Texts", CONCEPTS, "concept")
    own = ""
    if concept == OWN:
        own = st.text_area("One text a line: label, tab, text", PROPOSED, key="own-texts", height=200)
    left, middle, right = st.columns(3)
    site = _choice(left, "Site", [name for name in SITES if name not in loaded.refusals], "site")
    layers = [str(layer) for layer in range(loaded.spec.layers)]
    layer = _choice(middle, "Layer", layers, "layer", len(layers) - 1)
    where = f"{site}.{layer}"
    every = _with_directions(found, loaded.fingerprint)
    runs = {name: here for name, of_run in every.items() if (here := _at(where, of_run))}
    along = _choice(right, "Directions", [PCA_ONLY, MEANS, *runs], "along", on_change=_back_to_the_first_axes)
    if elsewhere := {name: sorted({each.site for each in every[name].values()}) for name in every if name not in runs}:
        listed = "; ".join(
            f"{show.text(name)} ({', '.join(map(show.text, sites))})" for name, sites in elsewhere.items()
        )
        st.caption(f"Runs with directions at other sites: {listed}.")
    directions = tuple((name, tuple(each.vector.tolist())) for name, each in runs.get(along, {}).items())
    with st.spinner("Reading the texts …"):
        result = _projected(loaded, loaded.fingerprint, concept, own, where, along == MEANS, directions)
    _shown(result, LIVE_AXES)


def _back_to_the_first_axes() -> None:
    for key in LIVE_AXES:
        st.session_state.pop(key, None)


def _choice(column: Any, label: str, options: Sequence[str], key: str, first: int = 0, **more: Any) -> str:
    """One of the options, kept in the address; another one there is refused with a sentence."""
    show.refuse_unknown(key, options, label.lower())
    return str(column.selectbox(label, options, first, key=key, bind="query-params", **more))


def _with_directions(found: Mapping[str, Entry], fingerprint: str) -> dict[str, dict[str, Direction]]:
    """The directions of every run of the loaded model that holds some, by the run's name."""
    runs = {}
    for name, entry in found.items():
        if entry.run is None or entry.run.record.kind not in KINDS:
            continue
        if entry.run.record.model.get("fingerprint") != fingerprint:
            continue
        try:
            run = chosen(found, name)
            runs[name] = _directions(str(run.path), run.record.finished, run)
        except WorkbenchError:
            continue  # damaged runs are shown on the Runs page
    return runs


def _at(site: str, directions: Mapping[str, Direction]) -> dict[str, Direction]:
    return {name: each for name, each in directions.items() if each.site == site}


@st.cache_resource(max_entries=64, show_spinner=False)
def _directions(path: str, finished: str, _run: Run) -> dict[str, Direction]:
    from interp.directions import directions_of

    found: dict[str, Direction] = read(_run, directions_of)
    return found


@st.cache_resource(max_entries=16, show_spinner=False)
def _projected(
    _loaded: Model,
    fingerprint: str,
    concept: str,
    own: str,
    site: str,
    mean_difference: bool,
    directions: tuple[tuple[str, Any], ...],
) -> Projection:
    from interp.projection import project
    from interp.tasks.concepts import concept as concept_named

    texts = labelled_lines(own) if concept == OWN else concept_named(concept).texts(_count(concept), 1)
    return project(
        _loaded,
        texts.texts,
        texts.labels,
        site,
        directions=dict(directions),
        components=min(3, len(texts) // 2 - 2),
        mean_difference=mean_difference,
        groups=texts.groups,
    )


def _count(name: str) -> int:
    from interp.tasks.concepts import concept

    return concept(name).at_most(120)


def labelled_lines(pasted: str) -> LabelledTexts:
    """Pasted lines of label, tab and text. Raises BadInput naming the first line that is none."""
    from interp.tasks.labelled import LabelledTexts

    if len(pasted) > CHARACTERS:
        raise BadInput(f"{len(pasted):,} characters were pasted; the explorer reads up to {CHARACTERS:,}")
    lines = [(number, line) for number, line in enumerate(pasted.splitlines(), 1) if line.strip()]
    if len(lines) > MOST_TEXTS:
        raise BadInput(f"{len(lines)} texts were pasted; the explorer reads up to {MOST_TEXTS}")
    rows = []
    for number, line in lines:
        label, tab, text = line.partition("\t")
        if not (tab and label.strip() and text.strip()):
            raise BadInput(f"line {number} is {line[:60]!r}; each needs a label, a tab and a text")
        rows.append((label.strip(), text.strip()))
    if len(rows) < 6:
        raise BadInput(f"{len(rows)} texts were pasted; a projection here takes 6 to {MOST_TEXTS}")
    return LabelledTexts("pasted", tuple(text for _, text in rows), tuple(label for label, _ in rows))
