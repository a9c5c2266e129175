"""Pruning: in which order heads can go, and what is left of a metric after each (Michel et al. 2019, section 4).

One-shot pruning ranks all heads once; greedy pruning ranks what is left again after every few; random pruning is the
control of both. A removed head is zero, so a model pruned to any step equals its compacted self
(`kernels.compaction`), and on attention "workbench" its heads are not computed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pandas as pd
import torch

from interp.errors import BadInput, choose
from interp.heads.ablation import Head, fit
from interp.heads.answers import Metric, check_metric, recall_under
from interp.heads.effects import ablation_effects
from interp.heads.fed import Fed
from interp.heads.importance import GateGradients, Order, gate_gradients
from interp.heads.mask import HeadMask
from interp.heads.scores import model_record
from interp.runs import Journal, Run, load_run, save_run
from interp.stats import bootstrap_means
from interp.tables import in_notebook
from interp.tasks.prompts import PromptSet
from interp.tracing.edits import zero
from interp.tracing.model import Model
from kernels.compaction import Compaction

if TYPE_CHECKING:
    import plotly.graph_objects as go

Strategy = Literal["greedy", "one-shot", "random"]
By = Literal["importance", "effect", "mask"]
Unit = Literal["head", "kv-group"]
Progress = Callable[[int, int], None]

ORDER: Order = "mean-of-abs"
"""The paper's importance."""


@dataclass(frozen=True, eq=False, repr=False)
class Pruning:
    """Heads in the order in which they went, and the metric after each step.

    `frame` has a row for the whole model and one a step and strategy: removed (how many heads are gone), heads (those
    that went in this step), the metric with its interval over the tests. Rows of the random control name their seed.
    """

    frame: pd.DataFrame
    order: tuple[Head, ...]
    model: Mapping[str, Any]
    parameters: Mapping[str, Any]

    def removed(self, count: int | None = None) -> dict[int, list[int]]:
        """The first `count` heads that went (all by default), by layer: what `kernels.compaction.compact` takes."""
        by_layer: dict[int, list[int]] = {}
        for layer, head in self.order[:count]:
            by_layer.setdefault(layer, []).append(head)
        return by_layer

    def plot(self) -> go.Figure:
        """The metric against the number of heads removed, beside random orders with their band."""
        from interp.plots.ablation import removal_curves

        frame = self.frame.assign(relative=self.frame.value, ablation="zero")
        title = f"{self.model['name']}: {self.parameters['metric']} as heads go, n = {frame.n.iloc[0]}"
        return removal_curves(frame, str(self.parameters["metric"]), title=title)

    def save(self, path: str | Path, started: datetime | None = None, **files: Any) -> Run:
        """Write a run folder: the table of steps, the order of heads. Raises UnwritableOutput."""
        return save_run(
            path,
            kind="head-pruning",
            parameters=self.parameters,
            model=self.model,
            seed=int(self.parameters["seed"]),
            frame=self.frame,
            arrays={"order": np.array(self.order, dtype=np.int64).reshape(-1, 2)},
            files=files,
            started=started,
        )

    @classmethod
    def load(cls, path: str | Path) -> Pruning:
        """Read what `save` wrote. Raises UnreadableFile, BadInput for a run of another kind."""
        run = load_run(path, "head-pruning")
        order = tuple((int(layer), int(head)) for layer, head in run.array("order", None, 2))
        return cls(run.frame, order, run.record.model, run.record.parameters)

    def __repr__(self) -> str:
        what = f"{self.parameters['metric']} of {self.model['name']}"
        return f"Pruning({what}: {len(self.order)} heads removed, {self.frame.n.iloc[0]} tests)"

    def _repr_html_(self) -> str:
        return in_notebook(self, self.frame)


