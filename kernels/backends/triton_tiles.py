"""Which tiles of keys each block of queries visits, as the lists that the kernels of `triton_kernels` walk.

Two tables of booleans, block by tile, say where a pattern sees anything and where it sees everything; runs of
neighbours in them become the lists. What a call needs is kept, by everything it depends on: the layers of a model ask
for the same lists.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import pad

from kernels.patterns import HeadKind, Pattern, full
from kernels.request import Request
from kernels.types import HeadPlan

EVERYTHING = 2**30
"""A window that holds every key."""

Looks = tuple[tuple[Pattern | None, ...], ...]
"""The pattern of every head of every batch row; None of one that is not computed."""


@dataclass(frozen=True)
class Grid:
    """Sizes and offsets of a call, cut into blocks of `rows` queries and tiles of `width` keys."""

    queries: int
    keys: int
    q_offset: int
    kv_offset: int
    causal: bool
    window: int | None
    holes: bool
    """Whether some keys may be hidden from all, so that no tile is seen whole."""
    rows: int
    width: int

    @classmethod
    def of(cls, request: Request, rows: int, width: int) -> Grid:
        mask = request.mask
        holes = mask.key_mask is not None
        shape = request.queries, request.keys, request.q_offset, mask.kv_offset
        return cls(*shape, mask.causal, mask.window, holes, rows, width)

    @property
    def blocks(self) -> int:
        return -(-self.queries // self.rows)

    @property
    def tiles(self) -> int:
        return -(-self.keys // self.width)

    def positions(self) -> tuple[Tensor, Tensor]:
        """Positions of the first and the last query of each block, `[blocks 1]`."""
        first = torch.arange(self.blocks)[:, None] * self.rows
        return first + self.q_offset, (first + self.rows).clamp(max=self.queries) - 1 + self.q_offset

    def key_positions(self) -> tuple[Tensor, Tensor]:
        """Positions of the first and the last key of each tile, `[tiles]`."""
        first = torch.arange(self.tiles) * self.width
        return first + self.kv_offset, (first + self.width).clamp(max=self.keys) - 1 + self.kv_offset


@dataclass(frozen=True, eq=False)
class Lists:
    """The work of a launch, on the device of the tensors; see `triton_kernels.Walk`. tiles: visits in all."""

    items: Tensor
    offsets: Tensor
    runs: Tensor
    tiles: int


def looks(request: Request) -> Looks:
    """What each head looks at, if it is computed."""
    everything, plan = full(), request.plan
    computed = request.computed.tolist()
    patterns = [[everything] * request.heads] if plan is None else plan.patterns
    rows = patterns * (request.batch if len(patterns) == 1 else 1)
    return tuple(
        tuple(p if wanted else None for p, wanted in zip(*row, strict=True)) for row in zip(rows, computed, strict=True)
    )


def starts(request: Request, rows: int) -> tuple[tuple[int, ...], ...] | None:
    """Of each batch row: the earliest and the latest start of a sequence, of each block of queries if they differ."""
    values = request.mask.starts
    if values is None:
        return None
    if values.ndim == 1:
        return tuple((start, start) for start in values.expand(request.batch).tolist())
    blocks = pad(values.double(), (0, -values.shape[1] % rows), value=torch.nan).unflatten(1, (-1, rows))
    least, most = blocks.nan_to_num(torch.inf).amin(-1), blocks.nan_to_num(-torch.inf).amax(-1)
    return tuple(map(tuple, torch.cat([least, most], dim=1).int().expand(request.batch, -1).tolist()))


@lru_cache(maxsize=64)
def attention_lists(
    grid: Grid, seen: Looks, starts: tuple[tuple[int, ...], ...] | None, pack: int, splits: int,
    device: torch.device,
) -> Lists:  # fmt: skip
    """The tiles that blocks of queries visit; an item is `pack` heads that share keys."""
    items, kinds = _items(seen, starts, pack)
    tables = [_tables(grid, patterns, start) for patterns, start in kinds]
    return _lists(items, [_split(*table, splits) for table in tables], device)


@lru_cache(maxsize=64)
def column_lists(
    grid: Grid, seen: Looks, starts: tuple[tuple[int, ...], ...] | None, captured: tuple[int, ...] | None,
    device: torch.device,
) -> Lists:  # fmt: skip
    """The blocks of queries that tiles of keys are seen by; those `captured` alone, or all."""
    items, kinds = _items(seen, starts, 1)
    wanted = torch.zeros(grid.blocks, 1, dtype=torch.bool)
    wanted[slice(None) if captured is None else list(captured)] = True
    tables = [_tables(grid, patterns, start) for patterns, start in kinds]
    return _lists(items, [_split((some & wanted).T, (whole & wanted).T, 1) for some, whole in tables], device)


def _items(
    seen: Looks, starts: tuple[tuple[int, ...], ...] | None, pack: int
) -> tuple[list[tuple[int, int, int]], list[tuple[frozenset[Pattern], tuple[int, ...] | None]]]:
    """Batch row, first head and number of the list of each item, and what the lists are made from."""
    numbers: dict[tuple[frozenset[Pattern], tuple[int, ...] | None], int] = {}
    items = []
    for row, heads in enumerate(seen):
        for first in range(0, len(heads), pack):
            patterns = frozenset(p for p in heads[first : first + pack] if p is not None)
            if patterns:
                key = patterns, None if starts is None else starts[row]
                items.append((row, first, numbers.setdefault(key, len(numbers))))
    return items, list(numbers)


def _tables(grid: Grid, patterns: frozenset[Pattern], starts: tuple[int, ...] | None) -> tuple[Tensor, Tensor]:
    """Where any of the patterns sees a key, and where all see every key: `[blocks tiles]`."""
    earliest, latest = grid.positions()
    first, last = grid.key_positions()
    some = torch.ones(grid.blocks, grid.tiles, dtype=torch.bool)
    whole = torch.full_like(some, not grid.holes)
    whole[:, -1] &= grid.keys % grid.width == 0
    start = torch.zeros(2, 1, 1, dtype=torch.int64)
    if grid.causal:
        some &= first <= latest
        whole &= last <= earliest
    if grid.window is not None:
        some &= last > earliest - grid.window
        whole &= first > latest - grid.window
    if starts is not None:
        start = torch.tensor(starts).view(2, -1, 1)
        some &= last >= start[0]
        whole &= first >= start[1]
    by_pattern = [_pattern_tables(grid, pattern, start) for pattern in patterns]
    some &= torch.stack([table[0] for table in by_pattern]).any(0)
    whole &= torch.stack([table[1] for table in by_pattern]).all(0)
    return some, whole & some


def _pattern_tables(grid: Grid, pattern: Pattern, start: Tensor) -> tuple[Tensor, Tensor]:
    """The same of what one pattern lets through."""
    earliest, latest = grid.positions()
    first, last = grid.key_positions()
    is_full = pattern.kind is HeadKind.FULL
    some = torch.full((grid.blocks, grid.tiles), is_full)
    whole = torch.full_like(some, is_full)
    if pattern.window:
        some |= last > earliest - pattern.window
        whole |= first > latest - pattern.window
    if pattern.sinks:
        some |= (last >= start[0]) & (first < start[1] + pattern.sinks)
        whole |= (first >= start[1]) & (last < start[0] + pattern.sinks)
    if pattern.tokens:
        listed = torch.zeros(grid.tiles * grid.width, dtype=torch.bool)
        listed[_within(pattern.tokens, grid)] = True
        some |= listed.unflatten(0, (-1, grid.width)).any(-1)
    if pattern.blocks:
        size = pattern.block
        end = int(last[-1]) // size + 1
        seen = torch.zeros(int(latest[-1]) // size + 1, end, dtype=torch.int32)
        for i, keys in enumerate(pattern.blocks[: len(seen)]):
            seen[i, [key for key in keys if key < end]] = 1
        # How many blocks of a rectangle are listed, from sums over all rectangles that begin at the corner.
        sums = pad(seen.cumsum(0).cumsum(1), (1, 0, 1, 0))
        top, bottom, left, right = earliest // size, latest // size + 1, first // size, last // size + 1
        count = sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
        some |= count > 0
        whole |= count == (bottom - top) * (right - left)
    return some, whole


def _within(positions: Sequence[int], grid: Grid) -> list[int]:
    """The columns of those positions that have one."""
    return [p - grid.kv_offset for p in positions if 0 <= p - grid.kv_offset < grid.keys]


def _split(some: Tensor, whole: Tensor, splits: int) -> Tensor:
    """`[rows splits 2 columns]`: the whole and the partial ones, dealt in order to `splits` programs."""
    rank = some.cumsum(1) - 1
    part = rank * splits // some.sum(1, keepdim=True).clamp(min=1)
    mine = part[:, None] == torch.arange(splits)[:, None]
    return torch.stack([whole[:, None] & mine, (some & ~whole)[:, None] & mine], dim=2)


def _lists(items: list[tuple[int, int, int]], tables: list[Tensor], device: torch.device) -> Lists:
    """The runs of True in each row of the tables."""
    if not items:
        nothing = torch.zeros(0, 3, dtype=torch.int32, device=device)
        return Lists(nothing, nothing, nothing, 0)
    tiles = [int(table.sum()) for table in tables]
    rows = torch.cat([table.flatten(0, 2) for table in tables])
    edges = pad(rows.to(torch.int8), (1, 1)).diff(dim=1)
    first, last = (edges == 1).nonzero(), (edges == -1).nonzero()
    counts = torch.bincount(first[:, 0], minlength=len(rows))
    runs = torch.stack([first[:, 1], last[:, 1]], dim=1)
    return Lists(
        torch.tensor(items, dtype=torch.int32).to(device),
        pad(counts.cumsum(0), (1, 0)).int().to(device),
        runs.int().to(device),
        sum(tiles[number] for _, _, number in items),
    )


@dataclass(frozen=True, eq=False)
class Marks:
    """What each pattern shows, by number, for the keys of partial tiles; see `triton_kernels.Looks`."""

    of: Tensor
    window: Tensor | None
    sinks: Tensor | None
    tokens: Tensor | None
    blocks: Tensor | None
    block: int
    first_query_block: int
    first_key_block: int


@lru_cache(maxsize=64)
def marks(grid: Grid, seen: Looks, block: int, device: torch.device) -> Marks:
    """The patterns of all heads as the kernels read them; block: the size of the blocks that they list."""
    numbers: dict[Pattern | None, int] = {None: -1}
    for row in seen:
        for pattern in row:
            numbers.setdefault(pattern, len(numbers) - 1)
    of = torch.tensor([[numbers[pattern] for pattern in row] for row in seen], dtype=torch.int32).to(device)
    patterns = [pattern for pattern in numbers if pattern is not None]
    first_query, first_key = grid.q_offset // block, grid.kv_offset // block
    if all(pattern.kind is HeadKind.FULL for pattern in patterns):
        return Marks(of, None, None, None, None, block, first_query, first_key)
    window = [EVERYTHING if pattern.kind is HeadKind.FULL else pattern.window for pattern in patterns]
    sinks = [pattern.sinks for pattern in patterns]
    tokens = blocks = None
    if any(pattern.tokens for pattern in patterns):
        tokens = torch.zeros(len(patterns), grid.keys, dtype=torch.int8)
        for i, pattern in enumerate(patterns):
            tokens[i, _within(pattern.tokens, grid)] = 1
    if any(pattern.blocks for pattern in patterns):
        blocks = torch.stack([_bits(grid, pattern, block) for pattern in patterns]).to(device)
    sizes = [torch.tensor(x, dtype=torch.int32).to(device) for x in (window, sinks)]
    tokens = None if tokens is None else tokens.to(device)
    return Marks(of, sizes[0], sizes[1], tokens, blocks, block, first_query, first_key)


def _bits(grid: Grid, pattern: Pattern, block: int) -> Tensor:
    """A bit for every key block, by query block of this call: `[query_block words]` int32."""
    first_query, first_key = grid.q_offset // block, grid.kv_offset // block
    rows = (grid.q_offset + grid.queries - 1) // block - first_query + 1
    count = (grid.kv_offset + grid.keys - 1) // block - first_key + 1
    listed = torch.zeros(rows, -(-count // 32) * 32, dtype=torch.int64)
    for i, keys in enumerate(pattern.blocks[first_query : first_query + rows]):
        listed[i, [key - first_key for key in keys if 0 <= key - first_key < count]] = 1
    words = (listed.unflatten(1, (-1, 32)) << torch.arange(32)).sum(-1)
    return torch.where(words < 2**31, words, words - 2**32).int()


def block_size(plan: HeadPlan | None) -> int:
    """Positions in a block of the plan's lists; any size where there are none."""
    return 1 if plan is None or plan.covers is None else plan.block
