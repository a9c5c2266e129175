"""The shared executor: the base run once, then only the layers and columns that each edit can change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import groupby

import torch
from torch import Tensor

from interp.patching.flops import Costs
from interp.patching.request import Pair, Request, first_layer
from interp.patching.walk import Base, Placed, Stack, base_run, can_unembed_few, first_read, walk
from interp.tracing.edits import Edit
from interp.tracing.families import ARCHITECTURES
from interp.tracing.frame import Frame
from interp.tracing.sites import Site

ATTENTION = ("eager", "sdpa", "workbench")
"""Attention implementations that take the masks of stacked rows."""
CHUNK_TOKENS = {"cpu": 1024, "cuda": 2**16}
"""Tokens computed together at most: a processor's caches hold no more, an accelerator wants many."""
CHUNK_KEYS = 16
"""Keys a chunk may copy, in units of CHUNK_TOKENS."""
WASTE = 0.12
"""Share of a chunk's columns that may lie before the first edited one of their row, so that chunks are not tiny."""


def refusal(request: Request) -> str | None:
    """Why sharing is not known to be exact here, if so."""
    model = request.model
    architecture = model.parts.architecture
    if model.backend.name != "hooks":
        return f"the {model.backend.name} backend runs whole forward passes"
    if not architecture.causal:
        return f"{architecture.family} is an encoder: an edit changes what comes before it, too"
    if architecture.family not in ARCHITECTURES:
        return (
            f"the family {architecture.family} is not in the table of families, so what its layers share is not known"
        )
    if model.attention not in ATTENTION:
        return f"{model.attention} attention is not among {', '.join(ATTENTION)}"
    if len(set(getattr(model.hf, "hf_device_map", None) or ())) > 1:
        return "the layers are spread over several devices"
    for group in request.groups:
        for edit in group:
            if edit.site.name in ("final_norm", "logits"):
                return f"{edit} comes after the last layer"
    return None


