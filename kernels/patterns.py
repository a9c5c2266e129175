"""What one head may look at, by the names of the literature; `HeadPlan.of` turns a list of patterns into tensors.

Positions are absolute (they count cached keys too). Every pattern is cut by the mask of the call: causality, windows
and padding hold on top of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from torch import Tensor

from kernels.errors import InvalidRequest

BLOCK = 64
"""Positions in a block of a block list, for queries and for keys."""


class HeadKind(IntEnum):
    """PRUNED sees nothing and costs nothing; FULL sees all the mask shows; SPARSE sees what it lists."""

    PRUNED = 0
    FULL = 1
    SPARSE = 2


@dataclass(frozen=True)
class Pattern:
    """One head. A SPARSE head sees the union of: its first keys, its latest keys, listed blocks and listed keys.

    `sinks` first positions of the query's sequence; `window` latest positions, the query's own among them; `blocks[i]`
    the key blocks that queries of block i see (block j holds positions `j*block` to `(j+1)*block - 1`); `tokens` key
    positions. Raises InvalidRequest for negative sizes, and for a SPARSE head that lists nothing.
    """

    kind: HeadKind
    sinks: int = 0
    window: int = 0
    blocks: tuple[tuple[int, ...], ...] = ()
    tokens: tuple[int, ...] = ()
    block: int = BLOCK

    def __post_init__(self) -> None:
        for name in ("sinks", "window"):
            if getattr(self, name) < 0:
                raise InvalidRequest(f"{name}={getattr(self, name)} of a head pattern is negative")
        if self.block < 1:
            raise InvalidRequest(f"block={self.block}: a block holds at least one position")
        if min(self.tokens, default=0) < 0:
            raise InvalidRequest(f"token list {self.tokens} holds a negative position")
        if any(key < 0 for row in self.blocks for key in row):
            raise InvalidRequest("a block list holds a negative block")
        lists = bool(self.sinks or self.window or self.tokens or any(self.blocks))
        if self.kind is HeadKind.SPARSE and not lists:
            raise InvalidRequest("a sparse head that sees nothing: say pruned() if that is meant")
        if self.kind is not HeadKind.SPARSE and lists:
            raise InvalidRequest(f"a {self.kind.name} head takes no sinks, window, blocks or tokens")
        object.__setattr__(self, "blocks", tuple(tuple(sorted(set(row))) for row in self.blocks))
        object.__setattr__(self, "tokens", tuple(sorted(set(self.tokens))))


def full() -> Pattern:
    """Sees everything the mask shows."""
    return Pattern(HeadKind.FULL)


def pruned() -> Pattern:
    """Sees nothing: the output is 0 and nothing of the head is computed."""
    return Pattern(HeadKind.PRUNED)


def streaming(sinks: int, window: int) -> Pattern:
    """The first `sinks` positions and the latest `window` (StreamingLLM, arXiv:2309.17453)."""
    if window < 1:
        raise InvalidRequest(f"window={window}: a streaming head sees at least itself, window >= 1")
    return Pattern(HeadKind.SPARSE, sinks=sinks, window=window)


def a_shape(initial: int, local: int) -> Pattern:
    """MInference's name for streaming with many initial positions (arXiv:2407.02490)."""
    return streaming(initial, local)


def vertical_slash(
    vertical: Sequence[int], slash: Sequence[int], *, length: int, window: int = 1, block: int = BLOCK
) -> Pattern:
    """The columns `vertical` and every block that a diagonal at a distance in `slash` touches (MInference).

    `length` is the number of positions covered. Raises InvalidRequest for a negative distance.
    """
    if min(slash, default=0) < 0:
        raise InvalidRequest(f"slash={list(slash)}: distances from query to key are at least 0")
    rows = []
    for first in range(0, _covered(length), block):
        touched = ((position - distance) // block for distance in slash for position in (first, first + block - 1))
        rows.append(tuple(key for key in touched if key >= 0))
    return Pattern(HeadKind.SPARSE, window=window, blocks=tuple(rows), tokens=tuple(vertical), block=block)


def block_sparse(mask: Tensor | Sequence[Sequence[bool]], *, block: int = BLOCK) -> Pattern:
    """The blocks that are True in `mask` `[query_block key_block]`."""
    rows = mask.tolist() if isinstance(mask, Tensor) else mask
    return Pattern(
        HeadKind.SPARSE, blocks=tuple(tuple(j for j, seen in enumerate(row) if seen) for row in rows), block=block
    )


def strided(stride: int, local: int, shard: int, *, length: int, block: int = BLOCK) -> Pattern:
    """The latest `local` blocks and every `stride`-th block from `shard` on (S2-Attention, arXiv:2407.17678).

    Give head h the shard `h % stride`, and the heads together see everything.
    """
    if stride < 1 or local < 1:
        raise InvalidRequest(f"stride={stride}, local={local}: both count blocks and are at least 1")
    if not 0 <= shard < stride:
        raise InvalidRequest(f"shard={shard} is none of the {stride} shards 0 to {stride - 1}")
    count = -(-_covered(length) // block)
    rows = [tuple(j for j in range(i + 1) if i - j < local or j % stride == shard) for i in range(count)]
    return Pattern(HeadKind.SPARSE, blocks=tuple(rows), block=block)


def tokens(positions: Sequence[int], *, window: int = 1) -> Pattern:
    """Listed key positions and the latest `window`: top-k keys, or the keys another head or step chose (recycled)."""
    return Pattern(HeadKind.SPARSE, window=window, tokens=tuple(positions))


def _covered(length: int) -> int:
    if length < 1:
        raise InvalidRequest(f"length={length}: a block list covers at least one position")
    return length


PATTERNS: dict[str, Callable[..., Pattern]] = {
    "full": full,
    "pruned": pruned,
    "streaming": streaming,
    "a_shape": a_shape,
    "vertical_slash": vertical_slash,
    "block_sparse": block_sparse,
    "strided": strided,
    "tokens": tokens,
}


def pattern(name: str, **parameters: Any) -> Pattern:
    """A pattern by its name, for files and command lines; raises InvalidRequest naming those there are."""
    if name not in PATTERNS:
        raise InvalidRequest(f"unknown pattern {name!r}; there are {', '.join(PATTERNS)}")
    try:
        return PATTERNS[name](**parameters)
    except TypeError as error:
        raise InvalidRequest(f"pattern {name!r}: {error}") from error
