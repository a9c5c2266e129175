"""A model that lost heads for good computes what the whole model computes with those heads gated to zero."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from kernels.compaction import LAYOUTS, PLAN_FILE, Compaction, compact, load_compacted
from kernels.errors import InvalidRequest, UnsupportedRequest
from kernels.integration import LayerPlan, install, intervene, self_check
from kernels.types import HeadGates
from tests.families import build, prompts

DIM = 32
MANY: dict[str, dict[str, Any]] = {
    "gpt2": {"n_head": 4},
    "gpt_neox": {},
    "opt": {},
    "llama": {"num_attention_heads": 8, "num_key_value_heads": 4, "attention_bias": True},
    "mistral": {"num_attention_heads": 8, "num_key_value_heads": 4},
    "qwen2": {"hidden_size": 256, "num_attention_heads": 8, "num_key_value_heads": 4},
    "qwen3": {"num_attention_heads": 8, "num_key_value_heads": 4},
    "phi3": {"num_attention_heads": 8, "num_key_value_heads": 4},
    "gemma2": {"num_attention_heads": 8, "num_key_value_heads": 4},
    "gemma3": {"num_attention_heads": 8, "num_key_value_heads": 4},
}
"""Families with enough heads to lose some: four of their own keys, or eight in four groups."""
GROUPED = [family for family in MANY if family not in ("gpt2", "gpt_neox", "opt")]
HALF = {
    family: ({0: [0, 1, 6, 7], 1: [2, 3, 4, 5]} if family in GROUPED else {0: [0, 3], 1: [1, 2]}) for family in MANY
}
"""Two whole groups, or two heads, of each layer."""
UNEVEN = {family: ({0: [1, 2, 4, 7]} if family in GROUPED else {0: [1], 1: [0, 1, 3]}) for family in MANY}
"""One head of every group of one layer and nothing of the other, or different numbers of heads."""


def model_of(family: str) -> PreTrainedModel:
    return build(family, **MANY[family])


@torch.no_grad()
def gated(model: PreTrainedModel, removed: dict[int, list[int]], ids: Tensor, **inputs: Tensor) -> Tensor:
    """Logits of the whole model with z of these heads set to zero where it enters the output projection."""
    layout = LAYOUTS[model.config.model_type]
    blocks = model.base_model.get_submodule(layout.blocks)
    hooks = []
    for layer, heads in removed.items():

        def gate(_: nn.Module, inputs: tuple[Tensor], heads: list[int] = heads) -> tuple[Tensor]:
            z = inputs[0].unflatten(-1, (-1, DIM)).clone()
            z[..., heads, :] = 0
            return (z.flatten(-2),)

        output = getattr(getattr(blocks[layer], layout.attention), layout.output)
        hooks.append(output.register_forward_pre_hook(gate))
    logits = model(ids, **inputs).logits
    for hook in hooks:
        hook.remove()
    return logits


def assert_same(got: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))


@torch.no_grad()
@pytest.mark.parametrize("removed", [HALF, UNEVEN], ids=["half", "uneven"])
@pytest.mark.parametrize("family", MANY)
def test_a_compacted_model_is_the_gated_model_with_fewer_weights(family: str, removed: dict[str, Any]) -> None:
    model, ids = model_of(family), prompts(2, 14)
    real = torch.ones_like(ids)
    real[1, :5] = 0
    inputs = {"attention_mask": real, "position_ids": (real.cumsum(-1) - 1).clamp(min=0)}
    plain, wanted = model(ids, **inputs).logits, gated(model, removed[family], ids, **inputs)
    assert not torch.allclose(plain, wanted, atol=1e-2)
    before = model.num_parameters()
    compact(model, removed[family])
    assert model.num_parameters() < before
    assert_same(model(ids, **inputs).logits[real.bool()], wanted[real.bool()])


@torch.no_grad()
@pytest.mark.parametrize("family", ["mistral", "qwen2", "qwen3", "phi3", "llama", "gemma2", "gemma3"])
def test_evenly_pruned_heads_make_an_ordinary_folder(family: str, tmp_path: Path) -> None:
    model, ids = model_of(family), prompts(2, 14)
    wanted = gated(model, HALF[family], ids)
    compact(model, HALF[family]).save(model, tmp_path / "small")
    assert not (tmp_path / "small" / PLAN_FILE).exists()
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "small", attn_implementation="eager")
    assert (again.config.num_attention_heads, again.config.num_key_value_heads, again.config.head_dim) == (4, 2, DIM)
    assert_same(again(ids).logits, wanted)
    assert again.generate(ids, max_new_tokens=3, do_sample=False, pad_token_id=2).tolist() == (
        model.generate(ids, max_new_tokens=3, do_sample=False, pad_token_id=2).tolist()
    )


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_a_query_head_of_every_group_leaves_as_many_key_value_heads(family: str, tmp_path: Path) -> None:
    model, ids = model_of(family), prompts(2, 14)
    removed = {0: [0, 2, 4, 6], 1: [1, 2, 5, 7]}
    wanted = gated(model, removed, ids)
    compact(model, removed).save(model, tmp_path / "small")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "small", attn_implementation="eager")
    assert (again.config.num_attention_heads, again.config.num_key_value_heads) == (4, 4)
    assert_same(again(ids).logits, wanted)


@torch.no_grad()
def test_layers_with_as_many_query_heads_and_other_groups_need_their_plan(tmp_path: Path) -> None:
    model = model_of("llama").to(torch.bfloat16)
    compaction = compact(model, {0: [0, 2, 4, 6], 1: [0, 1, 6, 7]})
    assert [kept.counts for kept in compaction.kept] == [(4, 4), (4, 2)]
    with pytest.raises(
        UnsupportedRequest, match=r"different numbers of query and key/value heads, \[\(4, 2\), \(4, 4\)\]"
    ):
        compaction.save(model, tmp_path / "small")
    compaction.save(model, tmp_path / "small", allow_plan_file=True)
    again = load_compacted(tmp_path / "small")
    assert again.dtype == torch.bfloat16
    weights = again.state_dict()
    assert all(torch.equal(weights.pop(name), value) for name, value in model.state_dict().items())
    assert not weights


@torch.no_grad()
@pytest.mark.parametrize("family", ["gpt2", "llama", "phi3", "gemma2"])
def test_under_the_kernels_a_compacted_model_is_the_whole_one_with_gates(family: str) -> None:
    """Study and production: gates of `intervene` first, then the heads gone for good."""
    install()
    model, ids = model_of(family), prompts(2, 14)
    model.set_attn_implementation("workbench")
    heads = model.config.num_attention_heads
    plans = {layer: LayerPlan(HeadGates.zero(gone, n_heads=heads)) for layer, gone in HALF[family].items()}
    plain = model(ids).logits
    with intervene(model, plans):
        wanted = model(ids).logits
    assert not torch.allclose(plain, wanted, atol=1e-2)
    compact(model, HALF[family])
    assert_same(model(ids).logits, wanted)
    assert [layer.heads for layer in self_check(model)] == [heads // 2] * 2


@torch.no_grad()
@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "opt", "llama", "phi3"])
def test_unevenly_pruned_heads_load_with_their_plan(family: str, tmp_path: Path) -> None:
    model, ids = model_of(family), prompts(2, 14)
    wanted = gated(model, UNEVEN[family], ids)
    compaction = compact(model, UNEVEN[family])
    with pytest.raises(UnsupportedRequest, match="different numbers of query"):
        compaction.save(model, tmp_path / "small")
    assert not list(tmp_path.iterdir())
    compaction.save(model, tmp_path / "small", allow_plan_file=True)
    assert [path.name for path in tmp_path.iterdir()] == ["small"]
    with pytest.raises(RuntimeError, match="size mismatch|mismatched"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    again = load_compacted(tmp_path / "small")
    again.set_attn_implementation("sdpa")
    assert_same(again(ids).logits, wanted)
    assert_same(deepcopy(again)(ids).logits, wanted)
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 2}
    assert again.generate(ids, **options).tolist() == model.generate(ids, **options).tolist()


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "opt"])
def test_families_that_derive_the_width_of_a_head_say_so(family: str, tmp_path: Path) -> None:
    model = model_of(family)
    compaction = compact(model, HALF[family])
    with pytest.raises(UnsupportedRequest, match="width of a head from the number of heads"):
        compaction.save(model, tmp_path / "small")


@torch.no_grad()
@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama", "phi3"])
def test_a_layer_may_lose_all_its_heads(family: str, tmp_path: Path) -> None:
    model, ids = model_of(family), prompts(2, 14)
    removed = {0: list(range(model.config.num_attention_heads))}
    wanted = gated(model, removed, ids)
    compaction = compact(model, removed)
    assert compaction.kept[0].heads == (0,)
    assert_same(model(ids).logits, wanted)
    compaction.save(model, tmp_path / "small", allow_plan_file=True)
    assert_same(load_compacted(tmp_path / "small")(ids).logits, wanted)


@torch.no_grad()
def test_a_configuration_that_refuses_the_number_of_heads_is_an_obstacle(tmp_path: Path) -> None:
    model = build("llama")  # 64 wide: three heads do not divide it, and Llama's configuration wants them to
    removed = {layer: [2, 3] for layer in (0, 1)}
    assert Compaction.of(model, removed).obstacle(model) is None
    model = build("llama", num_attention_heads=4, num_key_value_heads=4)
    compaction = compact(model, {0: [1], 1: [2]})
    with pytest.raises(UnsupportedRequest, match=r"(?s)configuration refuses these heads: .*hidden size"):
        compaction.save(model, tmp_path / "small")
    compaction.save(model, tmp_path / "small", allow_plan_file=True)
    assert json.loads((tmp_path / "small" / PLAN_FILE).read_text())["removed"] == [[1], [2]]
    assert_same(load_compacted(tmp_path / "small")(prompts()).logits, model(prompts()).logits)


@pytest.mark.parametrize(
    ("removed", "error", "message"),
    [
        ({0: [8]}, InvalidRequest, "no head 8 in layer 0: it has 0 to 7"),
        ({0: [-1]}, InvalidRequest, "no head -1"),
        ({2: [0]}, InvalidRequest, "no layer 2: the model has 0 to 1"),
        ({0: [0]}, UnsupportedRequest, "shared evenly"),
    ],
)
def test_what_cannot_be_removed_is_refused_and_nothing_changes(
    removed: dict[int, list[int]], error: type[Exception], message: str
) -> None:
    model = model_of("llama")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(error, match=message):
        compact(model, removed)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_families_whose_heads_meet_outside_the_projections_are_refused() -> None:
    with pytest.raises(UnsupportedRequest, match="bloom models are not sliced; there are llama"):
        compact(build("bloom"), {0: [0]})


def test_a_model_is_sliced_once() -> None:
    model = model_of("gpt2")
    compaction = compact(model, UNEVEN["gpt2"])
    with pytest.raises(InvalidRequest, match="layer 0 has 3 heads of 32; the plan is of 4"):
        compaction.apply(model)


def test_the_plan_of_another_model_is_refused() -> None:
    compaction = Compaction.of(model_of("llama"), HALF["llama"])
    with pytest.raises(InvalidRequest, match="2 layers of heads for a model of 3"):
        compaction.apply(build("llama", num_hidden_layers=3))
    with pytest.raises(InvalidRequest, match="layer 0 has 4 heads of 32; the plan is of 8"):
        compaction.apply(build("llama"))


def test_folders_that_hold_no_compacted_model_are_refused(tmp_path: Path) -> None:
    model = model_of("gpt2")
    with pytest.raises(InvalidRequest, match="apply it first"):
        Compaction.of(model, {0: [1]}).save(model, tmp_path / "small")
    compact(model, {0: [1]}).save(model, tmp_path / "small", allow_plan_file=True)
    with pytest.raises(InvalidRequest, match="exists already"):
        Compaction(4, 4, DIM, ((1,), ())).save(model, tmp_path / "small", allow_plan_file=True)
    plan = tmp_path / "small" / PLAN_FILE
    wrong = json.loads(plan.read_text())
    for text, message in (
        (json.dumps({**wrong, "removed": [[0, 1], []]}), "not hold the weights"),
        (json.dumps({**wrong, "format": 7}), "format 7; this version reads 1"),
        (json.dumps({"format": 1}), "not a plan of removed heads"),
        ("[", "not a plan of removed heads"),
    ):
        plan.write_text(text)
        with pytest.raises(InvalidRequest, match=message):
            load_compacted(tmp_path / "small")
    plan.unlink()
    with pytest.raises(InvalidRequest, match="from_pretrained"):
        load_compacted(tmp_path / "small")
