"""Attention-only models whose heads are written by hand, so that a circuit is known before it is looked for.

The residual stream is cut into slots (token, position, and what heads write), each a one-hot code. Two large opposite
numbers in every embedding make the layer norms the same division for all tokens, and the MLPs add nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

LOUD = 100.0
SHARP = 40.0
"""The score of a perfect match: attention to anything else is of the order exp(-40)."""


@dataclass(frozen=True)
class Head:
    """What one head reads and writes, as matrices over the residual stream: scores are `(x q) . (y k)`."""

    q: Tensor
    k: Tensor
    v: Tensor
    o: Tensor


class Slots:
    """Names for stretches of the residual stream; the last two dimensions carry the loud pair."""

    def __init__(self, width: int, head_dim: int, **sizes: int) -> None:
        self.width, self.head_dim = width, head_dim
        self.start, at = {}, 0
        for name, size in sizes.items():
            self.start[name], at = (at, size), at + size
        assert at <= width - 2

    def read(self, slot: str, matrix: Tensor | float = 1.0, at: int = 0) -> Tensor:
        """`[width head_dim]`: a slot times a matrix (or number) into the head's dimensions from `at` on."""
        start, size = self.start[slot]
        matrix = matrix * torch.eye(size) if isinstance(matrix, float) else matrix
        out = torch.zeros(self.width, self.head_dim)
        out[start : start + size, at : at + matrix.shape[1]] = matrix
        return out

    def write(self, slot: str, factor: float = 1.0) -> Tensor:
        """`[head_dim width]`: the head's first dimensions into a slot."""
        start, size = self.start[slot]
        out = torch.zeros(self.head_dim, self.width)
        out[:size, start : start + size] = factor * torch.eye(size)
        return out


@torch.no_grad()
def plant(
    slots: Slots, heads: dict[tuple[int, int], Head], *, layers: int, n_heads: int, vocab: int
) -> GPT2LMHeadModel:
    """A GPT-2 with these heads and none other; `token` and `position` are embedded, the slot `out` is unembedded."""
    width, dim = slots.width, slots.head_dim
    assert width == n_heads * dim
    positions = slots.start["position"][1]
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=vocab,
            n_positions=positions,
            n_embd=width,
            n_layer=layers,
            n_head=n_heads,
            n_inner=4,
            bos_token_id=None,
            eos_token_id=None,
            tie_word_embeddings=False,
        )
    ).eval()
    for parameter in model.parameters():
        parameter.zero_()
    start, _ = slots.start["token"]
    model.transformer.wte.weight[:, start : start + vocab] = torch.eye(vocab)
    start, _ = slots.start["position"]
    model.transformer.wpe.weight[:, start : start + positions] = torch.eye(positions)
    model.transformer.wpe.weight[:, -2], model.transformer.wpe.weight[:, -1] = LOUD, -LOUD
    undo = LOUD * (2 / width) ** 0.5
    for block in model.transformer.h:
        block.ln_1.weight.fill_(undo)
        block.ln_2.weight.fill_(undo)
    model.transformer.ln_f.weight.fill_(undo)
    start, _ = slots.start["out"]
    model.lm_head.weight[:, start : start + vocab] = torch.eye(vocab)
    for (layer, head), maps in heads.items():
        attention, own = model.transformer.h[layer].attn, slice(head * dim, (head + 1) * dim)
        for i, part in enumerate((maps.q * SHARP * dim**0.5, maps.k, maps.v)):
            attention.c_attn.weight[:, i * width + own.start : i * width + own.stop] = part
        attention.c_proj.weight[own] = maps.o
    return model


def induction_model(vocab: int = 32, positions: int = 64) -> GPT2LMHeadModel:
    """0.0 looks at the previous token, 0.1 at its own token (earlier copies and itself), 1.1 after earlier copies."""
    slots = Slots(2 * 128, 128, token=vocab, position=positions, previous=vocab, out=vocab)
    back = torch.zeros(positions, positions)
    back[torch.arange(1, positions), torch.arange(positions - 1)] = 1
    return plant(
        slots,
        {
            (0, 0): Head(
                slots.read("position", back), slots.read("position"), slots.read("token"), slots.write("previous")
            ),
            (0, 1): Head(slots.read("token"), slots.read("token"), slots.read("token"), torch.zeros(128, 256)),
            (1, 1): Head(slots.read("token"), slots.read("previous"), slots.read("token"), slots.write("out")),
        },
        layers=2,
        n_heads=2,
        vocab=vocab,
    )
