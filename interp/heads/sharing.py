"""Running many prompts that begin alike: the common beginning is computed once and cropped to what each prompt shares.

Needle tests insert their sentence at every depth of one haystack, so the haystack's keys and values serve them all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from interp.tracing.edits import Edit
from interp.tracing.model import Model
from interp.tracing.prefix import Prefix

WORTHWHILE = 32
"""Shared tokens from which computing them once pays."""
PROBES = 16
"""Prompts against which a candidate for the shared beginning is compared."""


@dataclass(frozen=True)
class SharedBatch:
    """Prompts (by index) that run together after the first `shared` tokens of `trunk`."""

    trunk: tuple[int, ...]
    shared: int
    indices: tuple[int, ...]


def shared_batches(rows: Sequence[Sequence[int]], batch_size: int) -> list[SharedBatch]:
    """Group prompts by what they share; within a trunk, batches go from little shared to much."""
    arrays = [np.asarray(row) for row in rows]
    left = list(range(len(rows)))
    batches: list[SharedBatch] = []
    alone: list[int] = []
    while left:
        trunk = _deepest(arrays, left)
        shared = {i: min(_common(arrays[trunk], arrays[i]), len(rows[i]) - 1) for i in left}
        family = [i for i in left if shared[i] >= WORTHWHILE and i != trunk]
        if family:
            depth = max(shared[i] for i in family)
            shared[trunk] = min(depth, len(rows[trunk]) - 1)
            batches += _split(tuple(rows[trunk][:depth]), [*family, trunk], shared, rows, batch_size)
        else:
            alone.append(trunk)
        left = [i for i in left if i not in {*family, trunk}]
    return batches + _split((), alone, dict.fromkeys(alone, 0), rows, batch_size)


def run_shared(
    model: Model, rows: Sequence[Sequence[int]], batch_size: int, edits: Sequence[Edit] = ()
) -> Iterator[tuple[list[int], Prefix | None]]:
    """Indices of each batch with the prefix its prompts begin with, computed under `edits`, or None."""
    size = 1 if model.sliding_window is not None else batch_size
    trunk: Prefix | None = None
    for batch in shared_batches(rows, size):
        if not batch.trunk:
            yield list(batch.indices), None
            continue
        if trunk is None or trunk.tokens != batch.trunk:
            trunk = model.prefill(list(batch.trunk), edits)
        yield list(batch.indices), trunk.crop(batch.shared)


def _split(
    trunk: tuple[int, ...], family: list[int], shared: dict[int, int], rows: Sequence[Sequence[int]], batch_size: int
) -> list[SharedBatch]:
    order = sorted(family, key=lambda i: (shared[i], len(rows[i])))
    batches = []
    for start in range(0, len(order), batch_size):
        indices = tuple(order[start : start + batch_size])
        batches.append(SharedBatch(trunk, min(shared[i] for i in indices), indices))
    return batches


def _deepest(arrays: list[np.ndarray], left: list[int]) -> int:
    """The prompt that shares most with its family: of those that begin like the first one, the last to branch off."""
    family = [i for i in left if _common(arrays[left[0]], arrays[i]) >= WORTHWHILE] or [left[0]]
    probes = family[:: max(1, len(family) // PROBES)]
    return max(family, key=lambda i: sum(_common(arrays[i], arrays[j]) for j in probes if j != i))


def _common(a: np.ndarray, b: np.ndarray) -> int:
    n = min(len(a), len(b))
    differ = np.flatnonzero(a[:n] != b[:n])
    return int(differ[0]) if len(differ) else n
