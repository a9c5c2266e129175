"""Coloured objects: what the roles mark, that the counterfactual asks for another object, and the authors' layout."""

from __future__ import annotations

import json
import re

import pytest

from interp.errors import BadInput, UnreadableFile
from interp.pocket.skills import scenes as taught
from interp.tasks.colored_objects import WRONG_COLORS, colored_object_prompts, read_colored_objects


@pytest.fixture
def prompts(pocket):
    return colored_object_prompts(pocket, 40, seed=2, style="lower")


def said(tokenizer, prompts, role):
    spans = zip(prompts.tokens, prompts.spans[role], strict=True)
    return [tokenizer.decode(tokens[start:end]).strip() for tokens, (start, end) in spans]


def test_roles_mark_the_scene_that_is_asked_about(pocket, prompts):
    for i in range(3):
        assert said(pocket, prompts, f"color{i + 1}") == [row["colors"][i] for row in prompts.metadata]
        assert said(pocket, prompts, f"object{i + 1}") == [row["objects"][i] for row in prompts.metadata]
    asked = [row["objects"][row["asked"]] for row in prompts.metadata]
    assert said(pocket, prompts, "query") == said(pocket, prompts, "correct_object") == asked
    assert prompts.answers == tuple(f" {color}" for color in said(pocket, prompts, "correct_color"))
    assert set(said(pocket, prompts, "correct_object+1")) == {",", "."}
    wrong = list(zip(*(said(pocket, prompts, role) for role in WRONG_COLORS), strict=True))
    assert wrong == [tuple(row["wrong_colors"]) for row in prompts.metadata]
    assert set(said(pocket, prompts, "end")) == {":"}
    for scene, question in zip(prompts.spans["object3"], prompts.spans["query"], strict=True):
        assert scene < question


def test_one_scene_is_answered_before_the_other_is_asked(prompts):
    for text in prompts.texts:
        shown, test = text.split("\nQ: ")
        assert shown.count("\nA: ") == 1
        assert test.endswith("\nA:")


def test_the_counterfactual_asks_for_another_object_of_the_same_scene(pocket, prompts):
    twin = prompts.counterfactual
    for i, (a, b) in enumerate(zip(prompts.tokens, twin.tokens, strict=True)):
        assert [t for t in range(len(a)) if a[t] != b[t]] == [prompts.spans["query"][i][0]]
        assert twin.metadata[i]["colors"] == prompts.metadata[i]["colors"]
    assert prompts.distractors == twin.answers
    assert all(a != b for a, b in zip(prompts.answers, twin.answers, strict=True))


def test_the_paper_answers_with_a_capital_and_the_bundled_model_without(gpt2, pocket):
    titled = colored_object_prompts(gpt2, 20)
    assert all(answer[1].isupper() for answer in titled.answers)
    assert {len(tokens) for tokens in titled.answer_tokens} == {1}
    with pytest.raises(BadInput, match=r"0 title-case colors .*Red"):
        colored_object_prompts(pocket, 4)


def test_the_lower_style_is_what_the_bundled_model_was_taught(prompts):
    for text, row in zip(prompts.texts, prompts.metadata, strict=True):
        things = list(zip(row["objects"], row["colors"], strict=True))
        surface, opener = re.search(r"\nQ: On the (\w+), (there is|you see|I see) ", text).groups()
        assert opener in taught.OPENERS
        assert text.endswith("\n" + taught.scene(surface, opener, things) + taught.question(things[row["asked"]][0]))


def test_words_of_several_tokens_are_refused_or_dropped_and_counted(pocket):
    objects = ["ring", "lamp", "hat", "cup", "xylophone"]
    with pytest.raises(BadInput, match="1 of 5 objects .* xylophone"):
        colored_object_prompts(pocket, 4, objects=objects, style="lower")
    prompts = colored_object_prompts(pocket, 20, objects=objects, style="lower", drop=True)
    assert {thing for row in prompts.metadata for thing in row["objects"]} == set(objects[:4])
    assert {row["dropped_words"] for row in prompts.metadata} == {1}
    with pytest.raises(BadInput, match="2 objects are one token"):
        colored_object_prompts(pocket, 4, objects=[*objects[3:], "ring"], style="lower", drop=True)


@pytest.mark.parametrize(("change", "message"), [({"n": 0}, "at least 1"), ({"style": "upper"}, "no style 'upper'")])
def test_unknown_choices_are_refused(pocket, change, message):
    with pytest.raises(BadInput, match=message):
        colored_object_prompts(pocket, **change)


@pytest.fixture
def write(tmp_path):
    def to(name, rows):
        path = tmp_path / name
        path.write_text(json.dumps(rows), encoding="utf-8")
        return path

    return to


def test_the_authors_files_of_prompts_and_labels_are_read_with_their_roles(pocket, prompts, write):
    twin = prompts.counterfactual
    clean = write("clean.json", list(zip(prompts.texts, prompts.answers, strict=True)))
    other = write("mindiff.json", list(zip(twin.texts, twin.answers, strict=True)))
    read = read_colored_objects(pocket, clean, other)
    assert read.tokens == prompts.tokens
    assert read.spans == prompts.spans
    assert read.distractor_tokens == prompts.distractor_tokens
    assert read.counterfactual.tokens == twin.tokens
    alone = read_colored_objects(pocket, clean)
    assert alone.counterfactual is None
    assert alone.distractors == ()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "not a list of"),
        ({"input": "x"}, "not a list of"),
        ([["a", "b", "c"]], "Entry 0 .* not \\[prompt, label\\]"),
        ([["Q: What color is the sky?\nA:", " Blue"]], "Entry 0 .* three coloured objects"),
        (
            [["Q: On the desk, I see a red cup, a blue hat, and a white pen. What color is the lamp?\nA:", " Blue"]],
            "Entry 0 .* a question about one of them",
        ),
    ],
)
def test_files_of_something_else_are_refused(pocket, write, rows, message):
    with pytest.raises(UnreadableFile, match=message):
        read_colored_objects(pocket, write("rows.json", rows))


def test_files_that_do_not_belong_together_are_refused(pocket, prompts, write):
    rows = list(zip(prompts.texts, prompts.answers, strict=True))
    with pytest.raises(BadInput, match="holds 39 prompts for the 40"):
        read_colored_objects(pocket, write("a.json", rows), write("b.json", rows[1:]))
    twin = prompts.counterfactual
    others = list(zip(twin.texts, twin.answers, strict=True))
    with pytest.raises(BadInput, match="Entry 0 .* does not ask for another object of the scene"):
        read_colored_objects(pocket, write("a.json", rows), write("c.json", others[::-1]))
    with pytest.raises(BadInput, match="Entry 3 .* does not ask for another object of the scene"):
        read_colored_objects(pocket, write("a.json", rows), write("d.json", [*others[:3], *rows[3:]]))
