"""Which tokens of which prompts one forward call computes, and how positions become columns.

A *position* counts the tokens of a prompt from 0, without padding; negative positions count from the prompt's end (-1 is
its last token) and stay where they are while tokens are generated after it. A *column* is an index into the padded tensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from interp.errors import BadInput, choose

Positions = int | str | slice | Sequence[int] | None
Spans = Mapping[str, Sequence[tuple[int, int]]]


@dataclass(frozen=True, eq=False)
class Frame:
    """One forward call over columns `[start, start + width)` of a padded batch.

    `lengths` `[batch]` prompt tokens without padding; `offsets` `[batch]` padding columns before a row's tokens (after the
    shared prefix of `prefix` columns, which has none); `key_mask` `[batch, start + width]` False on padding; `spans` maps a
    role to one half-open span of positions a row.
    """

    start: int
    width: int
    prefix: int
    lengths: Tensor
    offsets: Tensor
    key_mask: Tensor
    spans: Spans

    @property
    def batch(self) -> int:
        return len(self.lengths)

    def positions(self) -> Tensor:
        """Position of every column of this call, `[batch width]`; negative on padding."""
        columns = torch.arange(self.start, self.start + self.width, device=self.offsets.device)
        shifted = columns[None] - self.offsets[:, None]
        shifted = torch.where(columns[None] < self.prefix, columns[None], shifted)
        padding = (columns[None] >= self.prefix) & (shifted < self.prefix)
        return shifted.masked_fill(padding, -1)

    def whole(self) -> Frame:
        """The same batch seen from column 0: what a kernel's keys cover when earlier ones come from a cache."""
        return Frame(0, self.start + self.width, self.prefix, self.lengths, self.offsets, self.key_mask, self.spans)


def select(positions: Positions, rows: Sequence[int] | None, frame: Frame) -> Tensor:
    """Columns of the call that are selected, `[batch width]` bool. Padding is never selected."""
    here = frame.positions()
    chosen = (here >= 0) & frame.key_mask[:, frame.start :]
    if positions is not None:
        chosen &= _match(positions, here, frame)
    if rows is not None:
        keep = torch.zeros(frame.batch, dtype=torch.bool, device=here.device)
        keep[list(rows)] = True
        chosen &= keep[:, None]
    return chosen


def _match(positions: Positions, here: Tensor, frame: Frame) -> Tensor:
    lengths = frame.lengths[:, None]
    if isinstance(positions, slice):
        chosen = torch.ones_like(here, dtype=torch.bool)
        if positions.start is not None:
            chosen &= here >= _from_end(positions.start, lengths)
        if positions.stop is not None:
            chosen &= here < _from_end(positions.stop, lengths)
        return chosen
    if isinstance(positions, str):
        spans = torch.as_tensor(_role(positions, frame.spans), device=here.device)
        return (here >= spans[:, :1]) & (here < spans[:, 1:])
    wanted = [positions] if isinstance(positions, int) else list(positions or ())
    chosen = torch.zeros_like(here, dtype=torch.bool)
    for position in wanted:
        chosen |= here == _from_end(position, lengths)
    return chosen


def _from_end(position: int, lengths: Tensor) -> Tensor:
    return lengths + position if position < 0 else torch.full_like(lengths, position)


def _role(name: str, spans: Spans) -> Sequence[tuple[int, int]]:
    if name not in spans:
        known = choose(name, spans) if spans else "these prompts name no positions"
        raise BadInput(f"no token position is called {name!r}; {known}")
    return spans[name]


def check_positions(
    positions: Positions, rows: Sequence[int] | None, lengths: Sequence[int], spans: Spans, extra: int = 0
) -> None:
    """Refuse positions, roles and rows outside the prompts (and `extra` tokens generated after them)."""
    for row in rows or ():
        if not 0 <= row < len(lengths):
            raise BadInput(f"row {row} does not exist; there are {len(lengths)} prompts")
    if isinstance(positions, str):
        _role(positions, spans)
    elif not isinstance(positions, slice) and positions is not None:
        wanted = [positions] if isinstance(positions, int) else list(positions)
        shortest = min(lengths[row] for row in (range(len(lengths)) if rows is None else rows))
        for position in wanted:
            if not -shortest <= position < shortest + extra:
                raise BadInput(f"position {position} is outside a prompt of {shortest} tokens")
