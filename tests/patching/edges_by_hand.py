"""A Llama written out as a graph of edges, in double precision: what edge scores and path patching must equal.

The input of every node is a sum over edges, and `epsilon[u, v]` moves the edge u->v towards the counterfactual: 1
replaces what u writes into the input of v alone, and the derivative at 0 is the score of edge attribution patching.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tests.families import build


class Pass(NamedTuple):
    """Logits of the last position `[batch vocab]`, and what every node wrote `[source batch tokens width]`."""

    logits: Tensor
    writes: Tensor


def double_llama(**changes: Any) -> nn.Module:
    """A random Llama that computes in double precision throughout (the norms of the library would round to single)."""
    hf = build("llama", "sdpa", torch.float64, **changes).requires_grad_(False)
    for owner in (hf.model, *hf.model.layers):
        for name, norm in list(owner.named_children()):
            if name.endswith("norm"):
                exact = nn.RMSNorm(norm.weight.shape, eps=norm.variance_epsilon, dtype=torch.float64)
                exact.weight = norm.weight
                setattr(owner, name, exact)
    return hf


def rotate(x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary embedding of `[batch tokens width]`, by the cosines and sines `[1 tokens width]`."""
    a, b = x.chunk(2, -1)
    return x * angles[0] + torch.cat([-b, a], -1) * angles[1]


def head_write(
    attn: nn.Module, head: int, angles: tuple[Tensor, Tensor], q_in: Tensor, k_in: Tensor, v_in: Tensor
) -> Tensor:
    """What one query head adds to the stream, from its three normalised inputs `[batch tokens width]`."""
    dim, group = attn.head_dim, attn.num_key_value_groups
    own, shared = slice(head * dim, (head + 1) * dim), slice(head // group * dim, (head // group + 1) * dim)
    q, k = rotate(q_in @ attn.q_proj.weight[own].T, angles), rotate(k_in @ attn.k_proj.weight[shared].T, angles)
    scores = q @ k.transpose(-1, -2) / dim**0.5
    future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    pattern = scores.masked_fill(future, -torch.inf).softmax(-1)
    return pattern @ (v_in @ attn.v_proj.weight[shared].T) @ attn.o_proj.weight[:, own].T


def run(hf: nn.Module, ids: Tensor, epsilon: Tensor | None = None, change: Tensor | None = None) -> Pass:
    """One pass; edges are moved by `epsilon` `[source destination]` times `change` `[source batch tokens width]`."""
    heads = hf.config.num_attention_heads
    writes = [hf.model.embed_tokens(ids)]
    angles = hf.model.rotary_emb(writes[0], torch.arange(ids.shape[1])[None])
    column = 0

    def read() -> Tensor:
        nonlocal column
        value = torch.stack(writes).sum(0)
        if epsilon is not None and change is not None:
            value = value + torch.einsum("s,sbtw->btw", epsilon[: len(writes), column], change[: len(writes)])
        column += 1
        return value

    for layer in hf.model.layers:
        q, k, v = [[layer.input_layernorm(read()) for _ in range(heads)] for _ in range(3)]
        writes += [head_write(layer.self_attn, h, angles, q[h], k[h], v[h]) for h in range(heads)]
        writes.append(layer.mlp(layer.post_attention_layernorm(read())))
    logits = hf.lm_head(hf.model.norm(read())[:, -1])
    return Pass(logits, torch.stack(writes))