def prune(
    model: Model,
    prompts: PromptSet,
    budget: int,
    *,
    strategy: Strategy = "greedy",
    by: By = "importance",
    every: int = 1,
    unit: Unit = "head",
    metric: Metric = "log-probability",
    mask: HeadMask | None = None,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    seed: int = 0,
    journal: Journal | None = None,
    progress: Progress | None = None,
) -> Pruning:
    """Remove `budget` heads, the least needed first, and measure after every step.

    Args:
        strategy: `"greedy"` ranks again after every `every` units, with what is gone gone; `"one-shot"` ranks once;
            `"random"` orders by `seed`.
        by: `"importance"` from gradients, `"effect"` of exact zero ablation, or the scores of `mask`.
        unit: `"kv-group"` removes key/value heads with all their query heads, which is what compaction can slice of
            grouped-query models; `budget` still counts query heads.
        seeds: random orders to compare with, each a control.
        journal: finished rankings and measurements are kept there, and those it holds are not made again.

    Raises BadInput for a budget that is not between 1 and the number of heads (or no multiple of a group), unknown
    strategies, criteria and metrics, a missing mask, and prompts without answers; MaskMismatch for another model's.
    """
    units = _units(model, unit)
    _check(model, units, budget, strategy, by, every, mask, metric, prompts)
    steps = budget // len(units[0])
    work = _Work(model, prompts, metric, seed, journal, progress, total=1 + steps * (1 + len(seeds)))

    def criterion(gone: Sequence[Head]) -> np.ndarray:
        """What each head is worth, `[layer head]`, with others already gone."""
        if by == "mask":
            assert mask is not None
            return mask.scores
        return np.array(work.once(f"{by} without {_names(gone)}", lambda: _criterion(model, prompts, metric, by, gone)))

    order = _random(units, seed)[:steps] if strategy == "random" else _order(units, steps, strategy, every, criterion)
    rows = [work.row("none", -1, (), ())]
    rows += work.rows("chosen", -1, order)
    for s in seeds:
        rows += work.rows("random", s, _random(units, s)[:steps])
    about = {"strategy": strategy, "by": "chance" if strategy == "random" else by, "ablation": "zero"}
    frame = pd.DataFrame([{**about, "attention": model.attention, "metric": metric, **row} for row in rows])
    parameters: dict[str, Any] = {"strategy": strategy, "by": by, "every": every, "unit": unit, "metric": metric}
    parameters |= {"budget": budget, "seeds": list(seeds), "seed": seed, "prompts": prompts.hash}
    return Pruning(frame, tuple(head for part in order for head in part), model_record(model), parameters)


def check_sliceable(model: Model, unit: Unit) -> None:
    """Raise BadInput (or UnsupportedRequest, for the family) where pruned weights could not be written."""
    Compaction.of(model.hf, {})
    spec = model.spec
    if unit == "head" and spec.kv_heads != spec.heads:
        raise BadInput(
            f"{spec.name} shares each key/value head among {spec.heads // spec.kv_heads} heads, and weights are sliced "
            "by whole groups: prune by unit kv-group"
        )


@torch.no_grad()
def save_pruned(model: Model, pruning: Pruning, folder: str | Path, *, allow_plan_file: bool = False) -> float:
    """Slice the removed heads out of `model`, in place, and write it to a new folder, with its tokenizer.

    Returns the largest difference of the sliced model's logits from those of the gated one, on a few random tokens.
    Raises UnsupportedRequest where no ordinary folder can hold it (unless `allow_plan_file`) and for families that are
    not sliced, InvalidRequest for a folder that is there already; the model is whole then.
    """
    compaction = Compaction.of(model.hf, pruning.removed())
    if not allow_plan_file and (reason := compaction.obstacle(model.hf)):
        raise BadInput(f"no ordinary folder can hold this model: {reason}; --plan-file writes one that we read")
    tokens = np.random.default_rng(0).integers(model.spec.vocab, size=min(32, model.spec.context or 32))
    edits = [zero(f"z.{layer}.{head}") for layer, head in pruning.order]
    gated = model.run(tokens.tolist(), edits=edits, logits="all").logits
    compaction.apply(model.hf)
    sliced = model.hf(input_ids=torch.tensor(tokens, device=model.device)[None], use_cache=False).logits
    compaction.save(model.hf, folder, allow_plan_file=allow_plan_file)
    if model.tokenizer is not None:
        model.tokenizer.save_pretrained(folder)
    return float((gated - sliced).abs().max())


def _units(model: Model, unit: Unit) -> list[tuple[Head, ...]]:
    """What is removed together."""
    if unit not in get_args(Unit):
        raise BadInput(f"there is no unit {unit!r}; {choose(unit, get_args(Unit))}")
    spec = model.spec
    size = 1 if unit == "head" else spec.heads // spec.kv_heads
    starts = range(0, spec.heads, size)
    return [tuple((layer, start + i) for i in range(size)) for layer in range(spec.layers) for start in starts]


