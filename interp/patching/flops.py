"""Counting floating-point operations: what a sweep spent, and what no executor could have avoided."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from interp.patching.request import Request
from interp.tracing.model import Model


@dataclass(frozen=True)
class Costs:
    """FLOPs of a layer for one token (`linear`; of these `projections` to q, k and v, `keys` to k and v), for one query
    with one key (`pair`), and of one logit."""

    layers: int
    linear: int
    projections: int
    keys: int
    pair: int
    logit: int

    @classmethod
    def of(cls, model: Model) -> Costs:
        """Two FLOPs a weight and token; of a mixture of experts, those that are routed to."""
        spec, blocks = model.spec, model.parts.blocks
        keys = 2 * spec.width * 2 * spec.kv_heads * spec.head_dim
        return cls(
            layers=spec.layers,
            linear=sum(_weights(block.module, model.hf.config) for block in blocks) * 2 // spec.layers,
            projections=keys + 2 * spec.width * spec.heads * spec.head_dim,
            keys=keys,
            pair=4 * spec.heads * spec.head_dim,
            logit=2 * spec.width,
        )

    def layer(self, start: int, stop: int) -> int:
        """One layer over positions `[start, stop)`, each of which sees all positions up to itself."""
        return (stop - start) * self.linear + self.pair * seen(start, stop)

    def block(self, start: int, stop: int) -> int:
        """One layer as kernels compute it over positions `[start, stop)`: keys that a mask hides are not left out."""
        return (stop - start) * (self.linear + self.pair * stop)

    def forward(self, tokens: int, logits: int) -> int:
        """A forward pass as it is computed, with `logits` single logits."""
        return self.layers * self.block(0, tokens) + logits * self.logit

    def edited(self, layer: int, start: int, read: Sequence[int], logits: int) -> int:
        """The layers from `layer` on, over the positions from `start` to the last of those that are `read`."""
        if not read:
            return 0
        stop = read[-1] + 1
        total = logits * self.logit
        if layer < self.layers:
            total += (self.layers - 1 - layer) * self.layer(start, stop)
            total += (stop - start - len(read)) * self.keys + sum(self.layer(at, at + 1) for at in read)
        return total

    def whole(self, tokens: int, logits: int) -> int:
        """The part of a forward pass over `tokens` positions and `logits` single logits that cannot be avoided."""
        return self.layers * self.layer(0, tokens) + logits * self.logit


def unavoidable(request: Request) -> int:
    """One forward pass of every prompt; of every edit, the layers from its own on, positions from its first on.

    In the last layer, positions that no metric reads need only keys and values; logits are those the metrics use.
    """
    costs = Costs.of(request.model)
    offsets = request.frame.offsets.tolist()
    logits = request.logits_needed
    total = sum(costs.whole(len(row), logits) for row in request.encoded.rows)
    ends = [sorted({int(m.positions[p]) for m in request.metrics}) for p in range(request.count)]
    for pair in request.pairs:
        start, read = pair.column - offsets[pair.prompt], ends[pair.prompt]
        total += costs.edited(pair.layer, start, [position for position in read if position >= start], logits)
    return total


def seen(start: int, stop: int) -> int:
    """Pairs of a query in `[start, stop)` and a key that is not later."""
    return (stop * (stop + 1) - start * (start + 1)) // 2


def _weights(block: nn.Module, config: Any) -> int:
    """Weights of matrices that one token passes through."""
    total = sum(m.weight.numel() for m in block.modules() if isinstance(m, (nn.Linear, Conv1D)))
    config = config.get_text_config()
    experts = next((m for m in block.modules() if type(m).__name__.endswith("Experts")), None)
    if experts is None:
        return total
    held = sum(p.numel() for p in experts.parameters() if p.ndim == 3)
    count = next(p.shape[0] for p in experts.parameters() if p.ndim == 3)
    return total + held * config.num_experts_per_tok // count
