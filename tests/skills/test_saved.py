"""What `interp skill` writes comes back: the same frame, the same figures, and a damaged run says so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from pandas.testing import assert_frame_equal
from safetensors.numpy import save

from interp.errors import BadInput, UnreadableFile
from interp.skills.evaluation import Evaluation
from interp.skills.finetune import FineTuning, accuracies
from interp.skills.localize import Localization, localize
from interp.skills.mask import GraftMask
from interp.skills.multitask import Continual, Overlap, overlap
from interp.tasks.classification import Classification
from interp.tracing.model import Model

ABOUT = {"name": "none", "fingerprint": "0"}


def same_figure(a: Any, b: Any, *what: str) -> None:
    for each in what or (None,):
        asked = () if each is None else (each,)
        assert a.plot(*asked).to_json() == b.plot(*asked).to_json()


def test_a_fine_tuning_comes_back_with_its_scores_and_loads_its_model_when_asked(
    taught: FineTuning, pocket: Model, topic: Classification, tmp_path: Path
) -> None:
    scored = replace(taught, scores=accuracies(pocket, taught.model, [topic]))
    row = scored.scores.query("split == 'test'").iloc[0]
    assert row.after == pytest.approx(topic.accuracy(taught.model))
    assert row.before_low < row.before < row.before_high < row.after_low
    assert row.n == len(topic["test"])
    scored.save(tmp_path / "run")
    again = FineTuning.load(tmp_path / "run")
    assert_frame_equal(again.frame, scored.frame, check_dtype=False)
    assert_frame_equal(again.scores, scored.scores, check_dtype=False)
    same_figure(again, scored)
    assert again.tuned == tmp_path / "run" / "model"
    assert again.model.fingerprint == taught.model.fingerprint
    assert again.pre["fingerprint"] == pocket.fingerprint


def test_a_localization_comes_back_with_its_mask(
    pocket: Model, planted: tuple[Model, Any], topic: Classification, tmp_path: Path
) -> None:
    found = localize(pocket, planted[0], topic, sparsity=1e-4, steps=0, measured=8)
    found.save(tmp_path / "run")
    again = Localization.load(tmp_path / "run")
    assert again.mask == found.mask
    assert_frame_equal(again.frame, found.frame)
    assert_frame_equal(again.history, found.history)
    assert dict(again.parameters) == dict(found.parameters)
    same_figure(again, found, "shares", "enrichment")
    (tmp_path / "run" / "mask.safetensors").write_bytes(b"\xff" * 50)
    with pytest.raises(UnreadableFile, match="no graft mask"):
        Localization.load(tmp_path / "run")


def evaluation() -> Evaluation:
    models = pd.DataFrame(
        [("pre-trained", 0.0, 0, 0), ("fine-tuned", 1.0, 0, 9), ("localized", 0.1, 0, 1), ("random", 0.1, 3, 1)],
        columns=["method", "budget", "seed", "parameters"],
    )
    rng = np.random.default_rng(0)
    logits = {split: rng.normal(size=(4, n, 3)).astype(np.float32) for split, n in (("test", 30), ("ood", 20))}
    logits["test"][1, :, 0] += 3
    targets = {split: np.zeros(logits[split].shape[1], dtype=int) for split in logits}
    return Evaluation(models, logits, targets, ABOUT, {"task": "topic"}, seed=2)


def test_an_evaluation_comes_back_with_every_answer(tmp_path: Path) -> None:
    made = evaluation()
    made.save(tmp_path / "run")
    again = Evaluation.load(tmp_path / "run")
    assert_frame_equal(again.frame, made.frame, check_dtype=False)
    for split in ("test", "ood"):
        assert again.plot("gain", split).to_json() == made.plot("gain", split).to_json()
    same_figure(again, made, "accuracy", "gain", "reliability")
    arrays = {"logits_test": np.zeros((3, 30, 3)), "targets_test": np.zeros(30)}
    (tmp_path / "run" / "arrays.safetensors").write_bytes(save(arrays))
    with pytest.raises(UnreadableFile, match=r"logits_test.*\[4 n n\]"):
        Evaluation.load(tmp_path / "run")


def test_an_overlap_comes_back(tmp_path: Path) -> None:
    def mask(*indices: int) -> GraftMask:
        return GraftMask({"w": torch.tensor(indices)}, {"w": (9,)}, "a", "b", {"model": "tiny"})

    made = overlap({"x": mask(1, 2, 5), "y": mask(2)})
    assert made.by_chance.tolist() == [[1, 3 / 9], [1 / 9, 1]]
    made.save(tmp_path / "run")
    again = Overlap.load(tmp_path / "run")
    assert_frame_equal(again.frame, made.frame, check_dtype=False)
    assert again.model == {"name": "tiny", "fingerprint": "a"}
    same_figure(again, made)
    with pytest.raises(BadInput, match="not 'skill-evaluation'"):
        Evaluation.load(tmp_path / "run")


def test_learning_in_turn_comes_back(tmp_path: Path) -> None:
    rows = [(m, stage, ["", "x", "y"][stage], task, 0.1 * stage) for m in ("sequential", "grafting")
            for stage in range(3) for task in ("x", "y")]  # fmt: skip
    frame = pd.DataFrame(rows, columns=["method", "stage", "learned", "task", "accuracy"])
    made = Continual(frame.assign(low=0.0, high=1.0, n=40), ABOUT, {"tasks": ["x", "y"]}, 1)
    made.save(tmp_path / "run")
    again = Continual.load(tmp_path / "run")
    assert_frame_equal(again.frame, made.frame, check_dtype=False)
    assert_frame_equal(again.forgetting, made.forgetting, check_dtype=False)
    assert again.seed == 1
    same_figure(again, made)
