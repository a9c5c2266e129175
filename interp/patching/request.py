"""A sweep, checked: which edits act on which prompts, from which column on, and what is measured where.

Everything that can be refused is refused here, before any forward pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from interp.errors import BadInput, SiteUnavailable
from interp.metrics import BoundMetric, Metric, bind
from interp.tracing.batch import Encoded, Padded, Prompts, Side, check_length, check_tokens, encode, pad
from interp.tracing.edits import Edit
from interp.tracing.frame import Frame, Spans, check_positions
from interp.tracing.interventions import check_donor, donor_lengths, donor_rows, selected
from interp.tracing.model import Model
from interp.tracing.plan import make_plan

Group = tuple[Edit, ...]
"""Edits that are made together."""

METRIC_ROLE = "the metric's position"


@dataclass(frozen=True)
class Pair:
    """One group of edits on one prompt: the unit of work. `column`: the first one that an edit selects."""

    group: int
    prompt: int
    layer: int
    column: int


@dataclass(frozen=True, eq=False)
class Rows:
    """Some of the prompts, as `Model.run` takes them; `indices` are their places among all prompts."""

    indices: tuple[int, ...]
    tokens: tuple[tuple[int, ...], ...]
    spans: Spans


@dataclass(frozen=True, eq=False)
class Request:
    """`frame` is that of all prompts, padded on the left: prompts of unequal length end together."""

    model: Model
    encoded: Encoded
    padded: Padded
    groups: tuple[Group, ...]
    metrics: tuple[BoundMetric, ...]
    _selections: dict[tuple[object, ...], Tensor] = field(default_factory=dict)

    @property
    def frame(self) -> Frame:
        return self.padded.frame

    @property
    def count(self) -> int:
        """How many prompts there are."""
        return len(self.encoded.rows)

    @property
    def metric_columns(self) -> Tensor:
        """The column of every metric in every prompt, `[metric prompt]`."""
        return torch.stack([m.positions for m in self.metrics]) + self.frame.offsets.cpu()

    @property
    def whole(self) -> bool:
        """Whether some metric needs the logits of the whole vocabulary."""
        return any(metric.whole for metric in self.metrics)

    @property
    def logits_needed(self) -> int:
        """Logits a prompt that the metrics use, at all their positions."""
        return sum(self.model.spec.vocab if m.whole else m.tokens.shape[1] for m in self.metrics)

    def selection(self, edit: Edit) -> Tensor:
        """Columns that an edit selects, `[prompt width]` bool; edits of the same positions share the answer."""
        lengths = donor_lengths(edit, self.count) if "donor" in edit.tensors else None
        where = edit.positions
        place = (where.start, where.stop, "slice") if isinstance(where, slice) else where
        key = (place, edit.rows, None if lengths is None else tuple(lengths.tolist()))
        if key not in self._selections:
            self._selections[key] = selected(edit, self.frame).cpu()
        return self._selections[key]

    @cached_property
    def pairs(self) -> list[Pair]:
        """Every group with every prompt whose metrics it can change; raises BadInput for edits that select nothing."""
        width = self.frame.width
        columns = torch.arange(width)
        causal = self.model.parts.architecture.causal
        ends = self.metric_columns.amax(0).tolist() if causal else [width] * self.count
        firsts: dict[int, list[int]] = {}
        pairs = []
        for g, group in enumerate(self.groups):
            earliest = [width] * self.count
            for edit in group:
                chosen = self.selection(edit)
                if id(chosen) not in firsts:
                    firsts[id(chosen)] = torch.where(chosen, columns, width).amin(1).tolist()
                here = firsts[id(chosen)]
                if min(here) == width:
                    raise BadInput(f"{edit} selects no token of any prompt, so it could have no effect")
                earliest = [min(a, b) for a, b in zip(earliest, here, strict=True)]
            layer = min(first_layer(edit, self.model.spec.layers) for edit in group)
            pairs += [Pair(g, p, layer, c) for p, c in enumerate(earliest) if c < width and c <= ends[p]]
        return pairs

    def rows(self, indices: Sequence[int]) -> Rows:
        """Some prompts, with the role METRIC_ROLE at the metrics' position where they share one."""
        spans = {role: [of_role[i] for i in indices] for role, of_role in self.encoded.spans.items()}
        first = self.metrics[0].positions
        if self.one_position:
            spans[METRIC_ROLE] = [(int(first[i]), int(first[i]) + 1) for i in indices]
        return Rows(tuple(indices), tuple(self.encoded.rows[i] for i in indices), spans)

    @property
    def one_position(self) -> bool:
        """Whether all metrics are computed at the same position of a prompt."""
        return all(bool((m.positions == self.metrics[0].positions).all()) for m in self.metrics)

    def restricted(self, edit: Edit, indices: Sequence[int]) -> Edit:
        """The edit as it acts on these prompts alone, whose rows are counted anew."""
        if list(indices) == list(range(self.count)):
            return edit
        tensors: Mapping[str, Tensor] = edit.tensors
        kind = edit.kind
        if "donor" in tensors and (len(tensors["donor"]) > 1 or kind == "resample"):
            chosen = donor_rows(edit, self.count)[list(indices)]
            taken = {name: tensors[name] for name in ("donor", "donor_lengths") if name in tensors}
            tensors = {**tensors, **{name: tensor[chosen.to(tensor.device)] for name, tensor in taken.items()}}
            kind = "patch" if kind == "resample" else kind
        rows = None if edit.rows is None else tuple(i for i, p in enumerate(indices) if p in edit.rows)
        return replace(edit, kind=kind, tensors=tensors, rows=rows)


