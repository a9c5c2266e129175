"""Concepts: balanced, seeded, in the bundled model's words, and no harder or easier than they say."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from interp.errors import BadInput, UnreadableFile
from interp.pocket.skills import SKILLS, facts, statements
from interp.tasks import concepts
from interp.tasks.concepts import CONCEPTS, DIFFICULTIES, LEVELS, concept, in_first_half
from interp.tasks.labelled import LabelledTexts
from interp.tasks.vocabulary import vocabulary

EVERY = [(name, difficulty) for name in CONCEPTS for difficulty in DIFFICULTIES]


@pytest.mark.parametrize(("name", "difficulty"), EVERY)
def test_texts_are_balanced_different_and_the_same_for_the_same_seed(name: str, difficulty: int) -> None:
    data = concept(name).texts(100, difficulty, seed=3)
    assert data == concept(name).texts(100, difficulty, seed=3)
    assert data.texts != concept(name).texts(100, difficulty, seed=4).texts
    assert set(Counter(data.labels).values()) == {50}
    assert len(set(data.texts)) == 100
    assert len(data.keys) == 100
    assert data.level in LEVELS


@pytest.fixture(scope="module")
def trained_on() -> set[str]:
    """Words of the bundled model's training text."""
    items = [
        item for name in ("facts", "context", "truth", "sentiment", "inference") for item in SKILLS[name].items(200)
    ]
    text = " ".join([item.prompt + item.answer for item in items])
    lists = vocabulary()
    return {*re.findall(r"\w+", text), *lists.single_tokens, *lists.reviewed, *lists.comparatives}


@pytest.mark.parametrize(("name", "difficulty"), EVERY)
def test_every_word_is_one_the_bundled_model_was_trained_on(name: str, difficulty: int, trained_on: set[str]) -> None:
    for text in concept(name).texts(100, difficulty).texts:
        assert set(re.findall(r"\w+", text)) <= trained_on


def test_the_bundled_models_own_phrases_are_used() -> None:
    assert concepts.SAID == statements.SAID
    assert concepts.ASKED.format(city="Rome") == facts.query("Rome")
    assert tuple(f"{stated} {{country}}." for stated in concepts.STATED) == facts.CONTEXTS
    assert (concepts.MEMORY, concepts.CONTEXT) == (facts.USE_MEMORY, facts.USE_CONTEXT)


def test_labels_say_what_the_texts_say() -> None:
    words = vocabulary()
    for text, label in zip(*_columns("sentiment", 2), strict=True):
        positive = any(f" {word}." in text for word in words.positive)
        assert (label == "positive") == (positive != ("not " in text))
    for text, label in zip(*_columns("comparison", 3), strict=True):
        pairs = re.findall(r"(\w+) is \w+ than (\w+)", text)
        above, (first, last) = dict(pairs[:-1]), pairs[-1]
        follows = first
        while follows in above:
            follows = above[follows]
        assert (label == "true") == (follows == last)
    for text, label in zip(*_columns("residence", 3), strict=True):
        *given, (name, said) = re.findall(r"(\w+) lives in (\w+)", text)
        assert (label == "true") == (words.country_of[dict(given)[name]] == said)
    for text, label in zip(*_columns("country", 3), strict=True):
        match = re.search(r"(\w+)\.\nInstruction: (\w+) .*\nQuery: Which country is (\w+) in", text)
        assert match is not None
        answer = match[1] if match[2] == "Only" else words.country_of[match[3]]
        assert (label == "first half") == in_first_half(answer)


def _columns(name: str, difficulty: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    data = concept(name).texts(80, difficulty)
    return data.texts, data.labels


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_words_alone_do_not_tell_what_follows(difficulty: int) -> None:
    data = concept("comparison").texts(100, difficulty)
    bags = {}
    for text, label in zip(data.texts, data.labels, strict=True):
        a, b = re.findall(r"So (\w+) is \w+ than (\w+)", text)[0]
        bags.setdefault(label, []).append(sorted(re.findall(r"\w+", text.replace(a, "A").replace(b, "B"))))
    assert {len(words) for words in bags["true"]} == {len(words) for words in bags["false"]}


def test_each_city_of_a_group_has_another_of_its_country() -> None:
    data = concept("country").texts(200)
    assert data.groups == data.keys
    assert all(count >= 2 for count in Counter(vocabulary().country_of.values()).values())


@pytest.mark.parametrize(("name", "difficulty"), EVERY)
def test_a_closed_list_of_facts_gives_as_many_texts_as_it_says(name: str, difficulty: int) -> None:
    made = concept(name)
    n = made.at_most(400, difficulty)
    assert len(made.texts(n, difficulty)) == n
    assert (n == 400) == (difficulty not in made.closed)


def test_what_is_not_there_is_refused() -> None:
    with pytest.raises(BadInput, match="did you mean 'sentiment'"):
        concept("sentimant")
    with pytest.raises(BadInput, match="1, 2, 3, not 4"):
        concept("truth").texts(10, 4)
    with pytest.raises(BadInput, match="different texts, not 5000"):
        concept("country").texts(5000)


# --- files


def test_a_file_is_read_in_either_form(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        '{"text": "x, y", "label": 1, "key": "k"}\n{"text": "z", "label": 0, "key": "l"}\n'
    )
    (tmp_path / "b.csv").write_text('text,label,group\n"x, y",1,g\nz,0,h\n')
    lines, table = (LabelledTexts.from_file(tmp_path / name) for name in ("a.jsonl", "b.csv"))
    assert lines.texts == table.texts == ("x, y", "z")
    assert (lines.labels, lines.keys, lines.groups) == ((1, 0), ("k", "l"), ())
    assert (table.labels, table.keys, table.groups) == (("1", "0"), (), ("g", "h"))


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ('{"text": "x"}\n', "entry 1 of .* has no label"),
        ("nonsense\n", "line 1 of .* is not JSON"),
        ("", "no entries"),
        ('{"text": "x", "label": 1, "key": "k"}\n{"text": "y", "label": 0}\n', "1 of 2 entries"),
    ],
)
def test_a_file_that_does_not_hold_labelled_texts_is_refused(tmp_path: Path, content: str, what: str) -> None:
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(UnreadableFile, match=what):
        LabelledTexts.from_file(tmp_path / "a.jsonl")


def test_labels_that_do_not_fit_the_texts_are_refused() -> None:
    with pytest.raises(BadInput, match="1 labels for 2 texts"):
        LabelledTexts("x", ("a", "b"), (1,))
