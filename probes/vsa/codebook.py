"""Codebooks: concepts by name with their hypervectors, what they encode, and the way back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interp.errors import BadInput, choose
from probes.vsa.algebra import DIMENSIONS, MAP, Algebra

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from interp.tasks.analogies import Structure

ACCEPTED = 0.1
"""Cosine from which the paper accepts what a cleanup finds."""
SHOWN = 6
"""Names of concepts in an error message."""


@dataclass(frozen=True, eq=False, repr=False)
class Codebook:
    """One random hypervector a concept. Raises BadInput on no concepts, and on a name given twice.

    The same names, algebra, dimensions and seed give the same codebook; a name's vector depends on its place.
    """

    concepts: tuple[str, ...]
    algebra: Algebra = MAP
    dimensions: int = DIMENSIONS
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.concepts:
            raise BadInput("an empty codebook encodes nothing; give at least one concept")
        if self.dimensions < 1:
            raise BadInput(f"a hypervector has at least one dimension, not {self.dimensions}")
        if len(self._index) < len(self.concepts):
            twice = next(name for name in self.concepts if self.concepts.count(name) > 1)
            raise BadInput(f"the concept {twice!r} is in the codebook twice")

    def __len__(self) -> int:
        return len(self.concepts)

    def __contains__(self, concept: object) -> bool:
        return concept in self._index

    def __repr__(self) -> str:
        return f"Codebook({len(self)} concepts, {self.algebra.name}, {self.dimensions} dimensions, seed {self.seed})"

    @cached_property
    def vectors(self) -> Tensor:
        """`[concept dimensions]`."""
        return self.algebra.random(len(self), self.dimensions, self.seed)

    @classmethod
    def of(cls, structures: Iterable[Structure], algebra: Algebra, dimensions: int, seed: int = 0) -> Codebook:
        """All concepts of the structures, in alphabetical order."""
        return cls(tuple(sorted({name for each in structures for name in each.concepts})), algebra, dimensions, seed)

    def index(self, concept: str) -> int:
        """The row of a concept. Raises BadInput where it has none."""
        if concept not in self._index:
            known = choose(concept, self.concepts) if len(self) <= SHOWN else self._near(concept)
            raise BadInput(f"the concept {concept!r} is not in the codebook; {known}")
        return self._index[concept]

    def __getitem__(self, concept: str) -> Tensor:
        return self.vectors[self.index(concept)]

    def encode(self, structure: Structure) -> Tensor:
        """The bundle of a structure's bound pairs and single concepts, `[dimensions]`. Raises BadInput.

        Of an analogy A : B = C : D this is bind(A, B) + bind(C, D); of roles and fillers the sum of bind(role, filler).
        """
        parts = [self.algebra.bind(self[left], self[right]) for left, right in structure.bindings]
        return self.algebra.bundle(torch.stack([*parts, *(self[name] for name in structure.members)]))

    def cleanup(self, vectors: Tensor) -> Tensor:
        """Cosine of each vector `[example dimensions]` with every concept, `[example concept]`. Raises BadInput."""
        return self.algebra.similarity(vectors, self.vectors)

    def nearest(self, vectors: Tensor, accepted: float = ACCEPTED) -> list[str | None]:
        """The most similar concept of each vector; None where even that is below the threshold."""
        best, at = self.cleanup(vectors).max(-1)
        return [self.concepts[i] if cosine >= accepted else None for cosine, i in zip(best, at.tolist(), strict=True)]

    def random(self, seed: int) -> Codebook:
        """The same concepts with other hypervectors: what is found with it is chance."""
        return Codebook(self.concepts, self.algebra, self.dimensions, self.seed + 1 + seed)

    def plot(self, concepts: Sequence[str] = ()) -> go.Figure:
        """Cosines between concepts, all of them by default. Raises BadInput for one that is not there."""
        from interp.plots.vsa import similarity_map

        names = tuple(concepts) or self.concepts
        own = self.vectors[[self.index(name) for name in names]]
        return similarity_map(self.algebra.similarity(own, own).numpy(), names)

    @cached_property
    def _index(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.concepts)}

    def _near(self, concept: str) -> str:
        hint = choose(concept, self.concepts).partition("valid:")[0]
        return f"{hint}it has {len(self)}, such as {', '.join(self.concepts[:SHOWN])}"


def chance_cosine(codebook: Codebook, vectors: Tensor, draws: int = 20, quantile: float = 0.99) -> float:
    """The cosine that the best hit in a random codebook of the same size stays below in `quantile` of the cases.

    `vectors` `[example dimensions]` are cleaned up with `draws` random codebooks; a hit below is no evidence.
    """
    best = [codebook.random(seed).cleanup(vectors).max(-1).values for seed in range(draws)]
    return float(torch.quantile(torch.cat(best).flatten(), quantile))


def ranks(cosines: Tensor, targets: Sequence[int] | Tensor) -> Tensor:
    """The place of each target among the concepts, 0 the best, `[example]`; ties count against it, -inf is last."""
    at = torch.as_tensor(targets)[:, None]
    own = cosines.gather(-1, at)
    return torch.where(own[:, 0] > -torch.inf, (cosines >= own).sum(-1) - 1, cosines.shape[-1])
