"""Who trains and who tests: seeded, stratified folds, and folds within the training folds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from interp.errors import BadInput


@dataclass(frozen=True, eq=False)
class Folds:
    """Training sets `train` `[set example]`: one a fold, then `inner` a fold within its training set.

    `number` `[example]` is the fold that tests an example.
    """

    number: np.ndarray
    train: np.ndarray
    inner: int

    @property
    def count(self) -> int:
        return int(self.number.max()) + 1

    def validation(self, fold: int) -> Iterator[tuple[int, np.ndarray]]:
        """The training sets within a fold's own, with the rows that validate each."""
        for i in range(self.inner):
            at = self.count + fold * self.inner + i
            yield at, np.flatnonzero(self.train[fold] & ~self.train[at])


def class_indices(name: str, labels: Sequence[Any] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels as class numbers, and the classes. Raises BadInput on one class only and on missing labels."""
    given = np.asarray(labels)
    if given.ndim != 1:
        raise BadInput(f"the label set {name!r} has shape {given.shape}; it must be one label an example")
    if (given.dtype.kind == "f" and not np.isfinite(given).all()) or any(label is None for label in given.tolist()):
        raise BadInput(f"the label set {name!r} lacks labels of some examples")
    classes, numbers = np.unique(given, return_inverse=True)
    if len(classes) < 2:
        only = f"only the class {classes[0].item()!r}" if len(classes) else "no labels"
        raise BadInput(f"the label set {name!r} holds {only}; a probe needs two or more")
    return numbers, classes


def make_folds(
    labels: Mapping[str, np.ndarray],
    folds: int,
    inner: int,
    seed: int,
    groups: Sequence[Any] | np.ndarray | None = None,
) -> Folds:
    """Folds stratified by the first label set, and `inner` ones within each training set (0: none).

    Examples of one group are never on both sides. Raises BadInput where a class (or the groups) cannot fill them, and
    where a training set would lack a class of any label set.
    """
    if folds < 2 or inner == 1 or inner < 0:
        raise BadInput(f"cross-validation needs at least 2 folds; got {folds} (and {inner} within them)")
    name, primary = next(iter(labels.items()))
    n = len(primary)
    if groups is not None and len(groups) != n:
        raise BadInput(f"there are {len(groups)} groups for {n} examples")
    own = None if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    number = np.empty(n, dtype=int)
    train = []
    for fold, test in enumerate(_splits(primary, folds, seed, own, f"{name!r}")):
        number[test] = fold
    for fold in range(folds):
        train.append(number != fold)
    for fold in range(folds if inner else 0):
        rows = np.flatnonzero(train[fold])
        within = None if own is None else own[rows]
        for test in _splits(primary[rows], inner, seed + 1 + fold, within, f"{name!r} within fold {fold}"):
            mask = train[fold].copy()
            mask[rows[test]] = False
            train.append(mask)
    for other, numbers in labels.items():
        classes = numbers.max() + 1
        if any(len(np.unique(numbers[mask])) < classes for mask in train):
            raise BadInput(
                f"a training fold lacks a class of the label set {other!r}: its rarest class has "
                f"{np.bincount(numbers).min()} of {n} examples; use fewer folds or more examples"
            )
    return Folds(number, np.stack(train), inner)


def _splits(labels: np.ndarray, folds: int, seed: int, groups: np.ndarray | None, what: str) -> Iterator[np.ndarray]:
    """The test rows of each fold."""
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    rarest = int(np.bincount(labels).min())
    if rarest < folds:
        raise BadInput(
            f"{folds} folds need {folds} examples of each class, and the rarest class of {what} has {rarest} of "
            f"{len(labels)}"
        )
    if groups is None:
        splitter: Any = StratifiedKFold(folds, shuffle=True, random_state=seed)
    elif len(np.unique(groups)) < folds:
        raise BadInput(f"{folds} folds need {folds} groups, and {what} has {len(np.unique(groups))}")
    else:
        splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    for _, test in splitter.split(np.zeros(len(labels)), labels, groups):
        yield test
