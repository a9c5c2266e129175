"""The text that ships for needle tests."""

from __future__ import annotations

import pytest

from interp.shipped import data_folder
from interp.tasks.bundled import bundled_needles, filler_text, needle_keys
from interp.tasks.vocabulary import vocabulary


def test_filler_has_nothing_that_a_needle_has() -> None:
    text = filler_text(seed=0, n_sentences=2000)
    words = set(text.replace(".", "").replace(",", "").split())
    assert not any(character.isdigit() for character in text)
    assert not words & set(needle_keys())
    assert not words & set(vocabulary().colors)
    assert text.count(". ") == 1999


def test_filler_is_varied_and_the_same_for_the_same_seed() -> None:
    sentences = filler_text(seed=0, n_sentences=2000).split(". ")
    assert len(set(sentences)) > 1950
    assert filler_text(7, 20) == filler_text(7, 20) != filler_text(8, 20)


def test_a_needle_says_its_value_once_and_its_question_ends_where_the_value_begins() -> None:
    needles = bundled_needles(seed=0, n=164)
    assert len({needle.key for needle in needles}) == 164
    for needle in needles:
        assert needle.needle.count(needle.answer) == 1
        assert needle.question.endswith(needle.needle.split(needle.answer)[0])
        assert len(set(needle.value)) == len(needle.value) == 5
        assert needle.key in needle.question
        assert needle.attribute in needle.question
    assert bundled_needles(0, 5) == bundled_needles(0, 5) != bundled_needles(1, 5)


@pytest.mark.parametrize("n", [-1, 165])
def test_more_needles_than_keys_are_refused_by_number(n: int) -> None:
    with pytest.raises(ValueError, match=str(n)):
        bundled_needles(0, n)


def test_the_lists_hold_what_analyses_rely_on() -> None:
    words = vocabulary()
    assert len(set(words.names)) == len(words.names) >= 100
    assert len(words.country_of) == len(words.cities) == 2 * len(words.countries)
    kinds = [words.names, words.objects, words.colors, words.places, words.cities, words.countries]
    assert len(set(sum(kinds, ()))) == sum(map(len, kinds))
    assert (data_folder() / "vocabulary.json").is_file()
