"""Sums to be written down step by step: the bundled model's own prompts, with answers that are checked."""

from __future__ import annotations

import pytest

from interp.errors import BadInput
from interp.pocket.documents import is_held_out
from interp.pocket.skills.arithmetic import addition
from interp.tasks.addition import addition_problems


def test_the_prompts_are_those_the_model_learned_and_its_written_answers_are_right() -> None:
    task = addition_problems(40, seed=3)
    for number, question in enumerate(task.questions):
        a, b = map(int, question.split(" + "))
        item = addition(a, b, with_steps=True)
        assert task.prompts[number] == item.prompt
        assert task.is_right(number, task.answer(item.answer))
        assert not task.is_right(number, task.answer(item.answer + "0"))
        assert task.delimiters is not None
        assert task.delimiters[0] in item.prompt
        assert item.answer.count(task.delimiters[1]) == 1


def test_a_seed_gives_its_sums_and_only_those_that_are_to_be_kept() -> None:
    task = addition_problems(30, 1, (2, 3), is_held_out)
    pairs = [tuple(map(int, question.split(" + "))) for question in task.questions]
    assert all(is_held_out(*pair) for pair in pairs)
    assert {len(str(n)) for pair in pairs for n in pair} == {2, 3}
    assert all(len(str(a)) == len(str(b)) for a, b in pairs)
    assert task.questions == addition_problems(30, 1, (2, 3), is_held_out).questions
    assert task.questions != addition_problems(30, 2, (2, 3), is_held_out).questions


def test_sums_that_cannot_be_had_are_refused() -> None:
    with pytest.raises(BadInput, match="only 81 of 90"):
        addition_problems(90, digits=(1, 1))
    with pytest.raises(BadInput, match="2 to 1 digits"):
        addition_problems(5, digits=(2, 1))
