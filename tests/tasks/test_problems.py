"""Answers are found and compared as people would, and a question that could leak is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from interp.errors import BadInput, UnreadableFile
from interp.tasks.problems import Problems


def problems(**changes: Any) -> Problems:
    fields = {"name": "p", "questions": ("a", "b"), "prompts": ("A?", "B?"), "answers": ("1000", "0.5")}
    return Problems(**{**fields, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("response", "number", "right"),
    [
        ("It is 1,000.", 0, True),
        ("First 3, then $1000.00", 0, True),
        ("1000, no, 999", 0, False),
        ("It is 1/2", 1, True),
        ("-.5", 1, False),
        ("half", 1, False),
        ("1/0", 1, False),
    ],
)
def test_the_last_number_is_the_answer_and_equal_numbers_are_equal(response: str, number: int, right: bool) -> None:
    task = problems()
    assert task.is_right(number, task.answer(response)) is right


def test_equal_answers_have_one_form_to_vote_with_and_no_answer_has_none() -> None:
    task = problems()
    assert len({task.answer(text) for text in ("is 1,000", "is 1000.0", "is 2000/2")}) == 1
    assert task.answer("no idea") is None
    named = problems(answers=("Bern", "Oslo"), compare="exact", pattern=r"City: (\w+)")
    assert named.answer("City: Rome, no, City: Bern!") == "Bern"
    assert named.is_right(0, "Bern")
    assert not named.is_right(1, "Bern")


def test_a_file_gives_prompts_by_its_template_and_ids_where_it_has_them(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text('{"question": "1+1", "answer": 2}\n{"id": "x", "question": "2+2", "answer": "4"}\n')
    task = Problems.from_jsonl(path, template="Q: {question}\nA:", delimiters=("Q:", "A:"))
    assert task.questions == ("1+1", "x")
    assert task.prompts == ("Q: 1+1\nA:", "Q: 2+2\nA:")
    assert task.is_right(1, task.answer("it is 4"))
    assert task.hash != Problems.from_jsonl(path).hash


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"questions": ()}, "holds no problems"),
        ({"answers": ("1",)}, "1 answers for 2 questions"),
        ({"questions": ("a", "a")}, "'a' 2 times"),
        ({"prompts": ("A?", "A?")}, "would leak"),
        ({"compare": "numerical"}, "did you mean 'numeric'"),
        ({"pattern": "("}, "no regular expression"),
        ({"answers": ("1", "two")}, "'two' of question 'b' is no number"),
    ],
)
def test_problems_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        problems(**changes)


def test_a_file_that_does_not_fit_is_refused_with_the_entry(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text(json.dumps({"question": "1+1"}) + "\n")
    with pytest.raises(UnreadableFile, match=r"entry 1 .* no answer"):
        Problems.from_jsonl(path)
    with pytest.raises(BadInput, match="no place for the {question}"):
        Problems.from_jsonl(path, template="Q:")
