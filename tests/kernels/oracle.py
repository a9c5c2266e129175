"""Attention written out one query and one key at a time, sharing nothing with the kernels but their specifications."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from kernels.patterns import HeadKind, Pattern
from kernels.types import HeadPlan, MaskSpec


def random(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def sees(mask: MaskSpec, pattern: Pattern, row: int, query: int, column: int, q_offset: int) -> bool:
    """Whether a query of a batch row sees a key, from the words of the specifications."""
    position, key = query + q_offset, column + mask.kv_offset
    start = 0
    if mask.starts is not None:
        starts = mask.starts[row if len(mask.starts) > 1 else 0]
        start = int(starts if starts.ndim == 0 else starts[query])
    if mask.key_mask is not None and not mask.key_mask[row if len(mask.key_mask) > 1 else 0, column]:
        return False
    if (mask.causal and key > position) or key < start:
        return False
    if mask.window is not None and key <= position - mask.window:
        return False
    if pattern.kind is not HeadKind.SPARSE:
        return pattern.kind is HeadKind.FULL
    listed = pattern.blocks and key // pattern.block in pattern.blocks[position // pattern.block]
    return bool(key - start < pattern.sinks or key > position - pattern.window or key in pattern.tokens or listed)


def by_hand(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: MaskSpec,
    patterns: Sequence[Sequence[Pattern]],
    plan: HeadPlan | None = None,
    logit_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """z `[B T H Dv]`, probabilities `[B H T S]` and log-sum-exp `[B H T]` in float64; patterns `[B|1][H]`."""
    batch, heads, queries, dim = q.shape
    keys, group = k.shape[2], heads // k.shape[1]
    offset = mask.q_offset if mask.q_offset is not None else mask.kv_offset + keys - queries
    scale = mask.scale if mask.scale is not None else 1 / math.sqrt(dim)
    z = torch.zeros(batch, queries, heads, v.shape[3], dtype=torch.float64)
    probability = torch.zeros(batch, heads, queries, keys, dtype=torch.float64)
    lse = torch.full((batch, heads, queries), -math.inf, dtype=torch.float64)
    for b in range(batch):
        for h in range(heads):
            pattern = patterns[b if len(patterns) > 1 else 0][h]
            if pattern.kind is HeadKind.PRUNED:
                continue
            dots = (scale * q[b, h].double() @ k[b, h // group].double().T).tolist()
            values = v[b, h // group].double()
            extras, count = [[]] * queries, []
            if plan is not None and plan.extra is not None:
                r = b if len(plan.extra.k) > 1 else 0
                extras = (scale * q[b, h].double() @ plan.extra.k[r, h // group].double().T).tolist()
                values = torch.cat([values, plan.extra.v[r, h // group].double()])
                count = plan.extra.log_count[b if len(plan.extra.log_count) > 1 else 0, h].tolist()
            for t in range(queries):
                factor = 1.0 if logit_scale is None else float(logit_scale[b, h, t])
                scores: dict[int, float] = {}
                for s in range(keys):
                    if sees(mask, pattern, b, t, s, offset):
                        score = dots[t][s]
                        if mask.softcap:
                            score = mask.softcap * math.tanh(score / mask.softcap)
                        if mask.alibi is not None:
                            score -= float(mask.alibi[h]) * (t + offset - s - mask.kv_offset)
                        scores[s] = score * factor
                for e, (score, more) in enumerate(zip(extras[t], count, strict=True)):
                    if more > -math.inf:
                        scores[keys + e] = score * factor + more
                if mask.sinks is not None:
                    scores[-1] = float(mask.sinks[h])
                if not scores:
                    continue
                top = max(scores.values())
                lse[b, h, t] = top + math.log(sum(math.exp(score - top) for score in scores.values()))
                weights = [math.exp(scores.get(s, -math.inf) - float(lse[b, h, t])) for s in range(len(values))]
                z[b, t, h] = torch.tensor(weights, dtype=torch.float64) @ values
                probability[b, h, t] = torch.tensor(weights[:keys], dtype=torch.float64)
    return z, probability, lse
