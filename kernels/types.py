"""What a kernel call is told and what it measures, as data.

`MaskSpec` says how scores are made and which keys a query may see; `HeadPlan` what each head looks at; `HeadGates`
what becomes of its output; `CaptureSpec` what is measured; `AttentionStats` is the measurement. B batch rows (1 where
all rows agree), H query heads, K key/value heads, T queries, S keys, D head width. Everything raises InvalidRequest
when it is made, or, where it does not fit the tensors, before anything is computed.

Positions are absolute: query i of a call is at `q_offset + i`, key j at `kv_offset + j`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor
from torch.nn.functional import pad

from kernels.errors import InvalidRequest
from kernels.patterns import BLOCK, HeadKind, Pattern

Phase = Literal["both", "prefill", "decode"]
Spec = TypeVar("Spec")


def on_device(spec: Spec, device: torch.device | str) -> Spec:
    """The same specification with its tensors on `device`."""
    moved = copy(spec)  # not made anew: what was checked once is not checked again
    for field in fields(spec):  # type: ignore[arg-type]
        value = getattr(spec, field.name)
        if isinstance(value, Tensor):
            object.__setattr__(moved, field.name, value.to(device))
        elif is_dataclass(value):
            object.__setattr__(moved, field.name, on_device(value, device))
    return moved


def _ranks(owner: str, name: str, value: Tensor | None, *ranks: int) -> None:
    if value is not None and value.ndim not in ranks:
        wanted = " or ".join(map(str, ranks))
        raise InvalidRequest(f"{owner}.{name} has shape {list(value.shape)}; it takes {wanted} dimensions")


def _finite(owner: str, name: str, value: Tensor | None) -> None:
    if value is None:
        return
    if not value.is_floating_point():
        raise InvalidRequest(f"{owner}.{name} is {value.dtype}; it takes floating point numbers")
    if not bool(torch.isfinite(value.detach()).all()):
        where = (~torch.isfinite(value.detach())).nonzero()[0].tolist()
        raise InvalidRequest(f"{owner}.{name} is not finite at {where}: {float(value[tuple(where)])}")


@dataclass(frozen=True, eq=False)
class MaskSpec:
    """How scores are made and which keys a query may see; never a matrix.

    A score is `scale * (q . k)`, soft-capped to `softcap * tanh(score / softcap)` (Gemma-2), plus `alibi[h] * (key
    position - query position)`; gates multiply the whole by `logit_scale`. A query sees the keys that are (causal) not
    later, (window) fewer than `window` positions back, not before the start of its sequence, and True in `key_mask`.

    scale: factor on `q . k`; None: `1 / sqrt(D)`. sinks `[H]`: logits that take part in the softmax and receive no
    value (gpt-oss). starts `[B|1]` or, for packed sequences, `[B|1 T]`: position of the first token of the query's
    sequence, which hides left padding and the sequences packed before. key_mask `[B|1 S]`: any other padding.
    q_offset: position of the first query; None: the last query is at the last key. kv_offset: position of the first
    key that is still cached. A query that sees no key gives 0, log-sum-exp -inf (or its sink logit) and argmax -1.
    """

    causal: bool = True
    window: int | None = None
    scale: float | None = None
    softcap: float | None = None
    alibi: Tensor | None = None
    sinks: Tensor | None = None
    starts: Tensor | None = None
    key_mask: Tensor | None = None
    q_offset: int | None = None
    kv_offset: int = 0

    def __post_init__(self) -> None:
        if self.window is not None and self.window < 1:
            raise InvalidRequest(f"window={self.window}: a sliding window counts the query itself, so it is at least 1")
        if self.window is not None and not self.causal:
            raise InvalidRequest(f"window={self.window} without causal: windows reach back from a causal query")
        if self.softcap is not None and not self.softcap > 0:
            raise InvalidRequest(f"softcap={self.softcap}: a soft-cap is positive")
        if (self.q_offset is not None and self.q_offset < 0) or self.kv_offset < 0:
            raise InvalidRequest(f"q_offset={self.q_offset}, kv_offset={self.kv_offset}: positions are not negative")
        _ranks("MaskSpec", "alibi", self.alibi, 1)
        _ranks("MaskSpec", "sinks", self.sinks, 1)
        _ranks("MaskSpec", "starts", self.starts, 1, 2)
        _ranks("MaskSpec", "key_mask", self.key_mask, 2)
        if self.key_mask is not None and self.key_mask.dtype != torch.bool:
            raise InvalidRequest(
                f"MaskSpec.key_mask is {self.key_mask.dtype}; it takes bool, True on keys that are seen"
            )
        if self.starts is not None and self.starts.is_floating_point():
            raise InvalidRequest(f"MaskSpec.starts is {self.starts.dtype}; it takes integer positions")
        if self.starts is not None and self.starts.ndim == 2 and not self.causal:
            raise InvalidRequest("packed sequences (starts of two dimensions) without causal: give a key_mask instead")

    @classmethod
    def packed(cls, lengths: Sequence[int], **others: Any) -> MaskSpec:
        """Sequences of these lengths, one after the other in one row, that do not see each other."""
        if not lengths or min(lengths) < 1:
            raise InvalidRequest(f"lengths={list(lengths)}: packed sequences have at least one token each")
        counts = torch.tensor(lengths)
        return cls(starts=(counts.cumsum(0) - counts).repeat_interleave(counts)[None], q_offset=0, **others)

    @classmethod
    def padded(cls, attention_mask: Tensor, **others: Any) -> MaskSpec:
        """Left, right or any padding from `attention_mask` `[B S]`, nonzero on real tokens."""
        real = attention_mask.bool()
        if real.ndim != 2:
            raise InvalidRequest(f"attention_mask has shape {list(real.shape)}; it takes [batch, keys]")
        if bool(real.all()):
            return cls(**others)
        starts = torch.where(real.any(-1), real.int().argmax(-1), real.shape[1])  # a row of nothing else sees none
        is_left = torch.equal(real, torch.arange(real.shape[1], device=real.device) >= starts[:, None])
        return cls(starts=starts + others.get("kv_offset", 0), key_mask=None if is_left else real, **others)


@dataclass(frozen=True, eq=False)
class HeadGates:
    """What becomes of a head's output: `z' = gate * z + add`, and its scores times `logit_scale`.

    gate 1 keeps, 0 removes, s scales; with `add`, mean ablation, replacement and resampling. logit_scale 0 is uniform
    attention over the visible keys. gate and logit_scale are `[B|1 H]` or, a number per query of the call, `[B|1 H T]`;
    add is `[B|1 H D]` or `[B|1 H T D]`. None leaves that part alone.

    phase: "decode" applies where one query meets keys cached before it, "prefill" everywhere else. positions `[B|1 T]`
    bool: the queries of the call it applies to. A head whose gate is 0 everywhere, and whose gate needs no gradient, is
    not computed.
    """

    gate: Tensor | None = None
    add: Tensor | None = None
    logit_scale: Tensor | None = None
    phase: Phase = "both"
    positions: Tensor | None = None

    def __post_init__(self) -> None:
        if self.phase not in get_args(Phase):
            raise InvalidRequest(f"phase={self.phase!r}; there are {', '.join(get_args(Phase))}")
        _ranks("HeadGates", "gate", self.gate, 2, 3)
        _ranks("HeadGates", "add", self.add, 3, 4)
        _ranks("HeadGates", "logit_scale", self.logit_scale, 2, 3)
        _ranks("HeadGates", "positions", self.positions, 2)
        for name in ("gate", "add", "logit_scale"):
            _finite("HeadGates", name, getattr(self, name))
        if self.positions is not None and self.positions.dtype != torch.bool:
            raise InvalidRequest(f"HeadGates.positions is {self.positions.dtype}; it takes bool")

    @classmethod
    def zero(cls, heads: Sequence[int], *, n_heads: int, phase: Phase = "both") -> HeadGates:
        """These heads removed, in every batch row."""
        gate = torch.ones(1, n_heads)
        gate[0, _known(heads, n_heads)] = 0.0
        return cls(gate=gate, phase=phase)

    @classmethod
    def uniform(cls, heads: Sequence[int], *, n_heads: int, phase: Phase = "both") -> HeadGates:
        """These heads attend evenly to all they see: what Wu et al.'s code (arXiv:2404.15574) does to masked heads."""
        scale = torch.ones(1, n_heads)
        scale[0, _known(heads, n_heads)] = 0.0
        return cls(logit_scale=scale, phase=phase)

    @classmethod
    def one_per_row(cls, heads: Sequence[int], *, n_heads: int, phase: Phase = "both") -> HeadGates:
        """Batch row b without head `heads[b]`: one pass for a whole sweep of single ablations."""
        gate = torch.ones(len(heads), n_heads)
        gate[torch.arange(len(heads)), _known(heads, n_heads)] = 0.0
        return cls(gate=gate, phase=phase)


def _known(heads: Sequence[int], n_heads: int) -> list[int]:
    unknown = [head for head in heads if not 0 <= head < n_heads]
    if unknown:
        raise InvalidRequest(f"there is no head {unknown[0]}; the layer has heads 0 to {n_heads - 1}")
    return list(heads)


@dataclass(frozen=True, eq=False)
class ExtraKeys:
    """Keys and values beside the cache that every query sees: RazorAttention's compensation tokens.

    k `[B|1 K E D]`, v `[B|1 K E D]`, log_count `[B|1 H E]`: the log of the number of keys a token stands for, -inf
    where a query head does not see it. The score is `logit_scale * scale * (q . k) + log_count`, without soft-cap or
    ALiBi. They take part in the softmax and in the output, and in no statistic but the log-sum-exp.
    """

    k: Tensor
    v: Tensor
    log_count: Tensor

    def __post_init__(self) -> None:
        for name, rank in (("k", 4), ("v", 4), ("log_count", 3)):
            _ranks("ExtraKeys", name, getattr(self, name), rank)
        if self.k.shape[:3] != self.v.shape[:3] or self.k.shape[2] != self.log_count.shape[2]:
            shapes = [list(x.shape) for x in (self.k, self.v, self.log_count)]
            raise InvalidRequest(
                f"ExtraKeys k, v, log_count of shapes {shapes} do not fit [B K E D], [B K E D], [B H E]"
            )
        if bool(torch.isnan(self.log_count).any()) or bool((self.log_count == float("inf")).any()):
            raise InvalidRequest("ExtraKeys.log_count is NaN or +inf; a head that sees no such token has -inf")


def _ascend(offsets: Tensor, indices: Tensor) -> bool:
    """Whether every list, `indices` from an offset to the next, ascends."""
    first, last = offsets[..., :-1], offsets[..., 1:]
    first, last = first[last > first].long(), last[last > first].long()
    descents = pad((indices.diff() <= 0).cumsum(0), (1, 0)) if len(first) else indices
    return bool((descents[last - 1] == descents[first]).all())


@dataclass(frozen=True, eq=False)
class HeadPlan:
    """What each head of each batch row looks at: a kind, two sizes and two lists in flat tensors.

    kind `[B|1 H]` int8, a HeadKind. A SPARSE head's query at position p sees, of the keys the mask shows it, those
    that are among the first `sinks` positions of its sequence (counted from `MaskSpec.starts`), or fewer than `window`
    positions back, or in a listed block, or listed themselves. sinks, window `[B|1 H]` int32.

    Blocks: a query at p, in query block `i = p // block`, sees the key blocks `block_indices[first:last]` with
    `first, last = block_offsets[b, h, i], block_offsets[b, h, i + 1]`; block j holds positions `j * block` to
    `(j + 1) * block - 1`. Keys: every query sees positions `token_indices[first:last]` with
    `first, last = token_offsets[b, h]`. Each list ascends. block_offsets `[B|1 H N+1]`, block_indices `[n]`,
    token_offsets `[B|1 H 2]` and token_indices `[m]` are int32; heads and rows may share stretches of the flat lists.
    """

    kind: Tensor
    sinks: Tensor
    window: Tensor
    block_offsets: Tensor
    block_indices: Tensor
    token_offsets: Tensor
    token_indices: Tensor
    block: int = BLOCK
    extra: ExtraKeys | None = None

    def __post_init__(self) -> None:
        shape = self.kind.shape
        _ranks("HeadPlan", "kind", self.kind, 2)
        for name, wanted in (("sinks", 2), ("window", 2), ("block_offsets", 3), ("token_offsets", 3)):
            value = getattr(self, name)
            if value.ndim != wanted or value.shape[:2] != shape:
                raise InvalidRequest(f"HeadPlan.{name} has shape {list(value.shape)}; kind has {list(shape)}")
        for field in fields(self):
            value, wanted_type = getattr(self, field.name), torch.int8 if field.name == "kind" else torch.int32
            if isinstance(value, Tensor) and value.dtype != wanted_type:
                raise InvalidRequest(f"HeadPlan.{field.name} is {value.dtype}; it takes {wanted_type}")
        if bool((self.sinks < 0).any() | (self.window < 0).any()):
            raise InvalidRequest("HeadPlan.sinks or window is negative")
        if not set(self.kind.unique().tolist()) <= set(HeadKind):
            raise InvalidRequest(
                f"HeadPlan.kind holds {self.kind.unique().tolist()}; kinds are {list(map(int, HeadKind))}"
            )
        listed = self.sinks + self.window
        for name in ("block", "token"):
            offsets, indices = getattr(self, f"{name}_offsets"), getattr(self, f"{name}_indices")
            inside = (offsets >= 0).all() & (offsets <= len(indices)).all() & (offsets.diff(dim=-1) >= 0).all()
            if not bool(inside & (indices >= 0).all()):
                raise InvalidRequest(f"HeadPlan.{name}_offsets do not describe lists in {name}_indices")
            if not _ascend(offsets, indices):
                raise InvalidRequest(f"HeadPlan.{name}_indices do not ascend within each list")
            listed = listed + offsets[..., -1] - offsets[..., 0]
        if bool(((self.kind == HeadKind.SPARSE) & (listed == 0)).any()):
            raise InvalidRequest("HeadPlan has a SPARSE head that sees nothing: make it PRUNED if that is meant")

    @classmethod
    def of(cls, patterns: Sequence[Pattern] | Sequence[Sequence[Pattern]], extra: ExtraKeys | None = None) -> HeadPlan:
        """A pattern for every head, `[H]` for all batch rows or `[B][H]`."""
        rows = [list(patterns)] if patterns and isinstance(patterns[0], Pattern) else [list(row) for row in patterns]  # type: ignore[arg-type]
        if not rows or not rows[0] or any(len(row) != len(rows[0]) for row in rows):
            raise InvalidRequest(
                f"patterns for {[len(row) for row in rows]} heads; every batch row takes as many, at least one"
            )
        flat: list[Pattern] = [head for row in rows for head in row]  # type: ignore[misc]
        sizes = {head.block for head in flat if head.blocks}
        if len(sizes) > 1:
            raise InvalidRequest(f"block lists of block sizes {sorted(sizes)} in one plan; choose one")
        count = max(len(head.blocks) for head in flat)
        block_indices: list[int] = []
        token_indices: list[int] = []
        block_offsets, token_offsets = [], []
        for head in flat:
            offsets = [len(block_indices)]
            for keys in head.blocks:
                block_indices += keys
                offsets.append(len(block_indices))
            block_offsets.append(offsets + offsets[-1:] * (count + 1 - len(offsets)))
            token_offsets.append([len(token_indices), len(token_indices) + len(head.tokens)])
            token_indices += head.tokens

        def table(values: list[Any], dtype: torch.dtype = torch.int32) -> Tensor:
            return torch.tensor(values, dtype=dtype).unflatten(0, (len(rows), len(rows[0])))

        return cls(
            kind=table([int(head.kind) for head in flat], torch.int8),
            sinks=table([head.sinks for head in flat]),
            window=table([head.window for head in flat]),
            block_offsets=table(block_offsets),
            block_indices=torch.tensor(block_indices, dtype=torch.int32),
            token_offsets=table(token_offsets),
            token_indices=torch.tensor(token_indices, dtype=torch.int32),
            block=next(iter(sizes), BLOCK),
            extra=extra,
        )

    @cached_property
    def patterns(self) -> list[list[Pattern]]:
        """The pattern of every head `[B|1][H]`: what `HeadPlan.of` was given, or would have to be given."""
        return [[self._pattern(row, head) for head in range(self.kind.shape[1])] for row in range(self.kind.shape[0])]

    def _pattern(self, row: int, head: int) -> Pattern:
        kind = HeadKind(int(self.kind[row, head]))
        if kind is not HeadKind.SPARSE:
            return Pattern(kind)
        ends = self.block_offsets[row, head].tolist()
        blocks = self.block_indices[ends[0] : ends[-1]].tolist()
        first, last = self.token_offsets[row, head].tolist()
        return Pattern(
            kind,
            sinks=int(self.sinks[row, head]),
            window=int(self.window[row, head]),
            blocks=tuple(tuple(blocks[i - ends[0] : j - ends[0]]) for i, j in pairwise(ends)) if blocks else (),
            tokens=tuple(self.token_indices[first:last].tolist()),
            block=self.block,
        )

    @property
    def covers(self) -> int | None:
        """Number of positions that block lists are given for; None if no head has any."""
        return None if len(self.block_indices) == 0 else (self.block_offsets.shape[2] - 1) * self.block

    def heads(self, index: Tensor | slice | Sequence[int]) -> HeadPlan:
        """The plan of some query heads alone; without `extra`, whose heads are grouped."""
        if self.extra is not None:
            raise InvalidRequest("a plan with extra keys is not cut by head")
        names = ("kind", "sinks", "window", "block_offsets", "token_offsets")
        return replace(self, **{name: getattr(self, name)[:, index] for name in names})


@dataclass(frozen=True, eq=False)
class CaptureSpec:
    """What is measured, of the distribution after mask, soft-cap, ALiBi, sinks, logit scale and plan, before the gate.

    rows: queries of the call, "all", "last", or their indices `[R]` or `[B|1 R]`. spans `[B|1 N 2]`: key positions
    first to last + 1, whose probability mass is summed. column_sums: per key, the probability it receives from the
    captured rows. topk: that many most probable keys of every captured row; only for given rows.
    """

    rows: Literal["all", "last"] | Tensor = "all"
    argmax: bool = True
    probability: bool = True
    log_sum_exp: bool = True
    entropy: bool = False
    spans: Tensor | None = None
    column_sums: bool = False
    topk: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.rows, Tensor):
            _ranks("CaptureSpec", "rows", self.rows, 1, 2)
            if self.rows.is_floating_point() or self.rows.dtype == torch.bool:
                raise InvalidRequest(f"CaptureSpec.rows is {self.rows.dtype}; it takes query indices")
        elif self.rows not in ("all", "last"):
            raise InvalidRequest(f"rows={self.rows!r}; rows are 'all', 'last' or a tensor of query indices")
        _ranks("CaptureSpec", "spans", self.spans, 3)
        if self.spans is not None:
            if self.spans.shape[2] != 2 or self.spans.is_floating_point():
                raise InvalidRequest(
                    f"CaptureSpec.spans is {list(self.spans.shape)} {self.spans.dtype}; integers [B N 2]"
                )
            if bool((self.spans < 0).any() | (self.spans[..., 0] > self.spans[..., 1]).any()):
                raise InvalidRequest("CaptureSpec.spans holds a span of negative length or position")
        if self.topk < 0:
            raise InvalidRequest(f"topk={self.topk} is negative")
        if self.topk and self.rows == "all":
            raise InvalidRequest(f"topk={self.topk} of all rows; name the rows, as a tensor or 'last'")


@dataclass(frozen=True, eq=False)
class AttentionStats:
    """What query rows look at, in O(keys) memory.

    Of every captured row, `[batch head query]`: argmax, the position of the most probable key (int64, the first on
    ties, -1 where no key is visible); probability, that key's; entropy over the keys, in nats; log_sum_exp of the
    scores; with one more dimension mass `[... span]`, topk and topk_probability `[... k]`, -1 and 0 past the visible
    keys. Over the rows: column_sums `[batch head key]`. float32 (float64 for float64 inputs), without gradient. What
    was not asked for is None.
    """

    argmax: Tensor | None = None
    probability: Tensor | None = None
    entropy: Tensor | None = None
    log_sum_exp: Tensor | None = None
    mass: Tensor | None = None
    column_sums: Tensor | None = None
    topk: Tensor | None = None
    topk_probability: Tensor | None = None

    @property
    def measured(self) -> dict[str, Tensor]:
        """What was asked for, by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def by_row(self, change: Callable[[Tensor], Tensor]) -> AttentionStats:
        """`change` applied to everything measured per row `[batch head query …]`."""
        return replace(self, **{name: change(v) for name, v in self.measured.items() if name != "column_sums"})

    def head(self, head: int) -> AttentionStats:
        """The statistics of one head, without the head dimension."""
        return AttentionStats(**{name: value[:, head] for name, value in self.measured.items()})

    @classmethod
    def cat(cls, parts: Sequence[AttentionStats]) -> AttentionStats:
        """Statistics of consecutive queries as one; column sums add up, the first keys being the same keys."""
        joined: dict[str, Tensor] = {}
        for name in parts[0].measured:
            values = [part.measured[name] for part in parts]
            if name == "column_sums":
                joined[name] = torch.zeros_like(values[-1])
                for value in values:
                    joined[name][..., : value.shape[-1]] += value
            else:
                joined[name] = torch.cat(values, dim=2)
        return cls(**joined)
