"""Calls that every backend must compute alike: shapes, masks, plans and gates, small enough for the oracles."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from kernels.attention import choose
from kernels.patterns import block_sparse, full, pruned, streaming, strided, tokens, vertical_slash
from kernels.request import Output, Request
from kernels.types import CaptureSpec, ExtraKeys, HeadGates, HeadPlan, MaskSpec
from tests.kernels.oracle import random

EVERYTHING = CaptureSpec(entropy=True, spans=torch.tensor([[[0, 5], [5, 9], [9, 400]]]), column_sums=True)


@dataclass(frozen=True, eq=False)
class Case:
    """Shapes and specifications of a call; tensors are drawn from a seed."""

    name: str
    heads: int = 4
    kv_heads: int = 2
    queries: int = 17
    keys: int = 17
    dim: int = 32
    value_dim: int | None = None
    batch: int = 2
    mask: MaskSpec = field(default_factory=MaskSpec)
    gates: HeadGates | None = None
    plan: HeadPlan | None = None

    def tensors(self, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        q = random(self.batch, self.heads, self.queries, self.dim, seed=3 * seed, dtype=dtype)
        k = random(self.batch, self.kv_heads, self.keys, self.dim, seed=3 * seed + 1, dtype=dtype)
        v = random(self.batch, self.kv_heads, self.keys, self.value_dim or self.dim, seed=3 * seed + 2, dtype=dtype)
        return q, k, v

    def request(self, dtype: torch.dtype = torch.float64, seed: int = 0, **others: Any) -> Request:
        arguments = {"mask": self.mask, "gates": self.gates, "plan": self.plan, **others}
        return Request.of(*self.tensors(dtype, seed), **arguments)


def compute(request: Request, backend: str) -> Output:
    """What one backend makes of a request."""
    _, module, _ = choose(request, backend)
    return module.run(request)


def reference(request: Request) -> Output:
    """The same call in float64 by the reference."""
    exact = {name: getattr(request, name).double() for name in "qkv"}
    return compute(replace(request, **exact, allow_dense=True), "reference")


def left_padding(lengths: list[int], keys: int, **others: Any) -> MaskSpec:
    real = torch.arange(keys) >= keys - torch.tensor(lengths)[:, None]
    return MaskSpec.padded(real, **others)


def right_padding(lengths: list[int], keys: int) -> MaskSpec:
    return MaskSpec.padded(torch.arange(keys) < torch.tensor(lengths)[:, None])


def mixed(length: int, block: int = 8) -> HeadPlan:
    """Eight different heads in the first batch row, the same ones in another order in the second."""
    blocks = torch.ones(-(-length // block), -(-length // block), dtype=torch.bool).tril()
    blocks[1::2, ::3] = False
    blocks[0, 0] = False
    heads = [
        full(),
        pruned(),
        streaming(2, 5),
        streaming(0, 1),
        vertical_slash([1, 6], [0, 11], length=length, block=block),
        block_sparse(blocks, block=block),
        strided(3, 1, 2, length=length, block=block),
        tokens([0, 3, 4, 12, 999], window=2),
    ]
    return HeadPlan.of([heads, heads[3:] + heads[:3]])


def compensation(heads: int, kv_heads: int, dim: int, batch: int = 1) -> ExtraKeys:
    """Two tokens beside the keys; the first head sees none, the second only one."""
    count = random(batch, heads, 2, seed=9)
    count[:, 0] = -torch.inf
    count[:, 1, 0] = -torch.inf
    k, v = random(batch, kv_heads, 2, dim, seed=7), random(batch, kv_heads, 2, dim, seed=8)
    return ExtraKeys(k, v, count)


_sinks, _slopes = random(4, seed=50), random(4, seed=51).abs()
_gates = HeadGates(
    gate=torch.tensor([[1.0, 0.0, 0.5, 1.0], [0.0, 1.0, 1.0, -2.0]]),
    add=random(1, 4, 32, seed=52),
    logit_scale=torch.tensor([[1.0, 1.0, 0.0, 0.7]]),
)
_by_query = HeadGates(
    gate=random(2, 4, 17, seed=53), add=random(2, 4, 17, 32, seed=54), logit_scale=random(1, 4, 17, seed=55).abs()
)
_plan = mixed(24)
_streams = HeadPlan.of([streaming(2, 4), full(), streaming(2, 4), pruned()])
_some_heads = HeadPlan.of([[full(), full(), pruned(), full()], [pruned(), full(), full(), full()]])

CASES = [
    Case("one query, one key", queries=1, keys=1),
    Case("multi-head", kv_heads=4),
    Case("grouped"),
    Case("multi-query", kv_heads=1, dim=64),
    Case("odd length", queries=45, keys=45, dim=16, batch=1),
    Case("wide values", value_dim=48),
    Case("narrow values", value_dim=16),
    Case("not causal", mask=MaskSpec(causal=False)),
    Case("cross", queries=5, mask=MaskSpec(causal=False)),
    Case("chunk", queries=6, keys=23),
    Case("decode", queries=1, keys=23),
    Case("queries before the last key", queries=4, keys=23, mask=MaskSpec(q_offset=9)),
    Case("queries past the first keys", queries=9, keys=9, mask=MaskSpec(q_offset=3, kv_offset=5)),
    Case("scale", mask=MaskSpec(scale=0.7)),
    Case("window", mask=MaskSpec(window=4)),
    Case("window of one", mask=MaskSpec(window=1)),
    Case("window wider than the text", mask=MaskSpec(window=40)),
    Case("sliding cache", queries=1, keys=6, mask=MaskSpec(window=6, q_offset=20, kv_offset=15)),
    Case("soft-cap", mask=MaskSpec(softcap=0.8)),
    Case("soft-cap and window", mask=MaskSpec(softcap=0.8, window=5)),
    Case("alibi", mask=MaskSpec(alibi=_slopes)),
    Case("alibi, decode", queries=1, keys=23, mask=MaskSpec(alibi=_slopes)),
    Case("sinks", mask=MaskSpec(sinks=_sinks)),
    Case("sinks and window, decode", queries=1, keys=23, mask=MaskSpec(sinks=_sinks, window=4)),
    Case("left padding", mask=left_padding([17, 9], 17)),
    Case("left padding, decode", queries=1, keys=23, mask=left_padding([3, 23], 23)),
    Case("left padding, chunk, sinks", queries=5, keys=23, mask=left_padding([3, 23], 23, sinks=_sinks)),
    Case("right padding", mask=right_padding([17, 9], 17)),
    Case("holes", mask=MaskSpec.padded(random(2, 17, seed=60) > 0)),
    Case("packed", mask=MaskSpec.packed([3, 9, 1, 4])),
    Case("packed, window, alibi", mask=MaskSpec.packed([3, 14], window=4, alibi=_slopes)),
    Case("gates", gates=_gates),
    Case("gates of every query", gates=_by_query),
    Case("gates at positions", gates=replace(_gates, positions=random(2, 17, seed=61) > 0)),
    Case("gates, alibi", gates=_gates, mask=MaskSpec(alibi=_slopes)),
    Case("gates, soft-cap, sinks", gates=_by_query, mask=MaskSpec(softcap=0.8, sinks=_sinks)),
    Case("gates, left padding", gates=_gates, mask=left_padding([17, 9], 17)),
    Case("gates, decode", queries=1, keys=23, gates=_gates),
    Case("one head a row", batch=4, gates=HeadGates.one_per_row(range(4), n_heads=4)),
    Case("some heads", plan=_some_heads),
    Case("all pruned", plan=HeadPlan.of([pruned()] * 4)),
    Case("streams", plan=_streams, queries=45, keys=45),
    Case("streams, window", plan=_streams, queries=45, keys=45, mask=MaskSpec(window=3)),
    Case("streams, left padding", plan=_streams, mask=left_padding([17, 9], 17)),
    Case("streams, packed", plan=_streams, mask=MaskSpec.packed([3, 9, 1, 4])),
    Case("streams, sliding cache", plan=_streams, queries=2, keys=7, mask=MaskSpec(q_offset=20, kv_offset=15)),
    Case("streams, decode, alibi, sinks", 4, 2, 1, 23, plan=_streams, mask=MaskSpec(alibi=_slopes, sinks=_sinks)),
    Case("plan", heads=8, kv_heads=4, plan=_plan),
    Case("plan, chunk", heads=8, kv_heads=2, queries=7, keys=22, plan=_plan),
    Case("plan, decode", heads=8, kv_heads=2, queries=1, keys=23, plan=_plan),
    Case("plan, padding, window", 8, 4, plan=_plan, mask=left_padding([17, 9], 17, window=9)),
    Case("plan, soft-cap", heads=8, kv_heads=4, plan=_plan, mask=MaskSpec(softcap=0.8)),
    Case("compensation", plan=replace(_streams, extra=compensation(4, 2, 32))),
    Case("compensation, sinks", plan=replace(_streams, extra=compensation(4, 2, 32, 2)), mask=MaskSpec(sinks=_sinks)),
    Case("compensation, soft-cap", plan=replace(_streams, extra=compensation(4, 2, 32)), mask=MaskSpec(softcap=0.8)),
    Case("compensation, decode, gates", 4, 2, 1, 9, gates=_gates, plan=replace(_streams, extra=compensation(4, 2, 32))),
]
"""Every feature alone, and the combinations in which they meet."""

LONG_PLAN = mixed(300, block=16)
LONG = [
    Case("causal", 2, 1, 300, 300),
    Case("not causal", 2, 2, 140, 300, mask=MaskSpec(causal=False)),
    Case("chunk", 2, 1, 170, 300),
    Case("window", 2, 1, 300, 300, mask=MaskSpec(window=50)),
    Case("left padding", 2, 1, 300, 300, batch=4, mask=left_padding([300, 77, 1, 77], 300)),
    Case("left padding, gates", 4, 2, 300, 300, mask=left_padding([300, 77], 300), gates=_gates),
    Case("nothing but padding", 2, 1, 300, 300, mask=MaskSpec(starts=torch.tensor([400, 299]))),
    Case("window, alibi, sinks", 4, 2, 300, 300, mask=MaskSpec(window=50, alibi=_slopes, sinks=_sinks)),
    Case("soft-cap, left padding", 4, 2, 300, 300, mask=left_padding([300, 77], 300, softcap=0.8)),
    Case("packed", 2, 1, 300, 300, mask=MaskSpec.packed([120, 7, 173])),
    Case("plan", 8, 4, 300, 300, plan=LONG_PLAN, mask=left_padding([300, 77], 300)),
    Case("plan, packed", 8, 4, 300, 300, plan=LONG_PLAN, mask=MaskSpec.packed([120, 7, 173])),
    Case("plan, chunk", 8, 4, 140, 300, plan=LONG_PLAN, mask=MaskSpec(window=190)),
    Case("plan, sliding cache", 8, 4, 3, 150, plan=LONG_PLAN, mask=MaskSpec(q_offset=290, kv_offset=143)),
    Case("streams, compensation", 4, 2, 300, 300, plan=replace(_streams, extra=compensation(4, 2, 32))),
]
"""Several blocks, tiles and stretches long."""
