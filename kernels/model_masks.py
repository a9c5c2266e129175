"""What a transformers model says of its mask, as a `MaskSpec`: never a matrix of queries times keys.

transformers describes a mask by a function of positions, lengths, offsets and the padding of the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.masking_utils import bidirectional_mask_function, causal_mask_function, eager_mask

from kernels.errors import InvalidRequest, UnsupportedRequest
from kernels.request import Request
from kernels.types import MaskSpec
from kernels.visibility import mask_allows

OUTSIDE = frozenset({"bloom", "codegen", "falcon", "gpt_neo", "gpt_neox_japanese", "gptj", "imagegpt", "mpt", "xglm"})
"""Families that compute attention in their own code, which no registered function replaces."""

NEITHER = (
    "the model's mask is neither causal (with a window, packed sequences or chunks) nor everything: "
    "two-sided windows and blocks that see each other are not computed by the kernels"
)


@dataclass(frozen=True, eq=False)
class ModelMask:
    """What the mask function gives and the attention function takes: a specification, and transformers' own matrix."""

    spec: MaskSpec | InvalidRequest
    """Or why there is none, raised where a layer uses the mask: some models make masks that no layer of theirs uses."""
    queries: int
    keys: int
    dense: Callable[[int, int, torch.dtype], Tensor]
    """`dense(batch, rows, dtype)`: the eager mask of the first batch rows and the last queries, to check against."""

    ndim = 4  # generation with a static cache makes masks beforehand, and asks no more of them than this
    shape = ()

    def contiguous(self) -> ModelMask:
        return self


def check_family(config: Any) -> None:
    """Raise UnsupportedRequest for families that would not use an attention function of ours."""
    if config.model_type in OUTSIDE:
        raise UnsupportedRequest(
            f"{config.model_type!r} computes attention in its own code, which takes no other attention function "
            f"(nor do {', '.join(sorted(OUTSIDE - {config.model_type}))}); load it with its eager attention"
        )


class TracedMask(NamedTuple):
    """The mask of a compiled graph, in which nothing may depend on values: what to decide once they are there.

    starts `[batch query]`: where each query's sequence begins, of a causal mask. holds: whether the mask is what is
    said here.
    """

    starts: Tensor
    holds: Tensor
    padding: Tensor | None
    queries: int
    keys: int
    q_offset: int
    kv_offset: int
    window: int | None
    causal: bool

    def decided(self) -> ModelMask:
        """The mask for kernels; raises UnsupportedRequest where it is none that they compute."""
        if not bool(self.holds):
            raise UnsupportedRequest(NEITHER)
        batch, device = len(self.starts), self.starts.device
        call = _Positions(batch, self.queries, self.keys, self.q_offset, self.kv_offset, device)
        spec = _causal(self.starts, call, self.window) if self.causal else MaskSpec(causal=False)
        spec = _on(spec, call, self.padding)

        def dense(batch: int, rows: int, dtype: torch.dtype) -> Tensor:
            q, k = (self.starts.new_zeros(len(self.starts), 1, n, 1, dtype=dtype) for n in (self.queries, self.keys))
            last = torch.arange(self.queries - rows, self.queries, device=device)
            request = Request.of(q, k, k, mask=spec)
            seen = mask_allows(request, last[None], torch.arange(self.keys, device=device)).expand(len(q), -1, -1)
            return torch.zeros_like(seen[:batch], dtype=dtype).masked_fill(~seen[:batch], torch.finfo(dtype).min)[
                :, None
            ]

        return ModelMask(spec, self.queries, self.keys, dense)


def make_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Tensor] = causal_mask_function,
    attention_mask: Any = None,
    local_size: int | None = None,
    use_vmap: bool = False,
    device: torch.device | str = "cpu",
    config: Any = None,
    **_: Any,
) -> ModelMask | TracedMask:
    """transformers' mask function; `mask_function(batch, head, query, key)` says of positions whether one sees another.

    Raises UnsupportedRequest for families whose attention takes no such mask. Graphs that torch.compile makes hold a
    `TracedMask`; where positions come from a static cache, or a mask is combined with a function, they break here.
    """
    if torch.compiler.is_compiling() and isinstance(q_offset, int) and not use_vmap:
        call = _Positions(batch_size, q_length, kv_length, q_offset, kv_offset, torch.device(device))
        starts, holds = _causal_starts(mask_function, call, local_size)
        causal = mask_function is not bidirectional_mask_function
        return TracedMask(starts, holds, attention_mask, q_length, kv_length, q_offset, kv_offset, local_size, causal)
    return _make_mask(
        batch_size,
        q_length,
        kv_length,
        q_offset,
        kv_offset,
        mask_function,
        attention_mask,
        local_size,
        use_vmap,
        device,
        config,
    )


@torch.compiler.disable
def _make_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor,
    kv_offset: int,
    mask_function: Callable[..., Tensor],
    attention_mask: Any,
    local_size: int | None,
    use_vmap: bool,
    device: torch.device | str,
    config: Any,
) -> ModelMask:
    if isinstance(attention_mask, ModelMask):
        return attention_mask
    if config is not None:
        check_family(config)
    call = _Positions(batch_size, q_length, kv_length, int(q_offset), int(kv_offset), torch.device(device))
    spec: MaskSpec | InvalidRequest
    try:
        spec = _spec(mask_function, call, attention_mask, local_size, use_vmap)
    except InvalidRequest as refusal:
        spec = refusal

    def dense(batch: int, rows: int, dtype: torch.dtype) -> Tensor:
        return eager_mask(
            batch_size=batch,
            q_length=rows,
            kv_length=kv_length,
            q_offset=call.q_offset + q_length - rows,
            kv_offset=call.kv_offset,
            mask_function=mask_function,
            attention_mask=None if attention_mask is None else attention_mask[:batch],
            dtype=dtype,
            device=device,
        )

    return ModelMask(spec, q_length, kv_length, dense)


