"""Which heads look at the previous token, at earlier copies of their own, or at what came after those.

One forward pass over random tokens, all different, that are repeated: nothing but position and repetition can guide a
head there (Elhage et al. 2021; Olsson et al. 2022, arXiv:2209.11895; Tang et al. 2024, arXiv:2407.15891).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from interp.errors import BadInput, choose
from interp.heads.random_tokens import beginning, ordinary_tokens
from interp.heads.scores import model_record
from interp.runs import Run, load_run, save_run
from interp.stats import bootstrap_means
from interp.tables import in_notebook
from interp.tracing.model import Model
from interp.tracing.plan import RowFold
from kernels.rows import AttentionRows

if TYPE_CHECKING:
    import plotly.graph_objects as go

ROLES = {
    "previous-token": "from every token to the one before it",
    "duplicate-token": "from a token of the second copy to the same one in the first",
    "induction": "from a token of the second copy to the one after the same in the first",
    "echo": "from a token of any later copy to the same one in all copies before",
}
"""What each score is the mean attention probability of."""
ROLE_THRESHOLD = 0.3
"""Mean attention from which a head is said to have a role, here where no other number is given."""
SEGMENT = 48
REPEATS = 3
SEQUENCES = 16


@dataclass(frozen=True, eq=False, repr=False)
class HeadRoles:
    """Every head's score in every role: `samples` `[sequence role layer head]`, roles in the order of ROLES."""

    samples: np.ndarray
    model: Mapping[str, Any]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0

    def __repr__(self) -> str:
        n, _, layers, heads = self.samples.shape
        return f"HeadRoles({self.model['name']}: {layers} x {heads} heads, {n} sequences)"

    def scores(self, role: str) -> np.ndarray:
        """Mean score of each head in a role, `[layer head]`. Raises BadInput for an unknown role."""
        return self.samples.mean(0)[_index(role)]

    def above(self, role: str, threshold: float = ROLE_THRESHOLD) -> list[tuple[int, int]]:
        """Heads whose mean score in a role is at least `threshold`, best first."""
        scores = self.scores(role)
        order = np.argsort(-scores, axis=None, kind="stable")
        heads = [divmod(int(i), scores.shape[1]) for i in order]
        return [head for head in heads if scores[head] >= threshold]

    @property
    def frame(self) -> pd.DataFrame:
        """One row a role and head, best first within a role: score with its bootstrap interval over sequences."""
        n, _, layers, heads = self.samples.shape
        layer, head = np.divmod(np.arange(layers * heads), heads)
        parts = []
        for i, role in enumerate(ROLES):
            samples = self.samples[:, i].reshape(n, -1)
            low, high = bootstrap_means(samples, seed=self.seed)
            columns = {"role": role, "layer": layer, "head": head, "score": samples.mean(0), "low": low, "high": high}
            parts.append(pd.DataFrame({**columns, "n": n}).sort_values("score", ascending=False, kind="stable"))
        return pd.concat(parts, ignore_index=True)

    def plot(self) -> go.Figure:
        """A heat map of layers by heads for each role."""
        from interp.plots.circuits import role_maps

        return role_maps({role: self.scores(role) for role in ROLES}, f"head roles of {self.model['name']}")

    def _repr_html_(self) -> str:
        best = self.frame.groupby("role", sort=False).head(5)
        return in_notebook(self, best)

    def save(self, path: str | Path, started: datetime | None = None) -> Run:
        """Write a run folder. Raises UnwritableOutput."""
        return save_run(
            path,
            kind="head-roles",
            parameters=self.parameters,
            model=self.model,
            seed=self.seed,
            frame=self.frame,
            arrays={"samples": self.samples},
            started=started,
        )

    @classmethod
    def load(cls, path: str | Path) -> HeadRoles:
        """Read what `save` wrote. Raises UnreadableFile, BadInput for a run of another kind."""
        run = load_run(path, "head-roles")
        samples = run.array("samples", None, len(ROLES), *run.heads)
        return cls(samples, run.record.model, run.record.parameters, run.record.seed)


def head_roles(
    model: Model, *, segment: int | None = None, repeats: int = REPEATS, sequences: int = SEQUENCES, seed: int = 0
) -> HeadRoles:
    """Score every head in every role, in one forward pass and without an attention matrix.

    `segment` different random tokens are repeated `repeats` times in each of `sequences` sequences; by default as many
    as SEGMENT, or what the model's context and vocabulary hold. Raises BadInput where nothing would be repeated, for a
    segment that needs more different tokens than there are, and for no sequences; PromptTooLong beyond the context.
    """
    usable, begin = ordinary_tokens(model), beginning(model)
    if segment is None:
        room = (model.spec.context or len(begin) + SEGMENT * repeats) - len(begin)
        segment = min(SEGMENT, room // max(repeats, 1), len(usable))
    if segment < 2 or repeats < 2 or sequences < 1:
        raise BadInput(
            f"{sequences} sequences of {repeats} copies of {segment} tokens: need one of two copies of two tokens"
        )
    if segment > len(usable):
        raise BadInput(f"a segment of {segment} different tokens needs as many; the vocabulary has {len(usable)}")
    generator = torch.Generator().manual_seed(seed)
    rows = [
        [*begin, *usable[torch.randperm(len(usable), generator=generator)[:segment]].tolist() * repeats]
        for _ in range(sequences)
    ]
    fold = RowFold("roles", _RoleMass(segment, repeats, len(begin)))
    trace = model.run(rows, read=fold)
    samples = torch.stack([trace.folds["roles"][layer].cpu() for layer in range(model.spec.layers)], dim=2)
    return HeadRoles(
        samples=samples.double().numpy(),
        model=model_record(model),
        parameters={"segment": segment, "repeats": repeats, "sequences": sequences},
        seed=seed,
    )


class _RoleMass:
    """A block of rows' share of every role's mean attention, `[batch role head]`."""

    def __init__(self, segment: int, repeats: int, begin: int) -> None:
        self.segment = segment
        self.repeats = repeats
        self.begin = begin

    def __call__(self, rows: AttentionRows, positions: Tensor, _layer: int) -> Tensor:
        place = positions - self.begin  # among the repeated tokens
        copy = place.div(self.segment, rounding_mode="floor")
        earlier = torch.arange(1, self.repeats, device=place.device) * self.segment
        second = (copy == 1)[..., None]
        back = positions[..., None] - earlier
        wanted = (
            (positions[..., None] - 1, (place > 0)[..., None], self.segment * self.repeats - 1),
            (back[..., :1], second, self.segment),
            (back[..., :1] + 1, second, self.segment),
            (back, back >= self.begin, self.segment * (self.repeats - 1)),
        )
        return torch.stack([_mass(rows.pattern, keys, real) / queries for keys, real, queries in wanted], dim=1)


def _mass(pattern: Tensor, keys: Tensor, real: Tensor) -> Tensor:
    """Attention `[batch head query key]` summed over the `keys` `[batch query choice]` that are `real`."""
    chosen = keys.clamp(min=0)[:, None].expand(-1, pattern.shape[1], -1, -1)
    return (pattern.gather(-1, chosen) * real[:, None]).sum((-1, -2))


def _index(role: str) -> int:
    if role not in ROLES:
        raise BadInput(f"there is no role {role!r}; {choose(role, ROLES)}")
    return list(ROLES).index(role)
