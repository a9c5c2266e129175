"""Directions of hidden states: principal components, a difference of means, random ones, and those that runs found."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from interp.errors import BadInput
from interp.runs import Run, load_run

KINDS = ("knob", "linear-probes", "projection")
"""Of runs that hold directions."""


class Direction(NamedTuple):
    """A vector `[width]` of hidden states at a site, of the model with this fingerprint."""

    vector: np.ndarray
    site: str
    fingerprint: str


def principal_components(states: np.ndarray, count: int) -> np.ndarray:
    """The first principal components `[count width]` of `states` `[text width]`, turned so that their largest entry in
    absolute value is positive. Raises BadInput for more than there are."""
    possible = min(len(states) - 1, states.shape[1])
    if not 0 <= count <= possible:
        raise BadInput(f"{count} components were asked for; {len(states)} texts have 0 to {possible}")
    found = np.linalg.svd(states - states.mean(0), full_matrices=False)[2][:count]
    largest = found[np.arange(count), np.abs(found).argmax(1)]
    turned: np.ndarray = found * np.sign(largest)[:, None]
    return turned


def mean_difference_of(states: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Mean of the second of two labels, in alphabetical order, less that of the first, `[width]`."""
    first, second = np.unique(labels)
    difference: np.ndarray = states[labels == second].mean(0) - states[labels == first].mean(0)
    return difference


def random_directions(width: int, count: int, seed: int) -> np.ndarray:
    """Orthonormal random directions `[count width]`."""
    drawn = np.random.default_rng(seed).normal(size=(width, count))
    found: np.ndarray = np.linalg.qr(drawn)[0].T
    return found


def share_of_variance(states: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Share of the variance of `states` `[text width]` along unit `vectors` `[axis width]`."""
    centred = states - states.mean(0)
    total = float((centred**2).sum())
    along: np.ndarray = ((centred @ vectors.T) ** 2).sum(0)
    return along / total if total else np.zeros(len(vectors))


def halves(labels: np.ndarray, groups: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices to fit on and to show, whole groups in each. Raises BadInput where a label is missing from one."""
    kinds = np.random.default_rng(seed).permutation(np.unique(groups))
    fitting = np.isin(groups, kinds[: len(kinds) // 2])
    fitted, shown = np.flatnonzero(fitting), np.flatnonzero(~fitting)
    for half in (fitted, shown):
        if len(set(labels[half])) < 2 or len(half) < 3:
            raise BadInput(f"{len(labels)} texts in {len(kinds)} groups leave a half without both labels; give more")
    return fitted, shown


def directions_of(path: str | Path) -> dict[str, Direction]:
    """The directions that a run found, by name: of a knob after every layer, of linear probes, of a projection's axes.

    Raises UnreadableFile, and BadInput for a run of another kind.
    """
    run = load_run(path)
    if run.record.kind not in KINDS:
        raise BadInput(f"{path} holds a run of kind {run.record.kind!r}; directions are in {', '.join(KINDS)}")
    if run.record.kind == "knob":
        return dict(_of_knob(run))
    if run.record.kind == "linear-probes":
        return dict(_of_probes(run))
    from interp.projection import RANDOM, Projection

    found = Projection.load(path)
    return {f"{run.path.name}: {axis}": found.direction(axis) for axis in found.axes if axis != RANDOM}


def _of_knob(run: Run) -> Iterator[tuple[str, Direction]]:
    """Of a knob of a higher rank every vector of its basis; the best layer first."""
    from interp.knob import KnobResult

    found = KnobResult.load(run.path)
    best = found.knob.basis.numpy()
    others = [(layer, basis) for layer, basis in zip(found.layers, found.bases, strict=True) if layer != found.layer]
    for layer, basis in ((found.layer, best), *others):
        for number, vector in enumerate(basis):
            name = f"knob after layer {layer}" + (f", {number + 1}" if len(basis) > 1 else "")
            yield name, Direction(vector, f"resid_post.{layer}", str(run.record.model["fingerprint"]))


def _of_probes(run: Run) -> Iterator[tuple[str, Direction]]:
    """Of two classes towards the second; of more, one vector a class."""
    classes = [str(each) for each in run.record.parameters.get("classes", ())]
    for site in (name.removeprefix("weight.") for name in run.arrays if name.startswith("weight.")):
        weight = run.array(f"weight.{site}", 1 if len(classes) == 2 else len(classes), None)
        for label, vector in zip(classes[1:] if len(classes) == 2 else classes, weight, strict=True):
            yield f"probe for {label} at {site}", Direction(vector, site, str(run.record.model["fingerprint"]))
