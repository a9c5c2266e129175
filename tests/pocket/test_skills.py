"""Every skill's answers, checked by other means than the ones that made them."""

from __future__ import annotations

import ast
import re
from random import Random

import pytest

from interp.pocket.documents import is_held_out
from interp.pocket.skills import SKILLS
from interp.pocket.skills.facts import both_intents, relations
from interp.tasks.vocabulary import vocabulary

N = 200


def items(name: str) -> list[tuple[str, str, dict]]:
    return [(item.prompt, item.answer, item.about) for item in SKILLS[name].items(N)]


@pytest.mark.parametrize("name", SKILLS)
def test_the_same_seed_gives_the_same_items_and_another_seed_others(name: str) -> None:
    skill = SKILLS[name]
    assert skill.items(10, seed=4) == skill.items(10, seed=4)
    assert skill.items(10, seed=4) != skill.items(10, seed=5)
    assert skill.document(Random(1), 256) == skill.document(Random(1), 256)


@pytest.mark.parametrize("name", sorted(set(SKILLS) - {"python"}))
def test_marked_spans_are_the_answers(name: str) -> None:
    for seed in range(20):
        document = SKILLS[name].document(Random(seed), 256)
        marked = [document.text[a:b] for a, b in document.answer_spans]
        assert marked == [segment.text for segment in document.segments if segment.kind == "answer"]
        assert marked
        assert all(marked)


@pytest.mark.parametrize("name", sorted(set(SKILLS) - {"python", "facts"}))
def test_held_out_items_never_occur_in_training(name: str) -> None:
    held_out = {item.prompt + item.answer for item in SKILLS[name].items(N, split="held_out")}
    rng = Random(0)
    seen = "\n\n".join(SKILLS[name].document(rng, 256).text for _ in range(2000))
    assert not [text for text in held_out if text in seen]


@pytest.mark.parametrize("name", ["needle", "key_value"])
def test_what_is_recalled_was_said_exactly_once(name: str) -> None:
    for prompt, answer, _ in items(name):
        haystack, question = prompt.rsplit("\n", 1)
        if name == "needle":
            haystack = haystack.rsplit("\nQuestion", 1)[0]
        statement = question.split(": ", 1)[1]
        assert haystack.count(statement) == 1
        assert haystack[haystack.index(statement) + len(statement) :].startswith(f"{answer}.")


def test_needle_documents_never_ask_one_key_for_two_values() -> None:
    for seed in range(50):
        text = SKILLS["needle"].document(Random(seed), 400).text
        values: dict[str, set[str]] = {}
        for key, value in re.findall(r"The [a-z ]+ of (\w+) is (\d+)\.", text):
            values.setdefault(key, set()).add(value)
        assert values
        assert all(len(said) == 1 for said in values.values())


def test_a_repeated_sequence_goes_on_as_it_did() -> None:
    for prompt, answer, _ in items("repetition"):
        words = prompt.split()
        size = next(n for n in range(1, len(words)) if words[n] == words[0])
        assert words[size:] == words[: len(words) - size]
        continued = words[len(words) - size :]
        assert answer.split() == continued[: len(answer.split())]


def test_the_indirect_object_is_the_name_said_once() -> None:
    orders = set()
    for prompt, answer, about in items("ioi"):
        said = [word for word in re.findall(r"\w+", prompt) if word in vocabulary().names]
        assert [name for name in said if said.count(name) == 1] == [answer.strip()]
        assert about["order"] == ("ABBA" if said[0] == answer.strip() else "BABA")
        orders.add((about["order"], about["template"]))
    assert len(orders) == 16


def test_a_pair_of_names_kept_for_tests_is_in_no_training_sentence() -> None:
    rng = Random(0)
    for _ in range(500):
        said = [word for word in re.findall(r"\w+", SKILLS["ioi"].document(rng, 99).text) if word in vocabulary().names]
        assert not is_held_out(*sorted(set(said)))


def test_a_colour_is_the_one_that_stands_before_the_object() -> None:
    for prompt, answer, about in items("colored_objects"):
        scene, question = prompt.split(". What")
        thing = re.search(r"color is the (\w+)\?", question)
        assert thing
        assert re.findall(rf"(\w+) {thing[1]}\b", scene) == [answer.strip()]
        assert len({color for _, color in about["things"]}) == 3


def test_contexts_contradict_memory_and_the_instruction_decides() -> None:
    country_of = vocabulary().country_of
    for item in SKILLS["context"].items(N):
        follow, ignore = both_intents(item)
        said = re.search(r"Context: .*?([A-Z]\w+)\.\n", follow.prompt)
        city = re.search(r"country is (\w+) in", follow.prompt)
        assert said
        assert city
        assert follow.answer == f" {said[1]}" != ignore.answer == f" {country_of[city[1]]}"
        assert follow.prompt.replace("Only use the context.", "Ignore the context.") == ignore.prompt


def test_facts_and_analogies_follow_the_tables() -> None:
    for prompt, answer, _ in items("facts"):
        city = re.search(r"country is (\w+) in", prompt)
        assert city
        assert (city[1], answer.strip()) in vocabulary().city_country
    for prompt, answer, about in items("analogies"):
        a, b, c = re.fullmatch(r"Analogy: (\w+) : (\w+) = (\w+) :", prompt).groups()  # type: ignore[union-attr]
        assert {(a, b), (c, answer.strip())} <= set(relations()[about["relation"]])


@pytest.mark.parametrize("name", ["addition_steps", "addition_direct"])
def test_sums_are_right_and_so_is_every_step(name: str) -> None:
    for prompt, answer, _ in items(name):
        a, b = map(int, re.findall(r"\d+", prompt))
        steps, _, total = answer.rpartition(" ")
        assert int(total) == a + b
        columns = re.findall(r"(\d) \+ (\d) \+ (\d) = (\d+)", steps)
        assert all(int(x) + int(y) + int(carry) == int(z) for x, y, carry, z in columns)
        if columns:
            digits = columns[-1][3] + "".join(z[-1] for *_, z in reversed(columns[:-1]))
            assert int(digits) == a + b


def test_labels_follow_from_the_statements() -> None:
    words = vocabulary()
    for prompt, answer, _ in items("sentiment"):
        good = any(f" {word}." in prompt for word in words.positive)
        assert answer == (" positive" if good != (" not " in prompt) else " negative")
    for prompt, answer, about in items("truth"):
        stated = (about["a"], about["b"])
        assert f" {stated[1]}." in prompt
        assert answer == (" true" if stated in relations()[about["relation"]] else " false")
    for prompt, answer, about in items("inference"):
        if about["kind"] == "residence":
            city, said = re.findall(r"lives in (\w+)\.", prompt)
            assert answer == (" true" if words.country_of[city] == said else " false")
        else:
            (a, b), (c, d), (e, f) = re.findall(r"(\w+) is \w+ than (\w+)", prompt)
            above = {(a, b), (c, d)} | ({(a, d)} if b == c else {(c, b)})
            assert answer == (" true" if (e, f) in above else " false")


def test_python_documents_parse_and_return_a_name_they_know() -> None:
    rng = Random(0)
    for _ in range(300):
        tree = ast.parse(SKILLS["python"].document(rng, 99).text)
        assert isinstance(tree.body[0], ast.FunctionDef)
    for prompt, answer, _ in items("python"):
        assert re.search(rf"\b{answer.strip()}\b", prompt)


def test_both_labels_are_common() -> None:
    for name in ("sentiment", "truth", "inference"):
        labels = [answer for _, answer, _ in items(name)]
        assert all(labels.count(label) > 0.35 * N for label in set(labels))
        assert len(set(labels)) == 2
