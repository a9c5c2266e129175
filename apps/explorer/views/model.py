"""Model: its card and sizes, and what it makes of a prompt."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import streamlit as st

from apps.explorer import live, show
from apps.explorer.differences import said
from interp.shipped import data_folder

if TYPE_CHECKING:
    from interp.tracing.model import Model

CARD_CHARACTERS = 20_000


@show.page
def page() -> None:
    st.title("Model")
    found = live.model()
    if found is None:
        return
    spec = found.spec
    facts = {
        "layers": spec.layers,
        "heads": f"{spec.heads} ({spec.kv_heads} kv)",
        "width": spec.width,
        "vocabulary": f"{spec.vocab:,}",
        "context": "none" if spec.context is None else f"{spec.context:,}",
        "parameters": f"{spec.parameters / 1e6:,.1f} M",
    }
    with st.container(horizontal=True):
        for name, value in facts.items():
            st.metric(name, str(value), width="content")
    with st.expander(f"About {show.text(spec.name)}"):
        _about(found)
    prompt = live.prompt()
    show.part(_tokens, found, prompt)
    show.part(_next, found, prompt)
    show.part(_lens, found, prompt)
    show.part(_attention, found, prompt)


def _about(found: Model) -> None:
    facts = {**found.spec.as_dict(), "fingerprint": found.fingerprint, "attention": found.attention}
    facts |= {"backend": found.backend.name, "device": str(found.device)}
    rows = [(name.replace("_", " "), said(value)) for name, value in facts.items()]
    show.table(pd.DataFrame(rows, columns=["fact", "value"]), "spec")
    card = _card(found.spec.name)
    if card is not None:
        st.markdown(card)


def _card(name: str) -> str | None:
    """The card of a bundled model; those of others are foreign text and stay where they are."""
    bundled = {path.parent.name: path for path in data_folder().glob("*/README.md")}
    path: Path | None = bundled.get(name)
    return None if path is None else path.read_text(encoding="utf-8")[:CARD_CHARACTERS]


def _tokens(found: Model, prompt: str) -> None:
    if found.tokenizer is None:
        return
    parts = found.tokens(prompt) if prompt else []
    st.caption(f"{len(parts):,} tokens; hover for the position")
    show.tokens(parts)


def _next(found: Model, prompt: str) -> None:
    st.subheader("Next token")
    show.figure(live.said_next(found, prompt).plot(), "next-token")


def _lens(found: Model, prompt: str) -> None:
    st.subheader("Logit lens")
    lens = live.lens(found, prompt)
    if lens.parameters["first"]:
        st.caption(f"The last {len(lens.tokens)} of {lens.parameters['prompt_tokens']:,} positions.")
    show.figure(lens.plot(), "lens")
    left, right = st.columns(2)
    site = left.selectbox("After", lens.sites[::-1], key="lens-site")
    place = (
        right.select_slider(
            "Position", range(len(lens.tokens)), len(lens.tokens) - 1, key="lens-position", format_func=str
        )
        if len(lens.tokens) > 1
        else 0
    )
    show.table(lens.top(site, place), "lens-top", column_config=PROBABILITY)


PROBABILITY = {"probability": st.column_config.ProgressColumn("probability", min_value=0, max_value=1, format="%.3f")}


def _attention(found: Model, prompt: str) -> None:
    st.subheader("Attention")
    st.caption("Measured inside the attention kernel; no attention matrix is built.")
    from interp.attention_summary import STATISTICS

    summary = live.summary(found, prompt)
    statistic = st.selectbox("Statistic", STATISTICS, key="statistic", format_func=STATISTICS.__getitem__)
    show.figure(summary.plot(statistic), "attention")
    with st.expander("All heads"):
        show.table(summary.frame, "attention-heads")
