"""Attention-only models whose heads are written by hand, so that a circuit is known before it is looked for.

The residual stream is cut into slots (token, position, and what heads write), each a one-hot code. Two large opposite
numbers in every embedding make the layer norms the same division for all tokens, and the MLPs add nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from interp.tasks.ioi import POCKET
from interp.tasks.vocabulary import vocabulary

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


NAMES = ("Mary", "John", "Alice", "Robert", "Emma", "James", "Laura", "David")


def ioi_tokenizer() -> PreTrainedTokenizerFast:
    """Whole words of the bundled model's IOI sentences; the names come last."""
    words = vocabulary()
    text = " ".join(POCKET).format(first="", second="", subject="", place="", object="a an")
    others = re.findall(r"\w+|[,.]", text)
    listed = dict.fromkeys(["<unk>", *others, *words.places, *words.objects, *NAMES])
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(listed)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def ioi_model(vocab: int, by_induction: bool = False) -> GPT2LMHeadModel:
    """A circuit for IOI over a vocabulary whose last tokens are NAMES; every other head is 0.

    0.1 duplicate token: at a repeated name, notes that name. Or, `by_induction`, 0.3 previous token and 1.1 induction
    together do. Then, a layer later in that case:
    1.2 inhibition: carries the noted name to the end.
    2.0 mover: copies the name that is not inhibited. 2.3 negative mover: writes against it, three tenths as much.
    """
    n, positions, dim = len(NAMES), 24, 96
    slots = Slots(4 * dim, dim, token=vocab, position=positions, before=n, noted=n, inhibited=n, out=vocab)
    name = torch.zeros(vocab, n)
    name[vocab - n :] = torch.eye(n)
    always, first = torch.ones(positions, 1), torch.zeros(positions, 1)
    first[0] = 0.5  # where to look when there is nothing to see
    any_name = torch.ones(n, 1)

    def constant(at: int) -> Tensor:
        return slots.read("position", always, at)

    own = torch.eye(positions)
    last = n + positions
    heads: dict[tuple[int, int], Head] = {}
    if by_induction:
        back = torch.zeros(positions, positions)
        back[torch.arange(1, positions), torch.arange(positions - 1)] = 1
        heads[0, 3] = Head(
            q=slots.read("position", back),
            k=slots.read("position", own),
            v=slots.read("token", name),
            o=slots.write("before"),
        )
        heads[1, 1] = Head(
            q=slots.read("token", name) + constant(n),
            k=slots.read("before") + slots.read("position", first, n),
            v=slots.read("before"),
            o=slots.write("noted"),
        )
    else:
        heads[0, 1] = Head(
            q=slots.read("token", name) + slots.read("position", own, n) + constant(last),
            k=slots.read("token", name) + slots.read("position", -2 * own, n) + slots.read("position", first, last),
            v=slots.read("token", name),
            o=slots.write("noted"),
        )
    later = 1 if by_induction else 0
    heads[1 + later, 2] = Head(
        q=constant(0),
        k=slots.read("noted", any_name) + slots.read("position", first),
        v=slots.read("noted"),
        o=slots.write("inhibited"),
    )
    names = slots.read("token", name @ any_name) + slots.read("token", -2 * name, 1) + slots.read("position", first)
    here = constant(0) + slots.read("inhibited", 1.0, 1)
    for head, strength in ((0, 10.0), (3, -3.0)):
        said = torch.zeros(dim, slots.width)
        start, size = slots.start["out"]
        said[:n, start + size - n : start + size] = strength * torch.eye(n)
        heads[2 + later, head] = Head(here, names, slots.read("token", name), said)
    return plant(slots, heads, layers=3 + later, n_heads=4, vocab=vocab)
