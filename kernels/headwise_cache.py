"""A key/value cache that keeps everything for some heads, and sinks and a recent window for the others.

Retrieval heads need all keys, streaming heads do without the middle (DuoAttention, arXiv:2410.10819). `HeadwiseCache`
is given to a model like any other, after `model.set_attn_implementation(ATTENTION)`:

    cache = HeadwiseCache(model.config, FullHeads.top(scores, kv_heads=8, keep=0.25), max_length=32_768)
    model.generate(**inputs, past_key_values=cache)

`update` keeps the new keys until the attention function of this module asks for a layer's attention, and returns a
handle that refuses to be anything but that: with another attention function the model stops instead of attending to
keys that are no longer there. Streaming heads see their part during the prompt too, so one pass and many give the same.

In a layer with a sliding window of its own every head is kept in that window, which is bounded already, and sees its
part of it. `compensation` is RazorAttention's (arXiv:2407.15891): the mean of the dropped keys, with the mean of their
values, counted as often as there are dropped keys; which these are depends on the query, not on how a text was cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig
from transformers.cache_utils import Cache, CacheLayerMixin

from kernels.errors import InvalidRequest, UnsupportedRequest
from kernels.integration import attend, call_spec
from kernels.kept_keys import RecentKeys, WholeKeys, starts_of
from kernels.model_masks import make_mask
from kernels.patterns import HeadKind, full, streaming
from kernels.types import AttentionStats, MaskSpec

ATTENTION = "workbench_headwise"
"""The attention implementation that knows this cache; with any other cache it is "workbench"."""

Reduction = Literal["max", "mean"]


def kv_scores(scores: Tensor, kv_heads: int, reduction: Reduction) -> Tensor:
    """Scores `[layer kv_head]` of scores of query heads `[layer head]`: their maximum (RazorAttention) or mean."""
    if reduction not in get_args(Reduction):
        raise InvalidRequest(f"reduction={reduction!r}; there are {', '.join(get_args(Reduction))}")
    if scores.ndim != 2 or kv_heads < 1 or scores.shape[1] % kv_heads:
        raise InvalidRequest(f"scores of shape {list(scores.shape)} are not of heads that share {kv_heads} evenly")
    groups = scores.unflatten(1, (kv_heads, -1))
    return groups.amax(-1) if reduction == "max" else groups.mean(-1)


@dataclass(frozen=True, eq=False)
class FullHeads:
    """Which key/value heads keep everything, `full` `[layer kv_head]` bool, and how they were chosen."""

    full: Tensor
    reduction: str = ""
    rule: str = ""

    def __post_init__(self) -> None:
        if self.full.ndim != 2 or self.full.dtype != torch.bool:
            raise InvalidRequest(f"full heads are {self.full.dtype} {list(self.full.shape)}; bool [layer, kv_head]")

    @classmethod
    def top(cls, scores: Tensor, *, kv_heads: int, keep: float, reduction: Reduction = "max") -> FullHeads:
        """The share `keep` of all key/value heads that score best, by the scores of query heads `[layer head]`."""
        if not 0 <= keep <= 1:
            raise InvalidRequest(f"keep={keep} is not a share of the heads: it goes from 0 to 1")
        if not bool(torch.isfinite(scores).all()):
            raise InvalidRequest("scores that are not finite put heads in no order")
        reduced = kv_scores(scores, kv_heads, reduction)
        best = reduced.flatten().argsort(descending=True, stable=True)[: round(keep * reduced.numel())]
        chosen = torch.zeros(reduced.numel(), dtype=torch.bool)
        chosen[best.cpu()] = True
        return cls(chosen.view(reduced.shape), reduction, f"top {keep:g}")


class CachedKeys(Tensor):
    """What `update` returns in place of keys and of values: the layer that holds them, and nothing to compute with."""

    layer: HeadwiseLayer

    @classmethod
    def of(cls, layer: HeadwiseLayer) -> CachedKeys:
        handle = torch.empty(0).as_subclass(cls)
        handle.layer = layer
        return handle

    def __repr__(self) -> str:  # type: ignore[override]
        return "CachedKeys()"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise UnsupportedRequest(
            f"the keys of a HeadwiseCache are read by {ATTENTION!r} attention alone: call "
            f"model.set_attn_implementation({ATTENTION!r}); models that change their cached keys cannot use it"
        )


class HeadwiseLayer(CacheLayerMixin):
    """The keys and values of one layer, in `parts` of heads that keep the same."""

    is_croppable = False

    def __init__(self, parts: list[WholeKeys | RecentKeys], window: int | None, max_length: int, backend: str) -> None:
        super().__init__()
        self.parts, self.window, self.max_length, self.backend = parts, window, max_length, backend
        self.kv_heads = sum(len(part.heads) for part in parts)
        self.seen = 0
        self.starts: Tensor | None = None
        self.new: tuple[Tensor, Tensor] | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        for part in self.parts:
            part.allocate(key_states, value_states)
        self.batch, self.is_initialized = len(key_states), True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Take keys and values `[B K T D]` for the next `attend`; raises InvalidRequest past `max_length`."""
        batch, kv_heads, length, _ = key_states.shape
        if self.seen + length > self.max_length:
            raise InvalidRequest(f"{self.seen + length} positions: this cache holds max_length={self.max_length}")
        if kv_heads != self.kv_heads or (self.is_initialized and batch != self.batch):
            rows = self.batch if self.is_initialized else batch
            raise InvalidRequest(f"keys of {batch} rows, {kv_heads} heads; this cache has {rows} of {self.kv_heads}")
        if torch.is_grad_enabled() and (key_states.requires_grad or value_states.requires_grad):
            raise UnsupportedRequest("this cache keeps no gradients: call the model under torch.no_grad()")
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.new = (key_states, value_states)
        handle = CachedKeys.of(self)  # kept by nobody: a cache that is let go of frees its memory at once
        return handle, handle

    def attend(self, q: Tensor, mask: MaskSpec) -> Tensor:
        """Attention `[B T H D]` of q `[B H T D]`, the queries of the last `update`, which from now on is cached."""
        if self.new is None:
            raise InvalidRequest("there are no new keys to attend to: update comes first")
        (key, value), self.new = self.new, None
        self._check(q, key, mask)
        group, pieces = q.shape[1] // self.kv_heads, []
        for part in self.parts:
            heads = [head * group + i for head in part.heads for i in range(group)]
            sinks = None if mask.sinks is None else mask.sinks[heads]
            given = (q[:, heads], key[:, part.heads], value[:, part.heads]) if len(self.parts) > 1 else (q, key, value)
            pieces.append((heads, part.attend(*given, replace(mask, sinks=sinks), self.seen, self.backend)))
        self.seen += key.shape[2]
        if len(pieces) == 1:
            return pieces[0][1]
        out = q.new_empty(len(q), q.shape[2], q.shape[1], value.shape[3])
        for heads, piece in pieces:
            out[:, :, heads] = piece
        return out

    def _check(self, q: Tensor, key: Tensor, mask: MaskSpec) -> None:
        if not mask.causal or mask.alibi is not None or mask.kv_offset:
            raise UnsupportedRequest("a headwise cache serves causal attention from position 0 on, without ALiBi")
        if mask.window != self.window:
            raise InvalidRequest(f"a mask of window {mask.window} for a layer that is cached for {self.window}")
        if mask.key_mask is not None or (mask.starts is not None and mask.starts.ndim == 2):
            raise UnsupportedRequest("a headwise cache takes left padding alone: no holes, packing, padding at the end")
        if mask.q_offset not in (None, self.seen):
            raise InvalidRequest(f"the first query is at {mask.q_offset}; {self.seen} positions are cached")
        if q.shape[2] != key.shape[2] or q.shape[1] % self.kv_heads:
            raise InvalidRequest(f"queries {list(q.shape)} do not fit the new keys {list(key.shape)}")
        starts = starts_of(mask, q.device)
        if self.starts is not None and bool((starts.clamp(max=self.seen) != self.starts.clamp(max=self.seen)).any()):
            raise InvalidRequest(f"sequences began at {self.starts.tolist()}, now at {starts.tolist()}: padding moved")
        self.starts = starts

    @property
    def tensors(self) -> list[Tensor]:
        return [tensor for part in self.parts for tensor in part.tensors.values()] if self.is_initialized else []

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.seen + query_length, 0

    def get_seq_length(self) -> int:
        return self.seen

    def get_max_length(self) -> int:
        return self.max_length

    def reset(self) -> None:
        self.seen, self.starts, self.new = 0, None, None
        for tensor in self.tensors:
            tensor.zero_()

    def crop(self, tokens_to_remove: int) -> None:
        if tokens_to_remove:
            raise UnsupportedRequest("streaming heads cannot take tokens back: what they dropped is gone")

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self._rows(lambda x: x.index_select(0, beam_idx.to(x.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._rows(lambda x: x.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        self._rows(lambda x: x[indices])

    def _rows(self, change: Callable[[Tensor], Tensor]) -> None:
        if not self.is_initialized:
            return
        for part in self.parts:
            for name, tensor in part.tensors.items():
                setattr(part, name, change(tensor))
        if self.starts is not None and len(self.starts) == self.batch:
            self.starts = change(self.starts)
        self.batch = len(self.tensors[0])


class HeadwiseCache(Cache):
    """A cache for a model of `config`; `heads` keep everything, the others `sinks` keys and the latest `window`.

    Memory for `max_length` positions is taken on first use and counted in `bytes`. compensation: in layers without a
    sliding window streaming heads see one key for all they dropped. Raises InvalidRequest for sizes or heads that do
    not fit, UnsupportedRequest for layers that are no ordinary attention.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        heads: FullHeads,
        *,
        max_length: int,
        sinks: int = 64,
        window: int = 256,
        compensation: bool = False,
        backend: str = "auto",
    ) -> None:
        config = config.get_text_config(decoder=True)
        pattern = streaming(sinks, window)
        kv_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        if tuple(heads.full.shape) != (config.num_hidden_layers, kv_heads):
            shape = [config.num_hidden_layers, kv_heads]
            raise InvalidRequest(
                f"full heads of shape {list(heads.full.shape)}; the model has [layer, kv_head] {shape}"
            )
        if max_length < 1:
            raise InvalidRequest(f"max_length={max_length}: a cache holds at least one position")
        there = getattr(config, "max_position_embeddings", None)
        if there is not None and max_length > there:
            raise InvalidRequest(f"max_length={max_length} is longer than the {there} positions of the model")
        self.heads, self.sinks, self.window, self.compensation = heads, sinks, window, compensation
        layers = []
        for keeps_all, own_window in zip(heads.full.tolist(), _windows(config), strict=True):
            if sinks + window >= max_length:
                keeps_all = [True] * kv_heads  # nothing would ever be dropped
            groups = ([h for h in range(kv_heads) if keeps_all[h] == kind] for kind in (True, False))
            parts: list[WholeKeys | RecentKeys] = []
            for part_heads, shown in zip(groups, (full(), pattern), strict=True):
                if part_heads and own_window is not None and own_window < max_length:
                    parts.append(RecentKeys(part_heads, shown, 0, own_window))
                elif part_heads and shown.kind is HeadKind.FULL:
                    parts.append(WholeKeys(part_heads, max_length))
                elif part_heads:
                    parts.append(RecentKeys(part_heads, shown, sinks, window, compensation))
            layers.append(HeadwiseLayer(parts, own_window, max_length, backend))
        super().__init__(layers=layers)

    def attend(self, layer: int, q: Tensor, mask: MaskSpec) -> Tensor:
        """Attention `[B T H D]` of a layer's queries `[B H T D]` over all it keeps, after its `update`."""
        return self.layers[layer].attend(q, mask)

    @property
    def bytes(self) -> int:
        """Bytes of all tensors this cache keeps; 0 before its first use."""
        return sum(tensor.nbytes for layer in self.layers for tensor in layer.tensors)

    @property
    def bytes_if_full(self) -> int:
        """Bytes that keys and values would take if every head kept everything its layer can see."""
        return sum(_full_bytes(layer) for layer in self.layers if layer.is_initialized)


def _full_bytes(layer: HeadwiseLayer) -> int:
    slots = layer.max_length if layer.window is None else min(layer.window, layer.max_length)
    part = layer.parts[0]
    width = (part.keys.shape[3] + part.values.shape[3]) * part.keys.element_size()
    return layer.batch * layer.kv_heads * slots * width


def _windows(config: PreTrainedConfig) -> Iterator[int | None]:
    """The sliding window of each layer, or None."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    for kind in kinds or ["sliding_attention" if window else "full_attention"] * config.num_hidden_layers:
        if kind not in ("full_attention", "sliding_attention"):
            raise UnsupportedRequest(f"a layer is {kind}; headwise are full_attention and sliding_attention layers")
        yield window if kind == "sliding_attention" else None


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **options: Any
) -> tuple[Tensor, AttentionStats | None]:
    """The attention function of `ATTENTION`."""
    if not isinstance(key, CachedKeys):
        return attend(module, query, key, value, attention_mask, **options)
    keys, _ = key.layer.get_mask_sizes(query.shape[2])
    return key.layer.attend(query, call_spec(module, query, keys, attention_mask, **options)), None


AttentionMaskInterface.register(ATTENTION, make_mask)
AttentionInterface.register(ATTENTION, _attention)
