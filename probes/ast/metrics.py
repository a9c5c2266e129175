"""How much of a tree was recovered: precision, recall and F1 of its constituents."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pandas as pd

from probes.ast.tree import Constituent


@dataclass(frozen=True)
class Score:
    """Shares of what was predicted that is true, and of what is true that was predicted; their harmonic mean."""

    precision: float
    recall: float

    @property
    def f1(self) -> float:
        both = self.precision + self.recall
        return 2 * self.precision * self.recall / both if both else 0.0


def membership(predicted: Sequence[Constituent], true: Sequence[Constituent]) -> Score:
    """The rule of the published code: each is looked for among the others, so a repeated one counts every time."""
    said, are = set(predicted), set(true)
    return Score(_share(sum(p in are for p in predicted), predicted), _share(sum(t in said for t in true), true))


def multiset(predicted: Sequence[Constituent], true: Sequence[Constituent]) -> Score:
    """Each counts as often as it occurs on both sides."""
    hits = sum((Counter(predicted) & Counter(true)).values())
    return Score(_share(hits, predicted), _share(hits, true))


def unlabelled(predicted: Sequence[Constituent], true: Sequence[Constituent]) -> Score:
    """Spans of two leaves and more, whatever their labels: the shape of the tree alone."""
    said, are = ({(first, last) for _, first, last in side if last > first} for side in (predicted, true))
    return Score(_share(len(said & are), said), _share(len(said & are), are))


METRICS = {"f1": membership, "multiset f1": multiset, "unlabelled f1": unlabelled}


def by_type(pairs: Iterable[tuple[Sequence[Constituent], Sequence[Constituent]]]) -> pd.DataFrame:
    """Precision, recall, F1 and number of the true constituents of each label, over all (predicted, true) trees."""
    hits, said, are = Counter[str](), Counter[str](), Counter[str]()
    for predicted, true in pairs:
        hits.update(_labels((Counter(predicted) & Counter(true)).elements()))
        said.update(_labels(predicted))
        are.update(_labels(true))
    rows = []
    for label in sorted(said | are, key=lambda label: (-are[label], label)):
        score = Score(hits[label] / max(said[label], 1), hits[label] / max(are[label], 1))
        numbers = {"precision": score.precision, "recall": score.recall, "f1": score.f1}
        rows.append({"label": label, **numbers, "true": are[label], "predicted": said[label]})
    return pd.DataFrame(rows, columns=["label", "precision", "recall", "f1", "true", "predicted"])


def _labels(of: Iterable[Constituent]) -> Iterable[str]:
    return (label for label, _, _ in of)


def _share(hits: int, of: Sequence[Constituent] | set[tuple[int, int]]) -> float:
    return hits / len(of) if of else 0.0
