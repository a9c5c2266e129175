"""Decoding as in production, through a cache that keeps more for some heads than for others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from interp.tracing.model import Model
from kernels.headwise_cache import ATTENTION, HeadwiseCache

CHUNK = 512
"""Tokens of a prompt that run at once."""


@contextmanager
def headwise_attention(model: Model) -> Iterator[None]:
    """Within the block the model computes attention as headwise caches need it; nobody else runs it meanwhile."""
    hf: Any = model.hf
    with model.lock:
        before = hf.config.get_text_config()._attn_implementation
        hf.set_attn_implementation(ATTENTION)
        try:
            yield
        finally:
            hf.set_attn_implementation(before)


@torch.no_grad()
def decode_greedily(
    model: Model, cache: HeadwiseCache, tokens: Sequence[int], count: int, chunk: int = CHUNK
) -> list[int]:
    """The `count` most probable tokens, one after the other, after a prompt that runs `chunk` tokens at a time.

    An end-of-text token ends nothing. Belongs inside `headwise_attention`; the cache is empty at first.
    """
    hf: Any = model.hf
    new: list[int] = []
    parts = [list(tokens[start : start + chunk]) for start in range(0, len(tokens), chunk)]
    while len(new) < count:
        for part in parts:
            ids = torch.tensor([part], device=model.device)
            logits = hf(ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        new.append(int(logits[0, -1].argmax()))
        parts = [new[-1:]]
    return new
