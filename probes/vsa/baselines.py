"""What a hyperdimensional probe must be held against, on the same prompts, states and concepts.

Each baseline scores every concept of every prompt, `[example concept]`; a concept it cannot name has -inf.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from interp.errors import SiteUnavailable
from interp.tasks.analogies import ROLE
from interp.tasks.encoding import encode
from interp.tasks.prompts import PromptSet
from interp.tracing.model import Model
from probes.linear import ProbeSpec, fit_probes
from probes.vsa.ingestion import upper_half

STRENGTH = 0.01
"""Of the linear probe (scikit-learn's C): mild on standardised states."""


def first_tokens(model: Model, concepts: Sequence[str]) -> list[int | None]:
    """The token that each concept begins with inside a text; None for roles, which no text names."""
    found: list[int | None] = []
    for concept in concepts:
        if concept.startswith(ROLE):
            found.append(None)
            continue
        start = len(encode(model.tokenizer, "x").ids)
        found.append(encode(model.tokenizer, f"x {concept}").ids[start])
    return found


def logit_scores(model: Model, prompts: PromptSet, concepts: Sequence[str], chunk: int = 32) -> tuple[Tensor, Tensor]:
    """Logits of each concept's first token: the model's own, and by direct logit attribution (DLA).

    DLA is of what the ingested layers write to the residual stream at the last token, through the final norm and the
    unembedding. The norm's scale is frozen at its value in the run; as it is one number a prompt, it changes no order.
    """
    if model.parts.unembed is None:
        raise SiteUnavailable("logits", "this model has no unembedding, so concepts have no logits")
    sites = upper_half(model.spec)
    start, end = sites[0].replace("post", "pre"), sites[-1]
    tokens = first_tokens(model, concepts)
    known = [i for i, token in enumerate(tokens) if token is not None]
    ids = torch.tensor([token for token in tokens if token is not None])
    own = torch.full((len(prompts), len(concepts)), -torch.inf)
    attributed = own.clone()
    for first in range(0, len(prompts), chunk):
        rows = [list(row) for row in prompts.tokens[first : first + chunk]]
        trace = model.run(rows, read=(start, end), logits="last", positions=-1)
        written = trace[end][:, 0] - trace[start][:, 0]
        here = torch.arange(first, first + len(rows))[:, None]
        own[here, known] = trace.logits[:, ids].float().cpu()
        attributed[here, known] = _unembedded(model, written)[:, ids].float().cpu()
    return own, attributed


def linear_probe(
    states: np.ndarray, targets: Sequence[str], train: np.ndarray, test: np.ndarray, concepts: Sequence[str]
) -> Tensor:
    """A ridge classifier of the targets, fitted to the same vectors; it can name only targets it was trained on."""
    labels = [targets[i] for i in train]
    probe = fit_probes({"states": states[train]}, labels, STRENGTH, ProbeSpec(kind="ridge"))["states"]
    decision = probe.decision(states[test])
    if decision.shape[1] == 1:
        decision = np.concatenate([-decision, decision], 1)
    place = {concept: i for i, concept in enumerate(concepts)}
    scores = torch.full((len(test), len(concepts)), -torch.inf)
    scores[:, [place[str(name)] for name in probe.classes]] = torch.tensor(decision, dtype=torch.float32)
    return scores


def majority(targets: Sequence[str], train: np.ndarray, count: int, concepts: Sequence[str]) -> Tensor:
    """How often each concept is the target in training, for each of `count` prompts."""
    place = {concept: i for i, concept in enumerate(concepts)}
    often = torch.bincount(torch.tensor([place[targets[i]] for i in train]), minlength=len(concepts))
    return often.float().expand(count, -1)


def _unembedded(model: Model, written: Tensor) -> Tensor:
    """Logits of a part of the residual stream, without what norm and unembedding add to whatever they are given."""
    norm, unembed = model.parts.final_norm, model.parts.unembed
    assert unembed is not None
    with torch.no_grad():
        zero = torch.zeros_like(written)
        if norm is not None:
            written, zero = norm(written), norm(zero)
        return unembed(written) - unembed(zero)
