"""Doctor: what can be read and edited in the model, and whether it agrees with itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st

from apps.explorer import live, show

if TYPE_CHECKING:
    from interp.tracing.doctor import Diagnosis
    from interp.tracing.model import Model


@show.page
def page() -> None:
    st.title("Doctor")
    found = live.model()
    if found is None:
        return
    description = found.describe()
    st.caption(f"{show.text(found.spec.name)}: {description.backend} backend, {description.attention} attention")
    st.subheader("Self-check")
    st.write(
        "Parity with a plain forward pass, the equations between the sites, attention rows against the kernel's "
        "output, and padding, on seeded random tokens."
    )
    if st.button("Check the model", key="check", type="primary"):
        st.session_state["checked"] = found.fingerprint
    if st.session_state.get("checked") == found.fingerprint:
        show.part(_diagnosis, found)
    st.subheader("Sites")
    show.table(description.frame, "sites")
    st.caption("B batch, T tokens, H query heads, K key/value heads, D width, Dh head width, M MLP width, V vocabulary")


def _diagnosis(found: Model) -> None:
    diagnosis = _checked(found, found.fingerprint)
    failed = [check for check in diagnosis.checks if not check.ok]
    if failed:
        st.error(f"{len(failed)} of {len(diagnosis.checks)} checks failed.")
    else:
        st.success(f"All {len(diagnosis.checks)} checks passed.")
    show.table(diagnosis.frame, "checks")


@st.cache_resource(max_entries=2, show_spinner="Checking the model …")
def _checked(_found: Model, fingerprint: str) -> Diagnosis:
    return _found.doctor()
