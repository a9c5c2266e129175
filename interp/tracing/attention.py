"""Attention rows of one kernel call: what the model attends to, and what an `attend` edit forces it to.

Only the queries somebody asks for are computed, a block of rows at a time, from the tensors the kernel was given.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from interp.tracing.edits import Edit
from interp.tracing.frame import Frame, gather_columns, select
from kernels.rows import AttentionRows, attention_rows, gather_values, visible_keys

ROW_BLOCK_ELEMENTS = 2**24
"""Attention probabilities computed at a time when rows are read (64 MiB in float32)."""


@dataclass(frozen=True, eq=False)
class KernelCall:
    """What the attention kernel of one layer is given.

    `q` `[batch head query dim]`, `k` and `v` `[batch kv_head key dim]`, all after rotary embedding.
    """

    layer: int
    q: Tensor
    k: Tensor
    v: Tensor
    scaling: float
    softcap: float | None
    sliding_window: int | None
    sinks: Tensor | None
    causal: bool = True


def row_blocks(columns: Tensor, call: KernelCall) -> Iterator[Tensor]:
    """The query columns `[batch query]` in pieces whose rows fit the block size."""
    size = max(1, ROW_BLOCK_ELEMENTS // (call.q.shape[0] * call.q.shape[1] * call.k.shape[2]))
    return iter(columns.split(size, dim=1))


def attended(call: KernelCall, columns: Tensor, frame: Frame) -> AttentionRows:
    """The model's own attention rows of the queries at `columns` `[batch query]` of this call; keys by column."""
    return attention_rows(
        gather_columns(call.q.transpose(1, 2), columns).transpose(1, 2),
        call.k,
        _visible(call, columns, frame),
        scaling=call.scaling,
        softcap=call.softcap,
        sinks=call.sinks,
    )


def _visible(call: KernelCall, columns: Tensor, frame: Frame) -> Tensor:
    return visible_keys(columns + frame.start, frame.key_mask, call.sliding_window, causal=call.causal)


def forced_rows(edit: Edit, call: KernelCall, columns: Tensor, frame: Frame) -> tuple[Tensor, Tensor]:
    """The rows an `attend` edit wants, `[batch 1 query key]`, and where they apply, `[batch head query]`."""
    allowed = _visible(call, columns, frame)
    target = edit.parameters["to"]
    if target != "uniform":
        allowed = allowed & select(target, None, frame.whole)[:, None]
    total = allowed.sum(-1, keepdim=True)
    weights = allowed.to(torch.promote_types(call.v.dtype, torch.float32)) / total.clamp(min=1)
    keep = gather_columns(select(edit.positions, edit.rows, frame), columns) & (total[..., 0] > 0)
    heads = torch.arange(call.q.shape[1], device=keep.device)
    chosen = torch.ones_like(heads, dtype=torch.bool) if edit.site.head is None else heads == edit.site.head
    return weights[:, None], keep[:, None] & chosen[None, :, None]


def attend_rows(edit: Edit, call: KernelCall, frame: Frame, z: Tensor) -> tuple[Tensor, bool]:
    """The kernel's output `z` `[batch query head dim]` with the forced rows in it, and whether there were any."""
    kv_heads, hit = call.v.shape[1], False
    affected = select(edit.positions, edit.rows, frame).any(0).nonzero()[:, 0]
    for columns in row_blocks(affected.expand(len(z), -1), call):
        weights, keep = forced_rows(edit, call, columns, frame)
        hit = hit or bool(keep.any())
        forced = gather_values(weights.expand(-1, kv_heads, -1, -1), call.v)
        forced = forced.repeat_interleave(call.q.shape[1] // kv_heads, dim=2)
        index = columns[0]
        z = z.index_copy(1, index, torch.where(keep.transpose(1, 2)[..., None], forced, z[:, index]))
    return z, hit
