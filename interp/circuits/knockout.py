"""Knocking heads out as Wang et al. (2022, arXiv:2211.00593) do: by their mean output over a reference distribution,
at every position, among prompts of the same template.

For IOI the reference is p_ABC: the same sentences with three unrelated names, so that what remains of a head is what
it does whoever is named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from interp.circuits.circuit import all_heads
from interp.errors import BadInput
from interp.heads.ablation import Head
from interp.metrics import Metric, logit_difference
from interp.patching.sweep import sweep
from interp.tasks.prompts import PromptSet
from interp.tracing.edits import Edit, patch
from interp.tracing.model import Model

BATCH = 64
"""Reference prompts that run together."""


@dataclass(frozen=True, eq=False)
class Knockout:
    """`means[layer]` `[prompt tokens head dim]`: what replaces every head's output in each of the prompts.

    `at` is the position, of a role or of a number, at which heads are knocked out; None: everywhere.
    """

    model: Model
    prompts: PromptSet
    means: Mapping[int, Tensor]
    reference: str
    """Hash of the reference prompts."""
    at: int | str | None = None

    def edits(self, removed: Iterable[Head]) -> tuple[Edit, ...]:
        """The edits that knock these heads out, of whole layers where all their heads go."""
        heads = sorted(set(removed))
        edits: list[Edit] = []
        for layer in sorted({layer for layer, _ in heads}):
            here = [head for at, head in heads if at == layer]
            value = self.means[layer]
            if len(here) == value.shape[2]:
                edits.append(patch(f"z.{layer}", value))
            else:
                edits += [patch(f"z.{layer}.{head}", value[:, :, head]) for head in here]
        return tuple(edits if self.at is None else (edit.at(positions=self.at) for edit in edits))

    def measure(
        self,
        removed: Sequence[Iterable[Head]],
        metric: Metric | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> np.ndarray:
        """The metric (logit difference unless told otherwise) of every prompt without each of these sets of heads,
        `[set prompt]`."""
        sets = [frozenset(heads) for heads in removed]
        distinct = list(dict.fromkeys(heads for heads in sets if heads))
        metric = metric or logit_difference()
        # A sweep takes edits; where only the whole model is asked for, any edit brings its base values along.
        groups = [self.edits(heads) for heads in distinct] or [self.edits(all_heads(self.model))]
        result = sweep(self.model, self.prompts, groups, metric, progress=progress)
        values = dict(zip(distinct, result.values[:, 0], strict=False))
        return np.stack([values[heads] if heads else result.base[0] for heads in sets])


def knockout(
    model: Model, prompts: PromptSet, reference: PromptSet, by: Sequence[str] = (), at: int | str | None = None
) -> Knockout:
    """Mean outputs of all heads over the `reference` prompts that agree with a prompt in the metadata `by`.

    `at` restricts the knockout to one position, such as "end" for what heads write where the answer is read. Prompts
    of a group have equally many tokens, so that a position means the same in all of them. Raises BadInput where they
    do not, and where a prompt has fewer than two such references.
    """
    if len(prompts) == 0 or len(reference) == 0:
        raise BadInput("a knockout needs prompts, and reference prompts to take means over")
    groups = _groups(reference, by, "reference prompt")
    wanted = [_key(prompts, i, by, "prompt") for i in range(len(prompts))]
    for i, key in enumerate(wanted):
        members = groups.get(key, [])
        if len(members) < 2:
            named = ", ".join(f"{name}={value!r}" for name, value in zip(by, key, strict=True)) or "no grouping"
            raise BadInput(f"prompt {i} ({named}) has {len(members)} reference prompts of its kind; a mean needs two")
        other = next((m for m in members if len(reference.tokens[m]) != len(prompts.tokens[i])), None)
        if other is not None:
            raise BadInput(
                f"prompt {i} has {len(prompts.tokens[i])} tokens and the reference prompt {other} of its kind "
                f"{len(reference.tokens[other])}, so their positions do not correspond: group by more of the metadata"
            )
    used = [key for key in groups if key in set(wanted)]
    tables = {key: _mean_outputs(model, reference, groups[key]) for key in used}
    longest = max(map(len, prompts.tokens))
    means = {}
    for layer in range(model.spec.layers):
        rows = [tables[key][layer] for key in wanted]
        padded = [torch.nn.functional.pad(row, (0, 0, 0, 0, 0, longest - len(row))) for row in rows]
        means[layer] = torch.stack(padded)
    return Knockout(model, prompts, means, reference.hash, at)


def _mean_outputs(model: Model, reference: PromptSet, members: Sequence[int]) -> list[Tensor]:
    """Mean z of every layer over some reference prompts of equal length, `[tokens head dim]`."""
    sums: list[Tensor] = []
    for start in range(0, len(members), BATCH):
        trace = model.run(reference.select(members[start : start + BATCH]), read="z")
        parts = [trace[f"z.{layer}"].double().sum(0) for layer in range(model.spec.layers)]
        sums = [a + b for a, b in zip(sums, parts, strict=True)] if sums else parts
    dtype = next(model.hf.parameters()).dtype
    return [(total / len(members)).to(dtype) for total in sums]


def _groups(prompts: PromptSet, by: Sequence[str], what: str) -> dict[tuple[object, ...], list[int]]:
    groups: dict[tuple[object, ...], list[int]] = {}
    for i in range(len(prompts)):
        groups.setdefault(_key(prompts, i, by, what), []).append(i)
    return groups


def _key(prompts: PromptSet, i: int, by: Sequence[str], what: str) -> tuple[object, ...]:
    about = prompts.metadata[i] if prompts.metadata else {}
    if missing := [name for name in by if name not in about]:
        known = ", ".join(about) or "none"
        raise BadInput(f"{what} {i} has no {missing[0]!r} in its metadata, by which means are taken; it has {known}")
    return tuple(about[name] for name in by)
