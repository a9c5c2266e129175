"""Path patching: what one head does through chosen later inputs alone (Wang et al. 2022, arXiv:2211.00593).

Two passes over the clean prompt define the effect of a sender on receivers:

1. Every head's output is frozen to what it was, but the sender's is that of the counterfactual. MLPs are recomputed, or
   frozen too (`freeze_mlps`). The inputs of the receivers are recorded.
2. Nothing is frozen, and only the receivers' inputs are replaced by the recorded ones. The metric is read.

The first pass runs on single tokens (`senders.py`), many senders at once, and the second is a sweep. Both give what the
definition gives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from itertools import islice
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from interp.errors import BadInput, UnknownSite, choose
from interp.heads.scores import model_record
from interp.metrics import Metric
from interp.patching.activation import default_metrics
from interp.patching.effects import fraction_columns, mean_columns
from interp.patching.pairs import against_clean, batches, bound, check_pairs, corrupted, further, measured
from interp.patching.senders import Head, receiver_edits
from interp.patching.sweep import ExecutorName, sweep
from interp.runs import Journal, Run, load_run, save_run, staged
from interp.tables import in_notebook
from interp.tasks.prompts import PromptSet
from interp.tracing.frame import Positions, check_positions, positions_of
from interp.tracing.model import Model
from interp.tracing.plan import check_site, features
from interp.tracing.sites import Site, expand

if TYPE_CHECKING:
    import plotly.graph_objects as go

RECEIVERS = ("q", "k", "v", "resid_pre", "resid_mid", "resid_post")
SENDER_MEMORY = 2**28
"""Bytes of frozen activations that one sender pass holds, unless told otherwise."""


@dataclass(frozen=True, eq=False, repr=False)
class PathPatchingResult:
    """Metrics with one sender's path corrupted, `values` `[sender metric prompt]`, and of plain runs `[metric prompt]`.

    The effect is (patched - clean) / (corrupted - clean) of the first metric: 0 where the path carries nothing of what
    the counterfactual changes, 1 where it carries all of it.
    """

    senders: tuple[Head, ...]
    receivers: tuple[str, ...]
    metrics: tuple[str, ...]
    values: np.ndarray
    clean: np.ndarray
    corrupted: np.ndarray
    model: Mapping[str, Any]
    parameters: Mapping[str, Any]
    seed: int = 0

    def __repr__(self) -> str:
        return (
            f"PathPatchingResult({len(self.senders)} senders to {', '.join(self.receivers)}, "
            f"{self.values.shape[2]} prompts on {self.model['name']})"
        )

    @property
    def n(self) -> int:
        """How many pairs of prompts there are."""
        return self.values.shape[2]

    @cached_property
    def frame(self) -> pd.DataFrame:
        """One row a sender: layer, head, every metric's mean, its effect (ratio of means, mean of ratios), n.

        Every number has its 95 % bootstrap interval over prompts beside it (`_low`, `_high`).
        """
        layers, heads = zip(*self.senders, strict=True)
        columns: dict[str, Any] = {"layer": layers, "head": heads}
        for i, name in enumerate(self.metrics):
            columns |= mean_columns(name, self.values[:, i], self.seed)
        columns |= fraction_columns("effect", self.values[:, 0], self.clean[0], self.corrupted[0], self.seed)
        return pd.DataFrame(columns).assign(n=self.n)

    @cached_property
    def effects(self) -> np.ndarray:
        """Effect of every head as ratio of means, `[layer head]`; NaN for heads that were no senders."""
        grid = np.full((self.model["layers"], self.model["heads"]), np.nan)
        grid[tuple(zip(*self.senders, strict=True))] = self.frame.effect_ratio_of_means
        return grid

    def top(self, k: int, absolute: bool = True) -> list[Head]:
        """The k senders with the greatest effects, greatest first. Raises BadInput unless there are as many."""
        if not 1 <= k <= len(self.senders):
            raise BadInput(f"top {k} of {len(self.senders)} senders cannot be taken")
        effects = self.frame.effect_ratio_of_means.to_numpy()
        order = np.argsort(-(np.abs(effects) if absolute else effects), kind="stable")
        return [self.senders[i] for i in order[:k]]

    def to_npy(self, path: str | Path) -> None:
        """Write the map that Merullo et al. (2024) keep: -100 x effect `[layer head]`, 0 for heads that sent nothing.

        An important head is negative there. Raises UnwritableOutput.
        """
        with staged(path) as file, file.open("wb") as stream:
            np.save(stream, -100 * np.nan_to_num(self.effects), allow_pickle=False)

    def _repr_html_(self) -> str:
        return in_notebook(self, self.frame)

    def plot(self) -> go.Figure:
        """Heat map of the effects, layer by head."""
        from interp.plots.patching import path_map

        return path_map(self)

    def save(self, path: str | Path, started: datetime | None = None) -> Run:
        """Write a run folder: the frame, the values of every prompt and the effects. Raises UnwritableOutput."""
        return save_run(
            path,
            kind="path-patching",
            parameters={**self.parameters, "receivers": list(self.receivers), "metrics": list(self.metrics)},
            model=self.model,
            seed=self.seed,
            frame=self.frame,
            arrays={
                "values": self.values,
                "clean": self.clean,
                "corrupted": self.corrupted,
                "senders": np.array(self.senders),
                "effects": self.effects,
            },
            started=started,
        )

    @classmethod
    def load(cls, path: str | Path) -> PathPatchingResult:
        """Read what `save` wrote. Raises UnreadableFile, BadInput for a run of another kind."""
        run = load_run(path, "path-patching")
        parameters = dict(run.record.parameters)
        receivers, metrics = (tuple(parameters.pop(name)) for name in ("receivers", "metrics"))
        senders = tuple((int(layer), int(head)) for layer, head in run.array("senders", None, 2))
        values = run.array("values", len(senders), len(metrics), None)
        clean, corrupted = (run.array(side, len(metrics), values.shape[2]) for side in ("clean", "corrupted"))
        return cls(senders, receivers, metrics, values, clean, corrupted, run.record.model, parameters, run.record.seed)


def path_patching(
    model: Model,
    pairs: PromptSet,
    receivers: str | Sequence[str] = "logits",
    senders: Sequence[Head] | None = None,
    *,
    positions: Positions = None,
    freeze_mlps: bool = False,
    metrics: Sequence[Metric] = (),
    seed: int = 0,
    batch_size: int = 64,
    memory: int | None = None,
    executor: ExecutorName = "auto",
    journal: Journal | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PathPatchingResult:
    """The effect of every sender through the receivers' inputs alone, all senders in one sweep.

    Args:
        receivers: `"q.9.6"`, `"k.9"`, `"v.7.3"` (k and v count key/value heads), a residual stream (`"resid_pre.9"`),
            or `"logits"`, the stream that is unembedded. All of them are replaced together.
        senders: heads as (layer, head); by default every head that comes before a receiver.
        positions: where the sender is corrupted and receivers are replaced: an int, several, or a role; all by default.
        freeze_mlps: freeze MLPs like heads, so that a path is a single edge; else they are part of every path.
        metrics: by default logit difference, log-probability, KL from the clean prediction and accuracy.
        memory: bytes for frozen activations and for the sweep.
        journal: finished parts of the sweep are kept there, and those it already holds are not run again.

    Raises:
        BadInput, UnknownSite, SiteUnavailable, PromptTooLong: before any forward pass.
    """
    metrics = tuple(metrics) or default_metrics(pairs)
    check_pairs(model, pairs, metrics)
    sites = receiver_sites(model, receivers)
    heads = _senders(model, sites, senders)
    positions = _positions(pairs, positions, sites, metrics, model.spec.layers)
    parts: list[np.ndarray] = []
    clean: list[np.ndarray] = []
    corrupt: list[np.ndarray] = []
    for index, (batch, own) in enumerate(batches(pairs, metrics, batch_size)):
        own = against_clean(model, batch, own)
        sides = (batch, corrupted(batch))
        groups = receiver_edits(model, *sides, heads, sites, positions, freeze_mlps, memory or SENDER_MEMORY)
        values: list[np.ndarray] = []
        while some := list(islice(groups, _together(model, batch, sites, positions, memory or SENDER_MEMORY))):
            done = index * len(heads) + sum(map(len, values))
            told = further(progress, done, len(heads) * -(-len(pairs) // batch_size))
            part = sweep(model, batch, some, own, memory=memory, executor=executor, journal=journal, progress=told)
            values.append(part.values)
        parts.append(np.concatenate(values))
        for kept, side in zip((clean, corrupt), sides, strict=True):
            kept.append(measured(model, side, bound(model, batch, own)))
    return PathPatchingResult(
        senders=heads,
        receivers=tuple(map(str, sites)),
        metrics=tuple(metric.name for metric in metrics),
        values=np.concatenate(parts, axis=2),
        clean=np.concatenate(clean, axis=1),
        corrupted=np.concatenate(corrupt, axis=1),
        model=model_record(model),
        parameters={"prompts": pairs.hash, "positions": str(positions), "freeze_mlps": freeze_mlps},
        seed=seed,
    )


def receiver_sites(model: Model, receivers: str | Sequence[str]) -> tuple[Site, ...]:
    """The inputs that receive, in the order of the forward pass; raises UnknownSite, SiteUnavailable."""
    named = (receivers,) if isinstance(receivers, (str, Site)) else tuple(receivers)
    if not named:
        raise BadInput("path patching needs a receiver: 'logits', 'q.LAYER.HEAD', 'resid_pre.LAYER', …")
    last = f"resid_post.{model.spec.layers - 1}"
    sites = expand([last if receiver == "logits" else receiver for receiver in named], model.spec.layers)
    for site in sites:
        if site.name not in RECEIVERS:
            raise UnknownSite(
                f"{site} is no input that path patching replaces; {choose(site.name, (*RECEIVERS, 'logits'))}"
            )
        check_site(site, model.spec, model.refusals)
    for site in sites:
        if site.head is not None and site.whole in sites:
            raise BadInput(f"{site} is part of {site.whole}, which is a receiver too; name one of them")
    return tuple(sorted(sites, key=lambda site: (site.order, site.head or 0)))


def _senders(model: Model, receivers: Sequence[Site], chosen: Sequence[Head] | None) -> tuple[Head, ...]:
    """Heads that write before the last receiver reads, in layer order; raises BadInput for chosen ones that do not."""
    last = receivers[-1]
    reach = tuple(
        (layer, head)
        for layer in range(model.spec.layers)
        for head in range(model.spec.heads)
        if Site("z", layer).order < last.order
    )
    if not reach:
        raise BadInput(f"no head writes before {last} reads, so there is nothing to send")
    if chosen is None:
        return reach
    heads = tuple(sorted((int(layer), int(head)) for layer, head in chosen))
    if not heads or len(set(heads)) < len(heads):
        raise BadInput(f"the senders must be distinct and at least one; got {list(heads)}")
    for layer, head in heads:
        check_site(Site("z", layer, head), model.spec, model.refusals)
        if (layer, head) not in reach:
            raise BadInput(f"head {layer}.{head} writes after {last} reads, so it can send nothing there")
    return heads


def _positions(
    pairs: PromptSet, positions: Positions, receivers: Sequence[Site], metrics: Sequence[Metric], layers: int
) -> Positions:
    """Where to patch; only where the metric is, if nothing else can matter to it."""
    positions = positions_of(positions)
    check_positions(positions, None, [len(row) for row in pairs.tokens], pairs.spans)
    places = {metric.position for metric in metrics}
    final = all(site == Site("resid_post", layers - 1) for site in receivers)
    return places.pop() if positions is None and final and len(places) == 1 else positions


def _together(model: Model, prompts: PromptSet, receivers: Sequence[Site], positions: Positions, memory: int) -> int:
    """How many senders' recorded inputs fit into `memory`."""
    sizes = [prod(features(site, model.spec)[0 if site.head is None else 1 :]) for site in receivers]
    one = isinstance(positions, int)  # kept once, and not for every token
    tokens = len(prompts) if one else sum(map(len, prompts.tokens))
    return max(1, memory // (tokens * sum(sizes) * next(model.hf.parameters()).element_size()))
