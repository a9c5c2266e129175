"""`interp skill`: from a model to its fine-tuned version, the mask in between, the graft, and refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from interp.skills.localize import Localization
from interp.skills.multitask import Continual, Overlap
from interp.tracing.loading import load

SMALL = ("--sizes", "train=16,validation=4,test=8,ood=4")


@pytest.fixture
def tuned(interp: Callable[..., Any], tmp_path: Path) -> Path:
    """The run of a fine-tuning that is too short to learn anything."""
    done = interp("skill", "finetune", "pocket", "--task", "topic", *SMALL, "--steps", 2, "--batch", 4,
                  "--checkpoint-every", 1, "--out", tmp_path / "tuned", "--json")  # fmt: skip
    assert done.code == 0, done.err
    assert {row["split"] for row in done.json["rows"]} == {"test", "ood"}
    assert len(list((tmp_path / "tuned.checkpoints").iterdir())) == 2
    return tmp_path / "tuned"


def test_from_fine_tuning_to_a_graft_and_its_evaluation(
    interp: Callable[..., Any], tuned: Path, tmp_path: Path
) -> None:
    pair = ("pocket", tuned)
    found = interp("skill", "localize", *pair, "--task", "topic", *SMALL, "--sparsity", 0.01, "--steps", 2,
                   "--batch", 4, "--out", tmp_path / "mask", "--json")  # fmt: skip
    assert found.code == 0, found.err
    record = json.loads((tmp_path / "mask" / "run.json").read_text())
    assert record["kind"] == "skill-localization"
    mask = ("--mask", tmp_path / "mask")
    grafted = interp("skill", "graft", *pair, *mask, "--out", tmp_path / "grafted", "--json")
    assert grafted.code == 0, grafted.err
    assert grafted.json["rows"][0]["parameters"] == record["parameters"]["budget"]
    reloaded = load(tmp_path / "grafted").fingerprint
    assert reloaded == grafted.json["rows"][0]["fingerprint"] != record["model"]["fingerprint"]
    evaluated = interp("skill", "evaluate", *pair, "--task", "topic", *SMALL, *mask, "--baselines", "random",
                       "--seeds", "0", "--out", tmp_path / "evaluation")  # fmt: skip
    assert evaluated.code == 0, evaluated.err
    assert "localized" in evaluated.out
    both = interp("skill", "overlap", *mask, "--mask", tmp_path / "mask" / "mask.safetensors", "--json",
                  "--out", tmp_path / "overlap")  # fmt: skip
    assert both.code == 0, both.err
    assert Overlap.load(tmp_path / "overlap").matrix.tolist() == both.json["matrix"]
    assert Localization.load(tmp_path / "mask").parameters["fine_tuned"] == "tuned"
    assert both.json["matrix"] == [[1.0, 1.0], [1.0, 1.0]]
    refused = interp("skill", "graft", "pocket", "pocket", *mask, "--out", tmp_path / "other")
    assert refused.code == 2
    assert "fine-tuned model" in refused.err
    assert not (tmp_path / "other").exists()


def test_learning_one_task_after_the_other_is_a_run(interp: Callable[..., Any], tmp_path: Path) -> None:
    short = ("--steps", 1, "--batch", 2, "--mask-steps", 0, *SMALL)
    done = interp("skill", "continual", "pocket", "--task", "topic+sentiment", *short, "--out", tmp_path / "run")
    assert done.code == 0, done.err
    assert "sequential" in done.out
    assert Continual.load(tmp_path / "run").parameters["tasks"] == ["topic", "sentiment"]
    alone = interp("skill", "continual", "pocket", "--task", "topic", *short, "--out", tmp_path / "other")
    assert alone.code == 2
    assert "two or more" in alone.err


def test_bad_requests_are_refused_and_leave_nothing(interp: Callable[..., Any], tmp_path: Path) -> None:
    out = tmp_path / "out"
    for arguments, message in (
        (("finetune", "pocket", "--task", "topics"), "did you mean 'topic'"),
        (("finetune", "pocket", "--task", "topic", "--sizes", "train=many"), "--sizes"),
        (("finetune", "pocket", "--task", "some.jsonl"), "--template and --words"),
        (("localize", "pocket", "pocket", "--task", "topic", "--sparsity", "0"), "no share"),
        (("localize", "pocket", "pocket", "--task", "topic", "--sparsity", "1.5"), "no share"),
        (("localize", "pocket", "pocket", "--task", "topic", *SMALL), "no skill"),
        (("localize", "pocket", "pocket", "--task", "topic+sentiment", *SMALL), "names 2 tasks"),
    ):
        done = interp("skill", *arguments, "--out", out)
        assert done.code == 2, arguments
        assert message in done.err
        assert not out.exists()


def test_a_file_is_a_task(interp: Callable[..., Any], tmp_path: Path) -> None:
    rows = [{"text": f"The {noun} was {word}.", "label": label} for noun in ("film", "book", "play", "song")
            for word, label in (("lovely", "good"), ("dull", "bad"))]  # fmt: skip
    (tmp_path / "reviews.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = ("--task", tmp_path / "reviews.jsonl", "--template", "{text} It was", "--words", "good=great,bad=terrible")
    done = interp("skill", "finetune", "pocket", *task, "--steps", 1, "--batch", 2, "--out", tmp_path / "run")
    assert done.code == 0, done.err
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
