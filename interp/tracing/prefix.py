"""Keys and values of a token sequence, computed once and shared by every prompt that begins with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any
from weakref import ref

from torch import Tensor, nn
from transformers import DynamicCache

from interp.errors import BadInput
from interp.tracing.batch import Encoded
from interp.tracing.edits import Edit
from interp.tracing.frame import Frame, select


@dataclass(frozen=True, eq=False)
class Prefix:
    """`tokens` and, for each layer, keys and values `[1 kv_head tokens dim]`, computed under `edits`."""

    tokens: tuple[int, ...]
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    edits: tuple[Edit, ...]
    model: ref[nn.Module]

    @classmethod
    def of(cls, model: nn.Module, tokens: tuple[int, ...], cache: Any, edits: tuple[Edit, ...]) -> Prefix:
        """What a forward pass over `tokens` left in `cache`."""
        keys, values = (tuple(getattr(layer, name) for layer in cache.layers) for name in ("keys", "values"))
        return cls(tokens, keys, values, edits, ref(model))

    def __len__(self) -> int:
        return len(self.tokens)

    def crop(self, length: int) -> Prefix:
        """The first `length` tokens; a causal model's keys and values there do not depend on what follows."""
        if not 0 <= length <= len(self):
            raise BadInput(f"cannot crop a prefix of {len(self)} tokens to {length}")
        return replace(
            self,
            tokens=self.tokens[:length],
            keys=tuple(k[:, :, :length] for k in self.keys),
            values=tuple(v[:, :, :length] for v in self.values),
        )

    def shared_with(self, tokens: Sequence[int]) -> int:
        """How many leading tokens of `tokens` this prefix covers, leaving at least one to compute."""
        shared = 0
        for mine, theirs in zip(self.tokens, tokens[:-1], strict=False):
            if mine != theirs:
                break
            shared += 1
        return shared

    def cache(self, batch: int) -> DynamicCache:
        """A cache for `batch` rows; the prefix itself is never written to."""
        cache = DynamicCache()
        for layer, (k, v) in enumerate(zip(self.keys, self.values, strict=True)):
            cache.update(k.expand(batch, -1, -1, -1), v.expand(batch, -1, -1, -1), layer)
        return cache

    def check(self, model: nn.Module, encoded: Encoded) -> None:
        """Raise BadInput unless this model computed the prefix and every prompt goes on from it."""
        if self.model() is not model:
            raise BadInput("the prefix was computed by another model")
        for i, row in enumerate(encoded.rows):
            if row[: len(self)] != self.tokens or len(row) == len(self):
                raise BadInput(f"prompt {i} does not begin with the prefix's {len(self)} tokens and go on after them")

    def check_edits(self, edits: Sequence[Edit], frame: Frame) -> None:
        """Raise BadInput unless what acts inside the prefix is what it was computed under."""

        def inside(edit: Edit) -> bool:
            return bool(select(edit.positions, edit.rows, frame.inside_prefix).any())

        for edit in self.edits:
            if edit not in edits and inside(edit):
                raise BadInput(f"the prefix was computed under {edit}, which this run does not have")
        for edit in edits:
            if edit not in self.edits and inside(edit):
                raise BadInput(f"{edit} reaches into the prefix, which was computed without it; prefill with this edit")


def refuse_relative(edit: Edit) -> None:
    """Refuse edits of a prefix that select prompts, or positions that depend on how a prompt goes on."""
    where = edit.positions
    ends = (where.start, where.stop) if isinstance(where, slice) else where if isinstance(where, tuple) else (where,)
    if edit.rows is not None or isinstance(where, str) or any(end is not None and end < 0 for end in ends):
        raise BadInput(f"{edit}: in a prefix, positions count from the start and rows do not exist yet")
