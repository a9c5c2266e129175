"""The oracle: one head of one batch row after the other, in float64, with its whole matrix of scores.

It is written to be read and believed, not to be fast. Needs `allow_dense=True`; gradients come from autograd.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from kernels.patterns import HeadKind, Pattern
from kernels.request import Output, Request, Work, per_query
from kernels.types import AttentionStats
from kernels.visibility import mask_allows, pattern_allows


def supports(request: Request) -> str | None:
    if not request.allow_dense:
        return f"it holds the scores of all {request.queries} x {request.keys} pairs: pass allow_dense=True"
    return None


def predict(request: Request) -> Work:
    pairs = request.queries * (request.keys + request.extra_keys)
    flops = 2 * (request.q.shape[3] + request.v.shape[3]) * pairs * int(request.computed.sum())
    return Work(flops, request.io_bytes)


def run(request: Request) -> Output:
    q = request.q
    z = torch.zeros(
        request.batch, request.queries, request.heads, request.v.shape[3], dtype=torch.float64, device=q.device
    )
    scores = z.new_full((request.batch, request.heads, request.queries, request.keys), -torch.inf)
    lse = z.new_full((request.batch, request.heads, request.queries), -torch.inf)
    flops = 0
    for row, head in request.computed.nonzero().tolist():
        logits, values = _scores(request, row, head)
        sink = None if request.mask.sinks is None else request.mask.sinks[head].double()
        weights, total = _softmax(logits, sink)
        z[row, :, head] = weights @ values
        scores[row, head], lse[row, head] = logits[:, : request.keys].detach(), total.detach()
        flops += 2 * weights.numel() * (q.shape[3] + values.shape[1])
    stats = None if request.capture is None else statistics(request, scores, lse)
    return Output(request.epilogue(z.to(q.dtype)), stats, flops)


def _scores(request: Request, row: int, head: int) -> tuple[Tensor, Tensor]:
    """Scores `[T S+E]`, -inf where a key is not seen, and values `[S+E Dv]` of one head of one batch row."""
    mask, plan, kv_head = request.mask, request.plan, head // request.group
    q, k, v = request.q[row, head].double(), request.k[row, kv_head].double(), request.v[row, kv_head].double()
    queries = torch.arange(request.queries, device=q.device)[None]
    columns = torch.arange(request.keys, device=q.device)
    logit_scale = q.new_ones(1, 1)
    if request.gates is not None and request.gates.logit_scale is not None:
        logit_scale = _of_row(per_query(request.gates.logit_scale), row)[:, head].double()

    scores = q @ k.T * request.scale
    if mask.softcap is not None:
        scores = mask.softcap * torch.tanh(scores / mask.softcap)
    if mask.alibi is not None:
        distance = (queries[0] + request.q_offset)[:, None] - (columns + mask.kv_offset)
        scores = scores - mask.alibi[head].double() * distance
    pattern = Pattern(HeadKind.FULL) if plan is None else _of_row(plan.patterns, row)[head]
    seen = _of_row(mask_allows(request, queries, columns) & pattern_allows(pattern, request, queries, columns), row)
    scores = (scores * logit_scale).masked_fill(~seen, -torch.inf)
    if plan is None or plan.extra is None:
        return scores, v
    extra = q @ _of_row(plan.extra.k, row)[kv_head].double().T * request.scale * logit_scale
    extra = extra + _of_row(plan.extra.log_count, row)[head].double()
    return torch.cat([scores, extra], dim=1), torch.cat([v, _of_row(plan.extra.v, row)[kv_head].double()])


def _softmax(scores: Tensor, sink: Tensor | None) -> tuple[Tensor, Tensor]:
    """Probabilities and log-sum-exp of each row; 0 and -inf where there is nothing to see."""
    largest = scores.detach().amax(-1, keepdim=True)
    if sink is not None:
        largest = largest.maximum(sink.detach())
    largest = largest.nan_to_num(neginf=0.0)
    weights = (scores - largest).exp()
    total = weights.sum(-1, keepdim=True)
    if sink is not None:
        total = total + (sink - largest).exp()
    return weights / total.where(total > 0, 1.0), (largest + total.log())[:, 0]


def _of_row(values: Any, row: int) -> Any:
    """Entry `row` of something per batch row, or the only entry where all rows agree."""
    return values[row if len(values) > 1 else 0]


def statistics(request: Request, scores: Tensor, lse: Tensor) -> AttentionStats:
    """Everything that `request.capture` asks of the scores `[B H T S]` and their log-sum-exp `[B H T]`."""
    capture, rows, first = request.capture, request.rows, request.mask.kv_offset
    assert capture is not None
    assert rows is not None
    index = rows[:, None].expand(-1, request.heads, -1)
    scores = scores.gather(2, index[..., None].expand(-1, -1, -1, request.keys))
    lse = lse.gather(2, index)
    pattern = (scores - lse[..., None]).exp().nan_to_num(0.0)
    measured: dict[str, Tensor] = {}
    if capture.argmax:
        best, argmax = scores.max(-1)
        measured["argmax"] = torch.where(best > -torch.inf, argmax + first, -1)
    if capture.probability:
        measured["probability"] = pattern.amax(-1)
    if capture.log_sum_exp:
        measured["log_sum_exp"] = lse
    if capture.entropy:
        measured["entropy"] = torch.special.entr(pattern).sum(-1)
    if capture.spans is not None:
        keys = torch.arange(request.keys, device=pattern.device) + first
        spans = capture.spans.to(pattern.device).expand(request.batch, -1, -1)
        inside = (keys >= spans[..., :1]) & (keys < spans[..., 1:])
        measured["mass"] = torch.einsum("bhrs,bns->bhrn", pattern, inside.to(pattern.dtype))
    if capture.column_sums:
        measured["column_sums"] = pattern.sum(2)
    if capture.topk:
        best, argmax = scores.sort(dim=-1, descending=True, stable=True)
        topk = torch.where(best > -torch.inf, argmax + first, -1)
        missing = (0, max(0, capture.topk - request.keys))
        measured["topk"] = pad(topk[..., : capture.topk], missing, value=-1)
        measured["topk_probability"] = pad(pattern.gather(-1, argmax)[..., : capture.topk], missing)
    return AttentionStats(
        **{name: value.to(request.precise) if value.is_floating_point() else value for name, value in measured.items()}
    )
