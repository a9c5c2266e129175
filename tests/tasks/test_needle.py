"""Needle prompts: the grid in tokens, the place of the needle, the shared prefix, and what is refused."""

from __future__ import annotations

import json
from itertools import takewhile
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from interp.errors import BadInput, PromptTooLong, UnreadableFile
from interp.tasks.bundled import Needle, bundled_needles, filler_text
from interp.tasks.haystack import FEWEST_FILLER_TOKENS, Haystack
from interp.tasks.needle import needle_prompts, read_needles_jsonl
from interp.tasks.prompts import PromptSet

LENGTHS = [150, 400]
DEPTHS = [0, 33, 50, 100]
LONGEST_FILLER_SENTENCE = 40  # tokens, of any tokenizer here


@pytest.fixture(scope="module")
def grid(tokenizer: PreTrainedTokenizerBase) -> PromptSet:
    return needle_prompts(tokenizer, LENGTHS, DEPTHS, n_needles=2)


def common(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    """How many tokens two prompts begin with together."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


def words(tokenizer: PreTrainedTokenizerBase, prompts: PromptSet, i: int, role: str) -> str:
    start, end = prompts.spans[role][i]
    return tokenizer.decode(prompts.tokens[i][start:end])


def test_every_needle_length_and_depth_is_there_in_this_order(grid: PromptSet) -> None:
    cells = [(about["needle"], about["length"], about["depth"]) for about in grid.metadata]
    assert cells == [(needle, length, depth) for needle in (0, 1) for length in LENGTHS for depth in DEPTHS]


def test_no_prompt_is_longer_than_asked_and_none_is_a_sentence_shorter(grid: PromptSet) -> None:
    for tokens, about in zip(grid.tokens, grid.metadata, strict=True):
        assert 0 <= about["length"] - len(tokens) < LONGEST_FILLER_SENTENCE


def test_the_tokens_are_those_of_the_text(tokenizer: PreTrainedTokenizerBase, grid: PromptSet) -> None:
    for text, tokens in zip(grid.texts, grid.tokens, strict=True):
        assert [i for i in tokenizer(text)["input_ids"] if i != tokenizer.eos_token_id] == list(tokens)


def test_spans_hold_the_needle_its_value_and_the_question(tokenizer: PreTrainedTokenizerBase, grid: PromptSet) -> None:
    needles = bundled_needles(0, 2)
    for i, about in enumerate(grid.metadata):
        needle = needles[about["needle"]]
        # Tokens may straddle a border: the span holds the text and at most the rest of its outermost tokens.
        assert words(tokenizer, grid, i, "needle").strip().startswith(needle.needle)
        assert words(tokenizer, grid, i, "value").strip().startswith(needle.value)
        assert needle.question.strip() in words(tokenizer, grid, i, "question")
        start, end = grid.spans["needle"][i]
        inner = grid.spans["value"][i]
        assert start < inner[0] < inner[1] <= end
        assert grid.spans["answer_query"][i] == (len(grid.tokens[i]) - 1, len(grid.tokens[i]))
        assert (about["key"], about["value"]) == (needle.key, needle.value)


def test_the_answer_tokens_are_the_values_tokens(tokenizer: PreTrainedTokenizerBase, grid: PromptSet) -> None:
    for i, answer in enumerate(grid.answer_tokens):
        start, _ = grid.spans["value"][i]
        assert grid.tokens[i][start : start + len(answer)] == answer


def test_the_needle_stands_between_sentences_at_or_before_its_depth(
    tokenizer: PreTrainedTokenizerBase, grid: PromptSet
) -> None:
    for text, about in zip(grid.texts, grid.metadata, strict=True):
        needle = bundled_needles(0, 2)[about["needle"]]
        before, after = text.split(needle.needle)
        haystack = before + after[: after.index(needle.question.rstrip())]
        filler = filler_text(0, 200)
        assert " ".join(haystack.split()) == filler[: len(" ".join(haystack.split()))]
        assert before == "" or before.endswith(". ")
        assert after[0] in " \n"
        place = len(tokenizer(before, add_special_tokens=False)["input_ids"])
        whole = len(tokenizer(haystack, add_special_tokens=False)["input_ids"])
        target = whole * about["depth"] / 100
        assert target - LONGEST_FILLER_SENTENCE < place <= target + 2  # a space and the end of text tokenise apart


def test_depth_0_begins_with_the_needle_and_depth_100_ends_with_it(grid: PromptSet) -> None:
    for text, about in zip(grid.texts, grid.metadata, strict=True):
        needle = bundled_needles(0, 2)[about["needle"]]
        if about["depth"] == 0:
            assert text.startswith(needle.needle)
        if about["depth"] == 100:
            assert f" {needle.needle}{needle.question.rstrip()}" in text


@pytest.mark.parametrize("distractors", [0, 3])
def test_two_depths_share_their_tokens_up_to_the_shallower_needle(
    tokenizer: PreTrainedTokenizerBase, distractors: int
) -> None:
    prompts = needle_prompts(tokenizer, [400], range(0, 101, 10), n_needles=1, distractors=distractors)
    needle_starts = [start for start, _ in prompts.spans["needle"]]
    assert needle_starts == sorted(needle_starts)
    assert needle_starts[-1] > 250
    for shallow in range(len(prompts)):
        for deep in range(shallow + 1, len(prompts)):
            shared = common(prompts.tokens[shallow], prompts.tokens[deep])
            assert shared >= needle_starts[shallow] - 2


def test_lengths_share_the_haystack_too(tokenizer: PreTrainedTokenizerBase) -> None:
    short, long = needle_prompts(tokenizer, [200, 400], [100], n_needles=1).tokens
    assert common(short, long) > 80


def test_distractors_are_other_needles_of_the_same_form_at_other_places(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    prompts = needle_prompts(tokenizer, [400], [0, 50], n_needles=2, distractors=3)
    for i, (text, about) in enumerate(zip(prompts.texts, prompts.metadata, strict=True)):
        keys, values = {about["key"]}, {about["value"]}
        for role in ("distractor_1", "distractor_2", "distractor_3"):
            sentence = words(tokenizer, prompts, i, role).strip()
            key, value = sentence.removeprefix(f"The {about['attribute']} of ").split(" is ")
            keys.add(key)
            values.add(value[:5])
            start, end = prompts.spans[role][i]
            assert not set(range(start + 1, end - 1)) & set(range(*prompts.spans["needle"][i]))
        assert len(keys) == len(values) == 4
        assert text.count(f"The {about['attribute']} of ") == 5  # four needles and the question's own
        assert prompts.distractors[i].strip() in values - {about["value"]}
        assert prompts.distractor_tokens[i] != prompts.answer_tokens[i]


def test_depths_differ_only_in_where_the_needle_stands(tokenizer: PreTrainedTokenizerBase) -> None:
    prompts = needle_prompts(tokenizer, [400], [0, 30, 60, 100], n_needles=1, distractors=3)
    (needle,) = bundled_needles(0, 1)
    without = {" ".join(text.replace(needle.needle, "").split()) for text in prompts.texts}
    assert len(without) == 1
    assert len(set(prompts.texts)) == 4


def test_bundled_needles_suit_the_bundled_model(pocket: PreTrainedTokenizerBase) -> None:
    prompts = needle_prompts(pocket, [256, 512, 1024], [0, 50, 100], n_needles=10, distractors=2, context=2048)
    for i, (text, answer, about) in enumerate(zip(prompts.texts, prompts.answers, prompts.metadata, strict=True)):
        assert text.endswith(" is ")
        assert answer == about["value"]
        assert len(prompts.answer_tokens[i]) == len(set(prompts.answer_tokens[i])) == 5
        start, end = prompts.spans["value"][i]
        assert prompts.tokens[i][start:end] == prompts.answer_tokens[i]
        assert prompts.tokens[i][0] == pocket.bos_token_id
        assert words(pocket, prompts, i, "needle").strip() == "The {attribute} of {key} is {value}.".format(**about)


def test_the_same_seed_gives_the_same_prompts_and_another_seed_others(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    one, again, other = (
        needle_prompts(tokenizer, [300], [50], distractors=2, seed=seed, n_needles=2) for seed in (1, 1, 2)
    )
    assert one == again
    assert one.hash == again.hash
    assert one.texts != other.texts


def test_a_grid_may_come_from_numpy(byte_level: PreTrainedTokenizerBase) -> None:
    grid = np.linspace(100, 300, 3).round(), np.linspace(0, 100, 3, dtype=int)
    assert needle_prompts(byte_level, *grid) == needle_prompts(byte_level, [100, 200, 300], [0, 50, 100])
    assert needle_prompts(byte_level, *grid).hash


def test_filler_sentences_are_long_enough_for_the_number_that_is_made() -> None:
    assert min(len(sentence.split()) for sentence in filler_text(0, 3000).split(". ")) >= FEWEST_FILLER_TOKENS


NEEDLE = Needle(
    "The best thing to do in Ulm is to climb the minster.",
    "\nWhat is the best thing to do in Ulm?",
    " climb the minster",
    "Ulm",
    "climb the minster",
    "",
)


def test_ones_own_haystack_may_lack_spaces_and_punctuation(tokenizer: PreTrainedTokenizerBase) -> None:
    lines = [f"line {i} of a list without full stops" for i in range(60)]
    prompts = needle_prompts(tokenizer, [300], [50], [NEEDLE], "\n\n".join(lines))
    before, after = prompts.texts[0].split(f" {NEEDLE.needle}\n\n")
    assert before.split("\n\n") == lines[: before.count("\n\n") + 1]
    assert after.startswith("line ")


@pytest.mark.parametrize(
    ("text", "ends"),
    [
        ('He said "no." Then he left.', ['He said "no."', 'He said "no." Then he left.']),
        (
            "It cost 3.50 (all!) Why? So",
            ["It cost 3.50 (all!)", "It cost 3.50 (all!) Why?", "It cost 3.50 (all!) Why? So"],
        ),
        ("天很蓝。他走了！", ["天很蓝。", "天很蓝。他走了！"]),
    ],
)
def test_sentences_end_where_a_reader_ends_them(
    byte_level: PreTrainedTokenizerBase, text: str, ends: list[str]
) -> None:
    length = len(byte_level(NEEDLE.needle + NEEDLE.question + text)["input_ids"]) + 12
    prompts = needle_prompts(byte_level, [length], range(101), [NEEDLE], text + "\nend." * length)
    before = {prompt.split(NEEDLE.needle)[0].rstrip() for prompt in prompts.texts}
    assert {start.split("\n")[0] for start in before} == {"", *ends}


def test_a_needle_that_parts_tokens_does_not_make_the_prompt_too_long() -> None:
    sentence = "The bird sang.\n"
    merging = Tokenizer(models.BPE())  # without white space to stop it, whole sentences become tokens
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=[chr(i) for i in range(128)], show_progress=False)
    merging.train_from_iterator([sentence * 50], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=merging)
    shifted = sentence[4:] + sentence * 60
    assert len(tokenizer(sentence * 60)["input_ids"]) < 60
    for length in range(120, 140):
        prompts = needle_prompts(tokenizer, [length], [0, 30, 60], [NEEDLE], shifted * 20)
        assert max(map(len, prompts.tokens)) <= length


def test_depth_100_is_the_end_even_inside_a_token() -> None:
    text = "One. Two.\nThree."
    stack = Haystack(text, (4, len("One. Two.\nTh"), len(text)))
    end = len("One. Two.")
    assert [stack.place(end, depth) for depth in (0, 99, 100)] == [0, 0, end]
    assert [stack.sentence_end(tokens) for tokens in range(4)] == [0, 4, end, len(text)]


def test_a_folder_of_texts_is_read_in_order_of_name(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("Second text. " * 80, encoding="utf-8")
    (tmp_path / "a.txt").write_text("First text. " * 20, encoding="utf-8")
    (tmp_path / "c.md").write_text("Not a text.")
    (prompt,) = needle_prompts(tokenizer, [300], [0], [NEEDLE], tmp_path).texts
    assert prompt.startswith(f"{NEEDLE.needle} First text.")
    assert "First text.\nSecond text." in prompt
    assert "Not a text." not in prompt
    assert needle_prompts(tokenizer, [100], [0], [NEEDLE], tmp_path / "b.txt").texts[0].count("Second") > 3


AUTHORS_RECORDS = [
    {"needle": "The best thing is to walk.", "question": "What is the best thing ?", "real_needle": "to walk."},
    {"question": "Why is he late ?", "needle": "He is late because he slept.", "real_needle": "Because he slept."},
]


@pytest.fixture
def authors_file(tmp_path: Path) -> Path:
    path = tmp_path / "needles.jsonl"
    path.write_text("\n".join(map(json.dumps, AUTHORS_RECORDS)) + "\n")
    return path


def test_the_authors_needles_are_asked_as_they_ask(tokenizer: PreTrainedTokenizerBase, authors_file: Path) -> None:
    prompts = needle_prompts(tokenizer, [200], [100], read_needles_jsonl(authors_file))
    for text, record in zip(prompts.texts, AUTHORS_RECORDS, strict=True):
        end = f"{record['needle']}Based on the content of the book, Question: {record['question']}\nAnswer:"
        assert text.endswith(end)
    assert prompts.answers == (" to walk.", " because he slept.")
    for i, value in enumerate(("to walk.", "because he slept.")):
        assert value in words(tokenizer, prompts, i, "value")


def test_a_chat_template_frames_the_prompt_as_the_authors_do(
    bracketing: PreTrainedTokenizerBase, authors_file: Path
) -> None:
    needles = read_needles_jsonl(authors_file)
    chatty = bracketing.__class__(tokenizer_object=bracketing.backend_tokenizer, bos_token="<s>", eos_token="</s>")
    chatty.chat_template = "<s>[INST] {{ messages[0]['content'] }} [/INST]"
    prompts = needle_prompts(chatty, [200], [0, 100], needles, chat=True)
    asked = "</book>\nBased on the content of the book, Question: What is the best thing ?\nAnswer: [/INST]"
    assert prompts.texts[0].startswith("<s>[INST] <book>The best thing is to walk. ")
    assert prompts.texts[1].endswith(f"The best thing is to walk.{asked}")
    assert prompts.answers[0] == "to walk."
    bos = chatty.bos_token_id
    assert [row.count(bos) for row in prompts.tokens] == [1, 1, 1, 1]
    assert words(chatty, prompts, 1, "question").strip().startswith("Based on")
    chatty.chat_template = "{{ messages[0]['content'] | upper }}"
    with pytest.raises(BadInput, match="does not keep"):
        needle_prompts(chatty, [200], [0], needles, chat=True)
    with pytest.raises(BadInput, match="no chat template"):
        needle_prompts(bracketing, [200], [0], needles, chat=True)


def test_the_space_before_an_answer_goes_where_the_tokenizer_keeps_it(
    gpt2: PreTrainedTokenizerBase, stories: PreTrainedTokenizerBase
) -> None:
    (with_space,) = needle_prompts(gpt2, [300], [50], n_needles=1).answers
    (without,) = needle_prompts(stories, [300], [50], n_needles=1).answers
    assert with_space == f" {without}"


@pytest.mark.parametrize("depth", [-1, 100.5, float("nan")])
def test_a_depth_outside_0_to_100_is_refused(byte_level: PreTrainedTokenizerBase, depth: float) -> None:
    with pytest.raises(BadInput, match=f"Depth {depth} .* from 0 to 100"):
        needle_prompts(byte_level, [100], [50, depth])


def test_an_empty_haystack_is_refused(byte_level: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="The haystack is empty"):
        needle_prompts(byte_level, [100], [50], [NEEDLE], " \n ")
    (tmp_path / "a.txt").write_text("\n")
    with pytest.raises(BadInput, match="The haystack is empty"):
        needle_prompts(byte_level, [100], [50], [NEEDLE], tmp_path)


def test_a_folder_without_texts_is_refused(byte_level: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"holds no \.txt file"):
        needle_prompts(byte_level, [100], [50], [NEEDLE], tmp_path)


def test_an_unreadable_text_is_refused(byte_level: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    with pytest.raises(UnreadableFile, match="absent"):
        needle_prompts(byte_level, [100], [50], [NEEDLE], tmp_path / "absent.txt")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9. " * 400)
    with pytest.raises(UnreadableFile, match="cannot be read"):
        needle_prompts(byte_level, [100], [50], [NEEDLE], tmp_path)


def test_a_haystack_that_is_too_short_is_refused_with_the_numbers(byte_level: PreTrainedTokenizerBase) -> None:
    text = "A short text. " * 5
    has = len(byte_level(text)["input_ids"])
    with pytest.raises(BadInput, match=rf"'A short text.*has {has} tokens; a prompt of 400 needs 3\d\d besides"):
        needle_prompts(byte_level, [400], [50], [NEEDLE], text)


def test_a_haystack_without_sentences_is_refused(byte_level: PreTrainedTokenizerBase) -> None:
    with pytest.raises(BadInput, match=r"No sentence .* ends within the \d+ tokens"):
        needle_prompts(byte_level, [100], [50], [NEEDLE], "word " * 400)


def test_a_needle_longer_than_the_length_is_refused(byte_level: PreTrainedTokenizerBase) -> None:
    with pytest.raises(PromptTooLong, match=r"take \d\d tokens, .* in a prompt of 30"):
        needle_prompts(byte_level, [200, 30], [50], [NEEDLE])


def test_a_prompt_and_answer_longer_than_the_context_are_refused(byte_level: PreTrainedTokenizerBase) -> None:
    answer = len(byte_level(NEEDLE.answer)["input_ids"])
    with pytest.raises(PromptTooLong, match=f"the longest prompt that fits has {256 - answer}"):
        needle_prompts(byte_level, [100, 256], [50], [NEEDLE], context=256)
    assert needle_prompts(byte_level, [256 - answer], [50], [NEEDLE], context=256)


def test_a_value_outside_its_needle_is_refused(byte_level: PreTrainedTokenizerBase) -> None:
    wrong = Needle("The code is 12.", "\nThe code is", " 13", "", "13", "")
    with pytest.raises(BadInput, match=r"answer '13' is not in its needle 'The code is 12\.'"):
        needle_prompts(byte_level, [100], [50], [wrong])


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"lengths": []}, "at least one length"),
        ({"depths": []}, "one depth"),
        ({"lengths": [0]}, "0 tokens cannot be made"),
        ({"lengths": [99.5]}, "99.5 tokens cannot be made"),
        ({"n_needles": 0}, "0 needles were asked for"),
        ({"n_needles": 2, "needles": [NEEDLE]}, "2 needles were asked for; there are 1"),
        ({"n_needles": 10**6}, "1000000 needles were asked for"),
        ({"distractors": 1, "needles": [NEEDLE]}, "1 distractors .* need 2 needles of 1"),
        ({"distractors": -1}, "-1 distractors"),
    ],
)
def test_an_impossible_grid_is_refused(
    byte_level: PreTrainedTokenizerBase, arguments: dict[str, object], complaint: str
) -> None:
    with pytest.raises(BadInput, match=complaint):
        needle_prompts(byte_level, **{"lengths": [100], "depths": [50], **arguments})


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "holds no needles"),
        ('{"needle": "a"', "Line 1 of .*needles.jsonl is not an object"),
        ('{"needle": "A.", "question": "?"}', "Line 1 .*real_needle"),
        ('{"needle": 3, "question": "?", "real_needle": "a"}', "Line 1 .* is not an object of texts"),
        ("[]", "is not an object"),
        ('{"needle": "A b.", "question": "?", "real_needle": "c"}', "'c' is not in the needle 'A b.'"),
        ('{"needle": "A b.", "question": "?", "real_needle": " "}', "' ' is not in the needle"),
    ],
)
def test_a_damaged_needle_file_is_refused_with_the_place(tmp_path: Path, content: str, complaint: str) -> None:
    path = tmp_path / "needles.jsonl"
    path.write_text(content)
    with pytest.raises(UnreadableFile, match=complaint):
        read_needles_jsonl(path)
    with pytest.raises(UnreadableFile, match="absent"):
        read_needles_jsonl(tmp_path / "absent.jsonl")
