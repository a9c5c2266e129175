"""From the raw tensor at a module's input or output to the site's own shape, and back.

A view is a pair of functions: `get(raw) -> value` in the shape of the site table, `put(raw, value) -> raw` with the
value written in (a new tensor; the model's own is never changed in place).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from interp.tracing.architectures import QKV


class View(NamedTuple):
    get: Callable[[Tensor], Tensor]
    put: Callable[[Tensor, Tensor], Tensor]


IDENTITY = View(lambda raw: raw, lambda _raw, value: value)


def heads_view(head_dim: int) -> View:
    """`[... (heads dim)] -> [... heads dim]`."""
    return View(
        lambda raw: rearrange(raw, "... (h d) -> ... h d", d=head_dim),
        lambda _raw, value: rearrange(value, "... h d -> ... (h d)"),
    )


def slice_view(start: int, width: int, head_dim: int) -> View:
    """One of several projections that share a module, one after the other along the last axis."""

    def put(raw: Tensor, value: Tensor) -> Tensor:
        flat = rearrange(value, "... h d -> ... (h d)")
        return torch.cat([raw[..., :start], flat, raw[..., start + width :]], dim=-1)

    return View(lambda raw: rearrange(raw[..., start : start + width], "... (h d) -> ... h d", d=head_dim), put)


def interleaved_view(first: int, count: int, group: int, head_dim: int) -> View:
    """Heads `first` to `first + count` of every key/value head's own `group`: its queries, its key and its value."""

    def split(raw: Tensor) -> Tensor:
        return rearrange(raw, "... (g c d) -> ... g c d", c=group, d=head_dim)

    def put(raw: Tensor, value: Tensor) -> Tensor:
        parts = split(raw)
        middle = rearrange(value, "... (g c) d -> ... g c d", c=count)
        whole = torch.cat([parts[..., :first, :], middle, parts[..., first + count :, :]], dim=-2)
        return rearrange(whole, "... g c d -> ... (g c d)")

    return View(lambda raw: rearrange(split(raw)[..., first : first + count, :], "... g c d -> ... (g c) d"), put)


def qkv_views(layout: QKV, heads: int, kv_heads: int, head_dim: int) -> list[tuple[str, int, View]]:
    """`(site, index of the projection module, view)` for q, k and v."""
    if layout == "separate":
        return [(name, i, heads_view(head_dim)) for i, name in enumerate("qkv")]
    if layout == "interleaved":
        queries = heads // kv_heads
        sizes = (("q", 0, queries), ("k", queries, 1), ("v", queries + 1, 1))
        return [(name, 0, interleaved_view(first, count, queries + 2, head_dim)) for name, first, count in sizes]
    q_width, kv_width = heads * head_dim, kv_heads * head_dim
    starts = (("q", 0, q_width), ("k", q_width, kv_width), ("v", q_width + kv_width, kv_width))
    return [(name, 0, slice_view(start, width, head_dim)) for name, start, width in starts]


def unflattened_view(batch: Callable[[], int]) -> View:
    """Undo a flattening of batch and tokens (`[(batch tokens) d]`, as OPT does around its MLP)."""
    return View(
        lambda raw: rearrange(raw, "(b t) d -> b t d", b=batch()) if raw.ndim == 2 else raw,
        lambda raw, value: rearrange(value, "b t d -> (b t) d") if raw.ndim == 2 else value,
    )
