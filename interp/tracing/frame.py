"""Which tokens of which prompts one forward call computes, and how positions become columns.

A *position* counts the tokens of a prompt from 0, without padding; negative positions count from the prompt's end (-1
is its last token) and stay where they are while tokens are generated after it. A *column* is an index into the padded
tensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from operator import index
from typing import SupportsIndex

import torch
from torch import Tensor

from interp.errors import BadInput, choose

Positions = int | str | slice | Sequence[int] | None
Spans = Mapping[str, Sequence[tuple[int, int]]]


@dataclass(frozen=True, eq=False)
class Frame:
    """One forward call over columns `[start, start + width)` of a padded batch.

    `lengths` `[batch]` prompt tokens without padding; `offsets` `[batch]` padding columns before a row's tokens (after
    the shared prefix of `prefix` columns, which has none); `key_mask` `[batch, start + width]` False on padding;
    `spans` maps a role to one half-open span of positions a row.
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

    @cached_property
    def positions(self) -> Tensor:
        """Position of every column of this call, `[batch width]`; -1 on padding."""
        columns = torch.arange(self.start, self.start + self.width, device=self.offsets.device)
        shifted = torch.where(columns[None] < self.prefix, columns[None], columns[None] - self.offsets[:, None])
        return shifted.masked_fill(~self.key_mask[:, self.start :], -1)

    @cached_property
    def whole(self) -> Frame:
        """The same batch seen from column 0: what a kernel's keys cover when earlier ones come from a cache."""
        return replace(self, start=0, width=self.start + self.width)

    @cached_property
    def last_columns(self) -> Tensor:
        """The last column of every prompt that this call computes, `[batch 1]`."""
        return self.width - 1 - (self.positions >= 0).flip(1).long().argmax(1, keepdim=True)

    def to(self, device: torch.device) -> Frame:
        """The same frame on another device (layers of one model may live on several)."""
        if self.offsets.device == device:
            return self
        moved = {name: getattr(self, name).to(device) for name in ("lengths", "offsets", "key_mask")}
        return replace(self, **moved)

    @property
    def inside_prefix(self) -> Frame:
        """Only the columns of the shared prefix, which this call does not compute."""
        return replace(self, start=0, width=self.prefix, key_mask=self.key_mask[:, : self.prefix])


def positions_of(positions: Positions | Iterable[int]) -> Positions:
    """Positions as plain data (int, tuple of ints, slice, role name, None); raises BadInput for anything else."""
    if positions is None or isinstance(positions, str):
        return positions
    try:
        if isinstance(positions, slice):
            if positions.step not in (None, 1):
                raise BadInput(f"positions={positions} has a step; list the positions instead")
            return slice(*(None if end is None else index(end) for end in (positions.start, positions.stop)))
        if isinstance(positions, SupportsIndex) and not getattr(positions, "shape", ()):
            return index(positions)
        return tuple(index(position) for position in positions)  # type: ignore[union-attr]
    except TypeError:
        raise BadInput(f"positions={positions!r} is not an int, several ints, a slice or the name of a role") from None


def gather_columns(value: Tensor, columns: Tensor) -> Tensor:
    """`value` `[batch width ...]` at `columns` `[batch kept]`."""
    columns = columns.to(value.device)
    return value[torch.arange(len(columns), device=value.device)[:, None], columns]


def select(positions: Positions, rows: Sequence[int] | None, frame: Frame) -> Tensor:
    """Columns of the call that are selected, `[batch width]` bool. Padding is never selected."""
    here = frame.positions
    chosen = here >= 0
    if positions is not None:
        chosen &= _match(positions, here, frame)
    if rows is not None:
        keep = torch.zeros(frame.batch, dtype=torch.bool, device=here.device)
        keep[list(rows)] = True
        chosen &= keep[:, None]
    return chosen


def selected_columns(positions: Positions, frame: Frame) -> Tensor | None:
    """The selected columns of every prompt in the order of the text, `[batch kept]`; None where there are none.

    Raises BadInput when the prompts would keep different numbers of them.
    """
    chosen = select(positions, None, frame)
    counts = chosen.sum(1)
    fewest, most = int(counts.min()), int(counts.max())
    if fewest != most:
        raise BadInput(
            f"positions={positions!r} are between {fewest} and {most} tokens a prompt; a trace needs the same number "
            "for each: run the prompts separately"
        )
    return chosen.nonzero()[:, 1].reshape(frame.batch, most) if most else None


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
        spans = torch.as_tensor(role_spans(positions, frame.spans, frame.batch), device=here.device)
        return (here >= spans[:, :1]) & (here < spans[:, 1:])
    wanted = [positions] if isinstance(positions, int) else list(positions or ())
    chosen = torch.zeros_like(here, dtype=torch.bool)
    for position in wanted:
        chosen |= here == _from_end(position, lengths)
    return chosen


def _from_end(position: int, lengths: Tensor) -> Tensor:
    return lengths + position if position < 0 else torch.full_like(lengths, position)


def role_spans(name: str, spans: Spans, batch: int) -> Sequence[tuple[int, int]]:
    """One half-open span of positions a prompt; raises BadInput for an unknown role."""
    if name not in spans:
        known = choose(name, spans) if spans else "these prompts name no positions"
        raise BadInput(f"no token position is called {name!r}; {known}")
    if len(spans[name]) != batch:
        raise BadInput(f"the role {name!r} has {len(spans[name])} spans for {batch} prompts")
    return spans[name]


def check_positions(
    positions: Positions, rows: Sequence[int] | None, lengths: Sequence[int], spans: Spans, extra: int = 0
) -> None:
    """Refuse positions, roles and rows outside the prompts (and `extra` tokens computed after them)."""
    for row in rows or ():
        if not 0 <= row < len(lengths):
            raise BadInput(f"row {row} does not exist; there are {len(lengths)} prompts")
    if isinstance(positions, str):
        role_spans(positions, spans, len(lengths))
    elif not isinstance(positions, slice) and positions is not None:
        wanted = [positions] if isinstance(positions, int) else list(positions)
        if not wanted:
            raise BadInput("positions=() selects nothing; leave positions out to select every token")
        shortest = min(lengths[row] for row in (range(len(lengths)) if rows is None else rows))
        for position in wanted:
            if not -shortest <= position < shortest + extra:
                more = f" and {extra} more" if extra else ""
                raise BadInput(f"position {position} is outside a prompt of {shortest} tokens{more}")


def check_computed(positions: Positions, frame: Frame) -> None:
    """Refuse to keep something at positions inside a shared prefix, where nothing is computed."""
    ends_only = isinstance(positions, slice) and positions.start is None
    if not frame.prefix or positions is None or ends_only:
        return
    if bool(select(positions, None, frame.inside_prefix).any()):
        raise BadInput(
            f"positions={positions!r} reach into the prefix of {frame.prefix} tokens, where nothing is computed"
        )
