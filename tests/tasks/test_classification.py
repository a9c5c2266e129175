"""Classification tasks: one word a label, balanced and distinct examples, files, refusals."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch

import interp
from interp.errors import BadInput, UnreadableFile
from interp.tasks.classification import Classification, bundled_task
from interp.tasks.classified import TASKS, Example
from interp.tracing.model import Model

SMALL = {"train": 24, "validation": 8, "test": 16, "ood": 16}
WORDS = {"good": "great", "bad": "terrible"}
ROWS = [
    {"text": f"The {noun} was {adjective}.", "label": label}
    for noun in ("film", "book", "play", "song", "meal")
    for adjective, label in (("lovely", "good"), ("superb", "good"), ("dull", "bad"), ("ugly", "bad"))
]


@pytest.fixture(scope="module")
def pocket() -> Model:
    return interp.load("pocket")


def ending(template: str) -> str:
    return template.split("}")[-1]


def jsonl(path: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("which", [0, 1])
def test_examples_are_balanced_distinct_and_answered_by_one_word(pocket: Model, name: str, which: int) -> None:
    task = bundled_task(name, pocket.tokenizer, domain=TASKS[name].domains[which], sizes=SMALL)
    texts = [text for examples in task.splits.values() for text in examples.prompts.texts]
    assert len(set(texts)) == len(texts) == sum(SMALL.values())
    for split, n in SMALL.items():
        assert set(Counter(task[split].targets).values()) == {n // len(task.labels)}
    for examples in task.splits.values():
        for target, answer in zip(examples.targets, examples.prompts.answer_tokens, strict=True):
            assert answer == (task.label_tokens[target],)
            assert pocket.tokenizer.decode(answer) == task.words[target]
    bare = [text.replace(ending(TASKS[name].template), "") for text in texts]
    assert not {word for text in bare for word in re.findall(r"\w+", text)} & set(TASKS[name].words.values())


def test_the_same_seed_gives_the_same_task_and_the_other_domain_is_what_ood_holds(pocket: Model) -> None:
    one, again, other = (bundled_task("topic", pocket.tokenizer, seed=seed, sizes=SMALL) for seed in (0, 0, 1))
    assert one["train"].prompts.hash == again["train"].prompts.hash != other["train"].prompts.hash
    words = lambda split: {word.strip(".,") for text in one[split].prompts.texts for word in text.split()}  # noqa: E731
    taught = {"Paris", "dog", "film", "cup"}
    assert words("train") & taught
    assert not words("ood") & taught


def test_an_entailed_text_is_said_in_the_premise_and_a_contradicted_one_is_not(pocket: Model) -> None:
    task = bundled_task("entailment", pocket.tokenizer, sizes=SMALL)
    for text, target in zip(task["test"].prompts.texts, task["test"].targets, strict=True):
        premise, claim = text.removesuffix(" This is").split(" So ")
        assert (claim in premise) == (task.labels[target] == "entailed")


@pytest.mark.parametrize("name", TASKS)
def test_pocket_does_not_do_the_tasks_in_this_form(pocket: Model, name: str) -> None:
    task = bundled_task(name, pocket.tokenizer, sizes={**SMALL, "test": 64})
    assert task.accuracy(pocket) < 1 / len(task.labels) + 0.17


def test_label_logits_are_those_of_the_words_at_the_last_token(pocket: Model) -> None:
    task = bundled_task("topic", pocket.tokenizer, sizes={"train": 8, "validation": 0, "test": 8, "ood": 0})
    logits = task.label_logits(pocket, "test", chunk=3)
    for row, text in zip(logits, task["test"].prompts.texts, strict=True):
        inputs = pocket.tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            alone = pocket.hf(**inputs).logits[0, -1, list(task.label_tokens)]
        torch.testing.assert_close(row, alone, atol=1e-4, rtol=1e-4)
    with pytest.raises(BadInput, match="no split 'ood'"):
        task["ood"]


def test_a_file_is_dealt_out_whole_every_label_alike(pocket: Model, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "reviews.jsonl", ROWS)
    task = Classification.from_jsonl(path, pocket.tokenizer, template="{text} It was", words=WORDS)
    assert {split: len(examples) for split, examples in task.splits.items()} == {
        "train": 12,
        "validation": 4,
        "test": 4,
    }
    assert {text for e in task.splits.values() for text in e.prompts.texts} == {f"{row['text']} It was" for row in ROWS}
    assert all(set(Counter(examples.targets).values()) == {len(examples) // 2} for examples in task.splits.values())


def test_pairs_and_splits_of_a_file_are_kept(pocket: Model, tmp_path: Path) -> None:
    rows = [
        {"text": f"{name} went to the {place}.", "pair": f"{name} was there.", "label": label, "split": split}
        for split, name, place, label in (
            ("train", "Mary", "park", "good"),
            ("train", "John", "gym", "bad"),
            ("test", "Emma", "store", "bad"),
        )
    ]
    path = jsonl(tmp_path / "pairs.jsonl", rows)
    task = Classification.from_jsonl(path, pocket.tokenizer, template="{text} So {pair} It was", words=WORDS, ood=path)
    assert task["test"].prompts.texts == ("Emma went to the store. So Emma was there. It was",)
    assert task["test"].targets == (1,)
    assert len(task["ood"]) == 3


@pytest.mark.parametrize(
    ("words", "rows", "message"),
    [
        ({"good": "great"}, [("A cup.", "good")], "one class"),
        (WORDS, [("A cup.", "good"), ("A hat.", "good")], "every training example .* is 'good'"),
        (WORDS, [("A cup.", "good"), ("A hat.", "awful")], "label 'awful', which has no word; .*valid: good, bad"),
        ({"good": "great", "bad": "unspeakable"}, [("A cup.", "good"), ("A hat.", "bad")], "not one token"),
        ({"good": "great", "bad": "great"}, [("A cup.", "good"), ("A hat.", "bad")], "same word 'great'"),
    ],
)
def test_what_is_no_task_is_refused(
    pocket: Model, words: dict[str, str], rows: list[tuple[str, str]], message: str
) -> None:
    examples = [Example(text, label) for text, label in rows]
    with pytest.raises(BadInput, match=message):
        Classification.build(
            pocket.tokenizer, {"train": examples, "test": examples}, name="x", template="{text} It was", words=words
        )


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": "A cup."}], "no text or no label"),
        ([{"text": "A cup.", "label": "good", "lable": 1}], "unknown field 'lable'.*did you mean 'label'"),
        ([{"text": "A cup.", "label": "good", "pair": 3}], "no text"),
        ([{"text": "A cup.", "label": "good", "split": "test"}, {"text": "A", "label": "bad"}], "all or none"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(
    pocket: Model, tmp_path: Path, rows: list[dict[str, object]], message: str
) -> None:
    path = jsonl(tmp_path / "bad.jsonl", rows)
    with pytest.raises(UnreadableFile, match=message):
        Classification.from_jsonl(path, pocket.tokenizer, template="{text} It was", words=WORDS)


def test_unknown_tasks_domains_and_too_many_examples_are_refused(pocket: Model) -> None:
    with pytest.raises(BadInput, match="did you mean 'sentiment'"):
        bundled_task("sentimant", pocket.tokenizer)
    with pytest.raises(BadInput, match="valid: sentences, scenes"):
        bundled_task("topic", pocket.tokenizer, domain="reviews")
    with pytest.raises(BadInput, match="no split 'dev'"):
        bundled_task("topic", pocket.tokenizer, sizes={"dev": 3})
    few = Example("a", "x"), Example("b", "y")
    from interp.tasks.classification import _distinct

    with pytest.raises(BadInput, match="no more than 2 different"):
        list(_distinct(iter(few * 600), 2))
