"""A request as launches of `triton_kernels`: sizes, arguments, and the tensors that come back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from kernels.backends import rowwise, triton_kernels
from kernels.backends.triton_kernels import INTERPRETED, Beside, Gates, Inputs, Looks, Partials, Shape, Stats, Walk
from kernels.backends.triton_tiles import (
    Grid,
    Lists,
    Marks,
    attention_lists,
    block_size,
    column_lists,
    looks,
    marks,
    starts,
)
from kernels.request import Request
from kernels.types import AttentionStats, CaptureSpec

COLUMN_ROWS, COLUMN_WIDTH = 64, 64
"""Queries and keys at a time where column sums are made."""

MOST_SPLITS = 64

FUSED = {"enable_fp_fusion": True}
"""Products and sums are rounded once, whatever the default of the Triton at hand."""

AUXILIARY = {"num_warps": 4, "num_stages": 2, **FUSED}
"""How the kernels that are not the bulk of the work are compiled."""

NO_STATS = Stats(*[None] * len(Stats._fields))


@dataclass(frozen=True)
class Cut:
    """The work of a program: `rows` of `pack` heads, `width` keys at a time, in one of `splits` parts of its keys."""

    rows: int
    width: int
    pack: int
    splits: int
    warps: int
    stages: int

    @classmethod
    def of(cls, request: Request) -> Cut:
        widest = max(padded(request.q.shape[3]), padded(request.v.shape[3]))
        if request.q.dtype == torch.float32:
            most, width, warps, stages = (64, 32, 8, 2) if widest <= 128 else (16, 16, 8, 1)
        else:
            most, width, warps, stages = (128, 64, 8, 3) if widest <= 128 else (64, 32, 8, 2)
        fitting = [n for n in range(1, request.group + 1) if request.group % n == 0 and n * request.queries <= most]
        pack = max(fitting, default=1)
        rows = min(most, padded(pack * request.queries))
        programs = -(-int(request.computed.sum()) // pack) * -(-request.queries // rows)
        wanted = min(2 * processors(request.q.device) // max(1, programs), request.keys // (4 * width), MOST_SPLITS)
        splits = 1 << (max(1, wanted).bit_length() - 1)
        return cls(rows, width, pack, splits, warps if rows == most else min(warps, 4), stages)


def padded(width: int) -> int:
    """The power of two, at least 16, that a width is padded to."""
    return max(16, power_of_two(width))


def power_of_two(number: int) -> int:
    """The least that is no smaller."""
    return 1 << (number - 1).bit_length()


def processors(device: torch.device) -> int:
    """How many programs a device runs at a time, at least."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


