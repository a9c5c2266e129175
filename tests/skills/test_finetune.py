"""Fine-tuning learns the task, moves only what it may, and can be repeated."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import interp
from interp.errors import BadInput, UnreadableFile
from interp.skills.finetune import FineTuning, finetune, load_checkpoint
from interp.skills.pairs import trainable
from interp.tasks.classification import Classification
from interp.tracing.model import Model
from tests import families


def test_pocket_learns_topics_and_only_its_blocks_move(
    pocket: Model, taught: FineTuning, topic: Classification
) -> None:
    assert topic.accuracy(pocket) < 0.4
    assert topic.accuracy(taught.model) > 0.8
    assert taught.frame.loss.head(5).mean() > 3 * taught.frame.loss.tail(5).mean()
    moved = {
        name
        for (name, before), after in zip(pocket.hf.named_parameters(), taught.model.hf.parameters(), strict=True)
        if not torch.equal(before, after)
    }
    assert moved
    assert moved <= trainable(pocket).keys()
    assert not any("embed" in name or "lm_head" in name or name == "model.norm.weight" for name in trainable(pocket))
    assert taught.pre["fingerprint"] == pocket.fingerprint != taught.model.fingerprint


def test_the_same_seed_gives_the_same_weights_and_tasks_take_turns(pocket: Model, topic: Classification) -> None:
    a, b, c = (finetune(pocket, topic, steps=2, batch=4, seed=seed).model.fingerprint for seed in (0, 0, 1))
    assert a == b != c
    both = finetune(pocket, [topic, topic], steps=3, batch=4)
    assert both.parameters["tasks"] == ["topic", "topic"]
    assert len(both.frame) == 3


def test_everything_moves_the_embeddings_too(pocket: Model, topic: Classification) -> None:
    tuned = finetune(pocket, topic, steps=1, batch=4, everything=True).model
    before, after = (model.hf.get_input_embeddings().weight for model in (pocket, tuned))  # type: ignore[operator]
    assert not torch.equal(before, after)


def test_a_penalty_keeps_movement_small(pocket: Model, topic: Classification) -> None:
    def moved(penalty: float) -> float:
        tuned = finetune(pocket, topic, optimizer="adamw-l1", penalty=penalty, steps=6, batch=8).model
        pairs = zip(trainable(pocket).values(), trainable(tuned).values(), strict=True)
        return float(sum((a - b).abs().sum() for a, b in pairs))

    assert moved(1.0) < 0.6 * moved(0.0)


def test_checkpoints_hold_the_moved_parameters(pocket: Model, topic: Classification, tmp_path: Path) -> None:
    tuned = finetune(pocket, topic, steps=4, batch=4, checkpoints=tmp_path / "kept", checkpoint_every=2)
    assert sorted(file.name for file in (tmp_path / "kept").iterdir()) == [
        "step-000002.safetensors",
        "step-000004.safetensors",
    ]
    last = load_checkpoint(pocket, tmp_path / "kept" / "step-000004.safetensors")
    assert last.fingerprint == tuned.model.fingerprint
    early = load_checkpoint(pocket, tmp_path / "kept" / "step-000002.safetensors")
    assert early.fingerprint not in (pocket.fingerprint, tuned.model.fingerprint)
    with pytest.raises(BadInput, match="another model"):
        load_checkpoint(interp.wrap(families.build("llama")), tmp_path / "kept" / "step-000004.safetensors")
    with pytest.raises(UnreadableFile):
        load_checkpoint(pocket, tmp_path / "nothing")


def test_bad_requests_are_refused(pocket: Model, topic: Classification) -> None:
    with pytest.raises(BadInput, match="did you mean 'adamw'"):
        finetune(pocket, topic, optimizer="adam")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="no task"):
        finetune(pocket, [])
    with pytest.raises(BadInput, match="at least one step"):
        finetune(pocket, topic, steps=0)
    with pytest.raises(BadInput, match="need a folder"):
        finetune(pocket, topic, checkpoint_every=5)
    with pytest.raises(BadInput, match="encoder"):
        finetune(interp.wrap(families.build("bert")), topic)
