"""Re-ranking agrees with tables filled in by hand."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from interp.errors import BadInput
from probes.centroids import Centroids
from probes.clue import Scored
from probes.reranking import ANY_ORDER, Ranking, greedily_right, majority, pass_at, rank, vote
from probes.traces import Experience, Response

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
            "response": f"so it is {answer}",
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


def test_the_candidates_of_a_question_are_those_nearest_to_success_first() -> None:
    found = table().candidates("q1")
    assert found.answer.tolist() == ANSWERS[1]
    assert found.to_success.tolist() == [0, 1, 2, 3, 4, 5]
    assert found.margin.tolist() == [3, 2, 1, 0, -1, -2]
    assert found.correct.tolist() == [False, True, True, False, False, False]
    with pytest.raises(BadInput, match="no question 'q7'"):
        table().candidates("q7")


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


def test_samples_of_the_same_score_are_ordered_by_chance_and_not_as_they_came() -> None:
    """All are equally good and the right ones come first: picking one is as good as chance, 1 / 3."""
    scored = table((["7", "7", "3", "4", "5", "6"],), ("7",))
    scored.frame["tokens"] = 10.0
    found = rank(scored, (1,))
    assert accuracy(found, "top-maj", "length", 1) == pytest.approx(1 / 3, abs=0.25)
    assert 0 < accuracy(found, "top-maj", "length", 1) < 1
    assert accuracy(found, "top-maj", "clue", 1) == 1


def test_differences_are_paired_by_question_and_the_verdict_names_them() -> None:
    found = rank(table(), (1, 3), greedy={"q0": True, "q1": False})
    against = found.against(3).set_index("pick")
    assert against.difference["majority"] == 1  # 1, 1 against 0, 0
    assert against.difference["greedy"] == 0.5
    assert set(against.index) == {
        "clue margin",
        "length",
        "usual length",
        "log-probability",
        ANY_ORDER,
        "majority",
        "greedy",
    }
    assert found.verdict(3).startswith("CLUE's top-maj@3 answers 1 [1, 1] (n=2) of the questions right. Better than: ")
    assert "majority (+1.000 [+1.000, +1.000])" in found.verdict(3).partition("Worse than")[0]
    assert "length (+0.000" in found.verdict(3).partition("Not told apart from")[2]
    with pytest.raises(BadInput, match=r"k=2; k is one of \[1, 3\]"):
        found.against(2)


def test_greedy_responses_are_one_a_question_and_checked() -> None:
    def response(question: str, correct: bool | None) -> Response:
        return Response(question, (ord(question),), (1,), "1", correct)

    samples = Experience((response("a", True), response("b", False)))
    greedy = Experience((response("b", True), response("a", False), response("c", True)))
    assert greedily_right(greedy, samples) == {"a": False, "b": True}
    assert accuracy(rank(table(), (1,), greedy={"q0": True, "q1": False}), "greedy", "none") == 0.5
    for wrong in ((response("a", True),), (response("a", True), response("b", None)), (*samples, response("a", True))):
        with pytest.raises(BadInput, match="one a question"):
            greedily_right(Experience(wrong), samples)
    stranger = Experience(tuple(greedy), model={"name": "x", "fingerprint": "1"})
    with pytest.raises(BadInput, match="of x, the samples of y"):
        greedily_right(stranger, Experience(tuple(samples), model={"name": "y", "fingerprint": "2"}))


@pytest.mark.parametrize("known", [True, False])
def test_a_ranking_comes_back_from_disk(tmp_path: Path, known: bool) -> None:
    found = rank(table(known=known), (1, 3), greedy={"q0": True, "q1": False})
    run = found.save(tmp_path / "run")
    assert run.record.kind == "clue-ranking"
    again = Ranking.load(tmp_path / "run")
    pd.testing.assert_frame_equal(again.frame, found.frame, check_dtype=False)
    pd.testing.assert_frame_equal(again.picks, found.picks, check_dtype=False)
    pd.testing.assert_frame_equal(again.scored.frame, found.scored.frame, check_dtype=False)
    np.testing.assert_array_equal(again.by_question, found.by_question)
    assert again.checked == known
    if known:
        assert again.plot().to_json() == found.plot().to_json()
        assert again.verdict(3) == found.verdict(3)
    else:
        with pytest.raises(BadInput, match="not known to be right or wrong"):
            again.plot()


def test_picks_need_no_labels() -> None:
    found = rank(table(known=False), (1, 3))
    assert found.frame.empty
    assert found.picks.to_dict("records") == [
        {"question": "q0", "samples": 6, "majority": "3", "top-maj@1": "7", "top-maj@3": "7"},
        {"question": "q1", "samples": 6, "majority": "5", "top-maj@1": "5", "top-maj@3": "2"},
    ]


@pytest.mark.parametrize("ks", [(), (0,), (7,)])
def test_a_k_without_samples_is_refused(ks: tuple[int, ...]) -> None:
    with pytest.raises(BadInput, match="from 1 to 6"):
        rank(table(), ks)