class Call:
    """A request, the lists of its work, and once made its output and measurements."""

    out: Tensor

    def __init__(self, request: Request) -> None:
        self.request, self.cut, self.seen = request, Cut.of(request), looks(request)
        r, cut = request, self.cut
        self.grid = Grid.of(r, cut.rows if cut.pack == 1 else r.queries, cut.width)
        firsts = starts(r, self.grid.rows)
        self.lists = attention_lists(self.grid, self.seen, firsts, cut.pack, cut.splits, r.q.device)
        self.measured: dict[str, Tensor] = {}
        self.visited: dict[str, Tensor | None] = {"attend": None, "columns": None}

    @cached_property
    def column_lists(self) -> Lists | None:
        r, capture = self.request, self.request.capture
        if capture is None or not capture.column_sums:
            return None
        captured = None if capture.rows == "all" else self._captured(COLUMN_ROWS)
        grid = Grid.of(r, COLUMN_ROWS, COLUMN_WIDTH)
        return column_lists(grid, self.seen, starts(r, COLUMN_ROWS), captured, r.q.device)

    @cached_property
    def best_keys(self) -> Request | None:
        """What is left for `rowwise`: the most probable keys of chosen rows."""
        capture = self.request.capture
        if capture is None or not capture.topk:
            return None
        only = CaptureSpec(capture.rows, argmax=False, probability=False, log_sum_exp=False, topk=capture.topk)
        return replace(self.request, capture=only)

    @property
    def flops(self) -> int:
        """Operations of the products with every tile in the lists."""
        r, cut, columns = self.request, self.cut, self.column_lists
        beside = 0 if r.beside is None else r.beside.k.shape[2] * len(self.lists.items) * self.grid.blocks
        flops = 2 * (r.q.shape[3] + r.v.shape[3]) * cut.rows * (self.lists.tiles * cut.width + beside)
        if columns is not None:
            flops += 2 * r.q.shape[3] * columns.tiles * COLUMN_ROWS * COLUMN_WIDTH
        return flops + (0 if self.best_keys is None else rowwise.predict(self.best_keys))

    def count(self) -> Call:
        """Have every program write how many tiles it visits."""
        self.visited["attend"] = self.lists.items.new_zeros(self.cut.splits, len(self.lists.items), self.grid.blocks)
        if self.column_lists is not None:
            tiles = -(-self.request.keys // COLUMN_WIDTH)
            self.visited["columns"] = self.lists.items.new_zeros(len(self.column_lists.items), tiles)
        return self

    def make(self) -> Call:
        """Compute."""
        r, splits = self.request, self.cut.splits
        self.allocate()
        with torch.cuda.device_of(r.q):
            for order, stats in self.launches() if len(self.lists.items) else ():
                grid = len(order), len(self.lists.items), splits
                arguments, constants = self.arguments(order, stats), self.constants(stats)
                triton_kernels.attend[grid](*arguments, **constants, **self.options)
                if splits > 1:
                    triton_kernels.merge[grid[:2]](*arguments, **constants, **AUXILIARY)
            if self.column_lists is not None and len(self.column_lists.items):
                tiles = -(-r.keys // COLUMN_WIDTH), len(self.column_lists.items)
                triton_kernels.columns[tiles](*self.column_arguments(), **self.column_constants, **AUXILIARY)
        if self.best_keys is not None:
            self.measured |= rowwise.measure(self.best_keys, None)[0].measured
        return self

    def stats(self) -> AttentionStats | None:
        capture = self.request.capture
        if capture is None:
            return None
        columns = self.measured.pop("column_sums", None)
        best = {name: self.measured.pop(name) for name in ("topk", "topk_probability") if name in self.measured}
        stats = AttentionStats(**self.measured)
        if isinstance(capture.rows, Tensor):  # of a query asked for twice, one row was written
            assert self.slots is not None
            assert self.request.rows is not None
            place = self.slots.long().gather(1, self.request.rows)
            row = torch.arange(len(place), device=place.device)[:, None]
            stats = stats.by_row(lambda x: x[row, :, place].transpose(1, 2))
        return replace(stats, column_sums=columns, **best)

    # ---------------------------------------------------------------------------------------------- what is launched

    def launches(self) -> Iterator[tuple[Tensor, Stats]]:
        """Blocks of queries, those with most keys first, that are measured, and those that are not."""
        capture, blocks, device = self.request.capture, self.grid.blocks, self.request.q.device
        if capture is None or capture.rows == "all":
            yield torch.arange(blocks - 1, -1, -1, dtype=torch.int32, device=device), self._stats()
            return
        measured = set(self._captured(self.grid.rows))
        for stats, some in ((self._stats(), measured), (NO_STATS, set(range(blocks)) - measured)):
            if some:
                yield torch.tensor(sorted(some, reverse=True), dtype=torch.int32).to(device), stats

    def _captured(self, rows: int) -> tuple[int, ...]:
        """The blocks, of so many queries, in which one is captured."""
        assert self.request.rows is not None
        return tuple(torch.unique(self.request.rows // rows).tolist())

    @property
    def options(self) -> dict[str, int]:
        return {"num_warps": self.cut.warps, "num_stages": self.cut.stages, **FUSED}

    def constants(self, stats: Stats) -> dict[str, Any]:
        r, cut = self.request, self.cut
        spans = 0 if stats.mass is None else stats.mass.shape[-1]
        return {
            **self._shared_constants, "PACK": cut.pack, "SPLITS": cut.splits, "SPANS": spans, "DV": r.v.shape[3],
            "BLOCK_DV": padded(r.v.shape[3]), "BLOCK_M": cut.rows, "BLOCK_N": cut.width,
        }  # fmt: skip

    @property
    def column_constants(self) -> dict[str, Any]:
        return {**self._shared_constants, "BLOCK_M": COLUMN_ROWS, "BLOCK_N": COLUMN_WIDTH}

    @property
    def _shared_constants(self) -> dict[str, Any]:
        r = self.request
        # The interpreter would multiply the bits of bfloat16 as integers.
        upcast = INTERPRETED and r.q.dtype == torch.bfloat16
        width = r.q.shape[3]
        return {
            "HEADS": r.heads, "GROUP": r.group, "CAUSAL": r.mask.causal, "D": width, "BLOCK_D": padded(width),
            "UPCAST": upcast,
        }  # fmt: skip

    def arguments(self, order: Tensor, stats: Stats) -> tuple[Any, ...]:
        """Of `attend` and `merge`."""
        r, lists, captured = self.request, self.lists, 0 if self.request.rows is None else self.request.rows.shape[1]
        walk = Walk(lists.items, order, lists.offsets, lists.runs, self.grid.blocks, self.visited["attend"])
        spans = 0 if stats.mass is None else stats.mass.shape[-1]
        return (
            self._inputs, self._shape, self._looks, self._gates, self._beside, stats, walk, self._partials(spans),
            r.queries, r.keys, r.q_offset, r.mask.kv_offset, captured,
        )  # fmt: skip

    def column_arguments(self) -> tuple[Any, ...]:
        r, lists, tiles = self.request, self.column_lists, -(-self.request.keys // COLUMN_WIDTH)
        assert lists is not None
        walk = Walk(lists.items, None, lists.offsets, lists.runs, tiles, self.visited["columns"])
        return (
            self._inputs, self._shape, self._looks, self._gates, self._stats(), walk,
            r.queries, r.keys, r.q_offset, r.mask.kv_offset,
        )  # fmt: skip

    # ------------------------------------------------------------------------------------------- what is handed over

    def allocate(self) -> None:
        r, capture = self.request, self.request.capture
        shape = (r.batch, r.queries, r.heads, r.v.shape[3])
        if bool(r.computed.all()):
            self.out = r.q.new_empty(shape)
        else:
            self.out = r.epilogue(r.q.new_zeros(shape)).contiguous()
        self.slots: Tensor | None = None
        if capture is None:
            return
        assert r.rows is not None
        rows = (r.batch, r.heads, r.rows.shape[1])
        places = torch.arange(rows[2], dtype=torch.int32, device=r.q.device).expand_as(r.rows)
        if capture.rows != "all":
            self.slots = places.new_full((r.batch, r.queries), -1).scatter_(1, r.rows, places)
        number = r.q.new_zeros((), dtype=torch.float32)
        if capture.argmax:
            self.measured["argmax"] = places.new_full(rows, -1, dtype=torch.int64)
        if capture.probability:
            self.measured["probability"] = number.new_zeros(rows)
        if capture.entropy:
            self.measured["entropy"] = number.new_zeros(rows)
        if capture.log_sum_exp:
            self.measured["log_sum_exp"] = number.new_full(rows, -torch.inf)
        if capture.spans is not None:
            self.measured["mass"] = number.new_zeros(*rows, capture.spans.shape[1])
        if capture.column_sums:
            self.measured["column_sums"] = number.new_zeros(r.batch, r.heads, r.keys)
            self.every_lse = number.new_empty(r.batch, r.heads, r.queries)
            self.times = number.new_zeros(r.batch, r.queries).scatter_add_(1, r.rows, torch.ones_like(r.rows).float())

    def _stats(self) -> Stats:
        capture, measured = self.request.capture, self.measured
        if capture is None:
            return NO_STATS
        spans = capture.spans
        if spans is not None:
            spans = (spans.to(self.request.q.device) - self.request.mask.kv_offset).int().contiguous()
        columns = measured.get("column_sums")
        parts: list[Any] = [
            self.slots,
            self.request.queries,
            *(measured.get(name) for name in ("argmax", "probability", "entropy", "log_sum_exp", "mass")),
            spans,
            0 if spans is None or len(spans) == 1 else spans.stride(0),
            None if columns is None else self.every_lse,
            None if columns is None else self.times,
            columns,
        ]
        return Stats(*parts)

    @cached_property
    def _inputs(self) -> Inputs:
        q, k, v = (x if x.stride(3) == 1 else x.contiguous() for x in (self.request.q, self.request.k, self.request.v))
        return Inputs(q, k, v, self.out, *q.stride()[:3], *k.stride()[:3], *v.stride()[:3])

    @cached_property
    def _shape(self) -> Shape:
        r, mask = self.request, self.request.mask
        firsts = key_mask = None
        steps: tuple[int, ...] = (0, 0)
        step = 0
        if mask.starts is not None:
            firsts = mask.starts.int() if mask.starts.ndim == 2 else mask.starts.int()[:, None]
            firsts = firsts.expand(r.batch, r.queries)
            steps = firsts.stride()
        if mask.key_mask is not None:
            key_mask = mask.key_mask.contiguous().view(torch.uint8)
            step = key_mask.expand(r.batch, -1).stride(0)
        alibi = None if mask.alibi is None else mask.alibi.float().contiguous()
        parts: list[Any] = [r.scale, mask.softcap, alibi, mask.window, firsts, *steps, key_mask, step]
        return Shape(*parts)

    @cached_property
    def _looks(self) -> Looks:
        m: Marks = marks(self.grid, self.seen, block_size(self.request.plan), self.request.q.device)
        query_blocks, words = (0, 0) if m.blocks is None else m.blocks.shape[1:]
        firsts = m.first_query_block, m.first_key_block
        return Looks(m.of, m.window, m.sinks, m.tokens, m.blocks, m.block, *firsts, query_blocks, words)

    @cached_property
    def _gates(self) -> Gates:
        r, gates = self.request, self.request.gates
        if gates is None:
            return Gates(*[None] * len(Gates._fields))
        values: list[Any] = []
        for value, rank in ((gates.gate, 3), (gates.add, 4), (gates.logit_scale, 3)):
            if value is None:
                values += [None] * 4
                continue
            value = value.float().contiguous()
            value = value if value.ndim == rank else value.unsqueeze(2)
            value = value.expand(r.batch, r.heads, r.queries, *value.shape[3:])
            values += [value, *value.stride()[:3]]
        return Gates(*values)

    @cached_property
    def _beside(self) -> Beside:
        beside = self.request.beside
        if beside is None:
            return Beside(*[None] * len(Beside._fields))
        tensors = [x.float().contiguous() for x in (beside.k, beside.v, beside.log_count)]
        steps = [0 if len(x) == 1 else x.stride(0) for x in tensors]
        parts: list[Any] = [*tensors, *steps, beside.k.shape[2]]
        return Beside(*parts)

    def _partials(self, spans: int) -> Partials:
        """Room for the states of items whose keys are split."""
        capture, cut = self.request.capture, self.cut
        if cut.splits == 1:
            return Partials(*[None] * len(Partials._fields))
        rows = cut.splits * len(self.lists.items) * self.grid.blocks * cut.rows
        room = self.request.q.new_empty
        out = room(rows, padded(self.request.v.shape[3]), dtype=torch.float32)
        entropy = room(rows, dtype=torch.float32) if capture is not None and capture.entropy else None
        mass = room(rows, power_of_two(spans), dtype=torch.float32) if spans else None
        top, total = room(rows, dtype=torch.float32), room(rows, dtype=torch.float32)
        return Partials(top, total, out, room(rows, dtype=torch.int32), entropy, mass)
