"""FlexAttention: every mask and pattern as one function of positions, over lists of the blocks where it is not empty.

The lists are made here (`BlockMask.from_kv_blocks`), not by `create_block_mask`, which would hold `queries x keys` of
every head. Patterns, offsets and padding are tensors that the compiled kernel reads, so another plan compiles nothing.
PyTorch compiles once a shape, in seconds to minutes, and past a few shapes raises instead of computing without a
kernel.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.exc import FailOnRecompileLimitHit
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from kernels.backends import rowwise
from kernels.errors import UnsupportedRequest
from kernels.patterns import HeadKind, Pattern
from kernels.request import Output, Request, Work
from kernels.schedule import columns_seen, groups
from kernels.visibility import sequence_starts

BLOCK = 128
"""Queries and keys of a block of FlexAttention."""


def supports(request: Request) -> str | None:
    on_cpu = request.q.device.type == "cpu"
    if on_cpu and request.needs_grad:
        return "FlexAttention has no backward pass on the CPU"
    if on_cpu and shutil.which(os.environ.get("CXX", "g++")) is None:
        return "FlexAttention needs a C++ compiler on the CPU"
    if request.q.device.type not in ("cpu", "cuda"):
        return f"FlexAttention is not compiled for {request.q.device.type}"
    if request.q.dtype == torch.float64:
        return "FlexAttention is not compiled for float64"
    if request.mask.sinks is not None:
        return "MaskSpec.sinks: FlexAttention has no logit without a key"
    if request.extra_keys:
        return "HeadPlan.extra: FlexAttention has no keys beside the cached ones"
    return None


def predict(request: Request) -> Work:
    return Work(_operations(request, *_blocks(request)), request.io_bytes)


def run(request: Request) -> Output:
    partial, whole = _blocks(request)
    mask = BlockMask.from_kv_blocks(
        *_lists(partial), *_lists(whole), BLOCK, _mask_mod(request), (request.queries, request.keys), request.needs_grad
    )
    grouped = request.group > 1
    try:
        z = _compiled()(
            request.q,
            request.k,
            request.v,
            score_mod=_score_mod(request),
            block_mask=mask.to(request.q.device),
            scale=request.scale,
            enable_gqa=grouped,
        )
    except FailOnRecompileLimitHit as error:
        raise UnsupportedRequest(f"FlexAttention was compiled for too many shapes in this process: {error}") from error
    stats = None
    if request.capture is not None:
        stats, _ = rowwise.measure(request, None)
    return Output(request.epilogue(z.transpose(1, 2)), stats, _operations(request, partial, whole))


@cache
def _compiled() -> Callable[..., Any]:
    # A full graph: past the limit of recompilations it raises, where it would otherwise run without a kernel.
    return torch.compile(flex_attention, fullgraph=True, dynamic=False)


def _operations(request: Request, partial: Tensor, whole: Tensor) -> int:
    blocks = int(partial.sum()) + int(whole.sum())
    flops = 2 * (request.q.shape[3] + request.v.shape[3]) * BLOCK * BLOCK * blocks
    return flops + (0 if request.capture is None else rowwise.predict(request))


def _blocks(request: Request) -> tuple[Tensor, Tensor]:
    """Which key blocks a query block of each head sees in part, and which wholly: `[B H query_block key_block]`."""
    shape = (request.batch, request.heads, -(-request.queries // BLOCK), -(-request.keys // BLOCK))
    partial, whole = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
    queries = torch.arange(request.queries, device=request.q.device).split(BLOCK)
    for group in groups(request):
        index = torch.tensor(group.rows)[:, None], torch.tensor(group.heads)
        for i, some in enumerate(queries):
            for j in torch.unique(columns_seen(request, group.pattern, some).cpu() // BLOCK).tolist():
                (whole if _sees_whole(request, group.pattern, some, j) else partial)[(*index, i, j)] = True
    return partial, whole


def _sees_whole(request: Request, pattern: Pattern, queries: Tensor, block: int) -> bool:
    """Whether each of the queries sees every key of a block, as far as sizes tell."""
    mask = request.mask
    if mask.starts is not None or mask.key_mask is not None or (block + 1) * BLOCK > request.keys:
        return False
    nearest = int(queries[0]) + request.q_offset - ((block + 1) * BLOCK - 1 + mask.kv_offset)
    farthest = int(queries[-1]) + request.q_offset - (block * BLOCK + mask.kv_offset)
    in_window = mask.window is None or farthest < mask.window
    in_pattern = pattern.kind is HeadKind.FULL or farthest < pattern.window
    return (nearest >= 0 or not mask.causal) and in_window and in_pattern


def _lists(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Number of blocks of each row, and the blocks, those that are meant first."""
    return blocks.sum(-1).int(), blocks.int().argsort(dim=-1, descending=True, stable=True).int()


