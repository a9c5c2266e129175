"""Activation patching: which layers, positions, heads or neurons carry what differs between a prompt and its twin.

`denoise` runs the corrupted prompts (the counterfactuals) and puts clean activations in: what restores the behaviour
suffices for it. `noise` runs the clean prompts and puts corrupted activations in: what breaks it is necessary
(Heimersheim and Nanda 2024, arXiv:2404.15255). Several metrics stand side by side, because they can disagree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch

from interp.errors import BadInput
from interp.heads.scores import model_record
from interp.metrics import Metric, accuracy, kl, log_probability, logit_difference
from interp.patching.effects import fraction_columns, mean_columns
from interp.patching.pairs import against_clean, batches, bound, check_pairs, corrupted, further, measured
from interp.patching.sweep import ExecutorName, sweep
from interp.patching.units import By, Direction, Unit, check_choices, patching_units, position_labels
from interp.runs import Journal, Run, load_run, save_run
from interp.tables import in_notebook
from interp.tasks.prompts import PromptSet
from interp.tracing.edits import Edit, patch, swap_subspace
from interp.tracing.model import Model
from interp.tracing.trace import Trace

if TYPE_CHECKING:
    import plotly.graph_objects as go

Method = Literal["exact", "attribution", "ig"]


@dataclass(frozen=True, eq=False, repr=False)
class PatchingResult:
    """Metrics under every patch, `values` `[unit metric prompt]`, and without any on both sides `[metric prompt]`.

    `units[i]` is what was patched for `values[i]`. The first metric is also given normalised, (patched - corrupted) /
    (clean - corrupted): 1 is the clean run, 0 the corrupted one, in either direction. `method` says whether values were
    computed or estimated from gradients. `labels` name the positions that were patched.
    """

    method: Method
    site: str
    by: By
    direction: Direction
    units: tuple[Unit, ...]
    metrics: tuple[str, ...]
    values: np.ndarray
    clean: np.ndarray
    corrupted: np.ndarray
    labels: tuple[str, ...]
    model: Mapping[str, Any]
    parameters: Mapping[str, Any]
    seed: int = 0

    def __repr__(self) -> str:
        units, _, prompts = self.values.shape
        what = f"{self.site} by {self.by}, {self.direction}, {self.method}"
        return f"PatchingResult({what}: {units} patches x {prompts} prompts on {self.model['name']})"

    @property
    def n(self) -> int:
        """How many pairs of prompts there are."""
        return self.values.shape[2]

    @property
    def base(self) -> np.ndarray:
        """The metrics of the run that was patched, `[metric prompt]`."""
        return self.corrupted if self.direction == "denoise" else self.clean

    @cached_property
    def frame(self) -> pd.DataFrame:
        """One row a patch: where, every metric's mean, the first one normalised (ratio of means, mean of ratios), n.

        Every number has its 95 % bootstrap interval over prompts beside it (`_low`, `_high`).
        """
        columns: dict[str, Any] = {}
        for name in Unit._fields:
            column = [getattr(unit, name) for unit in self.units]
            if column[0] is not None:
                columns[name] = list(map(str, column)) if any(isinstance(value, str) for value in column) else column
        for i, name in enumerate(self.metrics):
            columns |= mean_columns(name, self.values[:, i], self.seed)
        columns |= fraction_columns("normalised", self.values[:, 0], self.corrupted[0], self.clean[0], self.seed)
        return pd.DataFrame(columns).assign(n=self.n)

    def _repr_html_(self) -> str:
        return in_notebook(self, self.frame)

    def plot(self, column: str = "normalised_ratio_of_means") -> go.Figure:
        """Heat map of a column of the frame, layers downwards; raises BadInput for a column it does not have."""
        from interp.plots.patching import patching_map

        return patching_map(self, column)

    def save(self, path: str | Path, started: datetime | None = None) -> Run:
        """Write a run folder: the frame, and the values of every prompt. Raises UnwritableOutput."""
        described = {
            "method": self.method,
            "site": self.site,
            "by": self.by,
            "direction": self.direction,
            "metrics": list(self.metrics),
            "labels": list(self.labels),
            "units": [list(unit) for unit in self.units],
        }
        return save_run(
            path,
            kind="patching",
            parameters={**self.parameters, **described},
            model=self.model,
            seed=self.seed,
            frame=self.frame,
            arrays={"values": self.values, "clean": self.clean, "corrupted": self.corrupted},
            started=started,
        )

    @classmethod
    def load(cls, path: str | Path) -> PatchingResult:
        """Read what `save` wrote. Raises UnreadableFile, BadInput for a run of another kind."""
        run = load_run(path, "patching")
        described = dict(run.record.parameters)
        method, site, by, direction = (described.pop(name) for name in ("method", "site", "by", "direction"))
        metrics, labels, units = (described.pop(name) for name in ("metrics", "labels", "units"))
        values = run.array("values", len(units), len(metrics), None)
        clean, corrupted = (run.array(side, len(metrics), values.shape[2]) for side in ("clean", "corrupted"))
        return cls(
            method,
            site,
            by,
            direction,
            tuple(Unit(*unit) for unit in units),
            tuple(metrics),
            values,
            clean,
            corrupted,
            labels=tuple(labels),
            model=run.record.model,
            parameters=described,
            seed=run.record.seed,
        )


def activation_patching(
    model: Model,
    pairs: PromptSet,
    site: str,
    by: By = "layer",
    direction: Direction = "denoise",
    *,
    metrics: Sequence[Metric] = (),
    positions: Sequence[int | str] = (),
    neurons: Sequence[int] = (),
    seed: int = 0,
    batch_size: int = 64,
    memory: int | None = None,
    executor: ExecutorName = "auto",
    journal: Journal | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PatchingResult:
    """Patch every unit of a site on its own, between prompts and their counterfactuals.

    Args:
        pairs: clean prompts with an aligned counterfactual.
        site: of every layer (`"z"`) or of some (`"resid_pre.2-5"`).
        by: `"layer"`, `"head"` and `"neuron"` patch at all of `positions` together, `"position"` (in every layer) and
            `"head_position"` at each alone. Neurons are the features of the site, as in `mlp_post`.
        metrics: by default logit difference, log-probability, KL from the clean prediction and accuracy.
        positions: token positions or role names; all tokens by default.
        neurons: only these features.
        seed: of the bootstrap.

    Raises:
        BadInput, UnknownSite, SiteUnavailable, PromptTooLong: before any forward pass.
    """
    check_choices(by, direction)
    metrics = tuple(metrics) or default_metrics(pairs)
    check_pairs(model, pairs, metrics)
    units = patching_units(model, pairs, site, by, positions, neurons)
    together = tuple(positions) if by in ("layer", "head", "neuron") else ()
    parts: list[np.ndarray] = []
    clean: list[np.ndarray] = []
    corrupt: list[np.ndarray] = []
    for index, (batch, own) in enumerate(batches(pairs, metrics, batch_size)):
        own = against_clean(model, batch, own)
        sides = (batch, corrupted(batch))
        base, donor = sides[::-1] if direction == "denoise" else sides
        trace = model.run(donor, read=sorted({f"{unit.site}.{unit.layer}" for unit in units}))
        edits = [unit_edits(unit, trace, together) for unit in units]
        done = index * len(units)
        result = sweep(
            model,
            base,
            edits,
            own,
            memory=memory,
            executor=executor,
            journal=journal,
            progress=further(progress, done, len(units) * -(-len(pairs) // batch_size)),
        )
        parts.append(result.values)
        for kept, side in zip((clean, corrupt), sides, strict=True):
            kept.append(measured(model, side, bound(model, batch, own)))
    return PatchingResult(
        method="exact",
        site=site,
        by=by,
        direction=direction,
        units=units,
        metrics=tuple(metric.name for metric in metrics),
        values=np.concatenate(parts, axis=2),
        clean=np.concatenate(clean, axis=1),
        corrupted=np.concatenate(corrupt, axis=1),
        labels=position_labels(model, pairs, units, together),
        model=model_record(model),
        parameters={
            "prompts": pairs.hash,
            "positions": list(positions),
            "neurons": list(neurons),
            "executor": result.parameters["executor"],
            "reason": result.parameters["reason"],
        },
        seed=seed,
    )


def default_metrics(pairs: PromptSet) -> tuple[Metric, ...]:
    """Those that the prompts allow; the first is the one that is normalised."""
    if len(pairs) and not pairs.answer_tokens:
        raise BadInput("the metrics of patching need answers, and these prompts have none; name metrics that do not")
    first = (logit_difference(),) if pairs.distractor_tokens else ()
    return (*first, log_probability(), kl(), accuracy())


def unit_edits(unit: Unit, donor: Trace, together: Sequence[int | str]) -> tuple[Edit, ...]:
    """The edits that patch one unit, at its own position or at all of `together`."""
    site = f"{unit.site}.{unit.layer}"
    if unit.neuron is not None:
        value = donor[site]
        direction = torch.zeros(value.flatten(2).shape[-1], device=value.device)
        direction[unit.neuron] = 1
        edit = swap_subspace(site, direction, donor)
    else:
        edit = patch(site if unit.head is None else f"{site}.{unit.head}", donor)
    places = together if unit.position is None else (unit.position,)
    numbers = tuple(place for place in places if isinstance(place, int))
    roles = [place for place in places if isinstance(place, str)]
    if not places:
        return (edit,)
    return (*((edit.at(positions=numbers),) if numbers else ()), *(edit.at(positions=role) for role in roles))
