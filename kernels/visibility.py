"""Which keys which queries see, as booleans for chosen rows and columns of a call; never for all of them at once.

`queries` `[B|1 R]` and `columns` `[C]` index the call's own tensors; what comes back is `[B|1 R C]`, True where seen.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.patterns import HeadKind, Pattern
from kernels.request import Request


def sequence_starts(request: Request, queries: Tensor) -> Tensor:
    """Position of the first token of each query's sequence, `[B|1 R]`; 0 where the mask names none."""
    starts = request.mask.starts
    if starts is None:
        return torch.zeros_like(queries)
    if starts.ndim == 1:
        return starts[:, None].expand(-1, queries.shape[1])
    rows = max(len(starts), len(queries))
    return starts.expand(rows, -1).gather(1, queries.expand(rows, -1))


def mask_allows(request: Request, queries: Tensor, columns: Tensor) -> Tensor:
    """What the mask shows, whatever the head."""
    mask = request.mask
    keys = columns + mask.kv_offset
    distance = (queries + request.q_offset)[..., None].int() - keys.int()
    allowed = distance >= 0 if mask.causal else torch.ones_like(distance, dtype=torch.bool)
    if mask.window is not None:
        allowed = allowed & (distance < mask.window)
    if mask.starts is not None:
        allowed = allowed & (keys >= sequence_starts(request, queries)[..., None])
    if mask.key_mask is not None:
        allowed = allowed & mask.key_mask[:, None, columns]
    return allowed


def pattern_allows(pattern: Pattern, request: Request, queries: Tensor, columns: Tensor) -> Tensor:
    """What a head's pattern lets through of it."""
    keys = columns + request.mask.kv_offset
    positions = queries + request.q_offset
    if pattern.kind is not HeadKind.SPARSE:
        return torch.full((1, queries.shape[1], len(columns)), pattern.kind is HeadKind.FULL, device=keys.device)
    allowed = positions[..., None] - keys < pattern.window
    if pattern.sinks:
        allowed = allowed | (keys - sequence_starts(request, queries)[..., None] < pattern.sinks)
    if pattern.tokens:
        allowed = allowed | torch.isin(keys, torch.tensor(pattern.tokens, device=keys.device))
    if pattern.blocks:
        used, row = torch.unique(positions // pattern.block, return_inverse=True)
        table = torch.zeros(len(used), int(keys.max()) // pattern.block + 1, dtype=torch.bool)
        for i, block in enumerate(used.tolist()):
            table[i, [key for key in pattern.blocks[block] if key < table.shape[1]]] = True
        allowed = allowed | table.to(keys.device)[row][..., keys // pattern.block]
    return allowed
