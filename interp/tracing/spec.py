"""The shape of a model, as plain numbers, and the fingerprint that identifies its weights."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from interp.errors import BadInput


@dataclass(frozen=True)
class ModelSpec:
    """Widths and counts every analysis needs; `family` is the configuration's model type."""

    name: str
    family: str
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    width: int
    mlp_width: int
    vocab: int
    context: int | None
    dtype: str
    parameters: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


_RUNTIME_KEYS = frozenset(
    {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures", "use_cache"}
)
"""Configuration entries that may change without the model being another one."""


def fingerprint(model: nn.Module, config: Any) -> str:
    """`sha256` over the configuration and every parameter and persistent buffer, first 16 hex digits.

    Reads all weights once (about a second a gigabyte). The same weights give the same fingerprint on every device;
    another dtype is another model.
    """
    digest = hashlib.sha256()
    settings = {k: v for k, v in config.to_diff_dict().items() if k not in _RUNTIME_KEYS}
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        if type(tensor) not in (torch.Tensor, nn.Parameter):
            raise BadInput(f"{name} is packed ({type(tensor).__name__}), so its bytes cannot be read for a fingerprint")
        if tensor.is_meta:
            raise BadInput(f"the weights of {name} are offloaded; a model whole in memory has a fingerprint")
        flat = tensor.detach().to("cpu").contiguous().flatten()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(memoryview(flat.view(torch.uint8).numpy()))
    return digest.hexdigest()[:16]