@dataclass(frozen=True)
class _Positions:
    """The positions of the queries and keys of a call, which follow one another."""

    batch: int
    queries: int
    keys: int
    q_offset: int
    kv_offset: int
    device: torch.device

    @property
    def last(self) -> int:
        return self.kv_offset + self.keys - 1

    @property
    def queried(self) -> Tensor:
        """The positions of the queries, `[batch query]`."""
        return (torch.arange(self.queries, device=self.device) + self.q_offset).expand(self.batch, -1)

    def sees(self, mask_function: Callable[..., Tensor], keys: Tensor, queries: Tensor | None = None) -> Tensor:
        """Whether each query sees the key at these positions, the next one where there is none."""
        row = torch.arange(self.batch, device=self.device)[:, None]
        keys = keys.clamp(self.kv_offset, self.last)
        return mask_function(row, torch.zeros_like(row), self.queried if queries is None else queries, keys)


def _spec(
    mask_function: Callable[..., Tensor],
    call: _Positions,
    attention_mask: Tensor | None,
    local_size: int | None,
    combined: bool,
) -> MaskSpec:
    """The specification of a call; raises InvalidRequest for what none can say."""
    if combined:
        raise UnsupportedRequest("the model combines its mask with a function of its own, which the kernels cannot")
    return _on(_recognised(mask_function, call, local_size), call, attention_mask)


def _on(spec: MaskSpec, call: _Positions, attention_mask: Tensor | None) -> MaskSpec:
    """The specification of a mask with the positions and the padding of a call."""
    starts, key_mask = _padding(attention_mask, call, spec.causal)
    if spec.starts is not None:
        starts = spec.starts if starts is None else torch.maximum(spec.starts, starts[:, None])
    return replace(spec, starts=starts, key_mask=key_mask, q_offset=call.q_offset, kv_offset=call.kv_offset)


def _padding(attention_mask: Tensor | None, call: _Positions, causal: bool) -> tuple[Tensor | None, Tensor | None]:
    """Starts and key mask of a padding mask `[batch position]`, which covers what is no longer cached, too."""
    if attention_mask is None:
        return None, None
    end = call.kv_offset + call.keys
    seen = min(end, call.q_offset + call.queries) if causal else end
    real = attention_mask[:, :seen].bool()
    spec = MaskSpec.padded(pad(real, (0, seen - real.shape[1])))
    if spec.key_mask is None:
        return spec.starts, None
    return spec.starts, pad(spec.key_mask, (0, end - seen))[:, call.kv_offset :]


def _recognised(mask_function: Callable[..., Tensor], call: _Positions, local_size: int | None) -> MaskSpec:
    """Causality, window and starts of sequences in a mask function, from its values where they tell.

    A function is nothing but its values. They are looked up at every query's edges, and again at the edges of what they
    were taken for; a function that is something else there is refused.
    """
    if mask_function is causal_mask_function or mask_function is bidirectional_mask_function:
        return MaskSpec(causal=mask_function is causal_mask_function)
    q, last = call.queried, call.last
    if not bool((call.sees(mask_function, q + 1) & (q + 1 <= last)).any()):
        starts, holds = _causal_starts(mask_function, call, local_size)
        spec = _causal(starts, call, local_size)
    else:
        edges = (q - 1, q, q + 1, torch.full_like(q, call.kv_offset), torch.full_like(q, last))
        holds = torch.stack([call.sees(mask_function, keys).all() for keys in edges]).all()
        spec = MaskSpec(causal=False)
    if not bool(holds):
        raise UnsupportedRequest(NEITHER)
    return spec


def _causal_starts(mask_function: Callable[..., Tensor], call: _Positions, window: int | None) -> tuple[Tensor, Tensor]:
    """Where each query's sequence begins if the function is causal, `[batch query]`, and whether it is (or all)."""
    q, first, last = call.queried, call.kv_offset, call.last
    if mask_function is causal_mask_function or mask_function is bidirectional_mask_function:
        return torch.full_like(q, first), torch.ones((), dtype=torch.bool, device=q.device)
    every = torch.arange(first, last + 1, device=q.device)[None]
    earliest = call.sees(mask_function, every, q[:, :1]).int().argmax(-1, keepdim=True) + first
    begins = torch.where(call.sees(mask_function, q - 1) & (q > first), 0, q)
    starts = torch.cat([earliest, begins[:, 1:]], dim=1).cummax(1).values
    reach = starts if window is None else torch.maximum(starts, q - window + 1)
    holds = []
    for keys in (q - 1, q, q + 1, reach - 1, reach, torch.full_like(q, first), torch.full_like(q, last)):
        keys = keys.clamp(first, last)
        holds.append((call.sees(mask_function, keys) == ((keys <= q) & (keys >= reach))).all())
    return starts, torch.stack(holds).all()


def _causal(starts: Tensor, call: _Positions, window: int | None) -> MaskSpec:
    """The causal mask of these starts, which are left out where they hide nothing."""
    implied = torch.full_like(call.queried, call.kv_offset)
    implied = implied if window is None else torch.maximum(implied, call.queried - window + 1)
    return MaskSpec(window=window, starts=None if bool((starts <= implied).all()) else starts)
