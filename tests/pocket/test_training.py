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
from interp.pocket.model import HEADS, KV_HEADS, LOOKS, build_model, dropped_heads, hidden_states
from interp.pocket.tokenizer import build_tokenizer
from interp.pocket.train import Recipe, finish, main, train

TINY = Recipe(batch_tokens=256, phases=(Phase(3, 64), Phase(3, 128, dropped_heads=0.5)), width=32, early=3)


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


def test_heads_start_by_looking_where_they_are_told() -> None:
    model = build_model(build_tokenizer(), seed=0)
    model.set_attn_implementation("eager")
    ids = torch.randint(3, 2048, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        patterns = model(ids, output_attentions=True).attentions
    group, told = HEADS // KV_HEADS, set()
    for look in LOOKS:
        for layer in look.layers:
            for head in (group * g + n for g in look.groups for n in range(group)):
                rows = patterns[layer][:, head, look.back :]
                assert rows.diagonal(dim1=1, dim2=2).mean() > 0.4, (layer, head)
                told.add((layer, head))
    free = patterns[2][:, 0, 20:]
    assert (2, 0) not in told
    assert free.amax() < 0.2


def test_only_spare_heads_are_dropped_anew_for_every_sequence() -> None:
    model = build_model(build_tokenizer(), seed=0)
    seen: list[torch.Tensor] = []
    for layer in model.model.layers:  # before the drops are made: what comes out of them is caught at the projection
        layer.self_attn.o_proj.forward = lambda z, p=layer.self_attn.o_proj: seen.append(z) or type(p).forward(p, z)
    ids = torch.randint(3, 2048, (64, 6), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(6).expand(64, 6)
    with torch.no_grad(), dropped_heads(model, 0.25, torch.Generator().manual_seed(1)):
        hidden_states(model, ids, positions)
    gone = torch.stack([(z.unflatten(-1, (HEADS, -1)) == 0).all(-1).all(1) for z in seen])  # layer, sequence, head
    assert not gone[0].any()
    assert not gone[:, :, : HEADS // KV_HEADS].any()
    share = gone[1:, :, HEADS // KV_HEADS :].float().mean((1, 2))
    assert ((share > 0.15) & (share < 0.35)).all()
    seen.clear()
    with torch.no_grad(), dropped_heads(model, 0.0, torch.Generator()):
        hidden_states(model, ids, positions)
    assert not any(bool((z.unflatten(-1, (HEADS, -1)) == 0).all(-1).any()) for z in seen)
    assert not any(layer.self_attn.o_proj._forward_pre_hooks for layer in model.model.layers)


def test_an_output_that_cannot_be_written_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    command = ["train", "--out", str(tmp_path / "file" / "model"), "--work", str(tmp_path / "work")]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(UnwritableOutput, match="is a file, not a folder"):
        main()
    assert not (tmp_path / "work").exists()
