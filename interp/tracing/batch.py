"""From prompts to padded tensors: encoding, checking, padding, and the way back from columns to positions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import index
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from interp.errors import BadInput, PromptTooLong
from interp.tracing.frame import Frame, Spans, gather_columns

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
    """Token ids of each prompt, unpadded, the spans they name, and the segment each token belongs to (BERT)."""

    rows: tuple[tuple[int, ...], ...]
    spans: Spans = field(default_factory=dict)
    token_types: tuple[tuple[int, ...], ...] | None = None

    @property
    def lengths(self) -> list[int]:
        return [len(row) for row in self.rows]


def encode(prompts: Prompts, tokenizer: Any) -> Encoded:
    """Token ids of every prompt; raises BadInput for text without a tokenizer and for empty prompts."""
    if isinstance(prompts, TokenizedPrompts):
        encoded = Encoded(tuple(map(tuple, prompts.tokens)), prompts.spans)
    else:
        encoded = Encoded(tuple(_rows(prompts, tokenizer)))
    if not encoded.rows or not all(encoded.rows):
        raise BadInput("there is nothing to run: no prompts, or a prompt without tokens")
    return encoded


def _rows(prompts: Any, tokenizer: Any) -> Iterator[tuple[int, ...]]:
    if isinstance(prompts, Mapping):
        raise BadInput("prompts are texts or token ids without padding, not a mapping; give the texts themselves")
    if isinstance(prompts, str):
        prompts = [prompts]
    if hasattr(prompts, "tolist"):
        prompts = prompts.tolist()
    if not isinstance(prompts, Iterable):
        raise BadInput(f"prompts are texts or lists of token ids, not {prompts!r}")
    prompts = list(prompts)
    one = bool(prompts) and hasattr(prompts[0], "__index__") and not getattr(prompts[0], "shape", ())
    for item in [prompts] if one else prompts:
        if isinstance(item, str):
            if tokenizer is None:
                raise BadInput("text needs a tokenizer; wrap(model, tokenizer=…) or give token ids")
            yield tuple(tokenizer(item)["input_ids"])
        else:
            try:
                yield tuple(map(index, item))
            except TypeError:
                raise BadInput(f"a prompt is a text or a list of token ids, not {item!r}") from None


@dataclass(frozen=True, eq=False)
class Padded:
    """A padded batch: `input_ids` `[batch width]` after a shared prefix, `attention_mask` `[batch prefix + width]`.

    `first_position` is the position id of a prompt's first token.
    """

    input_ids: Tensor
    attention_mask: Tensor
    frame: Frame
    first_position: int = 0
    token_types: Tensor | None = None

    def inputs(self) -> dict[str, Tensor]:
        """Keyword arguments of the forward call; position ids are explicit, as families guess them differently."""
        inputs = {
            "input_ids": self.input_ids,
            "attention_mask": self.attention_mask,
            "position_ids": self.frame.positions.clamp(min=0) + self.first_position,
        }
        return inputs if self.token_types is None else {**inputs, "token_type_ids": self.token_types}


def pad(
    encoded: Encoded, prefix: int, side: Side, pad_id: int, device: torch.device, first_position: int = 0
) -> Padded:
    """Pad the tokens after the first `prefix` ones to equal width on one side."""
    width = max(encoded.lengths) - prefix
    ids = torch.full((len(encoded.rows), width), pad_id, dtype=torch.long)
    types = torch.zeros_like(ids)
    mask = torch.zeros((len(encoded.rows), prefix + width), dtype=torch.long)
    mask[:, :prefix] = 1
    offsets = torch.zeros(len(encoded.rows), dtype=torch.long)
    for i, row in enumerate(encoded.rows):
        own = len(row) - prefix
        start = width - own if side == "left" else 0
        ids[i, start : start + own] = torch.tensor(row[prefix:])
        if encoded.token_types is not None:
            types[i, start : start + own] = torch.tensor(encoded.token_types[i])
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
    segments = None if encoded.token_types is None else types.to(device)
    return Padded(ids.to(device), mask.to(device), frame, first_position, segments)


def position_columns(frame: Frame) -> Tensor:
    """The column of each position from `frame.start` on, `[batch width]`, relative to the first computed one.

    Past the end of a left-padded prompt, where there is no such column, the last one stands in.
    """
    columns = torch.arange(frame.width, device=frame.offsets.device)
    return (columns + frame.offsets[:, None]).clamp(max=frame.width - 1)


def in_position_order(tensor: Tensor, frame: Frame, longest: int) -> Tensor:
    """Dimension 1 (all computed columns) by position, up to the longest prompt."""
    if bool(frame.offsets.any()):
        columns = torch.arange(tensor.shape[1], device=frame.offsets.device) + frame.offsets[:, None]
        tensor = gather_columns(tensor, columns.clamp(max=tensor.shape[1] - 1))
    return tensor[:, : longest - frame.start]


def keys_by_position(pattern: Tensor, frame: Frame) -> Tensor:
    """The key axis of `pattern` `[batch head query key]` by position: index s is the prompt's token s."""
    if not bool(frame.offsets.any()):
        return pattern
    keys = torch.arange(pattern.shape[-1], device=pattern.device)[None]
    columns = torch.where(keys < frame.prefix, keys, keys + frame.offsets[:, None])
    real = (columns < pattern.shape[-1])[:, None, None]
    columns = columns.clamp(max=pattern.shape[-1] - 1)[:, None, None].expand_as(pattern)
    return torch.where(real, pattern.gather(-1, columns), 0.0)


def check_tokens(encoded: Encoded, vocab: int) -> None:
    """Raise BadInput for token ids that the vocabulary does not have."""
    for row in encoded.rows:
        if min(row) < 0 or max(row) >= vocab:
            wrong = min(row) if min(row) < 0 else max(row)
            raise BadInput(f"token id {wrong} does not exist; the vocabulary has {vocab} entries")


def check_length(encoded: Encoded, context: int | None, new_tokens: int = 0) -> None:
    """Raise PromptTooLong when a prompt and what is generated after it exceed the model's positions."""
    longest = max(encoded.lengths)
    if context is not None and longest + new_tokens > context:
        more = f" and {new_tokens} new ones" if new_tokens else ""
        raise PromptTooLong(f"a prompt of {longest} tokens{more} is longer than the model's context of {context}")


def with_token_types(encoded: Encoded, token_types: Sequence[Sequence[int]], kinds: int | None) -> Encoded:
    """The prompts with the segment of each token; raises BadInput where these do not fit them or the model."""
    if not kinds:
        raise BadInput("this model has no token types; leave token_types out")
    types = tuple(tuple(map(int, row)) for row in token_types)
    if [len(row) for row in types] != encoded.lengths:
        raise BadInput(f"token_types cover {[len(row) for row in types]} tokens, the prompts have {encoded.lengths}")
    for value in {value for row in types for value in row}:
        if not 0 <= value < kinds:
            raise BadInput(f"token type {value} does not exist; this model has 0 to {kinds - 1}")
    return replace(encoded, token_types=types)


def right_padded(rows: Sequence[Sequence[int]], pad_id: int) -> Tensor:
    """Token rows as one tensor `[batch longest]`."""
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *([pad_id] * (width - len(row)))] for row in rows])
