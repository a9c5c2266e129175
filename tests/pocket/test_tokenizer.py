"""The bundled model's tokenizer: what one token is."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from interp.pocket.skills import SKILLS
from interp.pocket.tokenizer import VOCABULARY_SIZE, build_tokenizer, load_tokenizer
from interp.shipped import data_folder
from interp.tasks.bundled import bundled_needles, filler_text
from interp.tasks.vocabulary import vocabulary


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return load_tokenizer(data_folder() / "pocket")


def ids(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False).input_ids


def test_words_that_can_be_answers_are_one_token_with_their_space(tokenizer: PreTrainedTokenizerFast) -> None:
    split = [word for word in vocabulary().single_tokens if len(ids(tokenizer, f" {word}")) != 1]
    assert split == []
    assert len(vocabulary().single_tokens) > 400


@pytest.mark.parametrize("number", ["7", "40716", "00", "1234567890"])
def test_every_digit_is_a_token_of_its_own(tokenizer: PreTrainedTokenizerFast, number: str) -> None:
    assert tokenizer.convert_ids_to_tokens(ids(tokenizer, number)) == list(number)
    assert tokenizer.convert_ids_to_tokens(ids(tokenizer, f"is {number}."))[-len(number) - 1 :] == [*number, "."]


def test_a_value_is_the_same_tokens_in_its_needle_and_after_its_question(tokenizer: PreTrainedTokenizerFast) -> None:
    haystack = filler_text(seed=3, n_sentences=4)
    for needle in bundled_needles(seed=1, n=40):
        value = ids(tokenizer, needle.answer)
        prompt = f"{haystack} {needle.needle}{needle.question}"
        whole = tokenizer(prompt + needle.answer, return_offsets_mapping=True)
        start = prompt.index(needle.answer)
        hidden = [
            i
            for i, (a, b) in zip(whole.input_ids, whole.offset_mapping, strict=True)
            if start <= a < start + 5 and a < b
        ]
        assert hidden == value
        assert whole.input_ids == tokenizer(prompt).input_ids + value


@pytest.mark.parametrize("name", SKILLS)
def test_answers_continue_prompts_and_segments_begin_at_token_boundaries(
    tokenizer: PreTrainedTokenizerFast, name: str
) -> None:
    from random import Random

    for item in SKILLS[name].items(20):
        assert ids(tokenizer, item.prompt + item.answer) == ids(tokenizer, item.prompt) + ids(tokenizer, item.answer)
    document = SKILLS[name].document(Random(5), 256)
    assert ids(tokenizer, document.text) == [i for s in document.segments for i in ids(tokenizer, s.text)]


@pytest.mark.parametrize("text", ["naïve café ☕", "tabs\tand\n\nlines ", "def f(x):\n    return x + 12\n", " 0 1", ""])
def test_any_text_survives_the_round_trip(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    assert tokenizer.decode(ids(tokenizer, text)) == text


def test_a_text_begins_with_the_begin_token_and_padding_is_another(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer("Hello").input_ids[0] == tokenizer.bos_token_id
    assert len({tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}) == 3
    assert len(tokenizer) == VOCABULARY_SIZE


def test_building_it_again_gives_the_one_that_ships() -> None:
    shipped = AutoTokenizer.from_pretrained(data_folder() / "pocket")
    assert build_tokenizer().get_vocab() == shipped.get_vocab()
