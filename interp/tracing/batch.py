"""From prompts to padded tensors: encoding, checking, padding, and the way back from columns to positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from interp.errors import BadInput, PromptTooLong
from interp.tracing.frame import Frame, Spans

Side = Literal["left", "right"]


@runtime_checkable
class TokenizedPrompts(Protocol):
    """What `interp.tasks.PromptSet` offers a run: tokens and named token spans."""

    @property
    def tokens(self) -> Sequence[Sequence[int]]: ...
    @property
    def spans(self) -> Spans: ...


Prompts = str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]] | Tensor | TokenizedPrompts


@dataclass(frozen=True)
class Encoded:
    """Token ids of each prompt, unpadded, and the spans they name."""

    rows: tuple[tuple[int, ...], ...]
    spans: Spans = field(default_factory=dict)

    @property
    def lengths(self) -> list[int]:
        return [len(row) for row in self.rows]


def encode(prompts: Prompts, tokenizer: Any) -> Encoded:
    """Token ids of every prompt; raises BadInput for text without a tokenizer and for empty prompts."""
    spans: Spans = {}
    if isinstance(prompts, TokenizedPrompts):
        rows, spans = prompts.tokens, prompts.spans
    elif isinstance(prompts, Tensor):
        rows = (prompts[None] if prompts.ndim == 1 else prompts).tolist()
    else:
        rows = _encode_sequence([prompts] if isinstance(prompts, str) else list(prompts), tokenizer)
    encoded = Encoded(tuple(tuple(row) for row in rows), spans)
    if not encoded.rows or not all(encoded.rows):
        raise BadInput("there is nothing to run: no prompts, or a prompt without tokens")
    return encoded


def _encode_sequence(items: list[Any], tokenizer: Any) -> list[list[int]]:
    if items and isinstance(items[0], str):
        if tokenizer is None:
            raise BadInput("text needs a tokenizer; wrap(model, tokenizer=…) or give token ids")
        return [tokenizer(text)["input_ids"] for text in items]
    if items and isinstance(items[0], int):
        return [items]
    return [list(map(int, item)) for item in items]


@dataclass(frozen=True, eq=False)
class Padded:
    """A padded batch: `input_ids` `[batch width]` after a shared prefix, `attention_mask` `[batch prefix + width]`."""

    input_ids: Tensor
    attention_mask: Tensor
    frame: Frame

    def inputs(self) -> dict[str, Tensor]:
        """Keyword arguments of the forward call; position ids are explicit, as families differ in how they guess them."""
        return {
            "input_ids": self.input_ids,
            "attention_mask": self.attention_mask,
            "position_ids": self.frame.positions().clamp(min=0),
        }


def pad(encoded: Encoded, prefix: int, side: Side, pad_id: int, device: torch.device) -> Padded:
    """Pad the tokens after the first `prefix` ones to equal width on one side."""
    width = max(encoded.lengths) - prefix
    ids = torch.full((len(encoded.rows), width), pad_id, dtype=torch.long)
    mask = torch.zeros((len(encoded.rows), prefix + width), dtype=torch.long)
    mask[:, :prefix] = 1
    offsets = torch.zeros(len(encoded.rows), dtype=torch.long)
    for i, row in enumerate(encoded.rows):
        own = len(row) - prefix
        start = width - own if side == "left" else 0
        ids[i, start : start + own] = torch.tensor(row[prefix:])
        mask[i, prefix + start : prefix + start + own] = 1
        offsets[i] = start
    frame = Frame(
        start=prefix,
        width=width,
        prefix=prefix,
        lengths=torch.tensor(encoded.lengths, device=device),
        offsets=offsets.to(device),
        key_mask=mask.bool().to(device),
        spans=encoded.spans,
    )
    return Padded(ids.to(device), mask.to(device), frame)


def in_position_order(tensor: Tensor, frame: Frame, first: int) -> Tensor:
    """Shift dimension 1 (columns from `first`) so that index i is position `first + i`; the end repeats the last column."""
    if not bool(frame.offsets.any()):
        return tensor
    positions = first + torch.arange(tensor.shape[1], device=tensor.device)[None]
    offsets = frame.offsets.to(tensor.device)[:, None]
    columns = torch.where(positions < frame.prefix, positions, positions + offsets) - first
    rows = torch.arange(len(tensor), device=tensor.device)[:, None]
    return tensor[rows, columns.clamp(max=tensor.shape[1] - 1)]


def check_length(encoded: Encoded, context: int | None, new_tokens: int = 0) -> None:
    """Raise PromptTooLong when a prompt and what is generated after it exceed the model's positions."""
    longest = max(encoded.lengths)
    if context is not None and longest + new_tokens > context:
        more = f" and {new_tokens} new ones" if new_tokens else ""
        raise PromptTooLong(f"a prompt of {longest} tokens{more} is longer than the model's context of {context}")


def right_padded(rows: Sequence[Sequence[int]], pad_id: int) -> Tensor:
    """Token rows as one tensor `[batch longest]`."""
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *([pad_id] * (width - len(row)))] for row in rows])
