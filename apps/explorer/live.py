"""The live model: loaded once for everyone, asked about one prompt, its answers kept."""

from __future__ import annotations

from functools import lru_cache
from threading import Lock
from typing import TYPE_CHECKING, Any

import streamlit as st

from apps.explorer.settings import settings
from apps.explorer.show import text
from interp.errors import WorkbenchError

if TYPE_CHECKING:
    from interp.attention_summary import AttentionSummary
    from interp.heads.effects import HeadEffects
    from interp.logit_lens import LogitLens
    from interp.next_token import NextToken
    from interp.tracing.model import Model

PROMPT = "When Alice and Mary went to the market, Mary gave the letter to"
IN_ADDRESS = 600
"""Characters of a prompt that still go into the page's address."""
LENS = 64
"""Positions, counted from the end, that the lens reads."""
PATTERN = 128
"""Tokens up to which an attention matrix is shown."""
LOADING = Lock()


def model() -> Model | None:
    """The model that the explorer was started with, or None, with the reason on the page."""
    name = settings().model
    if name is None:
        st.info("The explorer was started without a model, so this part is not shown.")
        return None
    found = _loaded(name)
    if not isinstance(found, str):
        return found
    st.error(f"{text(name)} could not be loaded: {text(found)}")
    if st.button("Try again", key="load-again"):
        _loaded.clear()
        _load.cache_clear()
        st.rerun()
    return None


@st.cache_resource(max_entries=1, show_spinner="Loading the model …")
def _loaded(name: str) -> Model | str:
    return ready(name)


def ready(name: str) -> Model | str:
    """The model, which holds its own lock, or why there is none; loaded once, by a page or before there is any."""
    with LOADING:
        return _load(name)


@lru_cache(maxsize=1)
def _load(name: str) -> Model | str:
    from interp.cli.models import load_model

    try:
        loaded = load_model(name)
        loaded.fingerprint  # noqa: B018 - reads all weights once, here and not on a page
    except WorkbenchError as error:
        return str(error)
    except Exception as error:  # noqa: BLE001 - a damaged model makes its libraries raise anything
        return f"{type(error).__name__}: {error}"
    return loaded


def prompt() -> str:
    """The prompt, the same on every page and in the address where it is short."""
    if "prompt" not in st.session_state:
        st.session_state.prompt = st.query_params.get("prompt", PROMPT)
    written = str(st.text_area("Prompt", key="prompt", persist_state="session", height=90))
    if len(written) <= IN_ADDRESS and written != PROMPT:
        st.query_params["prompt"] = written
    elif "prompt" in st.query_params:
        del st.query_params["prompt"]
    return written


def summary(live: Model, prompt: str) -> AttentionSummary:
    return _summary(live, live.fingerprint, prompt)


def lens(live: Model, prompt: str) -> LogitLens:
    return _lens(live, live.fingerprint, prompt)


def said_next(live: Model, prompt: str) -> NextToken:
    return _said_next(live, live.fingerprint, prompt)


def effects(live: Model, prompt: str, ablation: str) -> HeadEffects:
    """What every head's ablation costs the log-probability of the token that the model says next."""
    return _effects(live, live.fingerprint, prompt, ablation)


def without_head(live: Model, prompt: str, ablation: str, head: tuple[int, int]) -> NextToken:
    """What the model says next without one head."""
    return _without_head(live, live.fingerprint, prompt, ablation, head)


def pattern(live: Model, prompt: str, layer: int, head: int) -> Any:
    """A head's attention on the prompt, `[query key]`."""
    return _pattern(live, live.fingerprint, prompt, layer, head)


@st.cache_resource(max_entries=16, show_spinner=False)
def _summary(_live: Model, fingerprint: str, prompt: str) -> AttentionSummary:
    from interp.attention_summary import attention_summary

    return attention_summary(_live, prompt)


@st.cache_resource(max_entries=16, show_spinner="Reading every layer …")
def _lens(_live: Model, fingerprint: str, prompt: str) -> LogitLens:
    from interp.logit_lens import logit_lens

    return logit_lens(_live, prompt, last=LENS)


@st.cache_resource(max_entries=32, show_spinner=False)
def _said_next(_live: Model, fingerprint: str, prompt: str) -> NextToken:
    from interp.next_token import next_token

    return next_token(_live, prompt)


@st.cache_resource(max_entries=16, show_spinner="Ablating every head …")
def _effects(_live: Model, fingerprint: str, prompt: str, ablation: str) -> HeadEffects:
    from interp.heads.effects import ablation_effects

    return ablation_effects(_live, _with_answer(_live, prompt), ablation=ablation, metric="log-probability")


@st.cache_resource(max_entries=64, show_spinner=False)
def _without_head(_live: Model, fingerprint: str, prompt: str, ablation: str, head: tuple[int, int]) -> NextToken:
    from interp.heads.ablation import fit
    from interp.heads.fed import Fed
    from interp.next_token import next_token

    answered = _with_answer(_live, prompt)
    fitted = fit(_live, ablation, Fed.answering(answered), [head[0]])
    return next_token(_live, list(answered.tokens[0]), edits=fitted.edits([head], [0]), top=5)


@st.cache_resource(max_entries=32, show_spinner=False)
def _pattern(_live: Model, fingerprint: str, prompt: str, layer: int, head: int) -> Any:
    site = f"pattern.{layer}.{head}"
    return _live.run(prompt, read=site)[site][0].float().cpu().numpy()


def _with_answer(live: Model, prompt: str) -> Any:
    """The prompt with what the model says next as its answer."""
    from interp.next_token import one_row
    from interp.tasks.prompts import PromptSet

    says = said_next(live, prompt)
    return PromptSet((prompt,), (tuple(one_row(live, prompt)),), (says.said[0],), ((says.ids[0],),))
