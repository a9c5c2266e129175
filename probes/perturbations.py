"""What a depth curve should survive: noise in the prompt, and weights of fewer bits.

| name | what it does |
|---|---|
| `prefix` | "aaa" or "bbb", by a fair coin, before the text (Jin et al. 2024) |
| `characters:RATE` | replaces letters by random letters |
| `tokens:RATE` | replaces tokens by random other tokens, special ones excepted |
| `fp32`, `bf16` | computes in that number type |
| `rtn-int8`, `rtn-int4` | simulates weight-only quantisation: every linear layer inside the blocks rounded to nearest |
| `torchao-int8`, `torchao-int4` | torchao's own weight-only quantisation, where it is installed and runs |
"""

from __future__ import annotations

import copy
import string
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from interp.errors import BadInput, choose
from interp.tracing.batch import encode
from interp.tracing.loading import wrap
from interp.tracing.model import Model

PREFIXES = ("aaa", "bbb")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
ROUNDED = {"rtn-int8": 8, "rtn-int4": 4}
TORCHAO = {"torchao-int8": "Int8WeightOnlyConfig", "torchao-int4": "Int4WeightOnlyConfig"}
NOISE = ("prefix", "characters", "tokens")
NAMES = (*NOISE, *DTYPES, *ROUNDED, *TORCHAO)


@dataclass(frozen=True)
class Perturbation:
    """One perturbation of the prompts or of the weights; `rate` is the share of characters or tokens replaced.

    Raises BadInput for unknown names, and for a rate where none belongs or outside 0 to 1.
    """

    kind: str
    rate: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in NAMES:
            raise BadInput(f"there is no perturbation {self.kind!r}; {choose(self.kind, NAMES)}")
        takes = self.kind in ("characters", "tokens")
        if takes != (self.rate is not None) or (self.rate is not None and not 0 < self.rate <= 1):
            right = f"{self.kind}:0.1, with a rate above 0 and up to 1" if takes else f"{self.kind}, without a rate"
            raise BadInput(f"the perturbation {self} is not one: write {right}")

    def __str__(self) -> str:
        return self.kind if self.rate is None else f"{self.kind}:{self.rate:g}"

    @classmethod
    def parse(cls, text: str) -> Perturbation:
        """Read `"characters:0.1"`. Raises BadInput."""
        kind, _, rate = text.partition(":")
        try:
            return cls(kind, float(rate) if rate else None)
        except ValueError as error:
            if isinstance(error, BadInput):
                raise
            raise BadInput(f"the rate of {text!r} is no number") from None

    @property
    def of_weights(self) -> bool:
        return self.kind not in NOISE

    def rows(self, model: Model, texts: Sequence[str], seed: int = 0) -> list[list[int]]:
        """The tokens of every text under this noise, the same for the same seed."""
        rng = np.random.default_rng(seed)
        if self.kind == "prefix":
            texts = [f"{PREFIXES[rng.integers(2)]} {text}" for text in texts]
        elif self.kind == "characters":
            assert self.rate is not None
            texts = [_misspelt(text, self.rate, rng) for text in texts]
        rows = [list(row) for row in encode(list(texts), model.tokenizer).rows]
        if self.kind == "tokens":
            assert self.rate is not None
            special = set(getattr(model.tokenizer, "all_special_ids", ()))
            ordinary = np.array([i for i in range(min(model.spec.vocab, len(model.tokenizer))) if i not in special])
            rows = [_replaced(row, self.rate, ordinary, special, rng) for row in rows]
        return rows

    def model(self, model: Model) -> Model:
        """A copy of the model under this perturbation of its weights; noise leaves it as it is.

        Raises BadInput where the platform cannot compute so, with the reason.
        """
        if not self.of_weights:
            return model
        if self.kind in TORCHAO:
            _require_torchao(self.kind)
        hf = copy.deepcopy(model.hf)
        if self.kind in DTYPES:
            hf = hf.to(DTYPES[self.kind])
        elif self.kind in ROUNDED:
            for layer in linear_layers(hf):
                round_to_nearest(layer, ROUNDED[self.kind])
        else:
            _torchao(hf, self.kind)
        changed = wrap(hf, tokenizer=model.tokenizer, name=f"{model.spec.name} {self}")
        if self.kind in TORCHAO:  # packed weights have no bytes to read: they are known by what they were made from
            changed.__dict__["fingerprint"] = f"{model.fingerprint}:{self}"
        return changed


def linear_layers(hf: nn.Module) -> list[nn.Module]:
    """The linear layers of the blocks: what weight-only quantisation acts on; embeddings and unembedding stay."""
    blocks = next(module for module in hf.modules() if isinstance(module, nn.ModuleList))
    return [layer for layer in blocks.modules() if isinstance(layer, (nn.Linear, Conv1D))]


@torch.no_grad()
def round_to_nearest(layer: nn.Module, bits: int) -> None:
    """Round the weights of a linear layer to `2 ** bits - 1` levels, symmetric about 0, scaled for each output."""
    weight: Any = layer.weight
    inputs = 0 if isinstance(layer, Conv1D) else 1
    step = weight.abs().amax(inputs, keepdim=True) / (2 ** (bits - 1) - 1)
    step = torch.where(step > 0, step, 1)
    weight.copy_((weight / step).round() * step)


def _require_torchao(kind: str) -> None:
    if find_spec("torchao") is None:
        raise BadInput(
            f"{kind} needs the package torchao, which is not installed here; install it, or take rtn-{kind[-4:]}, "
            "which simulates the rounding everywhere"
        )


def _torchao(hf: nn.Module, kind: str) -> None:
    """Quantise the linear layers of the blocks in place. Raises BadInput with torchao's reason where it cannot."""
    quantization = import_module("torchao.quantization")
    chosen = {id(layer) for layer in linear_layers(hf)}
    try:
        quantization.quantize_(hf, getattr(quantization, TORCHAO[kind])(), lambda module, _: id(module) in chosen)
    except Exception as error:  # whatever it raises is why this platform cannot
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BadInput(f"torchao cannot quantise this model to {kind[-4:]} here: {reason}") from error


def _misspelt(text: str, rate: float, rng: np.random.Generator) -> str:
    hit = rng.random(len(text)) < rate
    letters = rng.choice(list(string.ascii_lowercase), len(text))
    return "".join(new if at and old.isalpha() else old for old, new, at in zip(text, letters, hit, strict=True))


def _replaced(
    row: Sequence[int], rate: float, ordinary: np.ndarray, special: set[int], rng: np.random.Generator
) -> list[int]:
    hit = rng.random(len(row)) < rate
    other = rng.choice(ordinary, len(row))
    return [int(new) if at and old not in special else old for old, new, at in zip(row, other, hit, strict=True)]
