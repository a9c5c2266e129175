"""The authors' data sets, read from small files in their formats."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from interp.errors import BadInput, UnreadableFile
from probes.published import OVERWRITTEN, PUBLISHED, read_published

STRATEGY = {
    "examples": [
        {"input": "Is it so?", "target": "Yes. Because it is.", "target_scores": {"Yes": 1, "No": 0}},
        {"input": "Is it?", "target": "No. It is not.", "target_scores": {"Yes": 0, "No": 1}},
    ]
}
FLIPS = {"examples": [{"question": "Heads?", "answer": "yes"}, {"question": "Tails?", "answer": "no"}]}
HEADLINES = '{"headline": "a", "is_sarcastic": 1}\n{"headline": "b", "is_sarcastic": 0}\n'
FILES: dict[str, tuple[str, str, list[str]]] = {
    "cities": ("cities.csv", "statement,label\nR is in I.,1\nR is in F.,0\n", ["R is in I.", "R is in F."]),
    "common_claim": ("common_claim.csv", "examples,label\nx,True\ny,Neither\nz,False\n", ["x", "z"]),
    "counterfact": ("counterfact.csv", 'statement,label\n"p, q",0\nr,1\n', ["r", "p, q"]),
    "STSA": ("stsa.binary.train", "1 a fine film\n0 a dull film\n", ["a dull film", "a fine film"]),
    "IMDb": ("IMDb.csv", "text,label\ngood,1\nbad,0\n", ["bad", "good"]),
    "sarcasm": ("sarcasm.json", HEADLINES, ["a", "b"]),
    "hateeval": ("hateeval.tsv", "id\ttext\tHS\tTR\tAG\n1\tm\t0\t0\t0\n2\tn\t1\t0\t0\n", ["n", "m"]),
    "StrategyQA": ("StrategyQA_task.json", json.dumps(STRATEGY), ["Is it so? Because it is.", "Is it? It is not."]),
    "coinflip": ("coin_flip.json", json.dumps(FLIPS), ["Heads?", "Tails?"]),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_each_data_set_is_read_in_the_authors_order_of_classes(name: str, tmp_path: Path) -> None:
    file, content, texts = FILES[name]
    (tmp_path / file).write_text(content)
    data = read_published(tmp_path, name)
    assert data.labels == ("yes", "no")
    about = PUBLISHED[name]
    for whole, text in zip(data.texts, texts, strict=True):
        assert text in whole
        assert about.prompt in whole
        place = whole.index(text) > whole.index(about.prompt)
        assert place == (about.place != "after")
        assert whole.endswith(about.closing)


def test_the_bug_of_the_published_prompts_is_repeated_only_when_asked_for(tmp_path: Path) -> None:
    (tmp_path / "cities.csv").write_text(FILES["cities"][1])
    assert read_published(tmp_path, "cities", overwritten_prompt=True).texts[0] == f"{OVERWRITTEN} R is in I."
    assert OVERWRITTEN not in read_published(tmp_path, "cities").texts[0]
    (tmp_path / "prompts.json").write_text('{"cities": "My words."}')
    assert read_published(tmp_path, "cities").texts[0] == "My words. R is in I."


def test_as_many_of_each_class_are_used_as_the_authors_use(tmp_path: Path) -> None:
    rows = "".join(f"text {i},{i % 2}\n" for i in range(2_500))
    (tmp_path / "IMDb.csv").write_text("text,label\n" + rows)
    data = read_published(tmp_path, "IMDb")
    assert (len(data), data.labels.count("yes")) == (2_000, 1_000)


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="did you mean 'cities'"):
        read_published(tmp_path, "citys")
    with pytest.raises(UnreadableFile, match="it would be hateeval.csv or hateeval.tsv"):
        read_published(tmp_path, "hateeval")
    (tmp_path / "cities.csv").write_text("statement,truth\nx,1\n")
    with pytest.raises(UnreadableFile, match="without a text"):
        read_published(tmp_path, "cities")
    (tmp_path / "coin_flip.json").write_text("[]")
    with pytest.raises(UnreadableFile, match="no list of examples"):
        read_published(tmp_path, "coinflip")
