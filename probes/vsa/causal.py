"""Does the model use what the probe reads? Move the hidden state towards another concept, and see what it answers.

For each prompt the answer of another prompt of its relation is drawn. The state at the last token is moved along the
gradient of the encoder's cosine with the hypervector in which that answer stands minus that with the true one (of a
linear encoder this is its direction for the concept), by a share of the state's norm. Where concepts are bound in pairs
the whole asked pair is replaced, as a pair that was never bound has no direction. If the model reads the concept where
the probe does, its answer follows; random directions of the same length are the control.

A decoder's direction is not where the states that say so lie: it avoids what varies for other reasons. The `pattern`
is the same gradient turned into that direction by the covariance of the states (Haufe et al. 2014).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

import interp.tracing.edits as edits
from interp.errors import BadInput, UnreadableFile
from interp.heads.scores import model_record
from interp.runs import Run, load_run, save_run
from interp.stats import bootstrap_means
from interp.tables import in_notebook
from interp.tasks.analogies import Structure
from interp.tasks.prompts import PromptSet
from interp.tracing.model import Model
from interp.tracing.sites import Site
from probes.vsa.baselines import first_tokens
from probes.vsa.codebook import Codebook
from probes.vsa.encoder import Encoder

if TYPE_CHECKING:
    import plotly.graph_objects as go

KIND = "hyperdimensional-causal"
RANDOM = "random"
"""The control's direction."""
STRENGTHS = (0.25, 0.5, 1.0, 2.0)
"""Shares of the norm of the state that it is moved by."""


@dataclass(frozen=True, eq=False, repr=False)
class CausalCheck:
    """How far the answer follows the probe's direction, and random ones.

    `frame` has a row for every direction and strength: `follows` is the share of prompts whose next token becomes the
    other concept, `kept` the share that still says the true one, `shift` the mean change of the logit difference
    other - true; all with bootstrap intervals over prompts. Ablation: a vector is added at the last token. `outcomes`
    `[row prompt 3]` are these three of every prompt, means over the random directions.
    """

    frame: pd.DataFrame
    outcomes: np.ndarray
    site: str
    model: Mapping[str, Any]
    parameters: Mapping[str, Any]
    seed: int = 0

    def __repr__(self) -> str:
        return f"CausalCheck({self.model['name']} at {self.site}: {self.frame.n.max()} prompts)"

    def _repr_html_(self) -> str:
        return in_notebook(self, self.beyond_random())

    def beyond_random(self) -> pd.DataFrame:
        """By direction and strength, how much more often the answer follows than along random directions.

        Paired by prompt, with bootstrap intervals.
        """
        rows = self.frame.reset_index(drop=True)
        random = {strength: i for i, strength in rows.strength[rows.direction == RANDOM].items()}
        found = []
        for i, row in rows[(rows.direction != RANDOM) & (rows.strength > 0)].iterrows():
            gap = self.outcomes[i, :, 0] - self.outcomes[random[row.strength], :, 0]
            low, high = bootstrap_means(gap[:, None].astype(float))
            about = {"direction": row.direction, "strength": row.strength, "follows": row.follows}
            found.append({**about, "difference": gap.mean(), "low": low[0], "high": high[0], "n": len(gap)})
        return pd.DataFrame(found)

    def plot(self) -> go.Figure:
        """How often the answer follows, by strength, beside the random directions."""
        from interp.plots.vsa import causal_curves

        return causal_curves(self.frame, f"{self.model['name']}, {self.site}")

    def save(self, path: str | Path, started: datetime | None = None) -> Run:
        """Write a run folder."""
        parameters = {**self.parameters, "site": self.site}
        return save_run(
            path,
            kind=KIND,
            parameters=parameters,
            model=self.model,
            seed=self.seed,
            frame=self.frame,
            arrays={"outcomes": self.outcomes},
            started=started,
        )

    @classmethod
    def load(cls, path: str | Path) -> CausalCheck:
        """Read what `save` wrote. Raises UnreadableFile, and BadInput for a run of another kind."""
        run = load_run(path, KIND)
        outcomes = run.array("outcomes", len(run.frame), None, 3)
        about = dict(run.record.parameters)
        if "site" not in about:
            raise UnreadableFile(f"{path} does not say where it moved states")
        return cls(run.frame, outcomes, str(about.pop("site")), run.record.model, about, run.record.seed)


