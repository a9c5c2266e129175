"""Where reasoning begins and ends is found in the tokens themselves; no question leaks; the rest is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

import interp
from interp.errors import BadInput, UnreadableFile
from probes.reasoning import found, locate
from probes.traces import Experience, Response
from tests import families

DELIMITERS = ("<t>", "</t>")


@pytest.fixture(scope="module")
def pocket_tokenizer() -> Any:
    return interp.load("pocket").tokenizer


@pytest.fixture(scope="module")
def words() -> PreTrainedTokenizerFast:
    """w3 w4 … are words; `w10` opens the reasoning and `w20` closes it."""
    return families.word_tokenizer()


def response(tokens: list[int], prompt: tuple[int, ...] = (5, 6), question: str = "q", **more: Any) -> Response:
    return Response(question, prompt, tuple(tokens), **more)


def test_reasoning_runs_from_the_final_token_of_one_delimiter_to_that_of_the_next(
    words: PreTrainedTokenizerFast,
) -> None:
    trace = response([10, 30, 20, 31, 20, 10])
    place = locate(trace, ("w10", "w20"), words)
    assert (place.start, place.end) == (2, 4)
    assert place.start_found
    assert place.end_found
    closing_first = locate(response([20, 10, 30, 20]), ("w10", "w20"), words)
    assert (closing_first.start, closing_first.end) == (3, 5)


def test_a_delimiter_of_several_tokens_is_found_however_it_is_tokenised(pocket_tokenizer: Any) -> None:
    def ids(text: str) -> list[int]:
        return pocket_tokenizer(text, add_special_tokens=False)["input_ids"]

    prompt = pocket_tokenizer("Add 12 and 34.\nSteps:")["input_ids"]
    whole = ids(" 2 + 4 + 0 = 6.\nAnswer: 46")
    spelled = ids(" 2 + 4 + 0 = 6.\n") + [t for letter in "Answer:" for t in ids(letter)] + ids(" 46")
    assert len(spelled) > len(whole)
    for tokens in (whole, spelled):
        place = locate(response(tokens, tuple(prompt)), ("Steps:", "Answer:"), pocket_tokenizer)
        trace = [*prompt, *tokens]
        assert place.start == len(prompt) - 1
        assert pocket_tokenizer.decode(trace[: place.end + 1]).endswith("Answer:")
        assert not pocket_tokenizer.decode(trace[: place.end]).endswith("Answer:")


def test_worked_examples_and_made_up_questions_are_not_the_reasoning(words: PreTrainedTokenizerFast) -> None:
    """The delimiter that the prompt ends with, else the response's first, else the prompt's last."""
    example = (5, 10, 30, 20, 6)
    for prompt, tokens, expected in (
        ((*example, 10), [31, 20, 5, 10, 32, 20], (5, 7)),  # opened by the prompt; the response goes on to another
        (example, [10, 31, 20], (5, 7)),  # opened by the response
        (example, [31, 20], (1, 6)),  # opened long before
    ):
        place = locate(response(tokens, prompt), ("w10", "w20"), words)
        assert (place.start, place.end) == expected
        assert place.start_found
        assert place.end_found


def test_without_delimiters_reasoning_is_the_response(words: PreTrainedTokenizerFast) -> None:
    place = locate(response([7, 8, 9]), None, words)
    assert (place.start, place.end, place.start_found, place.end_found) == (1, 4, False, False)


def test_what_becomes_of_missing_delimiters_is_asked_for_and_recorded(words: PreTrainedTokenizerFast) -> None:
    experience = Experience((response([10, 30, 20, 31]), response([10, 30, 31]), response([30, 20])), ("w10", "w20"))
    with pytest.raises(BadInput, match=r"2 of 3 traces, the first of them number 1, lack one of the delimiters"):
        experience.reasoning(words)
    dropped = experience.reasoning(words, "drop")
    assert dropped[1:] == [None, None]
    assert found(dropped) == {"both": 1, "start only": 0, "end only": 0, "none": 0, "dropped": 2}
    ends = experience.reasoning(words, "ends")
    assert [(p.start, p.end) for p in ends if p] == [(2, 4), (2, 4), (1, 3)]
    assert found(ends) == {"both": 1, "start only": 1, "end only": 1, "none": 0, "dropped": 0}
    with pytest.raises(BadInput, match="valid: refuse, drop, ends"):
        experience.reasoning(words, "guess")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="needs a tokenizer"):
        experience.reasoning(None)
    with pytest.raises(BadInput, match="none of 1 traces has both delimiters"):
        Experience((response([30]),), ("w10", "w20")).reasoning(words, "drop")


def test_a_trace_shorter_than_its_delimiters_is_refused(words: PreTrainedTokenizerFast) -> None:
    cut = Experience((response([30, 10]),), ("w10", "w20"))
    with pytest.raises(BadInput, match=r"trace 0 \(question 'q'\) is shorter than its delimiters"):
        cut.reasoning(words, "ends")
    with pytest.raises(BadInput, match="shorter than its delimiters"):
        Experience((response([7], prompt=()),)).reasoning(words)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("test", [0.1, 0.5, 0.8])
def test_a_split_never_shares_a_question(seed: int, test: float) -> None:
    traces = [response([7 + s], (3 + q,), f"q{q}") for s in range(4) for q in range(20)]
    learned, held_out = Experience(tuple(traces)).split(test, seed)
    assert not set(learned.questions) & set(held_out.questions)
    assert not {r.prompt for r in learned} & {r.prompt for r in held_out}
    assert sorted((*learned, *held_out), key=repr) == sorted(traces, key=repr)
    assert len(held_out.questions) == round(20 * test)
    again = Experience(tuple(reversed(traces))).split(test, seed)[1]
    assert set(again.questions) == set(held_out.questions)
    assert set(Experience(tuple(traces)).split(test, seed + 100)[1].questions) != set(held_out.questions)


def test_the_same_prompt_under_two_questions_would_leak_and_is_refused() -> None:
    with pytest.raises(BadInput, match="'a' and 'b' are the same prompt"):
        Experience((response([7], question="a"), response([8], question="b")))


def test_what_is_no_experience_is_refused() -> None:
    right = response([7], correct=True)
    with pytest.raises(BadInput, match="there are none"):
        Experience(())
    with pytest.raises(BadInput, match="trace 1 .* no response"):
        Experience((right, response([])))
    with pytest.raises(BadInput, match="two texts that are not empty"):
        Experience((right,), ("<t>", ""))
    with pytest.raises(BadInput, match="all 2 traces are right"):
        Experience((right, right)).labels()
    with pytest.raises(BadInput, match="1 of 2 traces are not known"):
        Experience((right, response([7]))).labels()
    with pytest.raises(BadInput, match="leaves one side of the split empty"):
        Experience((right,)).split()
    with pytest.raises(BadInput, match="there are 1 correct for 2 responses"):
        Experience.build(None, ["a", "b"], [[1], [2]], [True])
    with pytest.raises(BadInput, match="text needs a tokenizer"):
        Experience.build(None, ["a"], ["text"], [True])


def test_traces_come_back_from_disk_as_they_were(tmp_path: Path) -> None:
    traces = (
        response([7, 8], answer="1", correct=True, log_probability=-0.5),
        response([9], answer=None, correct=False),
        response([9, 9], answer="1"),
    )
    experience = Experience(traces, DELIMITERS, {"name": "m", "fingerprint": "f"}, {"temperature": 1.5}, seed=4)
    experience.save(tmp_path / "run")
    again = Experience.load(tmp_path / "run")
    assert again[0] == traces[0]
    assert [(r.tokens, r.answer, r.correct) for r in again] == [(r.tokens, r.answer, r.correct) for r in traces]
    assert (again.delimiters, again.seed, again.parameters, again.model) == (
        DELIMITERS,
        4,
        *[experience.parameters, experience.model],
    )
    assert repr(again) == "Experience(3 traces of 1 questions, 50% right)"


def test_your_own_traces_are_read_from_texts_or_token_ids(tmp_path: Path, words: PreTrainedTokenizerFast) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text(
        '{"question": "a", "prompt": "w3 w4", "response": "w10 w5 w20", "correct": true, "answer": 5}\n'
        '{"question": "b", "prompt": [3, 5], "response": [10, 20], "correct": false}\n'
    )
    experience = Experience.from_jsonl(path, words, ("w10", "w20"))
    assert [r.trace for r in experience] == [(3, 4, 10, 5, 20), (3, 5, 10, 20)]
    assert [r.correct for r in experience] == [True, False]
    assert [r.answer for r in experience] == ["5", None]
    path.write_text('{"question": "a", "response": "w3", "correct": "yes"}\n')
    with pytest.raises(UnreadableFile, match="entry 1 .* neither correct nor incorrect: 'yes'"):
        Experience.from_jsonl(path, words)
    path.write_text('{"question": "a", "response": ""}\n')
    with pytest.raises(UnreadableFile, match="no response"):
        Experience.from_jsonl(path, words)
