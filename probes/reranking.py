"""Which of many samples to trust: the best by a score, and the majority among the best, beside mean, majority and pass.

Every number is one of a question, averaged over questions with bootstrap intervals over them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import comb
from typing import Any

import numpy as np
import pandas as pd

from interp.errors import BadInput
from interp.stats import bootstrap_means
from probes.clue import Scored
from probes.verification import scores

ANY_ORDER = "any order"
"""The control: samples in random order, averaged over several."""
ORDERS = 20


@dataclass(frozen=True, eq=False, repr=False)
class Ranking:
    """How often the answer picked from the samples of a question is right.

    `frame`: one row a way of picking and number of samples `k`, with `gain` over the majority of all samples and
    intervals over questions (the gain's is paired); `k` is absent where all samples count. `by_question` `[row of
    frame, question]`.
    """

    frame: pd.DataFrame
    by_question: np.ndarray
    parameters: Mapping[str, Any]
    model: Mapping[str, Any]

    def plot(self) -> Any:
        """Accuracy of the majority among the best k, over k."""
        from interp.plots.clue import reranking

        return reranking(self)

    def _repr_html_(self) -> str:
        return self.frame.to_html(index=False)


def rank(
    scored: Scored, ks: Sequence[int] = (1, 4, 8, 16), resamples: int = 2_000, level: float = 0.95, seed: int = 0
) -> Ranking:
    """Re-rank the samples of each question by every score.

    top-maj@k is the majority answer of the k samples that score highest, top@1 the answer of the best one; mean@n is
    the share of right samples, majority@n the majority of all n, pass@k the chance that k of them hold a right one
    (the unbiased estimate of Chen et al. 2021). Samples without an answer do not vote. A tied vote counts as the share
    of its answers that are right; tied scores keep the order of sampling. Raises BadInput where a k is below 1 or above
    the samples of some question, and for traces nobody checked.
    """
    questions = _questions(scored)
    ks = possible(ks, map(len, questions))
    answers, correct = scored.frame.answer.tolist(), scored.correct
    rng = np.random.default_rng(seed)
    orders: dict[str, list[list[np.ndarray]]] = {
        name: [_ordered(values, questions)] for name, values in scores(scored).items()
    }
    orders[ANY_ORDER] = [[rng.permutation(rows) for rows in questions] for _ in range(ORDERS)]

    def voted(rows: np.ndarray) -> float:
        return vote([answers[i] for i in rows], correct[rows])

    columns: dict[tuple[str, str, int], list[float]] = {
        ("mean", "all", 0): [float(correct[rows].mean()) for rows in questions],
        ("majority", "all", 0): [voted(rows) for rows in questions],
    }
    for k in ks:
        columns["pass", "all", k] = [pass_at(k, len(rows), int(correct[rows].sum())) for rows in questions]
    columns["pass", "all", 0] = [float(correct[rows].any()) for rows in questions]
    for name, tries in orders.items():
        for k in ks:
            each = [[voted(rows[:k]) for rows in tried] for tried in tries]
            columns["top-maj", name, k] = np.mean(each, axis=0).tolist()
    by_question = np.array(list(columns.values()))
    gains = by_question - by_question[1]
    bounds = [bootstrap_means(part.T, level, resamples, seed) for part in (by_question, gains)]
    frame = pd.DataFrame(
        {
            "pick": [pick for pick, _, _ in columns],
            "score": [score for _, score, _ in columns],
            "k": pd.array([k or None for _, _, k in columns], dtype="Int64"),
            "accuracy": by_question.mean(1),
            "low": bounds[0][0],
            "high": bounds[0][1],
            "gain": gains.mean(1),
            "gain_low": bounds[1][0],
            "gain_high": bounds[1][1],
            "questions": len(questions),
        }
    )
    parameters = {"k": ks, "resamples": resamples, "level": level, "seed": seed, "found": dict(scored.places)}
    return Ranking(frame, by_question, parameters, scored.centroids.model)


def picks(scored: Scored, ks: Sequence[int] = (1, 4, 8, 16)) -> pd.DataFrame:
    """The answers picked for every question: by majority, and by the majority among the k that CLUE puts first.

    No labels are needed. Raises BadInput as `rank`.
    """
    questions, answers = _questions(scored), scored.frame.answer.tolist()
    ks = possible(ks, map(len, questions))
    best = _ordered(scores(scored)["clue"], questions)
    return pd.DataFrame(
        {
            "question": [scored.frame.question[rows[0]] for rows in questions],
            "samples": [len(rows) for rows in questions],
            "majority": [majority([answers[i] for i in rows]) for rows in questions],
            **{f"top-maj@{k}": [majority([answers[i] for i in rows[:k]]) for rows in best] for k in ks},
        }
    )


def vote(answers: Sequence[str | None], correct: np.ndarray) -> float:
    """Whether the most frequent answer is right; of tied ones, the share that is. None does not vote.

    An answer is right when a sample that gives it is.
    """
    winners = _winners(answers)
    right = {answer for answer, ok in zip(answers, correct, strict=True) if ok}
    return float(np.mean([answer in right for answer in winners])) if winners else 0.0


def majority(answers: Sequence[str | None]) -> str | None:
    """The most frequent answer, of tied ones the first; None where there is none."""
    winners = _winners(answers)
    return winners[0] if winners else None


def pass_at(k: int, n: int, right: int) -> float:
    """The chance that k of n samples, drawn without replacement, hold one of the right ones (Chen et al. 2021)."""
    return 1 - comb(n - right, k) / comb(n, k)


def _questions(scored: Scored) -> list[np.ndarray]:
    """The rows of each question's samples, in the order of sampling."""
    return [np.flatnonzero(scored.groups == question) for question in range(scored.frame.question.nunique())]


def _ordered(values: np.ndarray, questions: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The rows of each question, best first."""
    return [rows[np.argsort(-values[rows], kind="stable")] for rows in questions]


def possible(ks: Sequence[int], samples: Iterable[int]) -> list[int]:
    """The ks in order, once each; raises BadInput where some question has fewer samples, or a k is below 1."""
    fewest = min(samples)
    if not ks or min(ks) < 1 or max(ks) > fewest:
        raise BadInput(f"k of {list(ks)}: each must be from 1 to {fewest}, the fewest samples of a question")
    return sorted(set(ks))


def _winners(answers: Sequence[str | None]) -> list[str]:
    counts: dict[str, int] = {}
    for answer in answers:
        if answer is not None:
            counts[answer] = counts.get(answer, 0) + 1
    return [answer for answer, count in counts.items() if count == max(counts.values())]
