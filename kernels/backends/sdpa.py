"""PyTorch's fused attention, cut so that every pattern is exact and nothing is `queries x keys`.

A plain causal call is one kernel call. Anything else is computed a stretch of queries at a time against the keys that
the stretch can see, gathered, with a mask of that size. Gates are an epilogue. Statistics come row by row (`rowwise`),
from the log-sum-exp where the kernel gives it. Gradients flow to q, k, v and gates."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import pad, scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from kernels.backends import rowwise
from kernels.patterns import HeadKind
from kernels.request import Output, Request, Work
from kernels.schedule import Group, Piece, grouped_product, groups, of_rows, pieces

MASK_ENTRIES = 2**20
"""Entries of a mask that all heads share, held at a time: 4 MiB in float32."""

SCORE_ENTRIES = 2**22
"""The same where the mask differs by head, or where no fused kernel can and the scores are held."""

WORTH_DIVIDING = 64
"""Queries from which rows of different left padding are computed apart, without a mask."""

FUSED = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION]


def supports(request: Request) -> str | None:
    device = request.q.device.type
    if device not in ("cpu", "cuda"):
        return f"PyTorch has no fused attention known not to hold all scores on {device}"
    if device == "cuda" and request.q.dtype == torch.float64:
        return "PyTorch has no fused attention for float64 on cuda"
    return None


def predict(request: Request) -> Work:
    flops = 0
    for group, padding in _groups(request):
        for piece, plain in _stretches(request, group, padding):
            heads = len(group.rows) * len(group.heads)
            flops += heads * _operations(request, len(piece.queries), len(piece.columns), plain)
    return Work(flops + (0 if request.capture is None else rowwise.predict(request)), request.io_bytes)


def run(request: Request) -> Output:
    z = request.q.new_zeros(request.batch, request.queries, request.heads, request.v.shape[3])
    lse: Tensor | None = request.q.new_full(z.shape[:3], -torch.inf, dtype=request.precise).transpose(1, 2)
    flops = 0
    for group, padding in _groups(request):
        parts = [_attend(request, piece, plain) for piece, plain in _stretches(request, group, padding)]
        out = torch.cat([part[0] for part in parts], dim=2)
        rows, heads = (torch.tensor(x, device=z.device) for x in (group.rows, group.heads))
        if out.shape[:2] == (request.batch, request.heads):
            z = out.transpose(1, 2)
        else:
            z[rows[:, None], :, heads] = out
        known = [part[1] for part in parts if part[1] is not None]
        if lse is not None and len(known) == len(parts):
            lse[rows[:, None], heads] = torch.cat(known, dim=2).to(lse.dtype)
        else:
            lse = None
        flops += sum(part[2] for part in parts)
    if request.capture is None:
        return Output(request.epilogue(z), None, flops)
    stats, more = rowwise.measure(request, lse)
    return Output(request.epilogue(z), stats, flops + more)


def _groups(request: Request) -> Iterator[tuple[Group, int | None]]:
    """Groups with equal left padding, and how many queries it takes; None where the kernel's own mask will not do."""
    starts = request.mask.starts
    divided = starts is None or (starts.ndim == 1 and request.mask.causal and request.queries >= WORTH_DIVIDING)
    padding = [0] * request.batch
    if starts is not None and divided:
        padding = (starts - request.q_offset).clamp(0, request.queries).expand(request.batch).tolist()
    for group in groups(request):
        if not (divided and _is_plain(request, group)):
            yield group, None
            continue
        alike: dict[int, list[int]] = defaultdict(list)
        for row in group.rows:
            alike[padding[row]].append(row)
        for first, rows in alike.items():
            yield replace(group, rows=tuple(rows)), first


