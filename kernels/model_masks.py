"""What a transformers model says of its mask, as a `MaskSpec`: never a matrix of queries times keys.

transformers describes a mask by a function of positions, lengths, offsets and the padding of the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.masking_utils import bidirectional_mask_function, causal_mask_function, eager_mask

from kernels.errors import InvalidRequest, UnsupportedRequest
from kernels.types import MaskSpec

OUTSIDE = frozenset({"bloom", "codegen", "falcon", "gpt_neo", "gpt_neox_japanese", "gptj", "imagegpt", "mpt", "xglm"})
"""Families that compute attention in their own code, which no registered function replaces."""


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


@torch.compiler.disable
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
) -> ModelMask:
    """transformers' mask function; `mask_function(batch, head, query, key)` says of positions whether one sees another.

    Raises UnsupportedRequest for families whose attention takes no such mask.
    """
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
    spec = _recognised(mask_function, call, local_size)
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
    rows = torch.arange(call.batch, device=call.device)[:, None]
    q = torch.arange(call.queries, device=call.device)[None] + call.q_offset
    first, last = call.kv_offset, call.kv_offset + call.keys - 1

    def sees(queries: Tensor, keys: Tensor) -> Tensor:
        return mask_function(rows, torch.zeros_like(rows), queries, keys.clamp(first, last))

    causal = not bool((sees(q, q + 1) & (q + 1 <= last)).any())
    window = local_size if causal else None
    starts = torch.full_like(q, first)
    if causal:
        every = torch.arange(first, last + 1, device=call.device)[None]
        earliest = sees(q[:, :1], every).int().argmax(-1, keepdim=True) + first
        begins = torch.where(sees(q, q - 1) & (q > first), 0, q)
        begins[:, :1] = earliest
        starts = begins.cummax(1).values
    reach = starts if window is None else torch.maximum(starts, q - window + 1)
    edges = (q - 1, q, q + 1, reach - 1, reach, torch.full_like(q, first), torch.full_like(q, last))
    for keys in (keys.clamp(first, last) for keys in edges):
        wanted = (keys <= q) & (keys >= reach) if causal else torch.ones_like(keys, dtype=torch.bool)
        if not bool((sees(q, keys) == wanted).all()):
            raise UnsupportedRequest(
                "the model's mask is neither causal (with a window, packed sequences or chunks) nor everything: "
                "two-sided windows and blocks that see each other are not computed by the kernels"
            )
    implied = q * 0 + first if window is None else (q - window + 1).clamp(min=first)
    return MaskSpec(causal=causal, window=window, starts=None if bool((starts <= implied).all()) else starts)
