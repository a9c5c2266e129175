"""Training: goes on from where it stopped, and leaves a folder anyone can load."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from interp.errors import BadInput, UnwritableOutput
from interp.pocket.batches import Phase
from interp.pocket.checkpoint import weights
from interp.pocket.model import build_model, hidden_states
from interp.pocket.tokenizer import build_tokenizer
from interp.pocket.train import Recipe, finish, main, train

TINY = Recipe(batch_tokens=256, phases=(Phase(3, 64), Phase(3, 128)), width=32, early=3)


def test_a_resumed_training_gives_the_weights_of_an_uninterrupted_one(tmp_path: Path) -> None:
    whole = train(TINY, tmp_path / "whole")
    train(TINY, tmp_path / "parts", stop_at=2)
    resumed = train(TINY, tmp_path / "parts")
    assert whole.step == resumed.step == 6
    started = build_model(build_tokenizer(), TINY.seed, TINY.width).state_dict()
    for name, tensor in weights(resumed.model).items():
        assert torch.equal(tensor, whole.model.state_dict()[name]), name
        assert not torch.equal(tensor, started[name]), name


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path: Path) -> None:
    train(TINY, tmp_path, stop_at=1)
    with pytest.raises(BadInput, match="another recipe"):
        train(Recipe(**{**vars(TINY), "seed": 5}), tmp_path)


def test_what_is_exported_loads_by_the_standard_classes(tmp_path: Path) -> None:
    training = train(TINY, tmp_path / "work")
    finish(training, tmp_path / "work", tmp_path / "model")
    for folder, step in ((tmp_path / "model", 6), (tmp_path / "model-early", 3)):
        model = AutoModelForCausalLM.from_pretrained(folder)
        assert model.dtype == torch.float32
        assert json.loads((folder / "training.json").read_text())["step"] == step
        assert AutoTokenizer.from_pretrained(folder)("a").input_ids[0] == model.config.bos_token_id
    last = AutoModelForCausalLM.from_pretrained(tmp_path / "model").state_dict()
    for name, tensor in weights(training.model).items():
        assert not torch.equal(last[name], tensor) or name.endswith("norm.weight"), "finish() loads the early weights"


def test_the_training_forward_is_the_models_own() -> None:
    model = build_model(build_tokenizer(), seed=0, width=64).eval()
    ids = torch.randint(3, 2048, (2, 24), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(24).expand(2, 24)
    with torch.no_grad():
        ours = hidden_states(model, ids, positions)
        theirs = model.model(ids).last_hidden_state
        jumped = hidden_states(model, ids, positions + 100 * (positions >= 12))
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(jumped[:, :12], ours[:, :12])
    assert not torch.allclose(jumped[:, 12:], ours[:, 12:], atol=1e-3)


def test_the_first_layer_starts_by_looking_one_token_back() -> None:
    model = build_model(build_tokenizer(), seed=0)
    model.set_attn_implementation("eager")
    ids = torch.randint(3, 2048, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        pattern = model(ids, output_attentions=True).attentions[0]
    assert pattern.diagonal(offset=-1, dim1=2, dim2=3)[..., 1:].mean() > 0.5


def test_an_output_that_cannot_be_written_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    command = ["train", "--out", str(tmp_path / "file" / "model"), "--work", str(tmp_path / "work")]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(UnwritableOutput, match="is a file, not a folder"):
        main()
    assert not (tmp_path / "work").exists()
