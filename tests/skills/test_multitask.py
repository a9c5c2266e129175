"""Overlap of masks both ways, gains of one mask on another task, and learning tasks in turn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from interp.errors import BadInput
from interp.runs import load_run
from interp.skills.baselines import everything_mask
from interp.skills.finetune import FineTuning
from interp.skills.mask import GraftMask
from interp.skills.multitask import Overlap, continual, overlap, overlap_difference, relative_gains
from interp.tasks.classification import Classification
from interp.tracing.model import Model


def mask(*indices: int) -> GraftMask:
    return GraftMask({"w": torch.tensor(indices)}, {"w": (4, 5)}, "pre", "ft")


def test_overlap_is_the_shared_part_of_each_column() -> None:
    found = overlap({"a": mask(0, 1, 2, 3), "b": mask(2, 3), "c": mask(9)})
    assert found.shared.tolist() == [[4, 2, 0], [2, 2, 0], [0, 0, 1]]
    assert found.matrix.tolist() == [[1.0, 1.0, 0.0], [0.5, 1.0, 0.0], [0.0, 0.0, 1.0]]
    row = found.frame.query("mask == 'a' and other == 'b'").iloc[0]
    assert (row["shared"], row.share_of_other, row.by_chance) == (2, 1.0, 4 / 20)
    with pytest.raises(BadInput, match="two masks or more"):
        overlap({"a": mask(0)})


def test_overlap_of_related_pairs_is_compared_over_seeds() -> None:
    def seeded(kin: float, other: float) -> Overlap:
        shared = np.full((3, 3), 100 * other)
        shared[0, 1] = shared[1, 0] = 100 * kin
        np.fill_diagonal(shared, 100)
        return Overlap(("a", "b", "c"), shared, 1000)

    table = overlap_difference([seeded(0.5, 0.1), seeded(0.6, 0.2), seeded(0.7, 0.2)], [("b", "a")]).set_index("pairs")
    assert table.overlap.tolist() == pytest.approx([0.6, 0.5 / 3, 1.3 / 3])
    assert 0.399 < table.low["difference"] < table.high["difference"] < 0.501
    with pytest.raises(BadInput, match="no mask 'd'"):
        overlap_difference([seeded(0.5, 0.1)], [("a", "d")])


def test_the_whole_mask_has_the_whole_gain_and_none_of_it_none(
    pocket: Model, taught: FineTuning, topic: Classification
) -> None:
    whole = everything_mask(pocket, taught.model)
    table = relative_gains(pocket, taught.model, {"whole": whole, "none": whole.invert()}, [topic])
    assert table.set_index("mask").relative_gain.to_dict() == {"whole": 1.0, "none": 0.0, "union": 1.0}


def test_learning_in_turn_measures_every_task_after_every_stage(
    pocket: Model, topic: Classification, tmp_path: Path
) -> None:
    other = Classification(**{**vars(topic), "name": "other"})
    result = continual(
        pocket, [topic, other], tuning={"steps": 1, "batch": 4}, localizing={"sparsity": 0.01, "steps": 0}
    )
    assert len(result.frame) == 2 * 3 * 2
    assert set(result.frame[result.frame.stage == 0].query("task == 'topic'").accuracy) == {topic.accuracy(pocket)}
    assert ((result.frame.low <= result.frame.accuracy) & (result.frame.accuracy <= result.frame.high)).all()
    assert set(result.frame.accuracy.between(0, 1)) == {True}
    by_hand = result.frame.query("method == 'sequential' and task == 'topic'").accuracy.tolist()
    row = result.forgetting.query("method == 'sequential' and task == 'topic'").iloc[0]
    assert row["drop"] == pytest.approx(by_hand[1] - by_hand[-1])
    assert load_run(result.save(tmp_path / "run").path).record.parameters["tasks"] == ["topic", "other"]
    with pytest.raises(BadInput, match="two or more"):
        continual(pocket, [topic])
