"""Circuits: which heads do a task, how well they explain it, what two tasks share, and repairing one with the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import streamlit as st

from apps.explorer import show
from apps.explorer.results import read, result_of
from apps.explorer.selection import picked
from interp.runs import Run

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from interp.circuits.discovery import Discovery
    from interp.circuits.evaluation import CircuitEvaluation
    from interp.circuits.repair import Repair
    from interp.circuits.reuse import CircuitReuse
    from interp.circuits.study import CircuitStudy
    from interp.patching.eap import EdgeScores

PERCENT = "{:.0%}".format
SHARES = st.column_config.NumberColumn(format="%.3f")
EFFECTS = dict.fromkeys(("effect", "low", "high", "copy", "anti_copy"), SHARES)


def _study(study: CircuitStudy, run: Run) -> None:
    discovery = study.discovery
    _facts(discovery)
    size = _size(discovery)
    show.part(_graph, discovery, size, run, st.session_state["circuit"])
    frame = discovery.frame
    named = frame.loc[frame["role"] != "", ["role", "layer", "head", "stage", "effect", "low", "high", "n"]]
    if len(named):
        show.table(named, f"roles-{run.path}", column_config=EFFECTS)
    with st.expander("Every head at every stage"):
        st.caption(
            "A stage corrupts what one head sends to the heads found before it. Effect: how far that moves the logit "
            "difference, as a share of the way to that of the corrupted prompts. Arrows: attention from one word to "
            "another. Copy: share of words that the head would say after reading them."
        )
        show.table(frame, f"heads-{run.path}", column_config=EFFECTS)
    st.subheader("How well do these heads explain the task?")
    show.part(_measured, study, size, run)


def _facts(discovery: Discovery) -> None:
    """What the model makes of the task, without which a circuit means nothing."""
    contrast, heads = discovery.contrast, discovery.scores.size
    left, middle, right = st.columns(3)
    _metric(left, "Right answers", f"{discovery.accuracy:.0%}", f"n = {contrast.n} prompts")
    bounds = f"{contrast.low:.3g} to {contrast.high:.3g}, n = {contrast.n}"
    _metric(middle, "Logit difference, clean less corrupted", f"{contrast.estimate:.3g}", bounds)
    _metric(right, "Heads with a role", str(len(discovery.roles)), f"of {heads}")
    _warn_without_contrast(discovery)


def _metric(column: Any, name: str, value: str, beside: str) -> None:
    column.metric(name, value, beside, "off", delta_arrow="off", border=True)


def _warn_without_contrast(discovery: Discovery) -> None:
    if not discovery.contrast.low > 0:
        st.warning(
            f"{show.text(discovery.model['name'])} does not tell {show.text(discovery.task)} prompts from corrupted "
            f"ones: the logit difference may be the same on both. Effects are shares of that difference, so here they "
            "are noise."
        )


def _size(discovery: Discovery) -> int:
    heads = discovery.scores.size
    least = min((discovery.scores[head] for head in discovery.roles), default=0.0)
    default = max(1, int((discovery.scores >= least).sum())) if discovery.roles else min(8, heads)
    return int(
        st.slider(
            "Heads, those with the largest effects first",
            1,
            heads,
            default,
            key="size",
            bind="query-params",
            help="The graph draws that many heads, and the curve below is marked there.",
        )
    )


def _graph(discovery: Discovery, size: int, run: Run, name: str) -> None:
    from interp.plots.circuit_graph import circuit_graph

    place = f"graph-{run.path}-{size}"
    show.figure(selectable(circuit_graph(discovery, size)), place, on_select="rerun", selection_mode="points")
    st.caption(
        "A line goes from a head to a later one whose queries, keys or values it feeds, or to the logits. It was "
        "found by corrupting only what passes along it. Point at a line or a head for the numbers; click a head to "
        "open it."
    )
    for layer, head in picked(st.session_state.get(place))[:1]:
        _open_head(layer, head, name)


def selectable(figure: go.Figure) -> go.Figure:
    """The figure, in which a click chooses a point and leaves the others as they are."""
    import plotly.graph_objects as go

    from interp.plots.template import INK

    shown = go.Figure(figure)
    for trace in shown.data:
        look = {
            "marker": {"opacity": 1 if trace.marker.opacity is None else trace.marker.opacity},
            "textfont": {"color": trace.textfont.color or INK},
        }
        trace.update(selected=look, unselected=look)
    return shown.update_layout(dragmode=False, clickmode="event+select")


def _open_head(layer: int, head: int, run: str) -> None:
    from apps.explorer.views import heads

    where = {"head": f"{layer}.{head}", "a": run}
    target = st.Page(heads.page, title="Heads", url_path="heads")
    st.page_link(target, label=f"Open head {layer}.{head} on the Heads page", query_params=where)


def _measured(study: CircuitStudy, size: int, run: Run) -> None:
    from interp.plots.circuits import faithfulness_plot

    if not study.evaluations:
        st.info(
            "This circuit was not evaluated: no head certainly reaches the threshold, or the run was made with "
            "--test 0."
        )
        return
    scope = show.choose_one(
        list(study.evaluations),
        "scope",
        "place",
        "Where the other heads are replaced by their means",
        said=show.text,
        help="end: at the last position, where the answer is read. everywhere: at every position.",
    )
    evaluation, curve = study.evaluations[scope], study.curves[scope]
    _kept(evaluation)
    place = f"{run.path}-{scope}"
    show.figure(evaluation.plot(), f"kept-{place}")
    show.figure(faithfulness_plot(curve, size), f"curve-{place}")
    show.figure(evaluation.plot("completeness"), f"completeness-{place}")
    st.caption(
        "The same heads are taken out of the circuit and out of the whole model. If the circuit is complete, both fall "
        "to the same logit difference. “nothing”: none is taken out; “random”: half of the circuit; “greedy”: heads "
        "that drive the two far apart."
    )
    show.figure(evaluation.plot("minimality"), f"minimality-{place}")
    st.caption(
        "What is lost when one head is taken out, together with those other heads of the circuit that make it matter "
        "most. A head whose interval reaches 0 may not be needed. The interval does not know that the largest of "
        "several losses was chosen."
    )
    with st.expander("Numbers"):
        for name, table in study.tables(scope).items():
            st.text(name)
            show.table(table, f"{name}-{place}")


def _kept(evaluation: CircuitEvaluation) -> None:
    kept, random = evaluation.kept, evaluation.random["kept"]
    sentence = (
        f"The {len(evaluation.circuit.heads)} heads {evaluation.circuit} alone keep {kept.estimate:.0%} "
        f"[{kept.low:.0%}, {kept.high:.0%}] of the model's logit difference (n = {kept.n} prompts)"
    )
    controls = (
        f"; {len(random)} random sets of as many heads of each layer keep {random.mean():.0%} on average, "
        f"{random.min():.0%} to {random.max():.0%}."
        if len(random)
        else "; no random circuits were measured."
    )
    st.text(sentence + controls)


def _overlap(reuse: CircuitReuse, run: Run) -> None:
    for discovery in (reuse.a, reuse.b):
        _warn_without_contrast(discovery)
    show.figure(reuse.plot(), f"overlap-{run.path}")
    shares = [float(share) for share in reuse.frame["share"]]
    default = min(shares, key=lambda share: abs(share - 0.1))
    share = st.select_slider(
        "Share of all heads that each stage puts into a circuit",
        shares,
        default,
        key="share",
        bind="query-params",
        format_func=PERCENT,
    )
    show.part(_shared, reuse, float(share), run)
    st.subheader("Heads with the same role")
    st.caption("A role counts as shared by the heads that pass its test in both tasks.")
    show.table(reuse.agreement, f"agreement-{run.path}")
    st.subheader("The two circuits")
    for side, discovery in (("a", reuse.a), ("b", reuse.b)):
        show.figure(discovery.plot(), f"graph-{side}-{run.path}")


def _shared(reuse: CircuitReuse, share: float, run: Run) -> None:
    from interp.plots.circuit_reuse import overlap_map

    row = reuse.frame.iloc[(reuse.frame["share"] - share).abs().argmin()]
    st.text(
        f"At {share:.0%}, {row.shared} of {row.union} heads are in both circuits: overlap {row.overlap:.2f} "
        f"[{row.overlap_low:.2f}, {row.overlap_high:.2f}] (n = {row.n_a} and {row.n_b} prompts); by chance "
        f"{row.overlap_chance:.2f}, 95 % of the draws between {row.overlap_chance_low:.2f} and "
        f"{row.overlap_chance_high:.2f}."
    )
    show.figure(overlap_map(reuse, share), f"members-{run.path}")
    show.table(reuse.members(share), f"members-table-{run.path}")


def _repair(result: Repair | CircuitReuse, run: Run) -> None:
    repair = getattr(result, "repair", result)
    if repair is None:
        st.info("This comparison was made without a repair (--test 0, or no head to force).")
        return
    frame = repair.frame
    before, after = frame.iloc[0], frame.iloc[1]
    random = frame[frame["condition"].str.startswith("random")]
    columns = st.columns(3)
    for column, name, row in zip(columns, ("Before", "After"), (before, after), strict=False):
        _metric(column, name, f"{row.accuracy:.0%}", f"{row.low:.0%} to {row.high:.0%}, n = {row.n}")
    if len(random):
        most = f"{random['accuracy'].min():.0%} to {random['accuracy'].max():.0%}"
        _metric(columns[2], "Random heads instead, on average", f"{random['accuracy'].mean():.0%}", most)
    onto = " and ".join(role.replace("_", " ") for role in repair.parameters["onto"])
    st.text(
        f"At the last word, the attention of the heads {after.heads} is divided evenly between {onto}, and nothing "
        f"else is touched: {after.repaired} wrong answers become right, {after.broken} right ones wrong "
        f"(n = {after.n} prompts). {len(random)} sets of random heads of the same layers are treated alike."
    )
    show.figure(repair.plot(), f"repair-{run.path}")
    show.table(frame, f"conditions-{run.path}")


def _edges(scores: EdgeScores, run: Run) -> None:
    st.caption(
        "An edge carries what one head or MLP writes into the input of a later one alone. Its score estimates, from "
        "gradients, how the metric changes when that is replaced by what is written on the corrupted prompt."
    )
    if scores.control is not None:
        st.text(
            f"With the answers of other prompts, which these edges cannot know, no score is larger than "
            f"{abs(scores.control).max():.3g}; the largest for the right ones is {abs(scores.scores).max():.3g} "
            f"(n = {scores.n} prompts)."
        )
    show.figure(scores.plot(), f"edges-{run.path}")
    show.table(scores.frame, f"edge-table-{run.path}")


class View(NamedTuple):
    """One way to look at runs of some kinds: their name in the address, what is said without any, what draws one."""

    kinds: tuple[str, ...]
    key: str
    none: str
    draw: Callable[[Any, Run], None]


VIEWS = {
    "one circuit": View(("circuit",), "circuit", "No circuit is saved yet: interp circuit ioi.", _study),
    "two circuits": View(("circuit-reuse",), "reuse", "No comparison is saved yet: interp circuit reuse.", _overlap),
    "repair": View(
        ("circuit-repair", "circuit-reuse"), "repair", "No repair is saved yet: interp circuit reuse.", _repair
    ),
    "edges": View(("edge-scores",), "edges", "No edges are scored yet: interp circuit edges.", _edges),
}


@show.page
def page() -> None:
    st.title("Circuits")
    view, found = VIEWS[show.choose_one(list(VIEWS), "view", "view")], show.catalogue()
    runs = {name: entry.run for name, entry in found.items() if entry.run is not None}
    names = [name for kind in view.kinds for name, run in runs.items() if run.record.kind == kind]
    run = show.choose_run("Run", found, names, view.key, view.none)
    if run is not None:
        read(run, lambda _path: view.draw(result_of(run), run))
