"""Evaluations: numbers by hand on answers made by hand, and what a taught model's grafts really do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from interp.errors import BadInput, MaskMismatch
from interp.runs import load_run
from interp.skills.baselines import baseline_mask, everything_mask
from interp.skills.evaluation import BASELINES, Candidate, Evaluation, evaluate, with_baselines
from interp.skills.finetune import FineTuning
from interp.tasks.classification import Classification
from interp.tracing.model import Model


def made_by_hand() -> Evaluation:
    """Two labels, all 0 right: the first model has 10 of 40, the second 30, the third 25."""
    right = np.array([[1, 1, 0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 0, 1, 0, 0]]).repeat(5, axis=1)
    logits = np.stack([right, 1 - right], axis=-1) * np.log(3.0)
    models = pd.DataFrame(
        {
            "method": ["pre-trained", "fine-tuned", "localized"],
            "budget": [0, 1, 0.01],
            "seed": 0,
            "parameters": [0, 9, 1],
        }
    )
    return Evaluation(models, {"test": logits}, {"test": np.zeros(40, dtype=int)}, {"name": "none"})


def test_the_frame_by_hand() -> None:
    frame = made_by_hand().frame.set_index("method")
    assert frame.accuracy.tolist() == [0.25, 0.75, 0.625]
    assert frame.recovered.tolist() == pytest.approx([0.0, 1.0, 0.75])
    assert frame.agreement.tolist() == [0.5, 1.0, 0.875]
    # Every answer has probability 3/4, so all lie in one bin of equal width.
    assert frame.ece_10.tolist() == pytest.approx([0.5, 0.0, 0.125])
    assert frame.recovered_low["localized"] < 0.75 < frame.recovered_high["localized"]
    with pytest.raises(BadInput, match="valid: test"):
        made_by_hand().correct("ood")


def of_answers(*right: str) -> Evaluation:
    """Models that answer rightly where there is a 1, the first the pre-trained one, the second the fine-tuned one."""
    table = np.array([[int(each) for each in row] for row in right])
    methods = ["pre-trained", "fine-tuned", "localized"]
    models = pd.DataFrame({"method": methods, "budget": [0, 1, 0.01], "seed": 0, "parameters": 1})
    logits = np.stack([table, 1 - table], axis=-1).astype(float)
    return Evaluation(models, {"test": logits}, {"test": np.zeros(table.shape[1], dtype=int)}, {"name": "none"})


def test_a_resample_without_gain_does_not_spoil_the_interval() -> None:
    # Four of eight examples are gained: a resample of eight misses them with probability 1/256, so some of 2,000 do.
    estimate, low, high = of_answers("00000000", "11110000", "11110000").recovered()[2]
    assert (estimate, low, high) == (1, 1, 1)
    estimate, low, high = of_answers("00000000", "11110000", "11000000").recovered()[2]
    assert estimate == 0.5
    assert 0 <= low < 0.5 < high <= 1


def test_where_the_gain_itself_is_uncertain_its_share_has_no_interval() -> None:
    # One example of four is gained: a resample of four misses it with probability (3/4)^4, about one in three.
    estimate, low, high = of_answers("1000", "1100", "1100").recovered()[2]
    assert estimate == 1
    assert np.isnan([low, high]).all()


def test_no_gain_at_all_has_no_share_and_no_interval() -> None:
    assert np.isnan(of_answers("1100", "1100", "1000").recovered()).all()
    assert np.isnan(of_answers("1100", "0110", "1110").recovered()[:, 0]).all()  # as many right, other ones


@pytest.fixture(scope="module")
def evaluation(pocket: Model, taught: FineTuning, topic: Classification) -> Evaluation:
    masks = [baseline_mask(pocket, taught.model, "movement", share) for share in (0.003, 0.1)]
    return evaluate(pocket, taught.model, topic, with_baselines(pocket, taught.model, masks, seeds=[0, 1]))


def test_what_moved_most_carries_the_skill_and_random_parameters_do_not(evaluation: Evaluation) -> None:
    frame = evaluation.frame.query("split == 'test' and budget > 0.05").set_index("method")
    assert frame.accuracy["fine-tuned"] > 0.8
    assert frame.recovered["localized"] > 0.8
    assert frame.recovered["random"].max() < 0.3
    assert (frame.recovered[["bias", "lottery ticket"]] < 0.3).all()
    # One in ten is a large part of the matrices that moved, so some of what moved is met by chance.
    assert frame.recovered["same matrices"].max() < 0.5 < frame.recovered_low["localized"]


def test_every_method_has_the_budget_of_its_mask(evaluation: Evaluation) -> None:
    frame = evaluation.frame.query("split == 'test'")
    for _, group in frame[~frame.method.isin(["pre-trained", "fine-tuned", "bias"])].groupby("budget"):
        assert group.parameters.nunique() == 1
        assert sorted(group.method) == sorted(["localized", "random", "same matrices", *(set(BASELINES) - {"bias"})])


def test_in_place_answers_are_those_of_the_model_that_apply_makes(
    pocket: Model, taught: FineTuning, topic: Classification
) -> None:
    mask = baseline_mask(pocket, taught.model, "movement", 0.02)
    result = evaluate(pocket, taught.model, topic, [Candidate("localized", mask, 0.02)], splits=["test"])
    apart = topic.label_logits(mask.apply(pocket, taught.model)).numpy()
    np.testing.assert_array_equal(result.logits["test"][2], apart)
    before, after, grafted = (result.logits["test"][row] for row in range(3))
    assert np.abs(grafted - before).max() > 0.1
    assert np.abs(grafted - after).max() > 0.1


def test_masks_of_another_fine_tuning_need_transfer(pocket: Model, taught: FineTuning, topic: Classification) -> None:
    mask = everything_mask(pocket, taught.model)
    with pytest.raises(MaskMismatch, match="transfer=True"):
        evaluate(pocket, pocket, topic, [Candidate("localized", mask, 1.0)])
    result = evaluate(pocket, pocket, topic, [Candidate("localized", mask, 1.0)], splits=["test"], transfer=True)
    assert not np.isfinite(result.frame.recovered).any()  # this pair gained nothing
    with pytest.raises(BadInput, match="no baseline 'oracle'"):
        with_baselines(pocket, taught.model, [mask], baselines=["oracle"])


def test_an_evaluation_is_a_run(evaluation: Evaluation, tmp_path: Path) -> None:
    run = load_run(evaluation.save(tmp_path / "run").path)
    pd.testing.assert_frame_equal(run.frame, evaluation.frame)
    assert torch.equal(torch.tensor(run.arrays["logits_test"]), torch.tensor(evaluation.logits["test"]))
    assert run.record.parameters["task"] == "topic"