def _check(
    model: Model,
    units: Sequence[Sequence[Head]],
    budget: int,
    strategy: str,
    by: str,
    every: int,
    mask: HeadMask | None,
    metric: str,
    prompts: PromptSet,
) -> None:
    heads, size = len(units) * len(units[0]), len(units[0])
    if not 1 <= budget <= heads:
        raise BadInput(f"{budget} heads cannot be removed: {model.spec.name} has {heads}, so 1 to {heads}")
    if budget % size:
        raise BadInput(f"{budget} heads are no whole groups of {size} query heads; remove a multiple of {size}")
    if strategy not in get_args(Strategy):
        raise BadInput(f"there is no strategy {strategy!r}; {choose(strategy, get_args(Strategy))}")
    if by not in get_args(By):
        raise BadInput(f"heads are not ranked by {by!r}; {choose(by, get_args(By))}")
    if every < 1:
        raise BadInput(f"every={every}: at least one head goes before the others are ranked again")
    if (by == "mask") != (mask is not None):
        raise BadInput("pruning by mask needs a mask, and by anything else it takes none")
    if by == "mask" and strategy == "greedy":
        raise BadInput("a mask ranks heads once, so there is nothing to rank again; valid: one-shot")
    if mask is not None:
        if mask.kind != "query":
            raise BadInput("this mask scores key/value heads; pruning needs one of query heads")
        mask.check(model.spec, model.fingerprint)
    check_metric(metric, prompts)
    if metric == "recall" and by == "importance" and strategy != "random":
        raise BadInput("recall has no gradient to rank heads by; valid: log-probability, logit-difference")


def _order(
    units: Sequence[tuple[Head, ...]],
    steps: int,
    strategy: Strategy,
    every: int,
    criterion: Callable[[Sequence[Head]], np.ndarray],
) -> list[tuple[Head, ...]]:
    """The units in the order of their removal, those worth least first; equal ones by layer and head."""
    order: list[tuple[Head, ...]] = []
    while len(order) < steps:
        worth = criterion([head for part in order for head in part])
        left = [part for part in units if part not in order]
        ranked = sorted(left, key=lambda part: sum(worth[head] for head in part))
        order += ranked[: min(every, steps - len(order)) if strategy == "greedy" else steps]
    return order


def _random(units: Sequence[tuple[Head, ...]], seed: int) -> list[tuple[Head, ...]]:
    return [units[i] for i in np.random.default_rng(seed).permutation(len(units))]


def _criterion(model: Model, prompts: PromptSet, metric: Metric, by: By, gone: Sequence[Head]) -> list[list[float]]:
    if by == "effect":
        effects = ablation_effects(model, prompts, ablation="zero", metric=metric, removed=gone).effects
        return np.nan_to_num(effects).tolist()
    gradients: GateGradients = gate_gradients(model, prompts, metric=metric, removed=gone)
    return gradients.importance(ORDER).tolist()


def _names(heads: Sequence[Head]) -> str:
    return " ".join(f"{layer}-{head}" for layer, head in heads)


@dataclass
class _Work:
    """Measures models with heads removed, each set of them once, keeping what is done in the journal."""

    model: Model
    prompts: PromptSet
    metric: Metric
    seed: int
    journal: Journal | None
    progress: Progress | None
    total: int
    finished: int = 0

    def once(self, key: str, compute: Callable[[], Any]) -> Any:
        if self.journal is None:
            return compute()
        if key not in self.journal.done:
            self.journal.append(key, compute())
        return self.journal.done[key]

    def rows(self, kind: str, draw: int, order: Sequence[tuple[Head, ...]]) -> list[dict[str, Any]]:
        gone: list[Head] = []
        rows = []
        for part in order:
            gone += part
            rows.append(self.row(kind, draw, gone, part))
        return rows

    def row(self, kind: str, draw: int, gone: Sequence[Head], part: Sequence[Head]) -> dict[str, Any]:
        values = np.array(self.once(f"metric without {_names(sorted(gone))}", lambda: self._measure(gone)))
        low, high = bootstrap_means(values[:, None], seed=self.seed)
        self.finished += 1
        if self.progress:
            self.progress(self.finished, self.total)
        row: dict[str, Any] = {"heads": kind, "seed": draw, "removed": len(gone), "which": _names(part)}
        return row | {"value": values.mean(), "low": low[0], "high": high[0], "n": len(values)}

    def _measure(self, gone: Sequence[Head]) -> list[float]:
        fitted = fit(self.model, "zero", Fed.answering(self.prompts), [layer for layer, _ in gone])
        return recall_under(self.model, self.prompts, fitted, list(gone)).metric(self.metric).tolist()
