"""Skills: where fine-tuning put one, what so few parameters carry of it, what skills share, which heads learn one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd
import streamlit as st

from apps.explorer import show
from apps.explorer.catalogue import Entry, chosen
from apps.explorer.results import result_of
from interp.runs import Run

if TYPE_CHECKING:
    from interp.skills.evaluation import Evaluation
    from interp.skills.localize import Localization
    from interp.skills.lofit import Lofit
    from interp.skills.mask import GraftMask
    from interp.skills.multitask import Overlap

Runs = Mapping[str, Entry]
MASK = "skill-localization"
MOST_MASKS = 8
"""Of which the overlap is shown: a matrix of more cannot be read."""


@show.page
def page() -> None:
    st.title("Skills")
    st.caption(
        "Fine-tuning moves every parameter. A graft takes a few of them from the fine-tuned model and leaves the rest "
        "as it was before; LoFiT trains nothing but a vector for each of a few heads."
    )
    heading, section = SECTIONS[show.choose_one(list(SECTIONS), "show", "part of this page")]
    st.header(heading)
    show.part(section, show.catalogue())


def _where(found: Runs) -> None:
    run = show.choose_run(
        "Mask", found, _named(found, MASK), "mask", "No mask is saved yet: interp skill finetune, then skill localize."
    )
    if run is None:
        return
    result: Localization = _result(run)
    mask, history = result.mask, result.history
    at = int(mask.metadata.get("step", 0))
    accuracy = history.set_index("step").accuracy
    st.text(
        f"{len(mask):,} of {mask.size:,} trainable parameters ({mask.sparsity:.2%}) of {result.model.get('name')}, "
        f"taken from a model that was taught {result.parameters.get('task')}. On the examples that chose among the "
        f"masks, the graft has accuracy {accuracy.get(at, float('nan')):.3f}; those are not the test examples."
    )
    show.figure(result.plot(), f"shares-{run.path}")
    st.text(_densest(mask))
    show.figure(result.plot("enrichment"), f"enrichment-{run.path}")
    with st.expander("Steps of the search"):
        show.table(history, f"history-{run.path}")
    with st.expander("Every parameter"):
        show.table(result.frame, f"parameters-{run.path}")


def _densest(mask: GraftMask) -> str:
    """The layer with the most beyond chance, in words."""
    table = mask.shares("layer")
    most = table.loc[(table.share - table.by_chance).idxmax()]
    where = f"Layer {int(most.layer)}" if most.layer >= 0 else "What is outside the blocks"
    return (
        f"{where} has {most.share:.1%} of the mask; of random masks of this size, 95 % have between "
        f"{most.chance_low:.1%} and {most.chance_high:.1%} there."
    )


def _carries(found: Runs) -> None:
    run = show.choose_run(
        "Evaluation",
        found,
        _named(found, "skill-evaluation"),
        "evaluation",
        "No evaluation is saved yet: interp skill evaluate, with a mask of skill localize.",
    )
    if run is None:
        return
    result: Evaluation = _result(run)
    split = show.choose_one(
        list(result.logits),
        "split",
        "set of examples",
        "Examples",
        help="test: of the domain that was taught, and never seen. ood: of another domain.",
    )
    frame = result.frame[result.frame.split == split]
    st.text(_gain(frame))
    show.figure(result.plot("accuracy", split), f"accuracy-{split}-{run.path}")
    if frame.recovered_low.notna().any():
        show.figure(result.plot("gain", split), f"gain-{split}-{run.path}")
    else:
        st.caption("Fine-tuning itself gained so little here that shares of the gain say nothing.")
    show.figure(result.plot("reliability", split), f"reliability-{split}-{run.path}")
    st.caption(
        "ECE, the expected calibration error, is how far confidence and accuracy lie apart on average; 0 is best. "
        "Other grafts appear with a click on their name."
    )
    with st.expander("Numbers"):
        show.table(frame, f"frame-{split}-{run.path}")


def _gain(frame: pd.DataFrame) -> str:
    """The smallest graft that carries more than half of the gain, beside random parameters of its number, in words."""
    before, after = frame.accuracy.iloc[:2]
    said = f"Fine-tuning takes accuracy from {before:.3f} to {after:.3f} (n = {frame.n.iloc[0]})."
    localized = frame[frame.method == "localized"].sort_values("budget")
    if localized.recovered_low.isna().all():
        return said
    enough = localized[localized.recovered > 0.5]
    graft = enough.iloc[0] if len(enough) else localized.iloc[-1]
    said += f" A graft of {100 * graft.budget:g}% of the parameters carries {_share(graft)} of that gain"
    random = frame[(frame.method == "random") & (frame.budget == graft.budget)]
    return f"{said}; as many random ones carry {random.recovered.mean():.0%}." if len(random) else f"{said}."


def _share(row: pd.Series) -> str:
    return f"{row.recovered:.0%} [{row.recovered_low:.0%}, {row.recovered_high:.0%}]"


def _shared(found: Runs) -> None:
    names = _named(found, MASK)
    saved = _named(found, "skill-overlap")
    if len(names) < 2 and not saved:
        st.info("There are no two masks to compare yet: interp skill localize, once a task.")
        return
    if len(names) >= 2:
        few = st.multiselect("Masks", names, names[:3], key="masks", bind="query-params", max_selections=MOST_MASKS)
        if len(few) < 2:
            st.info("Choose two masks or more.")
        else:
            show.part(_overlap, {name: _result(chosen(found, name)).mask for name in few})
    if saved:
        st.subheader("Saved")
        run = show.choose_run("Overlap", found, saved, "saved")
        if run is not None:
            _draw_overlap(_result(run), str(run.path))


def _overlap(masks: Mapping[str, GraftMask]) -> None:
    from interp.skills.multitask import overlap

    _draw_overlap(overlap(masks), "chosen")


def _draw_overlap(result: Overlap, key: str) -> None:
    show.figure(result.plot(), f"overlap-{key}")
    pairs = result.frame[result.frame["mask"] != result.frame["other"]]
    most = pairs.loc[pairs.share_of_other.idxmax()]
    st.text(
        f"{most.share_of_other:.1%} of {most.other} is in {most['mask']} too ({most.shared:,} parameters); of a random "
        f"mask it would be {most.by_chance:.1%}."
    )
    with st.expander("Every pair"):
        show.table(pairs, f"pairs-{key}")


def _heads(found: Runs) -> None:
    run = show.choose_run("Study", found, _named(found, "lofit"), "study", "No study is saved yet: interp skill lofit.")
    if run is None:
        return
    result: Lofit = _result(run)
    comparison = result.comparison()
    for row in comparison[comparison.condition == "random"].itertuples():
        own = result.frame[(result.frame.condition == "lofit") & (result.frame["heads"] == row.heads)]
        st.text(
            f"{row.heads} selected {'head' if row.heads == 1 else 'heads'}: accuracy {own.accuracy.mean():.3f}. As "
            f"many random ones: {own.accuracy.mean() - row.difference:.3f}. Difference {row.difference:+.3f} "
            f"[{row.low:+.3f}, {row.high:+.3f}], {row.seeds} seeds, n = {row.n}."
        )
    show.figure(result.plot(), f"accuracy-{run.path}")
    show.figure(result.plot("heads"), f"heads-{run.path}")
    with st.expander("LoFiT less every other condition"):
        show.table(comparison, f"comparison-{run.path}")
    with st.expander("Every fit"):
        show.table(result.frame, f"frame-{run.path}")


def _learning(found: Runs) -> None:
    st.subheader("Fine-tuning")
    none = "No fine-tuning is saved here: interp skill finetune."
    run = show.choose_run("Fine-tuning", found, _named(found, "skill-fine-tuning"), "tuning", none)
    if run is not None:
        tuning = _result(run)
        show.figure(tuning.plot(), f"loss-{run.path}")
        show.table(tuning.scores, f"scores-{run.path}")
    st.subheader("One task after the other")
    none = "No learning in turn is saved yet: interp skill continual."
    run = show.choose_run("Learning in turn", found, _named(found, "skill-continual"), "continual", none)
    if run is not None:
        turns = _result(run)
        show.figure(turns.plot(), f"turns-{run.path}")
        st.caption(
            "sequential: every task moves all parameters. grafting: of every task only a few moved ones are kept. "
            "drop: how far accuracy on a task fell from when it had just been learned to the end."
        )
        show.table(turns.forgetting, f"forgetting-{run.path}")


SECTIONS = {
    "masks": ("Where a skill is", _where),
    "grafts": ("What a graft carries", _carries),
    "overlap": ("What skills share", _shared),
    "lofit": ("Heads that learn a skill", _heads),
    "learning": ("Learning", _learning),
}
"""By the word in the address: the heading, and what draws the rest. The first one opens."""


def _named(found: Runs, kind: str) -> list[str]:
    return [name for name, entry in found.items() if entry.run and entry.run.record.kind == kind]


def _result(run: Run) -> Any:
    return _read(str(run.path), run.record.finished, run)


@st.cache_resource(max_entries=16, show_spinner=False)
def _read(path: str, finished: str, _run: Run) -> Any:
    return result_of(_run)
