"""Offsets as edits and as biases are the same model; a folder of it is an ordinary one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import interp
from interp.errors import BadInput, MaskMismatch, UnreadableFile, UnsupportedArchitecture, UnwritableOutput
from interp.skills.lofit_folding import fold, save_folded
from interp.skills.lofit_offsets import HeadOffsets
from tests.families import build, prompts

FOLDED = ["gpt2", "gpt_neox", "llama", "qwen3", "gemma2", "falcon", "gpt_oss", "bloom"]
"""With a bias on W_O, with a switch for one, with a norm behind it, with a Conv1D."""
REFUSED = ["mistral", "qwen2", "phi3", "gptj", "stablelm"]
HEADS = ((0, 1), (1, 3), (1, 0))


def offsets_for(model: interp.Model, scale: float = 0.5) -> HeadOffsets:
    vectors = scale * torch.randn(3, model.spec.head_dim, generator=torch.Generator().manual_seed(3))
    return HeadOffsets(HEADS, vectors, model.spec.name, model.fingerprint, {"seed": 3})


def logits(model: interp.Model, edits: list[interp.Edit] | None = None) -> torch.Tensor:
    return model.run(prompts(), edits=edits or [], logits="all").logits


@pytest.mark.parametrize("family", FOLDED)
def test_folded_biases_are_the_offsets(family: str, tmp_path: Path) -> None:
    model = interp.wrap(build(family))
    offsets = offsets_for(model)
    plain, hooked = logits(model), logits(model, offsets.edits(model))
    folded = fold(model, offsets)
    assert (hooked - plain).abs().max() > 0.1
    torch.testing.assert_close(logits(folded), hooked, rtol=1e-5, atol=1e-5)
    assert torch.equal(logits(model), plain), "the model itself stays as it was"
    assert interp.wrap(model.hf).fingerprint == model.fingerprint != folded.fingerprint

    assert save_folded(model, offsets, tmp_path / "folded") < 1e-5
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "folded", attn_implementation="eager").eval()
    torch.testing.assert_close(loaded(prompts(), use_cache=False).logits, hooked, rtol=1e-5, atol=1e-5)


def test_offsets_equal_a_hook_on_what_enters_the_output_projection() -> None:
    model = interp.wrap(build("llama"))
    offsets = offsets_for(model)
    shift = torch.zeros(2, 4, model.spec.head_dim)
    for (layer, head), vector in zip(HEADS, offsets.vectors, strict=True):
        shift[layer, head] = vector
    hooks = [
        block.self_attn.o_proj.register_forward_pre_hook(lambda _, args, own=own: (args[0] + own.flatten(),))
        for block, own in zip(model.hf.model.layers, shift, strict=True)
    ]
    expected = model.hf(prompts(), use_cache=False).logits
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(logits(model, offsets.edits(model)), expected, rtol=1e-5, atol=1e-5)


def test_a_folded_model_shares_the_weights_it_does_not_change() -> None:
    model = interp.wrap(build("llama"))
    folded = fold(model, offsets_for(model))
    before = {name: tensor.data_ptr() for name, tensor in model.hf.named_parameters()}
    after = {name: tensor.data_ptr() for name, tensor in folded.hf.named_parameters()}
    assert before == {name: after[name] for name in before}
    assert {name.rsplit(".", 1)[1] for name in after.keys() - before.keys()} == {"bias"}
    assert not model.hf.config.attention_bias
    assert folded.hf.config.attention_bias


@pytest.mark.parametrize("family", REFUSED)
def test_a_family_without_a_place_for_the_bias_is_refused_by_name(family: str, tmp_path: Path) -> None:
    model = interp.wrap(build(family))
    with pytest.raises(UnsupportedArchitecture, match=f"{family} builds W_O without a bias"):
        save_folded(model, offsets_for(model), tmp_path / "folded")
    assert list(tmp_path.iterdir()) == []


def test_offsets_of_another_model_are_refused(tmp_path: Path) -> None:
    model, other = interp.wrap(build("llama")), interp.wrap(build("qwen3"))
    offsets = offsets_for(other)
    for use in (offsets.edits, lambda m: fold(m, offsets), lambda m: save_folded(m, offsets, tmp_path / "folded")):
        with pytest.raises(MaskMismatch, match=other.fingerprint):
            use(model)
    assert list(tmp_path.iterdir()) == []


def test_offsets_come_back_from_disk(tmp_path: Path) -> None:
    model = interp.wrap(build("llama"))
    offsets = offsets_for(model)
    offsets.save(tmp_path / "offsets.safetensors")
    again = HeadOffsets.load(tmp_path / "offsets.safetensors")
    assert again.heads == HEADS
    assert torch.equal(again.vectors, offsets.vectors)
    assert (again.model, again.fingerprint, again.metadata) == (offsets.model, offsets.fingerprint, {"seed": 3})
    assert torch.equal(logits(model, again.edits(model)), logits(model, offsets.edits(model)))


def test_what_is_no_file_of_offsets_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    (tmp_path / "text").write_text("offsets")
    save_file({"heads": torch.zeros(1, 2)}, tmp_path / "other")
    for name in ("text", "other", "missing"):
        with pytest.raises(UnreadableFile, match=name):
            HeadOffsets.load(tmp_path / name)


@pytest.mark.parametrize(
    ("heads", "vectors", "said"),
    [
        ((), torch.zeros(0, 32), "one vector a head"),
        (((0, 1),), torch.zeros(2, 32), "one vector a head"),
        (((0, 1), (0, 1)), torch.zeros(2, 32), "head 0-1 is given more than one"),
        (((0, 1),), torch.full((1, 32), float("nan")), "finite"),
    ],
)
def test_offsets_that_do_not_fit_together_are_refused(heads: tuple, vectors: torch.Tensor, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        HeadOffsets(heads, vectors, "model", "0")


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path) -> None:
    model = interp.wrap(build("gpt2"))
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(UnwritableOutput, match="already holds something"):
        save_folded(model, offsets_for(model), tmp_path)
    assert (tmp_path / "mine").read_text() == "mine"
