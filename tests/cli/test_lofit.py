"""`interp skill lofit`: a study as a run, the heads as the authors' file, the offsets as an ordinary model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import interp as workbench
from interp.runs import load_run
from interp.skills.lofit_offsets import HeadOffsets

Interp = Callable[..., Any]

ASKED = ("--template", "{text} So", "--words", "good=a,bad=b", "--epochs", 1, "--seeds", "0,1")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labelled texts that a model of bytes can tell apart."""
    file = tmp_path_factory.mktemp("task") / "texts.jsonl"
    rows = [{"text": f"{i} {'up' if i % 2 else 'down'}.", "label": "good" if i % 2 else "bad"} for i in range(24)]
    splits = [{**row, "split": "train" if i < 8 else "test"} for i, row in enumerate(rows)]
    file.write_text("".join(json.dumps(row) + "\n" for row in splits))
    return file


@pytest.fixture(scope="module")
def reader(random_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The random model with a tokenizer of words, as label words are single tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("models") / "reader"
    AutoModelForCausalLM.from_pretrained(random_llama).save_pretrained(folder)
    words = ["?", "a", "b", "So", "up", "down", ".", *map(str, range(24))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="?").save_pretrained(folder)
    return folder


def test_a_study_is_a_run_a_head_file_and_a_model(interp: Interp, reader: Path, texts: Path, tmp_path: Path) -> None:
    run, heads, folder = tmp_path / "run", tmp_path / "heads.npy", tmp_path / "folded"
    files = ("--out", run, "--top-heads", heads, "--save", folder)
    done = interp("skill", "lofit", reader, "--task", texts, *ASKED, "--heads", "2,1", *files, "--json")
    assert done.code == 0, done.err
    told = done.json
    conditions = [(row["condition"], row["heads"]) for row in told["conditions"] if row["seed"] in (-1, 0)]
    assert conditions == [
        *(("none", 0), ("lofit", 2), ("random", 2), ("lora", 2)),
        *(("iti", 2), ("lofit", 1), ("random", 1), ("lora", 1), ("iti", 1), ("all", 8)),
    ]
    assert {row["n"] for row in told["conditions"]} == {16}
    assert told["parameters"]["recipe"]["epochs"] == 1
    assert load_run(run).record.kind == "lofit"

    best = [tuple(row) for row in np.load(heads, allow_pickle=False)]
    offsets = HeadOffsets.load(run / "offsets-2.safetensors")
    assert list(offsets.heads) == best[:2]
    assert told["saved"]["heads"] == 2
    assert told["saved"]["relative_difference"] < 1e-5
    model = workbench.load(reader)
    ids = torch.arange(20)[None]
    hooked = model.run(ids, edits=offsets.edits(model), logits="all").logits
    folded = AutoModelForCausalLM.from_pretrained(folder)(ids).logits
    torch.testing.assert_close(folded, hooked, rtol=1e-5, atol=1e-5)
    assert (model.run(ids, logits="all").logits - hooked).abs().max() > 1e-5
    assert (folder / "tokenizer.json").is_file()


def test_the_tables_name_conditions_and_differences(interp: Interp, reader: Path, texts: Path, tmp_path: Path) -> None:
    one = ("--heads", 1, "--baselines", "random", "--loss", "dpo", "--out", tmp_path / "run")
    done = interp("skill", "lofit", reader, "--task", texts, *ASKED, *one)
    assert done.code == 0, done.err
    assert "accuracy of LoFiT less that of" in done.out
    assert "random" in done.out
    assert set(load_run(tmp_path / "run").frame.loss) == {"dpo"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--heads", "0"), "heads must be positive; got 0"),
        (("--heads", "1,9"), "9 heads cannot be chosen"),
        (("--heads", "one"), "--heads one is not a list of numbers"),
        (("--recipe", "llama-2-7b/mquak"), "did you mean 'llama-2-7b/mquake'"),
        (("--baselines", "other", "--heads", 1), "say which"),
        (("--task", "memory", "--heads", 1), "name another --task"),
        (("--words", "good=a,ugly=b", "--heads", 1), "has the label 'bad', which has no word"),
        (("--words", "good=a", "--heads", 1), "one class"),
        ((), "32 heads cannot be chosen"),
    ],
)
def test_a_request_that_cannot_be_served_writes_nothing(
    interp: Interp, reader: Path, texts: Path, tmp_path: Path, arguments: tuple, said: str
) -> None:
    files = ("--out", tmp_path / "run", "--top-heads", tmp_path / "heads.npy", "--save", tmp_path / "folded")
    done = interp("skill", "lofit", reader, "--task", texts, *ASKED, *files, *arguments)
    assert done.code == 2
    assert said in " ".join(done.err.split())
    assert list(tmp_path.iterdir()) == []


def test_help_says_what_the_defaults_are(interp: Interp) -> None:
    done = interp("skill", "lofit", "--help")
    assert done.code == 0
    assert "--top-heads" in done.out
