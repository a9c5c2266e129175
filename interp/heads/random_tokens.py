"""What sequences of random tokens are made of, on which heads are probed without any text."""

from __future__ import annotations

import torch
from torch import Tensor

from interp.tracing.model import Model


def ordinary_tokens(model: Model) -> Tensor:
    """All token ids but the special ones, `[token]`."""
    special = set(getattr(model.tokenizer, "all_special_ids", ()))
    return torch.tensor([token for token in range(model.spec.vocab) if token not in special])


def beginning(model: Model) -> list[int]:
    """The token that begins a text, where the tokenizer has one."""
    bos = getattr(model.tokenizer, "bos_token_id", None)
    return [] if bos is None else [int(bos)]
