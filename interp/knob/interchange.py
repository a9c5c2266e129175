"""Interchange at the last token: the part of a prompt's residual stream in a subspace becomes that of its twin."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from interp.errors import BadInput
from interp.knob.pairs import Pairs

Report = Callable[[int, int], None] | None
EVALUATED_ROWS = 256
"""Rows of all subspaces together in one pass when nothing is fitted."""


class Interchange(NamedTuple):
    """What interchange in a subspace does to every row, `[row]`: whether the twin's answer is now predicted, whether
    its own still is, and the cross-entropy of the twin's answer in nats."""

    source: np.ndarray
    target: np.ndarray
    loss: np.ndarray


def interchange_logits(pairs: Pairs, layers: Sequence[int], bases: Sequence[Tensor], rows: Tensor) -> list[Tensor]:
    """Logits `[row vocab]` for each subspace, an orthonormal `[rank width]` after its layer, of the same rows.

    A row's twin is its neighbour, the same item with the other intent. Differentiable in the bases.
    """
    rows = rows.to(pairs.base.resid.device)
    hidden = []
    for layer, basis in zip(layers, bases, strict=True):
        resid = pairs.base.resid[layer]
        target = resid[rows]
        new = interchanged(target, resid[rows ^ 1], basis.to(target.device))
        hidden.append(new)
    return pairs.base.logits_from(layers, hidden, [rows] * len(hidden))


def interchanged(target: Tensor, source: Tensor, basis: Tensor) -> Tensor:
    """`target` `[row width]` with its component in the span of `basis` `[rank width]` from `source`."""
    exact = torch.promote_types(target.dtype, torch.float32)
    difference = source.to(exact) - target.to(exact)
    basis = basis.to(exact)
    along = torch.einsum("r d, k d, k e -> r e", difference, basis, basis)
    return (target.to(exact) + along).to(target.dtype)


@torch.no_grad()
def measure_interchange(
    pairs: Pairs, layers: Sequence[int], bases: Sequence[Tensor], indices: np.ndarray, progress: Report = None
) -> list[Interchange]:
    """Interchange in every subspace, on all rows of some pairs."""
    if len(indices) == 0:
        raise BadInput("there are no pairs to measure interchange on")
    rows = pairs.rows(indices)
    parts: list[list[Interchange]] = [[] for _ in layers]
    size = max(1, EVALUATED_ROWS // len(layers))
    for done, some in enumerate(rows.split(size)):
        here = some.to(pairs.answers.device)
        for found, logits in zip(parts, interchange_logits(pairs, layers, bases, some), strict=True):
            predicted, wanted = logits.argmax(-1), pairs.others[here]
            loss = cross_entropy(logits.float(), wanted, reduction="none")
            columns = (predicted == wanted, predicted == pairs.answers[here], loss)
            found.append(Interchange(*(column.double().cpu().numpy() for column in columns)))
        if progress:
            progress(min((done + 1) * size, len(rows)), len(rows))
    return [Interchange(*(np.concatenate(column) for column in zip(*found, strict=True))) for found in parts]
