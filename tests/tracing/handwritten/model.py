"""What all hand-written forward passes have in common: naming and changing sites, attention, heads."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tests.tracing.handwritten import encoders, gpt, llama

Change = Callable[[Tensor], Tensor]

EMBED = {**gpt.EMBED, **encoders.EMBED}
BLOCK = {**gpt.BLOCK, **encoders.BLOCK}
HEAD = {**gpt.HEAD, **encoders.HEAD}
"""How families embed, run a block and unembed, where they do it otherwise than Llama."""


class HandModel:
    """`run(ids, {"z.0": f})` computes all sites of unpadded tokens `[B T]` with `z.0` replaced by `f(z.0)`."""

    def __init__(self, hf: PreTrainedModel) -> None:
        self.hf = hf
        self.config = hf.config
        self.family = hf.config.model_type
        self.layers = hf.config.num_hidden_layers
        width = hf.config.hidden_size
        self.head_dim = getattr(hf.config, "head_dim", None) or width // hf.config.num_attention_heads
        self.changes: Mapping[str, Change] = {}
        self.sites: dict[str, Tensor] = {}

    def run(self, ids: Tensor, changes: Mapping[str, Change] | None = None) -> dict[str, Tensor]:
        self.changes, self.sites = changes or {}, {}
        embed = EMBED.get(self.family, llama.embed)
        block = BLOCK.get(self.family, llama.block)
        head = HEAD.get(self.family, llama.head)
        stream = self.at("embed", embed(self, ids))
        for layer in range(self.layers):
            stream = self.at(f"resid_pre.{layer}", stream)
            stream = self.at(f"resid_post.{layer}", block(self, layer, stream))
        self.at("logits", head(self, stream))
        assert set(self.changes) <= set(self.sites), "a change named a site that does not exist"
        return self.sites

    def at(self, name: str, value: Tensor) -> Tensor:
        self.sites[name] = self.changes[name](value) if name in self.changes else value
        return self.sites[name]

    def heads(self, flat: Tensor) -> Tensor:
        return flat.view(*flat.shape[:2], -1, self.head_dim)

    def qkv(self, layer: int, *flat: Tensor) -> tuple[Tensor, ...]:
        """Projections `[B T (H Dh)]` as named sites `[B T H Dh]`."""
        return tuple(self.at(f"{name}.{layer}", self.heads(x)) for name, x in zip("qkv", flat, strict=True))

    def grouped_qkv(self, layer: int, fused: Tensor, kv_heads: int) -> tuple[Tensor, ...]:
        """Projections stored as the queries, the key and the value of each key/value head."""
        groups = fused.view(*fused.shape[:2], kv_heads, -1, self.head_dim)
        flat = [part.flatten(2) for part in (groups[..., :-2, :], groups[..., -2, :], groups[..., -1, :])]
        return self.qkv(layer, *flat)

    def window(self, layer: int) -> int | None:
        """How many tokens a query sees back, itself included."""
        types = getattr(self.config, "layer_types", None)
        if types is not None and types[layer] != "sliding_attention":
            return None
        return getattr(self.config, "sliding_window", None)

    def visible(self, layer: int, size: int) -> Tensor:
        distance = torch.arange(size)[:, None] - torch.arange(size)
        window = self.window(layer)
        return (distance >= 0) if window is None else (distance >= 0) & (distance < window)

    def attend(
        self,
        layer: int,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        visible: Tensor | None = None,
        scaling: float | None = None,
        bias: Tensor | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """z, head by head; `bias` `[head key]` is added to the scaled scores, `sinks` `[head]` take part and give 0."""
        scaling = self.head_dim**-0.5 if scaling is None else scaling
        cap = getattr(self.config, "attn_logit_softcapping", None)
        visible = self.visible(layer, q.shape[1]) if visible is None else visible
        group = q.shape[2] // k.shape[2]
        patterns = []
        for head in range(q.shape[2]):
            scores = q[:, :, head] @ k[:, :, head // group].transpose(1, 2) * scaling
            if cap is not None:
                scores = cap * torch.tanh(scores / cap)
            if bias is not None:
                scores = scores + bias[head]
            weights = scores.masked_fill(~visible, float("-inf")).exp()
            total = weights.sum(-1, keepdim=True)
            patterns.append(weights / (total if sinks is None else total + sinks[head].exp()))
        pattern = self.at(f"pattern.{layer}", torch.stack(patterns, dim=1))
        return torch.stack([pattern[:, h] @ v[:, :, h // group] for h in range(q.shape[2])], dim=2)

    def write(self, layer: int, z: Tensor, w_o: Tensor, bias: Tensor | None) -> Tensor:
        """Head outputs summed: `w_o` `[(H Dh) D]`."""
        z = self.at(f"z.{layer}", z)
        parts = [z[:, :, h] @ part for h, part in enumerate(w_o.split(self.head_dim))]
        total = self.at(f"head_out.{layer}", torch.stack(parts, dim=2)).sum(2)
        return total if bias is None else total + bias

    def write_with(self, layer: int, z: Tensor, o: nn.Linear) -> Tensor:
        return self.write(layer, z, o.weight.T, o.bias)
