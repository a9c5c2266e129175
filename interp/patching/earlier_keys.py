"""Caches that offer stacked rows the keys and values of columns that are not computed again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from interp.tracing.session import StopForward


def earlier_keys(keys: Sequence[Tensor], values: Sequence[Tensor], prompts: Tensor, start: int) -> DynamicCache:
    """Columns before `start` of every layer's `keys` and `values` `[prompt kv_head column dim]`, for these rows."""
    cache = DynamicCache()
    cache.layers = [Earlier(k, v, prompts, start) for k, v in zip(keys, values, strict=True)]
    return cache


class Earlier(DynamicLayer):
    """Keys and values of the base run's columns before `start`, for any number of leading rows."""

    def __init__(self, keys: Tensor, values: Tensor, prompts: Tensor, start: int) -> None:
        super().__init__()
        self.base = (keys, values)
        self.prompts = prompts
        self.start = start

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if self.start == 0:
            return key_states, value_states
        keys, values = (self._joined(*both) for both in zip(self.base, (key_states, value_states), strict=True))
        return keys, values

    def _joined(self, base: Tensor, new: Tensor) -> Tensor:
        """The base run's columns before those of `new`, in one copy."""
        count, earlier = len(base), base[:, :, : self.start]
        whole = new.new_empty(len(new), new.shape[1], self.start + new.shape[2], new.shape[3])
        whole[:, :, self.start :] = new
        rows = self.prompts[: len(new)]
        if len(new) % count == 0 and bool((rows.view(-1, count) == torch.arange(count, device=rows.device)).all()):
            whole.unflatten(0, (-1, count))[:, :, :, : self.start] = earlier
        else:
            whole[:, :, : self.start] = earlier[rows.to(base.device)]
        return whole

    def get_seq_length(self) -> int:
        return self.start


class Made(Earlier):
    """Keeps the last layer's keys and values, of all columns, and ends the pass."""

    def __init__(self, layer: Earlier) -> None:
        super().__init__(*layer.base, layer.prompts, layer.start)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self.all_keys, self.all_values = super().update(key_states, value_states)
        raise StopForward


class Given(DynamicLayer):
    """Keys and values of all columns, made before."""

    def __init__(self, keys: Tensor, values: Tensor, start: int) -> None:
        super().__init__()
        self.made = keys, values
        self.start = start

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return self.made

    def get_seq_length(self) -> int:
        return self.start