def _stretches(request: Request, group: Group, padding: int | None) -> Iterator[tuple[Piece, bool]]:
    """The group's pieces, and whether a piece needs no mask but the kernel's own causal one."""
    queries = torch.arange(request.queries, device=request.q.device)
    if padding is not None:
        seen = request.q_offset - request.mask.kv_offset + request.queries if request.mask.causal else request.keys
        columns = torch.arange(padding, max(padding, min(seen, request.keys)), device=queries.device)
        if padding:
            yield Piece(group, queries[:padding], columns[:0]), False
        if padding < request.queries:
            yield Piece(group, queries[padding:], columns), True
        return
    pattern, mask = group.pattern, request.mask
    if pattern.kind is HeadKind.SPARSE and not pattern.blocks:
        size = max(64, min(256, pattern.window // 128 * 64))
    else:
        by_head = mask.alibi is not None or mask.softcap is not None or request.beside is not None
        size = SCORE_ENTRIES // len(group.heads) if by_head else MASK_ENTRIES
        size = max(1, min(512, size // (len(group.rows) * request.keys)))
    for piece in pieces(request, group, queries, size):
        yield piece, False


def _is_plain(request: Request, group: Group) -> bool:
    """Whether, left padding apart, no mask is needed but the kernel's own."""
    mask = request.mask
    end = request.q_offset + request.queries - mask.kv_offset
    return (
        group.pattern.kind is HeadKind.FULL
        and request.beside is None
        and all(x is None for x in (mask.softcap, mask.alibi, mask.key_mask))
        and (mask.window is None or mask.window >= end)
        and (not mask.causal or request.q_offset == mask.kv_offset or 1 == request.queries <= end)
    )


def _operations(request: Request, queries: int, keys: int, plain: bool) -> int:
    """Operations of one head: all pairs of the stretch, or the lower triangle that a causal kernel visits."""
    if plain and request.mask.causal and queries > 1:
        pairs = queries * (queries + 1) // 2 - max(0, queries - keys) * (queries - keys + 1) // 2
    else:
        pairs = queries * (keys + (0 if request.beside is None else request.beside.k.shape[2]))
    return 2 * (request.q.shape[3] + request.v.shape[3]) * pairs


def _attend(request: Request, piece: Piece, plain: bool) -> tuple[Tensor, Tensor | None, int]:
    """Output `[B' H' R Dv]` and log-sum-exp `[B' H' R]` (None if the kernel has none) of a piece, and operations."""
    q, k, v = piece.of_queries(request.q), piece.of_keys(request.k, request), piece.of_keys(request.v, request)
    flops = q.shape[0] * q.shape[1] * _operations(request, q.shape[2], k.shape[2], plain)
    if k.shape[2] == 0 and request.beside is None:
        return q.new_zeros(*q.shape[:3], v.shape[3]), q.new_full(q.shape[:3], -torch.inf, dtype=request.precise), 0
    bias, logit_scale = None if plain else _bias(request, piece), piece.logit_scale(request)
    softcap, beside, columns = request.mask.softcap, request.beside, k.shape[2]
    if logit_scale is not None or (bias is not None and bias.dtype == request.precise):
        q, k, v = (x.to(request.precise) for x in (q, k, v))  # factors and biases would lose their digits in bfloat16
    if beside is not None:
        more = (piece.of_keys(x, request, columns=False).to(k.dtype) for x in (beside.k, beside.v))
        k, v = (torch.cat([x, y.expand(len(x), -1, -1, -1)], dim=2) for x, y in zip((k, v), more, strict=True))
    dead = None if bias is None else bias.amax(-1, keepdim=True) == -torch.inf
    if bias is not None and dead is not None and bool(dead.any()):
        bias = bias.masked_fill(dead, 0.0)
    if softcap is not None or (bias is not None and bias.requires_grad):
        arguments = (q, k, v, bias, logit_scale, request.scale, softcap, columns)
        out, lse = checkpoint(_unfused, *arguments, use_reentrant=False) if request.needs_grad else _unfused(*arguments)
    else:
        q = q if logit_scale is None else q * logit_scale.to(q.dtype)
        out, lse = _fused(q, k, v, bias, plain and request.mask.causal and q.shape[2] > 1, request.scale)
    if dead is not None:
        out = out.masked_fill(dead, 0.0)
        lse = None if lse is None else lse.masked_fill(dead[..., 0], -torch.inf)
    return out.to(request.q.dtype), lse, flops


def _bias(request: Request, piece: Piece) -> Tensor | None:
    """What is added to the scores `[B'|1 H'|1 R C+E]`, -inf where a key is not seen; None if nothing is."""
    mask, beside = request.mask, request.beside
    allowed = piece.allowed(request)[:, None]
    if mask.alibi is None and beside is None:
        if bool(allowed.all()):
            return None
        dtype = request.q.dtype if piece.logit_scale(request) is None else request.precise
        return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(~allowed, -torch.inf)
    bias = torch.zeros(allowed.shape, dtype=request.precise, device=allowed.device)
    if mask.alibi is not None:
        distance = (piece.queries + request.q_offset)[:, None] - (piece.columns + mask.kv_offset)
        bias = bias - piece.of_heads(mask.alibi[None]).to(bias.dtype)[..., None, None] * distance
        logit_scale = piece.logit_scale(request)
        bias = bias if logit_scale is None else bias * logit_scale.to(bias.dtype)
    bias = bias.masked_fill(~allowed, -torch.inf)
    if beside is None:
        return bias
    count = piece.of_heads(of_rows(beside.log_count, piece.group.rows))[:, :, None].to(bias.dtype)
    shape = torch.broadcast_shapes(bias.shape[:3], (*count.shape[:2], 1))
    return torch.cat([bias.expand(*shape, -1), count.expand(*shape, -1)], dim=-1)


def _fused(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, causal: bool, scale: float
) -> tuple[Tensor, Tensor | None]:
    width = v.shape[3]
    if width != q.shape[3]:  # the kernels take one width
        q, k, v = (pad(x, (0, max(q.shape[3], width) - x.shape[3])) for x in (q, k, v))
    if q.device.type == "cpu":
        out, lse = _flash_on_cpu(q, k, v, bias, causal, scale)
        return out[..., :width], lse
    grouped = q.shape[1] != k.shape[1]
    if grouped and (bias is not None or q.dtype == torch.float32):  # only the flash kernel knows groups
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    with sdpa_kernel(FUSED):
        mask = None if bias is None else bias.expand(*q.shape[:3], -1)
        out = scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=grouped)
    return out[..., :width], None


def _flash_on_cpu(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """The kernel behind PyTorch's attention on the CPU, which holds no scores, with its log-sum-exp."""
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    group = q.shape[1] // k.shape[1]
    if group == 1 or q.shape[2] > 1:
        return kernel(q, k, v, 0.0, causal, attn_mask=bias, scale=scale)
    # One query: the heads of a group become the rows of one product, and keys are read once, not once a head.
    packed = q.reshape(len(q), k.shape[1], group, -1)
    if bias is not None:
        by_head = bias.expand(-1, q.shape[1], -1, -1).reshape(len(bias), k.shape[1], group, -1)
        bias = by_head if bias.shape[1] > 1 else bias.expand(-1, 1, group, -1)
    out, lse = kernel(packed, k, v, 0.0, False, attn_mask=bias, scale=scale)
    return out.reshape(len(q), q.shape[1], 1, -1), lse.reshape(len(q), q.shape[1], 1)


def _unfused(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    logit_scale: Tensor | None,
    scale: float,
    softcap: float | None,
    columns: int,
) -> tuple[Tensor, Tensor]:
    """What no fused kernel of PyTorch computes (soft-caps, gradients of a bias), with the scores of one stretch."""
    precise = torch.promote_types(q.dtype, torch.float32)
    scores = grouped_product(q.to(precise), k.to(precise)) * scale
    if softcap is not None:
        capped = softcap * torch.tanh(scores[..., :columns] / softcap)
        scores = torch.cat([capped, scores[..., columns:]], dim=-1)
    scores = scores if logit_scale is None else scores * logit_scale.to(precise)
    scores = scores if bias is None else scores + bias
    lse = scores.logsumexp(-1, keepdim=True)
    out = grouped_product((scores - lse).exp(), v.to(precise).mT)
    return out, lse[..., 0].detach()
