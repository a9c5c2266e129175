"""Re-ranking agrees with tables filled in by hand."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd
import pytest

from interp.errors import BadInput
from probes.centroids import Centroids
from probes.clue import Scored
from probes.reranking import ANY_ORDER, Ranking, majority, pass_at, picks, rank, vote

# Two questions of six samples, best first by distance: answers, and whether they are right.
ANSWERS = (["7", "7", "3", "3", "3", None], ["5", "2", "2", "5", "9", "5"])
RIGHT = ("7", "2")


def table(
    answers: tuple[list[str | None], ...] = ANSWERS, right: tuple[str, ...] = RIGHT, known: bool = True
) -> Scored:
    rows = [
        {
            "question": f"q{q}",
            "answer": answer,
            "correct": (answer == right[q]) if known else None,
            "tokens": 10.0 + place,
            "log_probability": float(place),
            "self_certainty": np.nan,
            "to_success": float(place),
            "to_failure": 3.0,
        }
        for q, column in enumerate(answers)
        for place, answer in enumerate(column)
    ]
    frame = pd.DataFrame(rows).astype({"correct": "boolean"})
    distances = frame[["to_success", "to_failure"]].to_numpy()
    centre = np.zeros((1, 2))
    about = {"tokens": (10.0, 12.0), "log_probability": (0.0, 0.0), "self_certainty": (0.0, 0.0)}
    centroids = Centroids(
        centre, centre + 1, np.ones((2, 1)), (1, 1), about, frozenset(), None, "refuse", {"name": "hand"}
    )
    return Scored(frame, distances[:, :1], distances[:, 1:], np.zeros((len(frame), 2)), centroids, {})


def accuracy(ranking: Ranking, pick: str, score: str = "all", k: int | None = None) -> float:
    frame = ranking.frame
    same_k = frame.k.isna() if k is None else frame.k.eq(k).fillna(False)
    (value,) = frame[(frame["pick"] == pick) & (frame.score == score) & same_k].accuracy
    return float(value)


def test_every_pick_is_that_of_the_table() -> None:
    found = rank(table(), (1, 2, 3, 4, 5, 6))
    assert accuracy(found, "mean") == pytest.approx((2 / 6 + 2 / 6) / 2)
    assert accuracy(found, "majority") == 0  # 3 over 7, and 5 over 2
    assert accuracy(found, "pass") == 1
    # By distance: q0 7 | 7 7 | 7 7 3 | 7 7 3 3 (tie) | 3 | 3 and q1 5 | 5 2 (tie) | 2 | tie of 2 and 5 | tie | 5.
    expected = {1: (1, 0), 2: (1, 0.5), 3: (1, 1), 4: (0.5, 0.5), 5: (0, 0.5), 6: (0, 0)}
    for k, values in expected.items():
        assert accuracy(found, "top-maj", "clue", k) == pytest.approx(np.mean(values)), k
        assert accuracy(found, "top-maj", "clue margin", k) == pytest.approx(np.mean(values)), k
        assert accuracy(found, "top-maj", "length", k) == pytest.approx(np.mean(values)), k
    # By log-probability the order is the reverse: q0 None | 3 | 3 3 | … and q1 5 | 5 9 | 5 5 9 | …
    assert accuracy(found, "top-maj", "log-probability", 1) == 0
    assert accuracy(found, "top-maj", "log-probability", 4) == 0


def test_the_majority_of_all_is_the_same_in_every_order_and_gains_are_beside_it() -> None:
    found = rank(table(), (1, 6))
    whole = found.frame[(found.frame["pick"] == "top-maj") & found.frame.k.eq(6).fillna(False)]
    assert (whole.accuracy == accuracy(found, "majority")).all()
    assert (whole.gain == 0).all()
    assert ANY_ORDER in set(whole.score)
    best = found.frame[(found.frame["pick"] == "top-maj") & (found.frame.score == "clue")].iloc[0]
    assert (best.accuracy, best.gain, best.questions) == (0.5, 0.5, 2)
    assert best.gain_low <= best.gain <= best.gain_high


def test_random_order_is_near_the_expected_majority() -> None:
    found = rank(table(), (1, 2))
    by_hand = []
    for k in (1, 2):
        values = []
        for q, column in enumerate(ANSWERS):
            correct = np.array([answer == RIGHT[q] for answer in column])
            drawn = [list(each) for each in combinations(range(6), k)]
            values.append(np.mean([vote([column[i] for i in rows], correct[rows]) for rows in drawn]))
        by_hand.append(np.mean(values))
    assert accuracy(found, "top-maj", ANY_ORDER, 1) == pytest.approx(by_hand[0], abs=0.2)
    assert accuracy(found, "top-maj", ANY_ORDER, 2) == pytest.approx(by_hand[1], abs=0.2)


@pytest.mark.parametrize(("n", "right"), [(6, 0), (6, 2), (6, 5), (6, 6)])
def test_pass_at_k_is_the_share_of_draws_with_a_right_sample(n: int, right: int) -> None:
    for k in range(1, n + 1):
        draws = list(combinations(range(n), k))
        assert pass_at(k, n, right) == pytest.approx(sum(min(draw) < right for draw in draws) / len(draws))


def test_votes() -> None:
    def right(*values: int) -> np.ndarray:
        return np.array(values, dtype=bool)

    assert vote(["a", "b", "b"], right(1, 0, 0)) == 0
    assert vote(["a", "b", "b", "a"], right(1, 0, 0, 1)) == 0.5
    assert vote([None, None, "a"], right(0, 0, 1)) == 1
    assert vote([None, None], right(0, 0)) == 0
    assert majority(["a", "b", "b", None, None, None]) == "b"
    assert majority(["b", "a"]) == "b"
    assert majority([None]) is None


def test_picks_need_no_labels_and_ranks_do() -> None:
    found = picks(table(known=False), (1, 3))
    assert found.to_dict("records") == [
        {"question": "q0", "samples": 6, "majority": "3", "top-maj@1": "7", "top-maj@3": "7"},
        {"question": "q1", "samples": 6, "majority": "5", "top-maj@1": "5", "top-maj@3": "2"},
    ]
    with pytest.raises(BadInput, match="12 of 12 traces are not known"):
        rank(table(known=False), (1,))


@pytest.mark.parametrize("ks", [(), (0,), (7,)])
def test_a_k_without_samples_is_refused(ks: tuple[int, ...]) -> None:
    with pytest.raises(BadInput, match="from 1 to 6"):
        rank(table(), ks)
