"""What some heads of a layer keep of their keys and values, and their attention over it.

`WholeKeys` keeps everything, `RecentKeys` sinks and a window. Both take the new keys and values `[B K T D]` of a call
that begins at position `first`, keep what is to be kept, and return the attention `[B T H D]` of its queries `[B H T
D]`: the same, however a text is cut into calls.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from kernels.attention import head_attention
from kernels.patterns import HeadKind, Pattern, full
from kernels.types import CaptureSpec, HeadPlan, MaskSpec, on_device


class WholeKeys:
    """Every key of some key/value heads; position p is in slot p."""

    pattern = full()

    def __init__(self, heads: list[int], max_length: int) -> None:
        self.heads, self.slots = heads, max_length

    def allocate(self, key: Tensor, value: Tensor) -> None:
        self.keys, self.values = (x.new_zeros(len(x), len(self.heads), self.slots, x.shape[3]) for x in (key, value))

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {"keys": self.keys, "values": self.values}

    def positions(self, seen: int, starts: Tensor) -> Tensor:
        """The position that every slot holds once `seen` are in, `[batch|1 slot]`; -1 where it holds none."""
        slots = torch.arange(self.slots, device=starts.device)
        return torch.where(slots < seen, slots, -1)[None]

    def attend(self, q: Tensor, key: Tensor, value: Tensor, mask: MaskSpec, first: int, backend: str) -> Tensor:
        end = first + key.shape[2]
        self.keys[:, :, first:end], self.values[:, :, first:end] = key, value
        keys, values = self.keys[:, :, :end], self.values[:, :, :end]
        return head_attention(q, keys, values, mask=replace(mask, q_offset=first), backend=backend)[0]


class RecentKeys:
    """The first `sinks` keys of every sequence and the latest `window`, a ring: position p is in slot `p % window`.

    pattern: what of them a head sees.
    """

    def __init__(self, heads: list[int], pattern: Pattern, sinks: int, window: int, compensation: bool = False) -> None:
        self.heads, self.pattern, self.sinks, self.window = heads, pattern, sinks, window
        self.compensation = compensation

    def allocate(self, key: Tensor, value: Tensor) -> None:
        slots = self.sinks + self.window
        self.keys, self.values = (x.new_zeros(len(x), len(self.heads), slots, x.shape[3]) for x in (key, value))
        if self.compensation:
            precise = torch.promote_types(key.dtype, torch.float32)
            sums = (x.new_zeros(len(x), len(self.heads), x.shape[3], dtype=precise) for x in (key, value))
            self.key_sum, self.value_sum = sums
            self.dropped = key.new_zeros(len(key), dtype=torch.int64)

    @property
    def tensors(self) -> dict[str, Tensor]:
        names = ("keys", "values", "key_sum", "value_sum", "dropped") if self.compensation else ("keys", "values")
        return {name: getattr(self, name) for name in names}

    def positions(self, seen: int, starts: Tensor) -> Tensor:
        """The position that every slot holds once `seen` are in, `[batch|1 slot]`; -1 where it holds none.

        A sink that is still in the ring is counted there.
        """
        last = seen - 1
        sinks = starts[:, None] + torch.arange(self.sinks, device=starts.device)
        sinks = torch.where(sinks <= last - self.window, sinks, -1)
        ring = last - (last - torch.arange(self.window, device=starts.device)) % self.window
        return torch.cat([sinks, ring.clamp(min=-1).expand(len(starts), -1)], dim=1)

    def attend(self, q: Tensor, key: Tensor, value: Tensor, mask: MaskSpec, first: int, backend: str) -> Tensor:
        starts = starts_of(mask, q.device)
        dropped = self._drop(key, value, starts, first) if self.compensation else None
        capture = None if dropped is None else CaptureSpec(argmax=False, probability=False)
        if q.shape[2] == 1:
            self._write(key, value, starts, first)
            keys, values, plan, shown = self.keys, self.values, None, self._shown(mask, starts, first)
        else:
            keys, values, shown = self._in_order(key, value, mask, starts, first)
            plan = on_device(HeadPlan.of([self.pattern] * q.shape[1]), q.device)
            self._write(key, value, starts, first)
        out, stats = head_attention(q, keys, values, mask=shown, plan=plan, capture=capture, backend=backend)
        if dropped is None:
            return out
        assert stats is not None
        assert stats.log_sum_exp is not None
        return compensate(out, stats.log_sum_exp, q, *dropped, scale=mask.scale)

    def _shown(self, mask: MaskSpec, starts: Tensor, last: int) -> MaskSpec:
        """One query at `last`: which slots it sees. They are in no order, so the pattern is spelt out.

        A layer's own window needs no mask: it is as long as the ring.
        """
        positions = self.positions(last + 1, starts)
        distance = last - positions
        seen = positions >= starts[:, None]
        if self.pattern.kind is HeadKind.SPARSE:
            seen &= (distance < self.pattern.window) | (positions - starts[:, None] < self.pattern.sinks)
        return replace(mask, causal=False, window=None, starts=None, key_mask=seen, q_offset=None)

    def _in_order(
        self, key: Tensor, value: Tensor, mask: MaskSpec, starts: Tensor, first: int
    ) -> tuple[Tensor, Tensor, MaskSpec]:
        """Several queries: sinks, ring and new keys at consecutive positions, without the gap after the sinks.

        The ring begins at `oldest`; the sinks of sequences that began long before it move up to it, and with them the
        start of those sequences.
        """
        oldest = max(0, first - self.window)
        sinks = min(self.sinks, oldest)
        begin = starts.clamp(min=oldest - sinks) if sinks else starts
        places = torch.arange(oldest - sinks, oldest, device=key.device) - begin[:, None]
        ring = self.sinks + torch.arange(oldest, first, device=key.device) % self.window

        def joined(kept: Tensor, new: Tensor) -> Tensor:
            at_start = kept.gather(2, _index(places.clamp(min=0), kept))
            return torch.cat([at_start, kept[:, :, ring], new], dim=2)

        shown = replace(mask, q_offset=first, kv_offset=oldest - sinks, starts=begin)
        return joined(self.keys, key), joined(self.values, value), shown

    def _write(self, key: Tensor, value: Tensor, starts: Tensor, first: int) -> None:
        end = first + key.shape[2]
        latest = torch.arange(max(first, end - self.window), end, device=key.device)
        sinks = starts[:, None] + torch.arange(self.sinks, device=key.device) - first
        new = (sinks >= 0) & (sinks < key.shape[2])
        any_new = bool(new.any())
        for kept, given in ((self.keys, key), (self.values, value)):
            kept[:, :, self.sinks + latest % self.window] = given[:, :, latest - first]
            if any_new:
                given = given.gather(2, _index(sinks.clamp(0, key.shape[2] - 1), given))
                kept[:, :, : self.sinks] = torch.where(new[:, None, :, None], given, kept[:, :, : self.sinks])

    def _drop(self, key: Tensor, value: Tensor, starts: Tensor, first: int) -> tuple[Tensor, Tensor, Tensor]:
        """For each query, means of the keys and values it no longer sees `[B K T D]`, and how many `[B T]`."""
        queries = key.shape[2]
        from_ring = min(queries, self.window)
        ring = self.sinks + torch.arange(first, first + from_ring, device=key.device) % self.window
        positions = torch.arange(first, first + queries, device=key.device) - self.window
        counted = positions >= starts[:, None] + self.sinks
        count = (counted.cumsum(-1) + self.dropped[:, None]).expand(len(key), -1)
        means = []
        for kept, new, total in ((self.keys, key, self.key_sum), (self.values, value, self.value_sum)):
            gone = torch.cat([kept[:, :, ring], new[:, :, : queries - from_ring]], dim=2).to(total.dtype)
            sums = (gone * counted[:, None, :, None]).cumsum(2) + total[:, :, None]
            total.copy_(sums[:, :, -1])
            means.append(sums / count.clamp(min=1)[:, None, :, None])
        self.dropped.copy_(count[:, -1])
        return means[0], means[1], count


def compensate(
    out: Tensor, log_sum_exp: Tensor, q: Tensor, key: Tensor, value: Tensor, count: Tensor, *, scale: float | None
) -> Tensor:
    """Attention `out` `[B T H D]` with one key more for every query, that counts as `count` `[B T]` keys.

    key, value `[B K T D]` are the query's own; its score has no soft-cap. Softmax parts merge by their log-sum-exp.
    """
    scale = q.shape[3] ** -0.5 if scale is None else scale
    groups = q.to(key.dtype).unflatten(1, (key.shape[1], -1))
    score = torch.einsum("bkgtd,bktd->bkgt", groups, key) * scale + count.to(key.dtype).log()[:, None, None]
    share = (score - log_sum_exp.to(key.dtype).unflatten(1, (key.shape[1], -1))).sigmoid()
    share = torch.where(count[:, None, None] > 0, share, 0.0).flatten(1, 2).transpose(1, 2)[..., None]
    token = value.transpose(1, 2).repeat_interleave(q.shape[1] // key.shape[1], dim=2)
    return (out + share * (token - out)).to(out.dtype)


def starts_of(mask: MaskSpec, device: torch.device) -> Tensor:
    """Position of the first token of every row, `[B]`, or `[1]` where none is padded."""
    return torch.zeros(1, dtype=torch.int64, device=device) if mask.starts is None else mask.starts


def _index(positions: Tensor, like: Tensor) -> Tensor:
    """Positions `[B|1 n]` to gather along dimension 2 of `[B K S D]`."""
    return positions[:, None, :, None].expand(len(like), like.shape[1], -1, like.shape[3])
