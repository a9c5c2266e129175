"""A circuit: heads with the roles they play, and heads drawn at random to compare it with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from interp.errors import BadInput
from interp.heads.ablation import Head, check_heads
from interp.tracing.model import Model

TRIES = 20
"""Draws for every random set that is asked for, until it differs from the others."""


@dataclass(frozen=True)
class Circuit:
    """Heads as (layer, head); `roles` says what some of them do."""

    heads: tuple[Head, ...]
    roles: Mapping[Head, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.heads:
            raise BadInput("a circuit needs at least one head")
        if strangers := [head for head in self.roles if head not in self.heads]:
            raise BadInput(f"the head {strangers[0]} has a role and is not in the circuit {list(self.heads)}")

    @property
    def classes(self) -> dict[str, tuple[Head, ...]]:
        """The heads of every role, in the order of the circuit."""
        names = dict.fromkeys(self.roles[head] for head in self.heads if head in self.roles)
        return {name: tuple(head for head in self.heads if self.roles.get(head) == name) for name in names}

    def __str__(self) -> str:
        return " ".join(f"{layer}.{head}" for layer, head in self.heads)


def all_heads(model: Model) -> tuple[Head, ...]:
    """Every head of the model, in layer order."""
    return tuple((layer, head) for layer in range(model.spec.layers) for head in range(model.spec.heads))


def random_like(model: Model, heads: Sequence[Head], seed: int) -> tuple[Head, ...]:
    """As many heads of each layer, others than `heads` as far as the layer has any, the rest drawn from `heads`.

    Raises BadInput for heads that the model does not have, and for whole layers, which are like no others.
    """
    heads = check_heads(model, heads)
    rng = np.random.default_rng(seed)
    drawn: list[Head] = []
    for layer in sorted({layer for layer, _ in heads}):
        own = [head for at, head in heads if at == layer]
        others = [head for head in range(model.spec.heads) if head not in own]
        chosen = [*rng.permutation(others), *rng.permutation(own)][: len(own)]
        drawn += [(layer, int(head)) for head in sorted(chosen)]
    if set(drawn) == set(heads):
        raise BadInput(f"the heads {' '.join(f'{a}.{b}' for a, b in heads)} are whole layers: no others are like them")
    return tuple(drawn)


def random_sets(model: Model, heads: Sequence[Head], n: int, seed: int) -> tuple[tuple[Head, ...], ...]:
    """`n` different draws of `random_like`, or fewer where few heads leave no more. Raises BadInput as it does."""
    drawn: dict[tuple[Head, ...], None] = {}
    for i in range(n * TRIES):
        if len(drawn) == n:
            break
        drawn[random_like(model, heads, seed * 10_007 + i)] = None
    return tuple(drawn)


def without(heads: Iterable[Head], removed: Iterable[Head]) -> frozenset[Head]:
    """The heads that are left."""
    return frozenset(heads) - frozenset(removed)