def _mask_mod(request: Request) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Whether a query sees a key, from tensors of the request: the same code for every request."""
    device, batch = request.q.device, request.batch
    mask = request.mask
    patterns = [[Pattern(HeadKind.FULL)] * request.heads] if request.plan is None else request.plan.patterns
    patterns = patterns * (batch if len(patterns) == 1 else 1)
    everything = request.keys + request.queries + request.q_offset + mask.kv_offset

    def each(value: Callable[[Pattern], int]) -> Tensor:
        return torch.tensor([[value(pattern) for pattern in row] for row in patterns], device=device)

    sinks = each(lambda pattern: pattern.sinks)
    window = each(lambda pattern: everything if pattern.kind is HeadKind.FULL else pattern.window)
    causal = torch.tensor(mask.causal, device=device)
    widest = torch.tensor(mask.window or everything, device=device)
    q_offset, kv_offset = torch.tensor(request.q_offset, device=device), torch.tensor(mask.kv_offset, device=device)
    starts = sequence_starts(request, torch.arange(request.queries, device=device)[None]).expand(batch, -1).contiguous()
    real = torch.ones(1, request.keys, dtype=torch.bool, device=device) if mask.key_mask is None else mask.key_mask
    real = real.expand(batch, -1).contiguous()
    block, tokens, blocks = _listed(request, patterns)
    block_of_q = (torch.arange(request.queries, device=device) + q_offset) // block
    block_of_k = (torch.arange(request.keys, device=device) + kv_offset) // block

    def seen(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        position, key = q + q_offset, k + kv_offset
        distance = position - key
        shown = ((distance >= 0) | ~causal) & (distance < widest) & (key >= starts[b, q]) & real[b, k]
        chosen = (distance < window[b, h]) | (key - starts[b, q] < sinks[b, h])
        listed = tokens[b, h, k] | blocks[b, h, block_of_q[q], block_of_k[k]]
        return shown & (chosen | listed)

    return seen


def _listed(request: Request, patterns: list[list[Pattern]]) -> tuple[int, Tensor, Tensor]:
    """Size of the plan's blocks, and what it lists: keys `[B H keys]` and blocks `[B H query_block key_block]`."""
    first, device = request.mask.kv_offset, request.q.device
    block = 2**30 if request.plan is None or request.plan.covers is None else request.plan.block
    ends = (request.q_offset + request.queries - 1) // block, (first + request.keys - 1) // block
    tokens = torch.zeros(len(patterns), request.heads, request.keys, dtype=torch.bool)
    blocks = torch.zeros(len(patterns), request.heads, ends[0] + 1, ends[1] + 1, dtype=torch.bool)
    for b, row in enumerate(patterns):
        for h, pattern in enumerate(row):
            tokens[b, h, [key - first for key in pattern.tokens if 0 <= key - first < request.keys]] = True
            for i, keys in enumerate(pattern.blocks[: ends[0] + 1]):
                blocks[b, h, i, [key for key in keys if key <= ends[1]]] = True
    return block, tokens.to(device), blocks.to(device)


def _score_mod(request: Request) -> Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor] | None:
    """Soft-cap, distance bias and logit scale; None where there are none."""
    mask, device = request.mask, request.q.device
    factor = None if request.gates is None else request.gates.logit_scale
    if mask.softcap is None and mask.alibi is None and factor is None:
        return None
    softcap = mask.softcap
    slopes = torch.zeros(request.heads, device=device) if mask.alibi is None else mask.alibi.float()
    factor = torch.ones(1, request.heads, device=device) if factor is None else factor.float()
    factor = factor[..., None] if factor.ndim == 2 else factor
    factors = factor.expand(request.batch, -1, request.queries).contiguous()
    offset = torch.tensor(request.q_offset - mask.kv_offset, device=device)

    def score(s: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        s = s if softcap is None else softcap * torch.tanh(s / softcap)
        return (s - slopes[h] * (q + offset - k)) * factors[b, h, q]

    return score
