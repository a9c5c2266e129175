"""Which of many samples to trust: the best by a score, and the majority among the best, beside mean, majority and pass.

Every number is one of a question, averaged over questions with bootstrap intervals over them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from interp.errors import BadInput, choose
from interp.runs import Run, load_run, save_run
from interp.stats import Interval, bootstrap_means
from interp.tables import in_notebook
from probes.clue import Scored
from probes.traces import Experience
from probes.verification import compared, scores

KIND = "clue-ranking"
ANY_ORDER = "any order"
"""The control: samples in random order, averaged over several."""
ORDERS = 20
"""Random orders that are averaged: of all samples for the control, of equally good ones for a score."""
PICKS_FILE = "picks.jsonl"
SHARE = {"mean": "share of right samples", "majority": "majority right", "greedy": "greedy right"}
"""Columns of `Ranking.questions` by way of picking."""


@dataclass(frozen=True, eq=False, repr=False)
class Ranking:
    """What is picked from the samples of each question, and how often it is right.

    `frame`: one row a way of picking and number of samples `k`, with `gain` over the majority of all samples and
    intervals over questions (the gain's is paired); `k` is absent where all samples count, or none. It has no rows
    where nobody checked the traces. `by_question` `[row of frame, question]`; `picks`: one row a question.
    """

    frame: pd.DataFrame
    by_question: np.ndarray
    picks: pd.DataFrame
    scored: Scored
    parameters: Mapping[str, Any]

    @property
    def model(self) -> Mapping[str, Any]:
        return self.scored.centroids.model

    @property
    def checked(self) -> bool:
        """Whether the traces are known to be right or wrong, so that the picks can be judged."""
        return len(self.frame) > 0

    @property
    def questions(self) -> pd.DataFrame:
        """The picks of every question and, where the traces were checked, how right they are (a tied vote in part)."""
        found = self.picks.copy()
        for number, row in enumerate(self.frame.itertuples()):
            if row.pick in ("mean", "majority", "greedy"):
                found[SHARE[row.pick]] = self.by_question[number]
            elif row.pick == "top-maj" and row.score == "clue":
                found[f"top-maj@{row.k} right"] = self.by_question[number]
        return found

    def against(self, k: int) -> pd.DataFrame:
        """CLUE's top-maj@k less every other way of picking, paired over questions.

        One row a way: `difference`, `low`, `high`, `questions`. Raises BadInput where k was not ranked.
        """
        own = self._row(k)
        frame = self.frame
        others = {str(row.score): i for i, row in enumerate(frame.itertuples()) if row.pick == "top-maj" and row.k == k}
        del others["clue"]
        others |= {str(row.pick): i for i, row in enumerate(frame.itertuples()) if row.pick in ("majority", "greedy")}
        differences = self.by_question[own] - self.by_question[list(others.values())]
        low, high = bootstrap_means(differences.T, self.parameters["level"], self.parameters["resamples"], self.seed)
        return pd.DataFrame(
            {
                "pick": list(others),
                "difference": differences.mean(1),
                "low": low,
                "high": high,
                "questions": differences.shape[1],
            }
        )

    @property
    def seed(self) -> int:
        return int(self.parameters["seed"])

    def verdict(self, k: int) -> str:
        """One sentence: which ways of picking CLUE's top-maj@k is better than, and which not."""
        rows = self.against(k)
        own = self.frame.iloc[self._row(k)]
        accuracy = Interval(own.accuracy, own.low, own.high, own.questions)
        differences = {
            row.pick: Interval(row.difference, row.low, row.high, row.questions) for row in rows.itertuples()
        }
        return f"CLUE's top-maj@{k} answers {accuracy} of the questions right. {compared(differences)}"

    def _row(self, k: int) -> int:
        """The row of CLUE's top-maj@k."""
        rows = [(row.score, row.k) if row.pick == "top-maj" else None for row in self.frame.itertuples()]
        if ("clue", k) not in rows:
            ks = [int(each[1]) for each in rows if each is not None and each[0] == "clue"]
            raise BadInput(f"nothing was ranked and judged at k={k}; k is one of {ks}")
        return rows.index(("clue", k))

    plots = ("over k", "picks")
    """What `plot` can draw."""

    def plot(self, what: str = "over k", k: int | None = None) -> Any:
        """Accuracy of the majority among the best k, over k; or `"picks"`, every way of picking at one k.

        Raises BadInput where nobody checked the traces, and for a k that was not ranked.
        """
        from interp.plots.clue import picks, reranking

        if what not in self.plots:
            raise BadInput(f"there is nothing to plot as {what!r}; {choose(what, self.plots)}")
        return reranking(self) if what == "over k" else picks(self, self.parameters["k"][-1] if k is None else k)

    def save(self, path: str | Path, started: datetime | None = None) -> Run:
        """Write a run folder; the picks also as JSON lines. Raises UnwritableOutput."""
        return save_run(
            path,
            kind=KIND,
            parameters=self.parameters,
            model=self.model,
            seed=self.seed,
            frame=self.frame,
            arrays={"by_question": self.by_question, **self.scored.arrays()},
            files={
                "picks.parquet": self.picks.to_parquet,
                PICKS_FILE: lambda file: self.picks.to_json(file, orient="records", lines=True),
                **self.scored.files(),
            },
            started=started,
        )

    @classmethod
    def load(cls, path: str | Path) -> Ranking:
        """Read what `save` wrote. Raises UnreadableFile, BadInput for a run of another kind."""
        run = load_run(path, KIND)
        picked = run.table("picks")
        by_question = run.array("by_question", len(run.frame), len(picked))
        return cls(run.frame, by_question, picked, Scored.of_run(run), run.record.parameters)

    def __repr__(self) -> str:
        return f"Ranking({len(self.picks)} questions of {self.model['name']}, {len(self.scored)} traces)"

    def _repr_html_(self) -> str:
        return in_notebook(self, self.frame if self.checked else self.picks)


def rank(
    scored: Scored,
    ks: Sequence[int] = (1, 4, 8, 16),
    *,
    greedy: Mapping[str, bool] | None = None,
    resamples: int = 2_000,
    level: float = 0.95,
    seed: int = 0,
) -> Ranking:
    """Re-rank the samples of each question by every score, and judge what is picked where the traces were checked.

    top-maj@k is the majority answer of the k samples that score highest, top@1 the answer of the best one; mean@n is
    the share of right samples, majority@n the majority of all n, pass@k the chance that k of them hold a right one
    (the unbiased estimate of Chen et al. 2021), greedy the response at temperature 0, where `greedy` says by question
    whether it is right (`greedily_right`). Samples without an answer do not vote. A tied vote counts as the share of
    its answers that are right; samples of the same score come in random order, averaged over several. Raises BadInput
    where a k is below 1 or above the samples of some question.
    """
    questions = _questions(scored)
    ks = possible(ks, map(len, questions))
    parameters = {"k": ks, "resamples": resamples, "level": level, "seed": seed, "found": dict(scored.places)}
    columns = _judged(scored, questions, ks, greedy, seed) if scored.frame.correct.notna().all() else {}
    by_question = np.array(list(columns.values())).reshape(len(columns), len(questions))
    gains = by_question - by_question[1:2]
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
    return Ranking(frame, by_question, _picks(scored, questions, ks), scored, parameters)


Columns = dict[tuple[str, str, int], list[float]]
"""How right each question's pick is, by way of picking, score and k (0: all samples, or none)."""


def _judged(
    scored: Scored, questions: Sequence[np.ndarray], ks: Sequence[int], greedy: Mapping[str, bool] | None, seed: int
) -> Columns:
    answers, correct = scored.frame.answer.tolist(), scored.correct
    rng = np.random.default_rng(seed)

    def voted(rows: np.ndarray) -> float:
        return vote([answers[i] for i in rows], correct[rows])

    columns: Columns = {
        ("mean", "all", 0): [float(correct[rows].mean()) for rows in questions],
        ("majority", "all", 0): [voted(rows) for rows in questions],
    }
    if greedy is not None:
        columns["greedy", "none", 0] = [float(greedy[scored.frame.question[rows[0]]]) for rows in questions]
    for k in ks:
        columns["pass", "all", k] = [pass_at(k, len(rows), int(correct[rows].sum())) for rows in questions]
    columns["pass", "all", 0] = [float(correct[rows].any()) for rows in questions]
    every = {**scores(scored), ANY_ORDER: np.zeros(len(correct))}
    for name, values in every.items():
        orders = [_ordered(values, questions, rng) for _ in range(ORDERS if _tied(values, questions) else 1)]
        for k in ks:
            each = [[voted(rows[:k]) for rows in order] for order in orders]
            columns["top-maj", name, k] = np.mean(each, axis=0).tolist()
    return columns


def greedily_right(greedy: Experience, experience: Experience) -> dict[str, bool]:
    """Whether the greedy response to each question of `experience` is right; `greedy` has one response a question.

    Raises BadInput where one is missing, was not checked or is one of several, and for responses of another model.
    """
    if greedy.model and experience.model and greedy.model["fingerprint"] != experience.model["fingerprint"]:
        raise BadInput(f"the greedy responses are of {greedy.model['name']}, the samples of {experience.model['name']}")
    right: dict[str, bool] = {}
    for question in experience.questions:
        checked = [response.correct for response in greedy if response.question == question]
        if len(checked) != 1 or checked[0] is None:
            raise BadInput(
                f"greedy responses are one a question, known to be right or wrong; {question!r} has {len(checked)}, "
                f"of which {sum(each is not None for each in checked)} are known"
            )
        right[question] = checked[0]
    return right


def _picks(scored: Scored, questions: Sequence[np.ndarray], ks: Sequence[int]) -> pd.DataFrame:
    """The answers picked for every question: by majority, and by the majority among the k that CLUE puts first.

    No labels are needed. Of equally near samples the first sampled comes first, and of tied answers the first's wins.
    """
    answers = scored.frame.answer.tolist()
    distance = scored.frame.to_success.to_numpy(dtype=float)
    best = [rows[np.argsort(distance[rows], kind="stable")] for rows in questions]
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


def _ordered(values: np.ndarray, questions: Sequence[np.ndarray], rng: np.random.Generator) -> list[np.ndarray]:
    """The rows of each question, best first, equally good ones in random order."""
    return [rows[np.lexsort((rng.random(len(rows)), -values[rows]))] for rows in questions]


def _tied(values: np.ndarray, questions: Sequence[np.ndarray]) -> bool:
    return any(len(np.unique(values[rows])) < len(rows) for rows in questions)


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