class Shared:
    """Rows of a chunk are pairs of a group and a prompt; all are computed from the chunk's first edited column on."""

    name = "shared"

    def __init__(self, request: Request) -> None:
        self.request = request
        self.flops = 0
        self._costs = Costs.of(request.model)
        self._base: Base
        self._base_values: Tensor
        self._base_logits: Tensor | None = None
        self._first = 0

    def fitting(self, budget: int) -> int:
        spec = self.request.model.spec
        kept = spec.layers * (spec.width + 2 * spec.kv_heads * spec.head_dim) * self._itemsize * self._width
        return max(1, budget // 2 // (kept + self._row_bytes(self._width)))

    def base(self, prompts: range) -> Tensor:
        self._first = prompts.start
        rows = torch.tensor(prompts)
        layers = sorted({pair.layer for pair in self.request.pairs})
        self._base, logits = base_run(
            self.request.model, self._ids[rows], self._frame_of(rows), layers, self._columns[rows], self._tokens
        )
        self.flops += len(rows) * self._costs.forward(self._width, logits.shape[1] * logits.shape[2])
        if any(metric.needs_base for metric in self.request.metrics):
            self._base_logits = logits.new_zeros(self.request.count, *logits.shape[1:])
            self._base_logits[rows] = logits
        self._base_values = self._values(logits, rows)
        return self._base_values

    def order(self, pairs: Sequence[Pair]) -> list[Pair]:
        return sorted(pairs, key=lambda pair: (pair.column, pair.layer, pair.group, pair.prompt))

    def cost(self, pairs: Sequence[Pair]) -> int:
        return len(pairs) * self._row_bytes(self._width - min(pair.column for pair in pairs))

    def take(self, pairs: Sequence[Pair], at: int, budget: int) -> int:
        start = pairs[at].column
        columns = self._width - start
        tokens = CHUNK_TOKENS.get(self._ids.device.type, CHUNK_TOKENS["cuda"])
        most = min(budget // self._row_bytes(columns), tokens // columns, CHUNK_KEYS * tokens // self._width)
        most = max(1, most)
        wasted = computed = 0
        here = pairs[at : at + most]
        for i, pair in enumerate(here):
            layers = self._costs.layers - pair.layer
            wasted += layers * (pair.column - start)
            computed += layers * columns
            if wasted > WASTE * computed:
                return max(1, i)
        return len(here)

    def values(self, pairs: Sequence[Pair]) -> Tensor:
        stacked = sorted(range(len(pairs)), key=lambda i: (pairs[i].layer, pairs[i].group, pairs[i].prompt))
        rows = [pairs[i] for i in stacked]
        prompts = torch.tensor([pair.prompt for pair in rows])
        start = min(pair.column for pair in rows)
        stack = Stack(
            prompts=(prompts - self._first).to(self._ids.device),
            begins=tuple(pair.layer for pair in rows),
            ids=self._ids[prompts],
            frame=self._frame_of(prompts),
            edits=self._placed(rows),
        )
        logits = walk(self.request.model, self._base, stack, start, self._columns[prompts], self._tokens)
        self._count(stack, start, first_read(self._columns[prompts], start), logits.numel())
        values = self._values(logits, prompts)
        unchanged = self.request.metric_columns[:, prompts] < torch.tensor([pair.column for pair in rows])
        values = torch.where(unchanged, self._base_values[:, stack.prompts.cpu()], values)
        return values[:, torch.tensor(stacked).argsort()]

    def _placed(self, rows: Sequence[Pair]) -> Mapping[Site, list[Placed]]:
        """Every edit at its rows, in the order of its group."""
        placed: dict[Site, list[Placed]] = {}
        start = 0
        for group, members in groupby(rows, key=lambda pair: pair.group):
            prompts = [pair.prompt for pair in members]
            stop = start + len(prompts)
            frame = self._frame_of(torch.tensor(prompts), roles=True)
            for edit in sorted(self.request.groups[group], key=lambda edit: edit.site.order):
                chosen = self.request.selection(edit)[prompts, : self._width]
                columns = chosen.any(0).nonzero()[:, 0]
                if len(columns):
                    low, high = int(columns[0]), int(columns[-1]) + 1
                    mine = self._moved(self.request.restricted(edit, prompts))
                    placed.setdefault(mine.site.whole, []).append(
                        Placed(mine, start, stop, chosen.to(frame.offsets.device), low, high, frame)
                    )
            start = stop
        return placed

    def _moved(self, edit: Edit) -> Edit:
        """The edit, of what enters a block instead of what leaves the one before."""
        layer = first_layer(edit, self._costs.layers)
        return (
            replace(edit, site=Site("resid_pre", layer))
            if edit.site.name == "resid_post" and layer != edit.site.layer
            else edit
        )

    def _count(self, stack: Stack, start: int, read: int, logits: int) -> None:
        """Add up what a walk computed; keys that a mask hides count, too."""
        costs, width = self._costs, self._width
        for layer in range(costs.layers - 1):
            self.flops += stack.begun(layer) * costs.block(start, width)
        rows = len(stack.begins)
        self.flops += rows * costs.block(read, width) + logits * costs.logit
        if read > start:
            self.flops += rows * (width - start) * costs.projections

    def _values(self, logits: Tensor, prompts: Tensor) -> Tensor:
        """`[metric row]` of logits `[row kept token]`."""
        values = []
        for metric, column in zip(self.request.metrics, self._column_of, strict=True):
            here = logits[:, column]
            base = None if self._base_logits is None else self._base_logits[:, column]
            picked = None
            if self._tokens is not None:
                places = torch.searchsorted(self._tokens, metric.tokens[prompts].to(self._tokens.device))
                picked, here = here.gather(1, places), here[:, :0]
            values.append(metric(here, prompts, base, picked))
        return torch.stack(values).cpu()

    @cached_property
    def _width(self) -> int:
        """Columns up to the last that a metric reads; none after it matters."""
        return int(self.request.metric_columns.max()) + 1

    @cached_property
    def _ids(self) -> Tensor:
        return self.request.padded.input_ids[:, : self._width]

    @cached_property
    def _distinct(self) -> tuple[Tensor, tuple[int, ...]]:
        unique, places = torch.unique(self.request.metric_columns, dim=0, return_inverse=True)
        return unique.T.to(self._ids.device), tuple(places.tolist())

    @property
    def _columns(self) -> Tensor:
        """The columns that metrics read, `[prompt kept]`."""
        return self._distinct[0]

    @property
    def _column_of(self) -> tuple[int, ...]:
        """Which of these each metric reads."""
        return self._distinct[1]

    @cached_property
    def _tokens(self) -> Tensor | None:
        """The tokens whose logits are computed, ascending; None for the whole vocabulary."""
        if self.request.whole or not can_unembed_few(self.request.model.parts.unembed):
            return None
        return torch.unique(torch.cat([metric.tokens.flatten() for metric in self.request.metrics])).to(
            self._ids.device
        )

    def _frame_of(self, prompts: Tensor, roles: bool = False) -> Frame:
        frame = self.request.frame
        here = prompts.to(frame.offsets.device)
        spans = {role: [of_role[i] for i in prompts.tolist()] for role, of_role in frame.spans.items()} if roles else {}
        return replace(
            frame,
            width=self._width,
            lengths=frame.lengths[here],
            offsets=frame.offsets[here],
            key_mask=frame.key_mask[here, : self._width],
            spans=spans,
        )

    @cached_property
    def _itemsize(self) -> int:
        return next(self.request.model.hf.parameters()).element_size()

    def _row_bytes(self, columns: int) -> int:
        """What a row over `columns` takes at its widest: a layer's activations, all keys and values, scores, logits."""
        spec, width = self.request.model.spec, self._width
        keys = 2 * width * (spec.kv_heads + spec.heads) * spec.head_dim
        scores = (spec.heads if self.request.model.attention == "eager" else 1) * columns * width
        logits = 0 if self._tokens is not None else 3 * spec.vocab * self._columns.shape[1]
        return self._itemsize * (columns * (8 * spec.width + 3 * spec.mlp_width) + keys + 2 * scores + logits)
