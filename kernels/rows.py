"""Attention probabilities of chosen query rows, computed from the queries and keys a fused kernel was given.

No fused kernel returns its probabilities. Recomputing only the rows somebody looks at costs `rows x keys` instead of
`queries x keys`, so a long context never needs its whole attention matrix.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from einops import einsum, rearrange, repeat
from torch import Tensor

from kernels.types import AttentionStats


class AttentionRows(NamedTuple):
    """Probabilities `[batch head query key]` and log-sum-exp of the scores `[batch head query]` of some query rows."""

    pattern: Tensor
    log_sum_exp: Tensor


def visible_keys(
    query_columns: Tensor,
    key_mask: Tensor,
    sliding_window: int | None = None,
    *,
    causal: bool = True,
) -> Tensor:
    """Which keys a query sees: `[batch query key]`, True where attention is allowed.

    `query_columns` `[batch query]` are the queries' columns among the keys, `key_mask` `[batch key]` is False on
    padding, and `sliding_window` counts the query itself. Without `causal` keys on both sides are seen, and the window
    reaches as far in either direction.
    """
    keys = torch.arange(key_mask.shape[1], device=key_mask.device)
    distance = query_columns[..., None] - keys
    allowed = key_mask[:, None, :].expand_as(distance)
    if causal:
        allowed = allowed & (distance >= 0)
    return allowed if sliding_window is None else allowed & (distance.abs() < sliding_window)


def attention_rows(
    q: Tensor,
    k: Tensor,
    allowed: Tensor,
    *,
    scaling: float,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> AttentionRows:
    """The softmax rows of `q` against `k`, as the kernel computes them, in float32 (float64 for float64 queries).

    Args:
        q: `[batch head query dim]`, after rotary embedding.
        k: `[batch kv_head key dim]`, after rotary embedding; query head h reads kv head `h // (head / kv_head)`.
        allowed: `[batch query key]`, True where attention is allowed. A row with nothing allowed has probability 0.
        scaling: factor on `q . k`.
        softcap: scores become `softcap * tanh(scores / softcap)` (Gemma-2).
        sinks: `[head]` logits that take part in the softmax and receive no value (gpt-oss).
    """
    precise = torch.promote_types(q.dtype, torch.float32)
    groups = rearrange(q, "b (g r) t d -> b g r t d", g=k.shape[1]).to(precise)
    scores = einsum(groups, k.to(precise), "b g r t d, b g s d -> b g r t s")
    scores = rearrange(scores, "b g r t s -> b (g r) t s") * scaling
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~allowed[:, None], float("-inf"))
    if sinks is not None:
        column = repeat(sinks.to(precise), "h -> b h t 1", b=q.shape[0], t=q.shape[2])
        scores = torch.cat([scores, column], dim=-1)
    lse = scores.logsumexp(-1)
    pattern = (scores - lse[..., None]).exp()[..., : k.shape[2]].nan_to_num(0.0)
    return AttentionRows(pattern, lse)


def row_statistics(rows: AttentionRows) -> AttentionStats:
    """Summaries of each row, which is all that most questions need of it."""
    probability, argmax = rows.pattern.max(-1)
    return AttentionStats(
        argmax=torch.where(probability > 0, argmax, -1),
        probability=probability,
        entropy=torch.special.entr(rows.pattern).sum(-1),
        log_sum_exp=rows.log_sum_exp,
    )


def gather_values(weights: Tensor, v: Tensor) -> Tensor:
    """`weights @ v` per head with grouped values: `[b h t s], [b g s d] -> [b t h d]`."""
    groups = rearrange(weights, "b (g r) t s -> b g r t s", g=v.shape[1]).to(v.dtype)
    return rearrange(einsum(groups, v, "b g r t s, b g s d -> b g r t d"), "b g r t d -> b t (g r) d")
