"""Prompts say what their structure says, and files of analogies and questions are read or refused by line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import interp
from interp.errors import BadInput, UnreadableFile
from interp.tasks.analogies import (
    Structure,
    analogy_prompts,
    key_value_prompts,
    read_analogies,
    structures,
    syntax_prompts,
)
from interp.tasks.prompts import PromptSet
from interp.tasks.squad import content_words, read_squad, squad_prompts
from interp.tasks.vocabulary import vocabulary
from interp.tracing.model import Model


@pytest.fixture(scope="module")
def pocket() -> Model:
    return interp.load("pocket")


def test_an_analogy_asks_for_what_its_third_word_is_bound_to(pocket: Model) -> None:
    prompts = analogy_prompts(pocket.tokenizer, 60, seed=1)
    table = {"country": dict(vocabulary().city_country)}
    table |= {name: dict(pairs) for name, pairs in vocabulary().relations.items()}
    assert len(set(prompts.texts)) == 60
    for text, answer, row, each in zip(
        prompts.texts, prompts.answers, prompts.metadata, structures(prompts), strict=True
    ):
        (a, b), (c, d) = each.bindings
        assert text == f"Analogy: {a} : {b} = {c} :"
        assert (answer, each.key, each.target) == (f" {d}", c, d)
        assert table[row["relation"]][c] == d != b == table[row["relation"]][a]
        assert each.by_roles.bindings == (("role:a", a), ("role:b", b), ("role:c", c), ("role:d", d))
        assert each.by_roles.key == "role:d"
    assert prompts.texts == analogy_prompts(pocket.tokenizer, 60, seed=1).texts
    assert prompts.texts != analogy_prompts(pocket.tokenizer, 60, seed=2).texts


def test_a_key_is_asked_again_for_its_value(pocket: Model) -> None:
    prompts = key_value_prompts(pocket.tokenizer, 40, pairs=4)
    for text, each in zip(prompts.texts, structures(prompts), strict=True):
        stated, asked = text.split("\nRecall: ")
        between = asked.removeprefix(f"{each.key} ")
        assert len(each.bindings) == 4
        assert all(f"{name} {between} {value}." in stated for name, value in each.bindings)
        assert dict(each.bindings)[each.key] == each.target
        assert each.by_roles.bindings == (("role:key", each.key), ("role:value", each.target))


def test_roles_of_a_sentence(pocket: Model) -> None:
    prompts = syntax_prompts(pocket.tokenizer, 20)
    for text, each in zip(prompts.texts, structures(prompts), strict=True):
        roles = dict(each.roles)
        assert text.count(roles["role:giver"]) == 2
        assert all(text.count(roles[f"role:{name}"]) == 1 for name in ("recipient", "place", "object"))
        assert each.target == roles["role:recipient"]
        assert each.by_roles.key == "role:recipient"


def test_a_structure_travels_through_a_prompt_file(pocket: Model, tmp_path: Path) -> None:
    prompts = analogy_prompts(pocket.tokenizer, 5)
    prompts.to_jsonl(tmp_path / "prompts.jsonl")
    assert structures(PromptSet.from_jsonl(tmp_path / "prompts.jsonl")) == structures(prompts)


def test_analogy_files_are_read_as_pairs_of_relations(pocket: Model, tmp_path: Path) -> None:
    file = tmp_path / "analogies.txt"
    file.write_text(": capitals\nParis France Rome Italy\nRome Italy Madrid Spain\n\n: opposites\nhot cold big small\n")
    found = read_analogies(file)
    assert found == {
        "capitals": (("Paris", "France"), ("Rome", "Italy"), ("Madrid", "Spain")),
        "opposites": (("hot", "cold"), ("big", "small")),
    }
    prompts = analogy_prompts(pocket.tokenizer, 8, relations=found, template="{a} : {b} = {c} :")
    assert "hot : cold = big :" in prompts.texts
    with pytest.raises(BadInput, match="about 8 different analogies, not 9"):
        analogy_prompts(pocket.tokenizer, 9, relations=found)


def test_the_published_analogies_are_read(shared: Path) -> None:
    found = read_analogies(shared / "data" / "analogies" / "questions-words.txt")
    assert len(found) == 14
    assert ("Athens", "Greece") in found["capital-common-countries"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Paris France Rome Italy\n", "line 1 .* begins with `: NAME`"),
        (": capitals\nParis France Rome\n", "line 2 .* four words"),
        (": capitals\n", "holds no analogies"),
    ],
)
def test_a_file_that_holds_no_analogies_is_refused_by_line(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "bad.txt").write_text(text)
    with pytest.raises(UnreadableFile, match=said):
        read_analogies(tmp_path / "bad.txt")


@pytest.fixture
def squad(tmp_path: Path) -> Path:
    def asked(question: str, *answers: str, impossible: bool = False) -> dict[str, object]:
        return {"question": question, "is_impossible": impossible, "answers": [{"text": text} for text in answers]}

    context = "Anna keeps a red boat in the harbour of the old town."
    questions = [
        asked("What colour is the boat of Anna?", "red", "a red"),
        asked("Where is the boat?", "in the harbour of the old town"),
        asked("Who keeps a horse?", impossible=True),
    ]
    file = tmp_path / "squad.json"
    file.write_text(json.dumps({"data": [{"paragraphs": [{"context": context, "qas": questions}]}]}))
    return file


def test_questions_become_prompts_with_their_content_words(pocket: Model, squad: Path) -> None:
    assert [each.answer for each in read_squad(squad)] == ["red", "in the harbour of the old town"]
    (structure,) = structures(squad_prompts(pocket.tokenizer, squad, 1))
    assert structure == Structure((), "red", members=("red", "colour", "boat", "anna"))
    with pytest.raises(BadInput, match="1 questions of answers up to 3 words that fit; 2 were asked"):
        squad_prompts(pocket.tokenizer, squad, 2)
    with pytest.raises(BadInput, match="0 questions"):
        squad_prompts(pocket.tokenizer, squad, 1, context=3)
    assert content_words("The boat, the BOAT's sail") == ("boat", "boat's", "sail")


def test_a_file_without_questions_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "squad.json"
    for text in ("", "[]", '{"data": [{}]}', '{"data": []}'):
        file.write_text(text)
        with pytest.raises(UnreadableFile, match="questions"):
            read_squad(file)


def test_prompts_that_cannot_be_are_refused(pocket: Model) -> None:
    with pytest.raises(BadInput, match="at least 1"):
        analogy_prompts(pocket.tokenizer, 0)
    with pytest.raises(BadInput, match="lacks {c}"):
        analogy_prompts(pocket.tokenizer, 2, template="{a} : {b}")
    with pytest.raises(BadInput, match="no relation has two pairs"):
        analogy_prompts(pocket.tokenizer, 2, relations={"one": (("a", "b"), ("c", "b"))})
    with pytest.raises(BadInput, match="1 to 14 pairs"):
        key_value_prompts(pocket.tokenizer, 2, pairs=15)
    plain = PromptSet.build(pocket.tokenizer, ["a text"])
    with pytest.raises(BadInput, match="say nothing of their structure"):
        structures(plain)
    with pytest.raises(BadInput, match="a structure is metadata with bindings"):
        Structure.of({"bindings": [["a"]], "target": "a"})
