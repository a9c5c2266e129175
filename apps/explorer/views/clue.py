"""CLUE: right and wrong reasoning by where it moves the hidden states, and answers picked by it, beside baselines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import streamlit as st

from apps.explorer import show
from apps.explorer.catalogue import Entry
from apps.explorer.results import read, result_of
from apps.explorer.views.depth import table as _table
from interp.runs import Run

if TYPE_CHECKING:
    from probes.reranking import Ranking
    from probes.verification import Verification

VERIFICATION, RANKING = "clue-verification", "clue-ranking"
LABEL = 80
"""Characters of a question in a list to choose from."""


def section() -> None:
    st.caption(
        "CLUE reads how far the hidden states move between the beginning and the end of a chain of reasoning. From "
        "traces known to be right or wrong it keeps two means, the success and the failure centroid; a new trace "
        "counts as right when it lies nearer to the first. Length and log-probability need no hidden states: CLUE is "
        "of use only where it does better than they do."
    )
    found = show.catalogue()
    st.subheader("Right from wrong")
    show.part(_verification, found)
    st.subheader("Picking an answer among samples")
    show.part(_ranking, found)


def _of_kind(found: Mapping[str, Entry], kind: str) -> list[str]:
    return [name for name, entry in found.items() if entry.run and entry.run.record.kind == kind]


def _verification(found: Mapping[str, Entry]) -> None:
    none = "No traces are verified yet: interp probe verify collect, then fit."
    run = show.choose_run("Verification", found, _of_kind(found, VERIFICATION), "clue", none)
    if run is not None:
        result: Verification = result_of(run)
        read(run, lambda _path: _verified(run, result))


def _verified(run: Run, result: Verification) -> None:
    counts = result.scored.centroids.counts
    st.text(result.verdict)
    questions = result.scored.frame.question.nunique()
    st.caption(
        f"{show.text(result.model.get('name'))}: centroids of {counts[0]:,} right and {counts[1]:,} wrong traces, "
        f"judged on {len(result.scored):,} traces of {questions:,} other questions. Differences are paired, with 95 % "
        "intervals over questions. AUC: how often a right trace scores above a wrong one, 0.5 by chance."
    )
    show.figure(result.plot(), f"aucs-{run.path}")
    left, right = st.columns(2)
    with left:
        show.figure(result.plot("clusters"), f"clusters-{run.path}")
    with right:
        show.figure(result.plot("margins"), f"margins-{run.path}")
    show.figure(result.plot("layers"), f"layers-{run.path}")
    with st.expander("Numbers"):
        _table(result.frame, f"scores-{run.path}")
        st.caption("How much higher CLUE's margin is than each baseline, paired:")
        _table(result.against, f"against-{run.path}")
        st.caption("Layers:")
        _table(result.layers, f"layer-table-{run.path}")


def _ranking(found: Mapping[str, Entry]) -> None:
    none = "No samples are ranked yet: interp probe verify rank."
    run = show.choose_run("Ranking", found, _of_kind(found, RANKING), "ranking", none)
    if run is not None:
        result: Ranking = result_of(run)
        read(run, lambda _path: _ranked(run, result))


def _ranked(run: Run, result: Ranking) -> None:
    if result.checked:
        _judged(run, result)
    else:
        st.info("Nobody checked these traces, so nothing says how good the picks are.")
    _questions(run, result)


def _judged(run: Run, result: Ranking) -> None:
    ks = [int(k) for k in result.parameters["k"]]
    k = int(st.select_slider("Samples that vote (k)", ks, ks[len(ks) // 2], key="k", bind="query-params"))
    st.text(result.verdict(k))
    st.caption(
        "top-maj@k: the majority answer of the k samples that a score puts first. clue: those nearest to the success "
        "centroid; clue margin: those furthest on its side; any order: k random ones. majority@n: of all samples. "
        "mean@n: one random sample. greedy: the response at temperature 0. pass@n: whether any sample is right, which "
        "no way of picking can exceed. 95 % intervals over questions."
    )
    show.figure(result.plot("picks", k), f"picks-{run.path}")
    show.figure(result.plot(), f"reranking-{run.path}")
    with st.expander("Numbers"):
        _table(result.frame, f"ranking-{run.path}")
        st.caption(f"CLUE's top-maj@{k} less every other way of picking, paired:")
        _table(result.against(k), f"ranked-against-{run.path}")


def _questions(run: Run, result: Ranking) -> None:
    st.subheader("One question")
    table = result.questions
    with st.expander(f"All {len(table):,} questions"):
        _table(table, f"questions-{run.path}")
    labels = [f"{number}: {_short(question)}" for number, question in enumerate(table.question, 1)]
    show.refuse_unknown("question", labels, "question")
    chosen = st.selectbox("Question", labels, key="question", bind="query-params")
    row = table.iloc[labels.index(str(chosen))]
    candidates = result.scored.candidates(str(row.question))
    st.text(str(row.question))
    picked = {name: row[name] for name in table if name == "majority" or str(name).startswith("top-maj")}
    with st.container(horizontal=True):
        for name, answer in picked.items():
            if not str(name).endswith("right"):
                share = row.get(f"{name} right")
                said = (
                    "" if share is None else "right" if share == 1 else "wrong" if share == 0 else f"{share:.2f} right"
                )
                st.metric(str(name), show.text(answer), said or None, "off", delta_arrow="off", width="content")
    st.caption(
        "Its samples, the one nearest to the success centroid first. Distances are means of L2 over layers; margin = "
        "distance to failure less distance to success, above 0 where CLUE takes a trace for right. 0.50 right: answers "
        "that tie, half of which are right."
    )
    _table(candidates, f"candidates-{run.path}")


def _short(question: object) -> str:
    whole = " ".join(str(question).split())
    return whole if len(whole) <= LABEL else f"{whole[:LABEL]}…"