def causal_check(
    model: Model,
    prompts: PromptSet,
    structures: Sequence[Structure],
    encoder: Encoder,
    codebook: Codebook,
    site: str,
    *,
    strengths: Sequence[float] = STRENGTHS,
    draws: int = 3,
    seed: int = 0,
    chunk: int = 32,
    progress: Callable[[int, int], None] | None = None,
) -> CausalCheck:
    """Move the last token's state at `site`, which `encoder` was fitted to alone, towards another prompt's answer.

    `structures` are as the encoder was taught them. `draws` random directions are the control. Raises BadInput for an
    encoder of another width, and for prompts that have no other answer to move to.
    """
    if len(structures) != len(prompts) or not len(prompts):
        raise BadInput(f"there are {len(structures)} structures for {len(prompts)} prompts")
    if len(encoder.mean) != model.spec.width or not str(Site.parse(site)).startswith("resid_"):
        raise BadInput(
            f"the check moves one residual state of {model.spec.width} features; an encoder of {len(encoder.mean)} "
            f"features at {site} does not read that: fit it to one site of the residual stream"
        )
    others = _other_answers(prompts, structures, seed)
    token = dict(zip(codebook.concepts, first_tokens(model, codebook.concepts), strict=True))
    answers = [(each.target, other.target) for each, other in zip(structures, others, strict=True)]
    ids = torch.tensor([[token[true], token[other]] for true, other in answers])
    chunks = [slice(start, start + chunk) for start in range(0, len(prompts), chunk)]
    traces = [
        model.run([list(row) for row in prompts.tokens[rows]], read=site, positions=-1, logits="last")
        for rows in chunks
    ]
    states = torch.cat([trace[site][:, 0].float().cpu() for trace in traces])
    base = torch.cat([_outcome(trace.logits, ids[rows]) for trace, rows in zip(traces, chunks, strict=True)])
    gradient = concept_gradient(states, encoder, codebook, structures, others)
    generator = torch.Generator().manual_seed(seed)
    directions = {
        "encoder": [gradient],
        "pattern": [_unit(gradient @ torch.cov(states.mT))],
        RANDOM: [_unit(torch.randn(states.shape, generator=generator)) for _ in range(draws)],
    }
    still = (base * torch.tensor([1, 1, 0])).numpy()
    measured = {(direction, 0.0): still for direction in directions}
    steps = [(direction, strength) for direction in directions for strength in strengths]
    for number, (direction, strength) in enumerate(steps):
        moved = []
        for unit in directions[direction]:
            vectors = strength * states.norm(dim=-1, keepdim=True) * unit
            parts = [_moved(model, prompts.tokens[rows], site, vectors[rows], ids[rows]) for rows in chunks]
            moved.append(torch.cat(parts) - base * torch.tensor([0, 0, 1]))
        measured[direction, strength] = torch.stack(moved).mean(0).numpy()
        if progress:
            progress(number + 1, len(steps))
    order = sorted(measured)
    outcomes = np.stack([measured[each] for each in order])
    frame = pd.DataFrame([_row(*each, measured[each].astype(float)) for each in order])
    parameters = {"prompts": prompts.hash, "draws": draws, "strengths": list(strengths), "ablation": "add"}
    return CausalCheck(frame, outcomes, site, model_record(model), parameters, seed)


def concept_gradient(
    states: Tensor, encoder: Encoder, codebook: Codebook, structures: Sequence[Structure], others: Sequence[Structure]
) -> Tensor:
    """Unit direction at each state `[example feature]` from its structure to the same one with the other's answer."""
    algebra = codebook.algebra
    true = algebra.components(torch.stack([codebook.encode(each) for each in structures]))
    other = algebra.components(
        torch.stack([codebook.encode(with_answer(each, new)) for each, new in zip(structures, others, strict=True)])
    )
    leaf = states.clone().requires_grad_()
    outputs = encoder.outputs(leaf)
    gain = torch.cosine_similarity(outputs, other, dim=-1) - torch.cosine_similarity(outputs, true, dim=-1)
    (gradient,) = torch.autograd.grad(gain.sum(), leaf)
    return _unit(gradient)


def with_answer(structure: Structure, other: Structure) -> Structure:
    """The same structure with the asked binding of another in the place of its own; all else stays."""
    if structure.key is None or other.key is None:
        members = tuple(other.target if name == structure.target else name for name in structure.members)
        return Structure(structure.bindings, other.target, members=members)
    new = (other.key, other.target)
    bindings = tuple(new if frozenset(pair) == structure.asked else pair for pair in structure.bindings)
    return Structure(bindings, other.target, other.key, structure.members)


def _other_answers(prompts: PromptSet, structures: Sequence[Structure], seed: int) -> list[Structure]:
    """For each prompt another of the same relation (where metadata names one) whose answer it does not mention."""
    relations = [str(row.get("relation", "")) for row in prompts.metadata] or [""] * len(prompts)
    rng = Random(f"other answers {seed}")
    found = []
    for relation, each in zip(relations, structures, strict=True):
        pool = [
            other
            for of, other in zip(relations, structures, strict=True)
            if of == relation and other.target not in each.concepts
        ]
        if not pool:
            raise BadInput(f"no prompt like the one for {each.target!r} has another answer; give more prompts")
        found.append(rng.choice(pool))
    return found


def _moved(model: Model, tokens: Sequence[Sequence[int]], site: str, vectors: Tensor, ids: Tensor) -> Tensor:
    """Outcomes when each prompt's last token gets its own vector added."""
    moves = [edits.add(site, vector).at(positions=-1, rows=i) for i, vector in enumerate(vectors.to(model.device))]
    return _outcome(model.run([list(row) for row in tokens], edits=moves, logits="last").logits, ids)


def _outcome(logits: Tensor, ids: Tensor) -> Tensor:
    """Of each prompt: whether it says the other concept, whether the true one, and their logit difference."""
    values = logits.float().cpu()
    said = values.argmax(-1)
    true, other = values.gather(1, ids).unbind(1)
    return torch.stack([(said == ids[:, 1]).float(), (said == ids[:, 0]).float(), other - true], 1)


def _unit(vectors: Tensor) -> Tensor:
    return vectors / vectors.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(vectors.dtype).tiny)


def _row(direction: str, strength: float, samples: np.ndarray) -> dict[str, Any]:
    low, high = bootstrap_means(samples)
    row: dict[str, Any] = {"direction": direction, "strength": strength}
    for i, name in enumerate(("follows", "kept", "shift")):
        row |= {name: samples[:, i].mean(), f"{name}_low": low[i], f"{name}_high": high[i]}
    return {**row, "n": len(samples)}
