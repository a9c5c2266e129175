"""Prompts in EAP-IG's CSV layout."""

from __future__ import annotations

from pathlib import Path

import pytest

import interp
from interp.errors import BadInput, UnreadableFile
from interp.metrics import logit_difference
from interp.patching.eap import edge_scores
from interp.patching.eap_csv import read_csv_pairs
from tests.families import build, word_tokenizer

HEAD = "clean,corrupted,correct_idx,incorrect_idx\n"


def written(folder: Path, text: str) -> Path:
    path = folder / "pairs.csv"
    path.write_text(text)
    return path


def test_rows_become_pairs_that_can_be_scored(tmp_path: Path) -> None:
    path = written(tmp_path, f',{HEAD}0,"w5 w6 w7","w5 w9 w7",11,12\n1,w8 w6 w7,w8 w9 w7,13,14\n')
    pairs = read_csv_pairs(path, word_tokenizer())
    assert pairs.tokens == ((5, 6, 7), (8, 6, 7))
    assert pairs.answer_tokens == ((11,), (13,))
    assert pairs.distractors == ("w12", "w14")
    assert pairs.counterfactual is not None
    assert pairs.counterfactual.tokens[1] == (8, 9, 7)
    scores = edge_scores(interp.wrap(build("gpt2")), pairs, logit_difference())
    assert abs(scores.scores).max() > 1e-3


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("", UnreadableFile, "holds no prompts"),
        ("clean,corrupted,label\na,b,52\n", UnreadableFile, "lacks correct_idx, incorrect_idx"),
        (f"{HEAD}w5,w6,x,3\n", UnreadableFile, "one token id a row"),
        (f"{HEAD}w5,w6,47764,3\n", BadInput, "made for another one"),
        (f"{HEAD}w5,w6 w7,4,3\n", BadInput, "has 1 tokens and its counterfactual 2"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path: Path, text: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        read_csv_pairs(written(tmp_path, text), word_tokenizer())
    with pytest.raises(UnreadableFile, match="cannot be read"):
        read_csv_pairs(tmp_path / "none.csv", word_tokenizer())


def test_the_authors_file_has_this_layout(shared: Path) -> None:
    with pytest.raises(BadInput, match="correct_idx is 47764"):
        read_csv_pairs(shared / "data/eap_ig/ioi_llama.csv", word_tokenizer())
