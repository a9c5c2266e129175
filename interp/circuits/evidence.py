"""What says which role a head plays: how much it attends from one named token to another, and whether it copies.

Attention is measured row by row where a role is, so no attention matrix is built. The copy score (Wang et al. 2022,
appendix H) takes the state of a token after the first block through a head's value and output maps and on to the
logits, and asks whether the token to be said is among the first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from einops import einsum, rearrange
from torch import Tensor

from interp.errors import BadInput, SiteUnavailable, choose
from interp.tasks.prompts import PromptSet
from interp.tracing.edits import patch
from interp.tracing.model import Model
from interp.tracing.plan import RowFold
from kernels.rows import AttentionRows

Link = tuple[str, str]
"""From the last token of one role to the tokens of another."""
TOP = 5
"""Among how many first tokens a copied one must be (Wang et al. 2022)."""
COPIED_TOKENS = 64
"""Different tokens that a copy score is taken over, at most."""
BATCH = 64
FOLD = "attention between roles"


def attention_between(model: Model, prompts: PromptSet, links: Sequence[Link]) -> dict[Link, np.ndarray]:
    """Attention of every head along each link, `[prompt layer head]`. Raises BadInput for roles that are not there."""
    for role in dict.fromkeys(role for link in links for role in link):
        if role not in prompts.spans:
            raise BadInput(f"no token position is called {role!r}; {choose(role, prompts.spans)}")
    parts: dict[Link, list[Tensor]] = {link: [] for link in links}
    for start in range(0, len(prompts), BATCH):
        batch = prompts[start : start + BATCH]
        for query in dict.fromkeys(query for query, _ in links):
            keys = [key for at, key in links if at == query]
            last = tuple((end - 1, end) for _, end in batch.spans[query])
            rows = replace(batch, spans={**batch.spans, query: last}, counterfactual=None)
            fold = RowFold(FOLD, _SpanMass([batch.spans[key] for key in keys]))
            folded = model.run(rows, read=fold, positions=query).folds[FOLD]
            mass = torch.stack([folded[layer].cpu() for layer in range(model.spec.layers)], dim=2)
            for i, key in enumerate(keys):
                parts[query, key].append(mass[:, i])
    return {link: torch.cat(values).double().numpy() for link, values in parts.items()}


class _SpanMass:
    """Attention of one query row on each of several spans, `[batch span head]`."""

    def __init__(self, spans: Sequence[Sequence[tuple[int, int]]]) -> None:
        self.spans = torch.tensor(spans)  # [span batch 2]

    def __call__(self, rows: AttentionRows, _positions: Tensor, _layer: int) -> Tensor:
        keys = torch.arange(rows.pattern.shape[-1], device=rows.pattern.device)
        spans = self.spans.to(keys.device)
        inside = (keys >= spans[..., :1]) & (keys < spans[..., 1:])
        return einsum(rows.pattern, inside.to(rows.pattern.dtype), "b h q k, s b k -> b s h")


@dataclass(frozen=True, eq=False)
class CopyScores:
    """Share of `n` tokens among the TOP logits that a head's output alone gives, `[layer head]`; `negative` of its
    negated output. NaN in the first layer, whose heads read what is before the tokens' state."""

    positive: np.ndarray
    negative: np.ndarray
    n: int


@torch.no_grad()
def copy_scores(model: Model, prompts: PromptSet, said: Mapping[str, Sequence[int]], top: int = TOP) -> CopyScores:
    """Which heads copy the tokens of some roles: `said[role]` is, for every prompt, the token to be said for it.

    Raises BadInput for roles that are not there; SiteUnavailable where a head's output cannot be told apart, or where
    something stands between the last norm and the unembedding.
    """
    width = getattr(getattr(model.parts.unembed, "weight", None), "shape", (0,))[-1]
    if width != model.spec.width:
        raise SiteUnavailable(
            "the copy score", f"logits are made from {width} numbers, not the {model.spec.width} of the residual stream"
        )
    states, wanted = _token_states(model, prompts, said)
    layers, heads = range(1, model.spec.layers), model.spec.heads
    dummy = [[0] * len(wanted)]  # every position stands for itself: its state is written in, layer by layer
    positive, negative = (np.full((model.spec.layers, heads), np.nan) for _ in range(2))
    if len(layers) == 0:
        return CopyScores(positive, negative, len(wanted))
    enter = [patch(f"resid_pre.{layer}", states[None]) for layer in layers]
    values = model.run(dummy, read=[f"v.{layer}" for layer in layers], edits=enter)
    group = heads // model.spec.kv_heads
    spread = [patch(f"z.{layer}", values[f"v.{layer}"].repeat_interleave(group, dim=2)) for layer in layers]
    written = model.run(dummy, read=[f"head_out.{layer}" for layer in layers], edits=spread)
    for layer in layers:
        outputs = rearrange(written[f"head_out.{layer}"], "1 n h d -> h n d")
        positive[layer] = _among_first(model, outputs, wanted, top)
        negative[layer] = _among_first(model, -outputs, wanted, top)
    return CopyScores(positive, negative, len(wanted))


def _token_states(model: Model, prompts: PromptSet, said: Mapping[str, Sequence[int]]) -> tuple[Tensor, Tensor]:
    """States after the first block of different tokens of these roles `[n width]`, and what is said for each `[n]`."""
    states: dict[int, Tensor] = {}
    limit = min(COPIED_TOKENS, model.spec.context or COPIED_TOKENS)
    for role, tokens in said.items():
        if role not in prompts.spans:
            raise BadInput(f"no token position is called {role!r}; {choose(role, prompts.spans)}")
        for start in range(0, len(prompts), BATCH):
            batch = prompts[start : start + BATCH]
            last = tuple((end - 1, end) for _, end in batch.spans[role])
            rows = replace(batch, spans={**batch.spans, role: last}, counterfactual=None)
            here = model.run(rows, read="resid_post.0", positions=role)["resid_post.0"][:, 0]
            for state, token in zip(here, tokens[start:], strict=False):
                if len(states) < limit:
                    states.setdefault(int(token), state)
    wanted = torch.tensor(list(states), device=model.device)
    return torch.stack(list(states.values())), wanted


def _among_first(model: Model, outputs: Tensor, wanted: Tensor, top: int) -> np.ndarray:
    """For every head the share of tokens among the `top` logits of its outputs `[head n width]`."""
    assert model.parts.unembed is not None
    norm = model.parts.final_norm
    shares = []
    for output in outputs:
        logits = model.parts.unembed(output if norm is None else norm(output))
        first = logits.topk(top, dim=-1).indices
        shares.append((first == wanted[:, None]).any(-1).double().mean().item())
    return np.array(shares)
