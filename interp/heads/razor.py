"""RazorAttention's static probe (Tang et al. 2024): echo and induction heads on repeated random tokens.

A random sequence is repeated; an *echo* head looks back at earlier copies of the current token, an *induction* head at
the token after them. No natural text is needed, so the probe also ranks models that cannot answer questions.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from interp.errors import BadInput
from interp.heads.mask import HeadMask
from interp.heads.random_tokens import beginning, ordinary_tokens
from interp.heads.scores import HeadScores, model_record
from interp.tracing.model import Model
from interp.tracing.plan import RowFold
from kernels.rows import AttentionRows

SEGMENT = 2500
REPEATS = 4
INDUCTION_RATIO = 0.14
ECHO_RATIO = 0.01
"""The published segment length, number of copies, and shares of heads that are kept."""


def razor_scores(
    model: Model, *, segment: int | None = None, repeats: int = REPEATS, sequences: int = 4, seed: int = 0
) -> HeadScores:
    """Induction score of every head, with the echo score as the component `"echo"`.

    Both are the attention mass on the matching earlier positions, averaged over all queries after the first copy and
    over `sequences` random sequences. `segment` is the length of the repeated part: the published 2500, or as much as
    the model's context holds. Raises BadInput when fewer than two tokens would be repeated.
    """
    room = (model.spec.context or repeats * SEGMENT + 1) - 1
    segment = min(SEGMENT, room // repeats) if segment is None else segment
    if segment < 2 or repeats < 2:
        raise BadInput(f"{repeats} copies of {segment} tokens repeat nothing; need two of two at least")
    generator = torch.Generator().manual_seed(seed)
    usable = ordinary_tokens(model)
    fold = RowFold("mass", _RepeatMass(segment, len(beginning(model))))
    samples = []
    for _ in range(sequences):
        part = usable[torch.randint(len(usable), (segment,), generator=generator)].tolist()
        tokens = [*beginning(model), *part * repeats]
        trace = model.run([tokens], read=fold, positions=slice(segment + len(beginning(model)), None))
        samples.append(torch.stack([trace.folds["mass"][layer] for layer in range(model.spec.layers)]).cpu())
    mass = torch.stack(samples).double().numpy() / (segment * (repeats - 1))
    return HeadScores(
        method="razor-induction",
        samples=mass[:, :, 1],
        tests=pd.DataFrame({"sequence": range(sequences), "segment": segment, "passed": True}),
        model=model_record(model),
        parameters={"segment": segment, "repeats": repeats},
        components={"echo": mass[:, :, 0].mean(0)},
        seed=seed,
    )


def razor_mask(
    scores: HeadScores, induction_ratio: float = INDUCTION_RATIO, echo_ratio: float = ECHO_RATIO
) -> HeadMask:
    """The published selection over key/value heads: best share by induction score, united with the best by echo score.

    Scores of a key/value head are the maximum over the query heads that read it; at least one of each kind is kept.
    """
    kv_heads = int(scores.model["kv_heads"])
    mask = scores.mask().to_kv("max")
    layers = len(mask.scores)
    echo = scores.components["echo"].reshape(layers, kv_heads, -1).max(-1)
    selected = _best(mask.scores, induction_ratio) | _best(echo, echo_ratio)
    return mask.select(selected, f"razor: induction {induction_ratio:g}, echo {echo_ratio:g}")


def _best(scores: np.ndarray, ratio: float) -> np.ndarray:
    count = max(1, math.floor(ratio * scores.size))
    order = np.argsort(-scores, axis=None, kind="stable")
    chosen = np.zeros(scores.size, dtype=bool)
    chosen[order[:count]] = True
    return chosen.reshape(scores.shape)


class _RepeatMass:
    """Attention of queries on earlier copies of their token (echo) and on what followed (induction), `[2 head]`."""

    def __init__(self, segment: int, bos: int) -> None:
        self.segment = segment
        self.bos = bos

    def __call__(self, rows: AttentionRows, positions: Tensor, _layer: int) -> Tensor:
        position = positions[0] - self.bos
        copies = int(position.max()) // self.segment
        back = position[:, None] - self.segment * torch.arange(1, copies + 1, device=position.device)
        real = (back >= 0)[None]
        keys = back.clamp(min=0) + self.bos

        def mass(at: Tensor) -> Tensor:
            gathered = rows.pattern[0].gather(-1, at[None].expand(rows.pattern.shape[1], -1, -1))
            return (gathered * real).sum((-1, -2))

        return torch.stack([mass(keys), mass(keys + 1)])
