"""Every family's forward pass written out by hand, with every site named and editable by any function.

Nothing here is shared with the code under test: no hooks, no attention kernel, only the weights and norms of the
Hugging Face model and its own rotary function. `test_reads.py` first proves that it computes what the model computes.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

Change = Callable[[Tensor], Tensor]


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
        block = {"gpt2": self._gpt2, "gpt_neox": self._gpt_neox, "opt": self._opt}.get(self.family, self._llama_like)
        stream = self.at("embed", self._embed(ids))
        for layer in range(self.layers):
            stream = self.at(f"resid_pre.{layer}", stream)
            stream = self.at(f"resid_post.{layer}", block(layer, stream))
        logits = self.hf.lm_head(self.at("final_norm", self._final_norm()(stream)))
        cap = getattr(self.config, "final_logit_softcapping", None)
        self.at("logits", logits if cap is None else cap * torch.tanh(logits / cap))
        assert set(self.changes) <= set(self.sites), "a change named a site that does not exist"
        return self.sites

    def at(self, name: str, value: Tensor) -> Tensor:
        self.sites[name] = self.changes[name](value) if name in self.changes else value
        return self.sites[name]

    def _embed(self, ids: Tensor) -> Tensor:
        positions = torch.arange(ids.shape[1])
        if self.family == "gpt2":
            return self.hf.transformer.wte(ids) + self.hf.transformer.wpe(positions)
        if self.family == "opt":
            decoder = self.hf.model.decoder
            return decoder.embed_tokens(ids) + decoder.embed_positions.weight[positions + 2]
        return self.hf.get_input_embeddings()(ids)

    def _final_norm(self) -> nn.Module:
        paths = {
            "gpt2": "transformer.ln_f",
            "gpt_neox": "gpt_neox.final_layer_norm",
            "opt": "model.decoder.final_layer_norm",
        }
        return self.hf.get_submodule(paths.get(self.family, "model.norm"))

    def _heads(self, flat: Tensor) -> Tensor:
        return flat.view(*flat.shape[:2], -1, self.head_dim)

    def _rotate(self, layer: int, q: Tensor, k: Tensor, rotary: nn.Module) -> tuple[Tensor, Tensor]:
        kind: dict[str, Any] = {}
        if self.family == "gemma3_text":
            kind["layer_type"] = self.config.layer_types[layer]
        cos, sin = rotary(q, torch.arange(q.shape[1])[None], **kind)
        apply = importlib.import_module(type(self.hf).__module__).apply_rotary_pos_emb
        q, k = (x.transpose(1, 2) for x in apply(q.transpose(1, 2), k.transpose(1, 2), cos, sin))
        return self.at(f"q_rot.{layer}", q), self.at(f"k_rot.{layer}", k)

    def _attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """z, head by head."""
        scale = getattr(self.config, "query_pre_attn_scalar", None) or self.head_dim
        cap = getattr(self.config, "attn_logit_softcapping", None)
        window = getattr(self.config, "sliding_window", None)
        types = getattr(self.config, "layer_types", None)
        if types is not None and types[layer] != "sliding_attention":
            window = None
        group, size = q.shape[2] // k.shape[2], q.shape[1]
        distance = torch.arange(size)[:, None] - torch.arange(size)
        visible = (distance >= 0) if window is None else (distance >= 0) & (distance < window)
        patterns = []
        for head in range(q.shape[2]):
            scores = q[:, :, head] @ k[:, :, head // group].transpose(1, 2) * scale**-0.5
            if cap is not None:
                scores = cap * torch.tanh(scores / cap)
            patterns.append(scores.masked_fill(~visible, float("-inf")).softmax(-1))
        pattern = self.at(f"pattern.{layer}", torch.stack(patterns, dim=1))
        return torch.stack([pattern[:, h] @ v[:, :, h // group] for h in range(q.shape[2])], dim=2)

    def _write(self, layer: int, z: Tensor, w_o: Tensor, bias: Tensor | None) -> Tensor:
        """Head outputs summed: `w_o` `[(H Dh) D]`."""
        z = self.at(f"z.{layer}", z)
        parts = [z[:, :, h] @ part for h, part in enumerate(w_o.split(self.head_dim))]
        total = self.at(f"head_out.{layer}", torch.stack(parts, dim=2)).sum(2)
        return total if bias is None else total + bias

    def _qkv(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.at(f"q.{layer}", q), self.at(f"k.{layer}", k), self.at(f"v.{layer}", v)

    def _llama_like(self, layer: int, stream: Tensor) -> Tensor:
        block = self.hf.model.layers[layer]
        attn, mlp = block.self_attn, block.mlp
        attn_in = self.at(f"attn_in.{layer}", block.input_layernorm(stream))
        if hasattr(attn, "qkv_proj"):
            counts = (self.config.num_attention_heads, *[self.config.num_key_value_heads] * 2)
            flat = attn.qkv_proj(attn_in).split([n * self.head_dim for n in counts], dim=-1)
        else:
            flat = [projection(attn_in) for projection in (attn.q_proj, attn.k_proj, attn.v_proj)]
        q, k, v = self._qkv(layer, *map(self._heads, flat))
        if hasattr(attn, "q_norm"):
            q, k = attn.q_norm(q), attn.k_norm(k)
        z = self._attend(layer, *self._rotate(layer, q, k, self.hf.model.rotary_emb), v)
        if self.family == "bitnet":
            z = self._heads(attn.attn_sub_norm(z.flatten(2)))
        attn_out = self._write(layer, z, attn.o_proj.weight.T, attn.o_proj.bias)
        sandwich = self.family.startswith("gemma")
        if sandwich:
            attn_out = block.post_attention_layernorm(attn_out)
        mid = self.at(f"resid_mid.{layer}", stream + self.at(f"attn_out.{layer}", attn_out))
        norm = block.pre_feedforward_layernorm if sandwich else block.post_attention_layernorm
        mlp_in = self.at(f"mlp_in.{layer}", norm(mid))
        if hasattr(mlp, "gate_up_proj"):
            gate, up = mlp.gate_up_proj(mlp_in).chunk(2, dim=-1)
        else:
            gate, up = mlp.gate_proj(mlp_in), mlp.up_proj(mlp_in)
        neurons = (mlp.activation_fn if hasattr(mlp, "activation_fn") else mlp.act_fn)(gate) * up
        if self.family == "bitnet":
            neurons = mlp.ffn_sub_norm(neurons)
        mlp_out = mlp.down_proj(self.at(f"mlp_post.{layer}", neurons))
        if sandwich:
            mlp_out = block.post_feedforward_layernorm(mlp_out)
        return mid + self.at(f"mlp_out.{layer}", mlp_out)

    def _gpt2(self, layer: int, stream: Tensor) -> Tensor:
        block = self.hf.transformer.h[layer]
        attn_in = self.at(f"attn_in.{layer}", block.ln_1(stream))
        q, k, v = self._qkv(layer, *map(self._heads, block.attn.c_attn(attn_in).chunk(3, dim=-1)))
        z = self._attend(layer, q, k, v)
        attn_out = self._write(layer, z, block.attn.c_proj.weight, block.attn.c_proj.bias)
        mid = self.at(f"resid_mid.{layer}", stream + self.at(f"attn_out.{layer}", attn_out))
        mlp_in = self.at(f"mlp_in.{layer}", block.ln_2(mid))
        neurons = self.at(f"mlp_post.{layer}", block.mlp.act(block.mlp.c_fc(mlp_in)))
        return mid + self.at(f"mlp_out.{layer}", block.mlp.c_proj(neurons))

    def _gpt_neox(self, layer: int, stream: Tensor) -> Tensor:
        block = self.hf.gpt_neox.layers[layer]
        attn_in = self.at(f"attn_in.{layer}", block.input_layernorm(stream))
        fused = block.attention.query_key_value(attn_in)
        fused = fused.view(*fused.shape[:2], -1, 3, self.head_dim)
        q, k, v = self._qkv(layer, fused[..., 0, :], fused[..., 1, :], fused[..., 2, :])
        z = self._attend(layer, *self._rotate(layer, q, k, self.hf.gpt_neox.rotary_emb), v)
        attn_out = self._write(layer, z, block.attention.dense.weight.T, block.attention.dense.bias)
        attn_out = self.at(f"attn_out.{layer}", attn_out)
        after = stream + attn_out
        if not self.config.use_parallel_residual:
            after = self.at(f"resid_mid.{layer}", after)
        mlp_from = stream if self.config.use_parallel_residual else after
        mlp_in = self.at(f"mlp_in.{layer}", block.post_attention_layernorm(mlp_from))
        neurons = self.at(f"mlp_post.{layer}", block.mlp.act(block.mlp.dense_h_to_4h(mlp_in)))
        return after + self.at(f"mlp_out.{layer}", block.mlp.dense_4h_to_h(neurons))

    def _opt(self, layer: int, stream: Tensor) -> Tensor:
        block = self.hf.model.decoder.layers[layer]
        attn = block.self_attn
        attn_in = self.at(f"attn_in.{layer}", block.self_attn_layer_norm(stream))
        flat = [projection(attn_in) for projection in (attn.q_proj, attn.k_proj, attn.v_proj)]
        z = self._attend(layer, *self._qkv(layer, *map(self._heads, flat)))
        attn_out = self._write(layer, z, attn.out_proj.weight.T, attn.out_proj.bias)
        mid = self.at(f"resid_mid.{layer}", stream + self.at(f"attn_out.{layer}", attn_out))
        mlp_in = self.at(f"mlp_in.{layer}", block.final_layer_norm(mid))
        neurons = self.at(f"mlp_post.{layer}", block.activation_fn(block.fc1(mlp_in)))
        return mid + self.at(f"mlp_out.{layer}", block.fc2(neurons))
