"""The plain executor: one group of edits at a time through `Model.run`. Slow, and right wherever `Model.run` is."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import islice, takewhile

import torch
from torch import Tensor

from interp.patching.flops import Costs
from interp.patching.request import METRIC_ROLE, Group, Pair, Request
from interp.tracing.frame import gather_columns


class Plain:
    """Runs whole forward passes; a chunk is one group of edits on some prompts."""

    name = "plain"

    def __init__(self, request: Request) -> None:
        self.request = request
        self.flops = 0
        self._costs = Costs.of(request.model)
        self._base: Tensor | None = None

    def fitting(self, budget: int) -> int:
        return max(1, budget // self._bytes)

    def base(self, prompts: range) -> Tensor:
        logits = self._logits(prompts, ())
        self._base = None
        if any(metric.needs_base for metric in self.request.metrics):
            self._base = logits.new_zeros(len(logits), self.request.count, logits.shape[-1])
            self._base[:, list(prompts)] = logits
        return self._values(logits, prompts)

    def order(self, pairs: Sequence[Pair]) -> list[Pair]:
        return sorted(pairs, key=lambda pair: (pair.group, pair.prompt))

    def cost(self, pairs: Sequence[Pair]) -> int:
        return len(pairs) * self._bytes

    def take(self, pairs: Sequence[Pair], at: int, budget: int) -> int:
        same = takewhile(lambda pair: pair.group == pairs[at].group, islice(pairs, at, None))
        return max(1, min(len(list(same)), budget // self._bytes))

    def values(self, pairs: Sequence[Pair]) -> Tensor:
        prompts = [pair.prompt for pair in pairs]
        return self._values(self._logits(prompts, self.request.groups[pairs[0].group]), prompts)

    def _values(self, logits: Tensor, prompts: Sequence[int]) -> Tensor:
        """`[metric row]` of logits `[metric row vocab]`."""
        rows = torch.tensor(list(prompts))
        bases = [None] * len(logits) if self._base is None else self._base
        pieces = zip(self.request.metrics, logits, bases, strict=True)
        return torch.stack([metric(here, rows, base) for metric, here, base in pieces]).cpu()

    @cached_property
    def _bytes(self) -> int:
        """What one prompt takes in a forward pass: the widest layer, and the logits."""
        spec, frame = self.request.model.spec, self.request.frame
        size = next(self.request.model.hf.parameters()).element_size()
        logits = 1 if self.request.one_position else frame.width
        scores = spec.heads * frame.width if self.request.model.attention == "eager" else 0
        return size * (frame.width * (8 * spec.width + 3 * spec.mlp_width + scores) + 3 * logits * spec.vocab)

    def _logits(self, prompts: Sequence[int], group: Group) -> Tensor:
        """`[metric prompt vocab]` at the metrics' positions."""
        request = self.request
        rows = request.rows(prompts)
        asked = 1 if request.one_position else request.frame.width
        for row in rows.tokens:
            self.flops += self._costs.forward(len(row), asked * request.model.spec.vocab)
        acting = [edit for edit in group if bool(request.selection(edit)[list(prompts)].any())]
        edits = [request.restricted(edit, prompts) for edit in acting]
        if request.one_position:
            logits = request.model.run(rows, edits=edits, logits=METRIC_ROLE).logits
            return logits[:, 0].expand(len(request.metrics), -1, -1)
        logits = request.model.run(rows, edits=edits, logits="all").logits
        return torch.stack([gather_columns(logits, m.positions[list(prompts), None])[:, 0] for m in request.metrics])
