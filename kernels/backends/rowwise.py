"""Statistics of attention rows from queries, keys and, where a fused kernel returned it, the log-sum-exp.

Scores are computed a stretch of rows at a time into one workspace, and what is asked for is taken from them: nothing
`queries x keys` exists, and what is not asked for (the exponentials, most of all) is not computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from kernels.patterns import HeadKind
from kernels.request import Request
from kernels.schedule import Group, Piece, grouped_product, groups, of_rows, pieces
from kernels.types import AttentionStats

WORKSPACE = 2**22
"""Scores held at a time, 16 MiB in float32; a second buffer of this size is used where exponentials are needed."""

ROWS = 64
"""Most rows computed at a time; more are not faster."""

UNSEEN = -1e30
"""The score of a key that is not seen: finite, so that its probability times its log-probability is 0 and not NaN."""


BLOCK = 64
"""Neighbours of which only the largest is compared with the others first, when the most probable key is looked for."""


class Workspace:
    """Buffers that are allocated once: fresh pages for every stretch of rows would cost more than the arithmetic."""

    def __init__(self, like: Tensor) -> None:
        self._like = like
        self._buffers: dict[str, Tensor] = {}

    def __call__(self, name: str, *shape: int) -> Tensor:
        size = torch.Size(shape).numel()
        if name not in self._buffers or self._buffers[name].numel() < size:
            self._buffers[name] = self._like.new_empty(size)
        return self._buffers[name][:size].view(shape)


def predict(request: Request) -> int:
    """Operations that `measure` will do: the scores of the captured rows."""
    return sum(
        2
        * request.q.shape[3]
        * len(piece.group.rows)
        * len(piece.group.heads)
        * len(piece.queries)
        * len(piece.columns)
        for piece, _ in _stretches(request)
    )


@torch.no_grad()
def measure(request: Request, lse: Tensor | None) -> tuple[AttentionStats, int]:
    """What the request captures, and the operations done; `lse` `[B H T]` of all rows, or None if it is not known."""
    capture, rows = request.capture, request.rows
    assert capture is not None
    assert rows is not None
    total = (request.batch, request.heads, rows.shape[1])
    like = request.q.new_zeros((), dtype=request.precise)
    found = {"argmax": torch.full(total, -1, device=like.device)} if capture.argmax else {}
    if capture.probability:
        found["probability"] = like.new_zeros(total)
    if capture.entropy:
        found["entropy"] = like.new_zeros(total)
    if capture.log_sum_exp:
        found["log_sum_exp"] = like.new_full(total, -torch.inf)
    if capture.spans is not None:
        found["mass"] = like.new_zeros(*total, capture.spans.shape[1])
    if capture.topk:
        found["topk"] = torch.full((*total, capture.topk), -1, device=like.device)
        found["topk_probability"] = like.new_zeros(*total, capture.topk)
    if capture.column_sums:
        found["column_sums"] = like.new_zeros(request.batch, request.heads, request.keys)

    workspace, flops = Workspace(like), 0
    for piece, slots in _stretches(request):
        scores = _scores(request, piece, workspace)
        flops += 2 * request.q.shape[3] * scores.numel()
        row, head = (torch.tensor(x, device=like.device) for x in (piece.group.rows, piece.group.heads))
        row, head = row[:, None, None], head[:, None]
        known = _log_sum_exp(request, piece, scores, workspace) if lse is None else lse[row, head, piece.queries]
        for name, value in _measured(request, piece, scores, known, workspace):
            if name == "column_sums":
                found[name][row, head, piece.columns] += value
            else:
                found[name][row, head, slots] = value
    return AttentionStats(**found), flops


def _stretches(request: Request) -> Iterator[tuple[Piece, Tensor]]:
    """The captured rows in pieces that fit the workspace, each with the places of its rows among the captured ones."""
    rows, capture = request.rows, request.capture
    assert rows is not None
    assert capture is not None
    shared = not isinstance(capture.rows, Tensor) or capture.rows.ndim == 1 or len(capture.rows) == 1
    for whole in groups(request):
        for group in [whole] if shared else [replace(whole, rows=(row,)) for row in whole.rows]:
            queries, places = rows[group.rows[0]].sort()
            a_row = len(group.rows) * len(group.heads) * _most_columns(request, group)
            done = 0
            for piece in pieces(request, group, queries, max(1, min(ROWS, WORKSPACE // a_row))):
                yield piece, places[done : done + len(piece.queries)]
                done += len(piece.queries)


def _most_columns(request: Request, group: Group) -> int:
    pattern = group.pattern
    if pattern.kind is HeadKind.FULL or pattern.blocks:
        return request.keys
    return min(request.keys, pattern.sinks + pattern.window + len(pattern.tokens) + ROWS)


def _scores(request: Request, piece: Piece, workspace: Workspace) -> Tensor:
    """Scores `[B' H' R C]`, UNSEEN where a key is not seen."""
    mask, dtype = request.mask, request.precise
    q = piece.of_queries(request.q).to(dtype) * request.scale
    k = piece.of_keys(request.k, request).to(dtype)
    scores = grouped_product(q, k, out=workspace("scores", *q.shape[:3], k.shape[2]))
    if mask.softcap is not None:
        scores.div_(mask.softcap).tanh_().mul_(mask.softcap)
    if mask.alibi is not None:
        distance = (piece.queries + request.q_offset)[:, None] - (piece.columns + mask.kv_offset)
        slopes = mask.alibi[list(piece.group.heads), None, None]
        scores.addcmul_(slopes.to(dtype), distance.to(dtype), value=-1.0)
    logit_scale = piece.logit_scale(request)
    if logit_scale is not None:
        scores.mul_(logit_scale.to(dtype))
    hidden = ~piece.allowed(request)
    columns = hidden.flatten(0, 1).any(0).nonzero()[:, 0]
    if len(columns):
        part = slice(int(columns[0]), int(columns[-1]) + 1)
        scores[..., part].masked_fill_(hidden[:, None, :, part], UNSEEN)
    return scores


def _log_sum_exp(request: Request, piece: Piece, scores: Tensor, workspace: Workspace) -> Tensor:
    """Log-sum-exp `[B' H' R]` of these scores and of what stands beside the keys."""
    largest = scores.amax(-1, keepdim=True)
    terms = torch.sub(scores, largest, out=workspace("terms", *scores.shape)).exp_()
    lse = (largest[..., 0] + terms.sum(-1).log()).where(largest[..., 0] > UNSEEN / 2, -torch.inf)
    if request.beside is None:
        return lse
    q = piece.of_queries(request.q).to(lse.dtype) * request.scale
    beside = grouped_product(q, piece.of_keys(request.beside.k, request, columns=False).to(lse.dtype))
    logit_scale = piece.logit_scale(request)
    beside = beside if logit_scale is None else beside * logit_scale.to(lse.dtype)
    count = piece.of_heads(of_rows(request.beside.log_count, piece.group.rows)).to(lse.dtype)
    return torch.logaddexp(lse, (beside + count[:, :, None]).logsumexp(-1))


def _measured(
    request: Request, piece: Piece, scores: Tensor, lse: Tensor, workspace: Workspace
) -> Iterator[tuple[str, Tensor]]:
    """What the request captures of these rows, by name; uses the scores up."""
    capture, positions = request.capture, piece.columns + request.mask.kv_offset
    assert capture is not None
    finite = lse.where(lse > -torch.inf, 0.0)[..., None]
    if capture.log_sum_exp:
        yield "log_sum_exp", lse
    if capture.argmax or capture.probability:
        best, where = first_max(scores)
        if capture.argmax:
            yield "argmax", torch.where(best > UNSEEN / 2, positions[where], -1)
        if capture.probability:
            yield "probability", (best - finite[..., 0]).exp()
    if capture.topk:
        best, where = scores.topk(min(capture.topk, len(positions)))
        missing = (0, capture.topk - best.shape[-1])
        yield "topk", pad(torch.where(best > UNSEEN / 2, positions[where], -1), missing, value=-1)
        yield "topk_probability", pad((best - finite).exp(), missing)
    if capture.spans is not None:
        yield "mass", _mass(of_rows(capture.spans, piece.group.rows), positions, scores, finite)
    if capture.column_sums or capture.entropy:
        logs = scores.sub_(finite)
        probability = torch.exp(logs, out=workspace("terms", *scores.shape))
        if capture.column_sums:
            yield "column_sums", probability.sum(2)
        if capture.entropy:
            yield "entropy", logs.mul_(probability).sum(-1).neg_()


def _mass(spans: Tensor, positions: Tensor, scores: Tensor, lse: Tensor) -> Tensor:
    """Probability of the keys within each span, `[B' H' R N]`: the ascending columns of a span are a slice."""
    mass = scores.new_zeros(*scores.shape[:3], spans.shape[1])
    ends = torch.searchsorted(positions, spans.to(positions.device).contiguous())
    for row, of_row in enumerate(ends.tolist()):
        rows = slice(None) if len(spans) == 1 else slice(row, row + 1)
        for i, (first, last) in enumerate(of_row):
            mass[rows, ..., i] = (scores[rows, ..., first:last] - lse[rows]).exp().sum(-1)
    return mass


def first_max(scores: Tensor) -> tuple[Tensor, Tensor]:
    """The largest entry of the last dimension and its first index; two levels, which is twice as fast as one."""
    count = scores.shape[-1] // BLOCK * BLOCK
    if count < 2 * BLOCK:
        return scores.max(-1)
    blocks = scores[..., :count].unflatten(-1, (-1, BLOCK))
    best, block = blocks.amax(-1).max(-1)
    inner = blocks.gather(-2, block[..., None, None].expand(*block.shape, 1, BLOCK))[..., 0, :]
    where = block * BLOCK + inner.argmax(-1)
    if count < scores.shape[-1]:
        rest, place = scores[..., count:].max(-1)
        where = torch.where(rest > best, place + count, where)
        best = best.maximum(rest)
    return best, where
