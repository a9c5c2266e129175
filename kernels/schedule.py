"""A call cut into pieces for a dense kernel: heads of one pattern, a stretch of queries, the keys they see.

The pieces together are exact: within a piece `visibility` says which of the keys each query really sees. Nothing is
ever larger than a stretch of queries times the keys.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.patterns import HeadKind, Pattern, full
from kernels.request import Request
from kernels.visibility import mask_allows, pattern_allows, sequence_starts


@dataclass(frozen=True)
class Group:
    """Heads of some batch rows that look alike: the same heads in each row, all with the same pattern."""

    pattern: Pattern
    rows: tuple[int, ...]
    heads: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Piece:
    """Some queries `[R]` of a group, and the columns `[C]`, ascending, that any of them sees."""

    group: Group
    queries: Tensor
    columns: Tensor

    def allowed(self, request: Request) -> Tensor:
        """Which of the columns each query sees, `[B' R C]`, B' being 1 where all rows of the group agree."""
        queries = self.queries[None]
        allowed = mask_allows(request, queries, self.columns)
        if self.group.pattern.kind is HeadKind.SPARSE:
            allowed = allowed & pattern_allows(self.group.pattern, request, queries, self.columns)
        return of_rows(allowed, self.group.rows)

    def of_queries(self, q: Tensor) -> Tensor:
        """The piece's part of q: `[B' H' R D]`."""
        return self.of_heads(take(of_rows(q, self.group.rows), self.queries))

    def of_heads(self, x: Tensor) -> Tensor:
        """The group's heads of something `[B' H ...]`."""
        return x if len(self.group.heads) == x.shape[1] else x[:, list(self.group.heads)]

    def of_keys(self, x: Tensor, request: Request, columns: bool = True) -> Tensor:
        """The piece's part of k or v: `[B' K' C D]`, as few key/value heads as its heads can share evenly."""
        x = of_rows(x, self.group.rows)
        x = take(x, self.columns) if columns else x
        kv_heads = [head // request.group for head in self.group.heads]
        if len(kv_heads) == request.heads:
            return x
        used = sorted(set(kv_heads))
        return x[:, used if len({kv_heads.count(head) for head in used}) == 1 else kv_heads]

    def logit_scale(self, request: Request) -> Tensor | None:
        """The factor on the scores, `[B'|1 H' R|1 1]`, or None."""
        scale = None if request.gates is None else request.gates.logit_scale
        if scale is None:
            return None
        scale = self.of_heads(of_rows(scale, self.group.rows))
        return scale[..., None, None] if scale.ndim == 2 else scale[:, :, self.queries, None]


def grouped_product(q: Tensor, k: Tensor, out: Tensor | None = None) -> Tensor:
    """`q @ k.mT` `[B H R C]` of q `[B H R D]` and k `[B K C D]`; query head h uses key head `h // (H / K)`."""
    batch, heads, rows, dim = q.shape
    packed = q.reshape(batch, k.shape[1], heads // k.shape[1] * rows, dim)
    out = out if out is None else out.view(batch, k.shape[1], -1, k.shape[2])
    return torch.matmul(packed, k.mT, out=out).view(batch, heads, rows, k.shape[2])


def take(x: Tensor, index: Tensor) -> Tensor:
    """Entries `[..., n, d]` of `x` `[..., m, d]` at ascending indices; a view where they are consecutive."""
    if len(index) and int(index[-1]) - int(index[0]) + 1 == len(index):
        return x[:, :, int(index[0]) : int(index[-1]) + 1]
    return x.index_select(2, index)


def of_rows(values: Tensor, rows: tuple[int, ...]) -> Tensor:
    """The batch rows of a group, without a copy where these are all, or where one entry stands for all."""
    return values if len(values) in (1, len(rows)) else values[list(rows)]


def groups(request: Request) -> list[Group]:
    """Every head that is computed, in the group it is computed with."""
    classes: dict[Pattern, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    everything = full()
    for row, head in request.computed.nonzero().tolist():
        plan = request.plan
        pattern = everything if plan is None else plan.patterns[row if len(plan.kind) > 1 else 0][head]
        classes[pattern][row].append(head)
    result = []
    for pattern, by_row in classes.items():
        alike: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for row, heads in by_row.items():
            alike[tuple(heads)].append(row)
        result += [Group(pattern, tuple(rows), heads) for heads, rows in alike.items()]
    return result


def pieces(request: Request, group: Group, queries: Tensor, size: int) -> Iterator[Piece]:
    """The queries `[R]`, ascending, in pieces of at most `size`; block lists are not cut within a block."""
    if group.pattern.blocks:
        size = max(1, size // group.pattern.block) * group.pattern.block
    # Pieces end where positions are a multiple of their size, so that a piece's queries share blocks.
    number = (queries + request.q_offset) // size
    for part in queries.split(torch.unique_consecutive(number, return_counts=True)[1].tolist()):
        yield Piece(group, part, columns_seen(request, group.pattern, part))


def columns_seen(request: Request, pattern: Pattern, queries: Tensor) -> Tensor:
    """Every column that one of the queries may see, at least one; a few that none sees may be among them."""
    mask, first = request.mask, request.mask.kv_offset
    earliest, latest = int(queries[0]) + request.q_offset, int(queries[-1]) + request.q_offset
    end = min(latest + 1 - first, request.keys) if mask.causal else request.keys
    wanted = torch.zeros(max(1, end), dtype=torch.bool)

    def want(position: int, stop: int) -> None:
        wanted[max(0, position - first) : max(0, stop - first)] = True

    if pattern.kind is HeadKind.FULL:
        wanted[:] = True
    else:
        if pattern.window:
            want(earliest - pattern.window + 1, latest + 1)
        if pattern.sinks:
            for start in torch.unique(sequence_starts(request, queries[None])).tolist():
                want(start, start + pattern.sinks)
        for position in pattern.tokens:
            want(position, position + 1)
        if pattern.blocks:
            for block in range(earliest // pattern.block, latest // pattern.block + 1):
                for key in pattern.blocks[block]:
                    want(key * pattern.block, (key + 1) * pattern.block)
    if mask.window is not None:
        wanted[: max(0, earliest - mask.window + 1 - first)] = False
    if mask.starts is not None:
        wanted[: max(0, int(sequence_starts(request, queries[None]).min()) - first)] = False
    if not bool(wanted.any()):
        wanted[0] = True
    return wanted.nonzero()[:, 0].to(queries.device)