def first_layer(edit: Edit, layers: int) -> int:
    """The first layer that an edit can change; `layers` for what comes after them all."""
    if edit.site.layer is not None:
        after = edit.site.name == "resid_post" and edit.site.layer + 1 < layers
        return edit.site.layer + after
    return 0 if edit.site.name == "embed" else layers


def check(
    model: Model, prompts: Prompts, edits: Sequence[Edit | Sequence[Edit]], metrics: Metric | Sequence[Metric]
) -> Request:
    """The sweep that is asked for; raises BadInput (UnknownSite, SiteUnavailable, PromptTooLong) for what cannot be."""
    if model.hf.training:
        raise BadInput("the model is in training mode, so dropout is on; call model.hf.eval() first")
    if "logits" in model.refusals:
        raise SiteUnavailable("logits", model.refusals["logits"])
    encoded = encode(prompts, model.tokenizer)
    check_tokens(encoded, model.spec.vocab)
    check_length(encoded, model.spec.context)
    groups = tuple(_group(item) for item in edits)
    if not groups:
        raise BadInput("a sweep needs at least one edit")
    bound = bind(metrics, encoded, prompts, model.spec.vocab)
    side: Side = "left" if model.parts.architecture.causal else "right"
    padded = pad(encoded, 0, side, _pad_id(model), model.device, model.parts.architecture.first_position)
    every = list(dict.fromkeys(edit for group in groups for edit in group))
    make_plan(model.spec, model.refusals, (), every, batch=len(encoded.rows))
    for edit in every:
        check_positions(edit.positions, edit.rows, encoded.lengths, encoded.spans)
        if "donor" in edit.tensors:
            check_donor(edit, padded.frame)
        if edit.kind == "attend" and edit.parameters["to"] != "uniform":
            check_positions(edit.parameters["to"], edit.rows, encoded.lengths, encoded.spans)
    return Request(model, encoded, padded, groups, bound)


def _group(item: Edit | Sequence[Edit]) -> Group:
    group = (item,) if isinstance(item, Edit) else tuple(item)
    for edit in group:
        if not isinstance(edit, Edit):
            raise BadInput(f"{edit!r} is not an edit; make one with interp.zero, interp.patch, …")
    if not group:
        raise BadInput("a group of edits is empty; the base run is part of every sweep's result")
    return group


def _pad_id(model: Model) -> int:
    pad_id = getattr(model.tokenizer, "pad_token_id", None)
    return pad_id if pad_id is not None and pad_id < model.spec.vocab else 0
