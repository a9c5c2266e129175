"""Whole transformers models on the kernels compute what they compute with eager attention, and obey plans."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AttentionMaskInterface, AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedModel
from transformers.masking_utils import chunked_causal_mask_function, eager_mask, sliding_window_causal_mask_function
from transformers.models.llama import modeling_llama

import interp
from interp.errors import UnsupportedArchitecture
from kernels.errors import InvalidRequest, UnsupportedRequest
from kernels.headwise_cache import ATTENTION
from kernels.integration import EagerDisagreement, LayerPlan, install, intervene, self_check
from kernels.model_masks import make_mask
from kernels.patterns import full, pruned, streaming
from kernels.request import Request
from kernels.types import CaptureSpec, HeadGates, HeadPlan, MaskSpec
from kernels.visibility import mask_allows
from tests.families import FAMILIES, OWN_ATTENTION, VOCAB, build, prompts, ragged, randomise, word_tokenizer

SUPPORTED = [name for name in FAMILIES if name not in (*OWN_ATTENTION, "modernbert")]
WINDOWED = ("mistral", "gemma2", "gemma3", "gpt_oss", "cohere2")
KINDS = ("gpt2", "gpt_neox", "opt", "llama", "mistral", "phi3", "gemma2", "gpt_oss")
HEADS = 4

install()


def padded(side: str = "left", rows: int = 3, length: int = 20) -> dict[str, Tensor]:
    """Prompts of different lengths, all longer than the sliding windows."""
    real = torch.ones(rows, length, dtype=torch.long)
    for row in range(1, rows):
        real[row, slice(None, 4 * row) if side == "left" else slice(-4 * row, None)] = 0
    return {"input_ids": prompts(rows, length), "attention_mask": real}


def agree(got: Tensor, wanted: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=tolerance * float(wanted.abs().max()))


def written(model: PreTrainedModel) -> list[str]:
    """What the kernels have left on the modules of a model."""
    return [name for module in model.modules() for name in module.__dict__ if "workbench" in name]


# --- what eager attention computes --------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", SUPPORTED)
def test_padded_prompts_give_the_logits_of_eager_attention(family: str, side: str) -> None:
    inputs = padded(side)
    live = inputs["attention_mask"].bool()
    agree(build(family, "workbench")(**inputs).logits[live], build(family)(**inputs).logits[live])


@torch.no_grad()
@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("family", [*KINDS, "gemma3"])
def test_generation_gives_the_logits_of_eager_attention(family: str, cache: str) -> None:
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 2, "disable_compile": True}
    options |= {"output_logits": True, "return_dict_in_generate": True, "cache_implementation": cache}
    inputs = padded(rows=2, length=9)
    got, wanted = (build(family, kind).generate(**inputs, **options) for kind in ("workbench", "eager"))
    assert torch.equal(got.sequences, wanted.sequences)
    for ours, theirs in zip(got.logits, wanted.logits, strict=True):
        agree(ours, theirs)


_SMALL: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 64,
    "pad_token_id": 2,
}
OTHERS: dict[str, dict[str, Any]] = {
    "llama4_text": {  # attention within chunks of the context
        **_SMALL,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "intermediate_size_mlp": 64,
        "num_local_experts": 2,
        "attention_chunk_size": 6,
    },
    "deepseek_v3": {  # values of another width than keys
        **_SMALL,
        "q_lora_rank": 32,
        "kv_lora_rank": 32,
        "qk_rope_head_dim": 16,
        "qk_nope_head_dim": 16,
        "v_head_dim": 16,
        "first_k_dense_replace": 2,
    },
    "gpt_bigcode": {"vocab_size": VOCAB, "n_embd": 64, "n_layer": 2, "n_head": 4, "multi_query": True},
}


@torch.no_grad()
@pytest.mark.parametrize("family", OTHERS)
def test_other_families_prompt_and_generate_as_eager_attention_does(family: str) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **OTHERS[family])).eval()
    randomise(model)
    inputs, logits = padded(), {}
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 2, "eos_token_id": None}
    for kind in ("workbench", ATTENTION, "eager"):
        model.set_attn_implementation(kind)
        steps = model.generate(**inputs, **options, output_logits=True, return_dict_in_generate=True).logits
        logits[kind] = model(**inputs).logits[inputs["attention_mask"].bool()], torch.stack(steps)
    for kind in ("workbench", ATTENTION):
        agree(logits[kind][0], logits["eager"][0])
        agree(logits[kind][1], logits["eager"][1])


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_packed_sequences_do_not_see_each_other(family: str) -> None:
    ids, packed = prompts(1, 20), torch.cat([torch.arange(11), torch.arange(9)])[None]
    ours = build(family, "workbench")
    options = {"position_ids": packed, "use_cache": False}  # with a cache, transformers takes them for one sequence
    got = ours(ids, **options).logits
    agree(got, build(family)(ids, **options).logits)
    agree(got[:, 11:], ours(ids[:, 11:]).logits)


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-5), (torch.bfloat16, 5e-2)])
def test_other_dtypes(dtype: torch.dtype, tolerance: float) -> None:
    ids = prompts(2, 20)  # in float64, eager attention is NaN where padding sees nothing
    got, wanted = (build("gemma2", kind, dtype)(ids).logits for kind in ("workbench", "eager"))
    agree(got, wanted, tolerance)


def test_gradients_are_those_of_eager_attention() -> None:
    gradients = []
    for kind in ("workbench", "eager"):
        model = build("gpt_oss", kind)
        model(**padded("right"), labels=prompts(3, 20)).loss.backward()
        gradients.append({name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert any(name.endswith("sinks") for name in gradients[0])
    for name, gradient in gradients[0].items():
        agree(gradient, gradients[1][name], 1e-4)


def test_a_compiled_model_computes_the_same_and_obeys_plans() -> None:
    model, inputs = build("llama", "workbench", num_hidden_layers=1), padded() | {"use_cache": False}
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        agree(compiled(**inputs).logits, model(**inputs).logits)
        with intervene(model, {0: LayerPlan(gates=HeadGates.zero([1], n_heads=HEADS))}):
            got, wanted = compiled(**inputs).logits, model(**inputs).logits
        agree(got, wanted)
        assert not torch.allclose(got, model(**inputs).logits, atol=1e-2)


# --- masks --------------------------------------------------------------------------------------------------------


def seen(spec: MaskSpec, queries: int, keys: int, batch: int) -> Tensor:
    """What a specification shows, from the definition of visibility."""
    q, k = torch.zeros(batch, 1, queries, 1), torch.zeros(batch, 1, keys, 1)
    request = Request.of(q, k, k, mask=spec)
    return mask_allows(request, torch.arange(queries)[None], torch.arange(keys)).expand(batch, -1, -1)


@pytest.mark.parametrize("padding", [None, "left", "right", "both"])
@pytest.mark.parametrize(("q_offset", "queries", "kv_offset", "keys"), [(0, 12, 0, 12), (9, 3, 0, 12), (11, 1, 7, 5)])
@pytest.mark.parametrize("kind", ["causal", "window", "chunks"])
def test_a_specification_says_what_the_mask_of_transformers_says(
    kind: str, q_offset: int, queries: int, kv_offset: int, keys: int, padding: str | None
) -> None:
    real = torch.ones(2, 12, dtype=torch.bool)
    if padding in ("left", "both"):
        real[1, :4] = False
    if padding in ("right", "both"):
        real[1, -2:] = False
    functions: dict[str, dict[str, Any]] = {
        "causal": {},
        "window": {"mask_function": sliding_window_causal_mask_function(5), "local_size": 5},
        "chunks": {
            "mask_function": chunked_causal_mask_function(5, real.int().argmax(-1)),
            "local_size": 5,
        },
    }
    call = {"batch_size": 2, "q_length": queries, "kv_length": keys, "q_offset": q_offset, "kv_offset": kv_offset}
    call |= {"attention_mask": None if padding is None else real, **functions[kind]}
    mask = make_mask(**call)
    assert isinstance(mask.spec, MaskSpec)
    assert torch.equal(seen(mask.spec, queries, keys, 2), (eager_mask(**call) == 0)[:, 0])


def test_a_mask_has_no_matrix() -> None:
    length = 2**15
    window = {"mask_function": sliding_window_causal_mask_function(100), "local_size": 100}
    real = torch.ones(2, length, dtype=torch.bool)
    real[1, :100] = False
    mask = make_mask(batch_size=2, q_length=length, kv_length=length, attention_mask=real, **window)
    assert isinstance(mask.spec, MaskSpec)
    held = [value for value in vars(mask.spec).values() if isinstance(value, Tensor)]
    assert mask.spec.window == 100
    assert sum(value.numel() for value in held) == 2  # the start of each prompt


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_a_forgotten_mask_function_is_refused_and_not_a_lost_mask(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(family, "workbench")
    monkeypatch.delitem(AttentionMaskInterface._global_mapping, "workbench")
    with pytest.raises(UnsupportedRequest, match="of layer 0 was called without a mask"):
        model(**padded())


@torch.no_grad()
def test_a_mask_of_four_dimensions_is_refused() -> None:
    model = build("llama", "workbench")
    with pytest.raises(UnsupportedRequest, match=r"a mask of shape \[2, 1, 9, 9\] was given; .* \[batch, keys\]"):
        model(prompts(2, 9), attention_mask=torch.ones(2, 1, 9, 9))


@torch.no_grad()
def test_a_mask_that_no_specification_can_say_is_refused_where_it_matters() -> None:
    model = build("modernbert", "workbench")
    with pytest.raises(UnsupportedRequest, match="two-sided windows"):
        model(prompts(1, 12))
    short = prompts(1, 4)  # within the window
    agree(model(short).logits, build("modernbert")(short).logits)


# --- plans --------------------------------------------------------------------------------------------------------


@contextmanager
def z_hooks(model: PreTrainedModel, changes: dict[int, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """Change what the output projections of an eager model read, `[batch query head dim]`."""
    blocks = interp.wrap(model).parts.blocks

    def hook(change: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
        return lambda _, args: (change(args[0].unflatten(-1, (HEADS, -1))).flatten(2),)

    handles = [blocks[layer].o.register_forward_pre_hook(hook(change)) for layer, change in changes.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("family", KINDS)
def test_gates_and_their_gradients_are_those_of_a_hook_on_z(family: str) -> None:
    inputs = padded()
    live = inputs["attention_mask"].bool()
    added = torch.randn(1, HEADS, 32, generator=torch.Generator().manual_seed(3))
    logits, gradients = [], []
    for kind in ("workbench", "eager"):
        gate = torch.tensor([[1.0, 0.0, 0.5, 1.0], [0.0, 1.0, 1.0, 2.0], [1.0, 1.0, 0.0, 0.0]], requires_grad=True)
        model = build(family, kind).requires_grad_(False)
        if kind == "workbench":
            with intervene(model, {1: LayerPlan(gates=HeadGates(gate=gate, add=added))}):
                out = model(**inputs).logits[live]
        else:
            with z_hooks(model, {1: lambda z, gate=gate: gate[:, None, :, None] * z + added[:, None]}):
                out = model(**inputs).logits[live]
        (out.square().mean()).backward()
        logits.append(out.detach())
        gradients.append(gate.grad)
    agree(logits[0], logits[1])
    agree(gradients[0], gradients[1], 1e-4)
    assert not torch.allclose(logits[0], model(**inputs).logits[live], atol=1e-2)


@pytest.mark.parametrize("family", ["gpt2", "mistral", "gemma2", "gpt_oss"])
def test_uniform_attention_is_that_of_an_edit_of_eager_patterns(family: str) -> None:
    rows = ragged()
    reference = interp.wrap(build(family))
    model = build(family, "workbench")
    wanted = reference.run(rows, edits=[interp.attend("pattern.0.1"), interp.attend("pattern.1.2")]).logits
    plans = {n: LayerPlan(gates=HeadGates.uniform([head], n_heads=HEADS)) for n, head in ((0, 1), (1, 2))}
    with intervene(model, plans):
        got = interp.wrap(model).run(rows).logits
    if family == "gpt_oss":  # a uniform head shares with its sink logit; an edit gives it nothing
        assert not torch.allclose(got, reference.run(rows).logits, atol=1e-2)
    else:
        agree(got, wanted)
    assert not torch.allclose(wanted, reference.run(rows).logits, atol=1e-2)


@torch.no_grad()
def test_streaming_heads_are_eager_attention_under_their_mask() -> None:
    ids = prompts(2, 20)
    model, reference = build("llama", "workbench"), build("llama")
    plan = LayerPlan(plan=HeadPlan.of([streaming(sinks=2, window=5)] * HEADS))
    with intervene(model, {0: plan, 1: plan}):
        got = model(ids).logits
    query, key = torch.arange(20)[:, None], torch.arange(20)
    shown = (key <= query) & ((key < 2) | (query - key < 5))
    mask = torch.zeros(2, 1, 20, 20).masked_fill(~shown, torch.finfo(torch.float32).min)
    agree(got, reference(ids, attention_mask=mask).logits)
    assert not torch.allclose(got, reference(ids).logits, atol=1e-2)


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gpt_oss"])
def test_captured_statistics_are_those_of_eager_patterns(family: str) -> None:
    inputs = padded()
    live = inputs["attention_mask"].bool()
    patterns = build(family)(**inputs, output_attentions=True).attentions
    spans = torch.tensor([[[0, 9], [9, 20]]])
    capture = CaptureSpec(entropy=True, spans=spans, column_sums=True)
    model = build(family, "workbench")
    with intervene(model, {0: LayerPlan(capture=capture), 1: LayerPlan(capture=capture)}) as measured:
        model(**inputs)
    assert list(measured) == [0, 1]
    for layer, pattern in enumerate(patterns):
        stats, rows = measured[layer], live[:, None].expand(-1, HEADS, -1)
        top = pattern.topk(2).values
        clear = rows & (top[..., 0] - top[..., 1] > 1e-5)
        assert torch.equal(stats.argmax[clear], pattern.argmax(-1)[clear])
        agree(stats.probability[rows], pattern.amax(-1)[rows])
        agree(stats.entropy[rows], -torch.xlogy(pattern, pattern).sum(-1)[rows])
        agree(stats.mass[rows], torch.stack([pattern[..., :9].sum(-1), pattern[..., 9:].sum(-1)], -1)[rows])
        agree(stats.column_sums, (pattern * rows[..., None]).sum(2))


@torch.no_grad()
def test_a_generation_is_measured_step_by_step_and_its_gates_may_wait_for_decoding() -> None:
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 2, "eos_token_id": None}
    options |= {"output_logits": True, "return_dict_in_generate": True}
    inputs = padded(rows=2, length=9)
    model = build("mistral", "workbench")
    plain = model.generate(**inputs, **options).logits
    gates = HeadGates.zero([0, 1, 2], n_heads=HEADS, phase="decode")
    with intervene(model, {0: LayerPlan(gates=gates), 1: LayerPlan(capture=CaptureSpec())}) as measured:
        changed = model.generate(**inputs, **options).logits
    assert torch.equal(changed[0], plain[0])
    assert not torch.allclose(changed[1], plain[1], atol=1e-2)
    assert list(measured) == [1]
    assert [step.argmax.shape[2] for step in measured.steps[1]] == [9, 1, 1, 1]
    assert measured[1].argmax.shape == (2, HEADS, 12)
    assert measured[1].argmax[:, :, -1].min() > 11 - 6  # positions, where the cache holds only the window


@torch.no_grad()
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_output_attentions_are_statistics(family: str) -> None:
    model, reference, ids = build(family, "workbench"), build(family), prompts(2, 9)
    stats = model(ids, output_attentions=True).attentions
    patterns = reference(ids, output_attentions=True).attentions
    assert len(stats) == len(patterns) == 2
    for measured, pattern in zip(stats, patterns, strict=True):
        agree(measured.probability, pattern.amax(-1))
    options = {"max_new_tokens": 3, "output_attentions": True, "return_dict_in_generate": True, "pad_token_id": 2}
    steps = model.generate(ids, attention_mask=torch.ones_like(ids), **options).attentions
    assert [[layer.argmax.shape[2] for layer in step] for step in steps] == [[9, 9], [1, 1], [1, 1]]


# --- scopes -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_nothing_is_left_after_an_exception() -> None:
    model, ids = build("llama", "workbench"), prompts()
    before = model(ids).logits
    plan = LayerPlan(gates=HeadGates.zero([0], n_heads=HEADS), capture=CaptureSpec())
    with pytest.raises(KeyboardInterrupt), intervene(model, {0: plan}) as measured:
        assert not torch.equal(model(ids).logits, before)
        raise KeyboardInterrupt
    assert len(measured.steps[0]) == 1
    assert written(model) == []
    assert torch.equal(model(ids).logits, before)
    assert len(measured.steps[0]) == 1


@torch.no_grad()
def test_an_inner_plan_replaces_what_it_names_and_the_outer_comes_back() -> None:
    model, ids = build("llama", "workbench"), prompts()
    one, two = (LayerPlan(gates=HeadGates.zero([head], n_heads=HEADS)) for head in (1, 2))
    alone = []
    for plan in (one, two):
        with intervene(model, {0: plan}):
            alone.append(model(ids).logits)
    with intervene(model, {0: LayerPlan(gates=one.gates, capture=CaptureSpec())}) as outer:
        with intervene(model, {0: two}) as inner:
            assert torch.equal(model(ids).logits, alone[1])
            with intervene(model, {0: LayerPlan(capture=CaptureSpec(rows="last"))}) as innermost:
                model(ids)
        assert torch.equal(model(ids).logits, alone[0])
    assert not torch.equal(alone[0], alone[1])
    assert (len(inner), len(innermost.steps[0]), len(outer.steps[0])) == (0, 1, 2)
    assert written(model) == []


@torch.no_grad()
def test_two_models_have_plans_of_their_own() -> None:
    ids = prompts()
    first, second = build("llama", "workbench"), build("llama", "workbench")
    plain = second(ids).logits
    with intervene(first, {0: LayerPlan(gates=HeadGates.zero([1], n_heads=HEADS))}):
        assert torch.equal(second(ids).logits, plain)
        with intervene(second, {1: LayerPlan(plan=HeadPlan.of([pruned(), *[full()] * 3]))}):
            both = first(ids).logits, second(ids).logits
    assert not torch.allclose(both[0], plain, atol=1e-2)
    assert not torch.allclose(both[1], plain, atol=1e-2)
    assert not torch.allclose(*both, atol=1e-2)


def test_a_model_that_was_used_can_go() -> None:
    model = build("llama", "workbench")
    with intervene(model, {0: LayerPlan(capture=CaptureSpec())}):
        model(prompts())
    reference = weakref.ref(model)
    del model
    gc.collect()
    assert reference() is None


@torch.no_grad()
def test_a_layer_without_heads_adds_only_its_bias() -> None:
    model, ids = build("gpt2", "workbench"), prompts()
    with intervene(model, {0: LayerPlan(gates=HeadGates.zero(range(HEADS), n_heads=HEADS))}):
        got = model(ids).logits
    reference = build("gpt2")
    with z_hooks(reference, {0: torch.zeros_like}):
        agree(got, reference(ids).logits)


# --- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "plan", "message"),
    [
        (2, LayerPlan(), "there is no layer 2; the model has layers 0 to 1"),
        (0, LayerPlan(gates=HeadGates.zero([0], n_heads=3)), "gate of layer 0 is for 3 heads; the layer has 4"),
        (1, LayerPlan(plan=HeadPlan.of([full()] * 5)), "kind of layer 1 is for 5 heads; the layer has 4"),
    ],
)
def test_plans_that_do_not_fit_are_refused_beforehand(layer: int, plan: LayerPlan, message: str) -> None:
    model = build("llama", "workbench")
    with pytest.raises(InvalidRequest, match=message), intervene(model, {layer: plan}):
        raise AssertionError
    assert written(model) == []


@pytest.mark.parametrize("family", ["bloom", "gptj", "gpt_neo", "falcon"])
def test_families_with_attention_of_their_own_are_refused(family: str, tmp_path: Path) -> None:
    model = build(family)
    model.set_attn_implementation("workbench")  # transformers only warns
    with pytest.raises(UnsupportedRequest, match="computes attention in its own code"), intervene(model, {}):
        raise AssertionError
    model.save_pretrained(tmp_path)
    with pytest.raises(UnsupportedArchitecture, match="computes attention in its own code"):
        interp.load(tmp_path, attention="workbench", tokenizer=word_tokenizer())


def test_a_mask_of_ours_never_reaches_attention_of_another_kind() -> None:
    config = AutoConfig.for_model("mpt", vocab_size=VOCAB, d_model=64, n_heads=4, n_layers=1)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="workbench")
    with pytest.raises(UnsupportedRequest, match="'mpt' computes attention in its own code"):
        model(prompts())


def test_layers_that_share_a_module_cannot_have_plans() -> None:
    settings = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 64}
    config = AutoConfig.for_model("albert", vocab_size=VOCAB, embedding_size=32, **settings)
    model = AutoModelForMaskedLM.from_config(config, attn_implementation="workbench").eval()
    assert model(prompts()).logits.isfinite().all()
    with pytest.raises(UnsupportedRequest, match="calls one attention module several times"), intervene(model, {}):
        raise AssertionError


def test_a_model_that_runs_otherwise_is_refused() -> None:
    with (
        pytest.raises(UnsupportedRequest, match=r"'sdpa': install\(\), then model.set_attn_implementation"),
        intervene(build("llama", "sdpa"), {}),
    ):
        raise AssertionError


def test_a_model_that_runs_otherwise_by_now_is_refused_too() -> None:
    model = build("llama", "workbench")
    plan = {0: LayerPlan(gates=HeadGates.zero([0], n_heads=HEADS))}
    with intervene(model, plan):
        model.set_attn_implementation("sdpa")
    with pytest.raises(UnsupportedRequest, match="computes attention as 'sdpa'"), intervene(model, plan):
        raise AssertionError
    model.set_attn_implementation("workbench")
    with intervene(model, plan):
        pass


@torch.no_grad()
@pytest.mark.parametrize("kind", ["workbench", ATTENTION])
def test_what_is_added_to_scores_beside_is_refused(kind: str) -> None:
    model = build("llama", kind)
    with pytest.raises(UnsupportedRequest, match="of layer 0 computes attention with position_bias"):
        model(prompts(1, 9), position_bias=torch.zeros(1, HEADS, 9, 9))


def test_attention_that_the_kernels_do_not_compute_is_found_at_first_use(monkeypatch: pytest.MonkeyPatch) -> None:
    eager = modeling_llama.eager_attention_forward

    def capped(module: Any, q: Tensor, *others: Any, **options: Any) -> tuple[Tensor, Tensor]:
        return eager(module, q.clamp(-0.5, 0.5), *others, **options)

    monkeypatch.setattr(modeling_llama, "eager_attention_forward", capped)
    model = build("llama", "workbench")
    with pytest.raises(EagerDisagreement, match="LlamaAttention of layer 0 differs from the eager attention"):
        model(prompts())
    with pytest.raises(EagerDisagreement, match="LlamaAttention of layer 0"):
        self_check(model)
    assert written(model) == []


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_the_comparison_with_eager_attention_holds_in_every_dtype(dtype: torch.dtype) -> None:
    assert [layer.heads for layer in self_check(build("gpt_oss", "workbench", dtype))] == [HEADS] * 2


def test_dropout_is_refused() -> None:
    model = build("llama", "workbench", attention_dropout=0.1).train()
    with pytest.raises(UnsupportedRequest, match=r"drops attention out \(0.1\)"):
        model(prompts())


# --- tracing ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gpt_oss"])
def test_a_model_on_the_kernels_is_traced_as_an_eager_one(family: str) -> None:
    rows = ragged()
    edits = [interp.attend("pattern.0.1", to=0), interp.zero("z.1.2"), interp.scale("q_rot.1.0", 0.5)]
    reads = ["pattern", "attention_stats", "q_rot", "k_rot", "z"]
    ours, theirs = interp.wrap(build(family, "workbench")), interp.wrap(build(family))
    assert ours.attention == "workbench"
    got, wanted = (model.run(rows, read=reads, edits=edits, logits="last") for model in (ours, theirs))
    agree(got.logits, wanted.logits)
    assert not torch.allclose(got.logits, ours.run(rows).logits, atol=1e-2)
    for site in wanted:
        for i, row in enumerate(rows):
            if site.name == "attention_stats":
                for name, value in wanted[site].measured.items():
                    if value.is_floating_point():
                        agree(getattr(got[site], name)[i, :, : len(row)], value[i, :, : len(row)])
            else:
                live = (i, slice(None), slice(len(row))) if site.name == "pattern" else (i, slice(len(row)))
                agree(got[site][live], wanted[site][live])


@torch.no_grad()
def test_a_folder_loads_onto_the_kernels_and_generates(tmp_path: Path) -> None:
    build("mistral").save_pretrained(tmp_path)
    words = word_tokenizer()
    ours = interp.load(tmp_path, attention="workbench", tokenizer=words)
    theirs = interp.load(tmp_path, attention="eager", tokenizer=words)
    texts = ["w5 w9 w12 w5 w7 w30 w31 w5", "w8 w9"]
    got, wanted = (model.generate(texts, max_new_tokens=5, edits=[interp.zero("z.0.1")]) for model in (ours, theirs))
    assert got.texts == wanted.texts
    agree(ours.run(texts).logits, theirs.run(texts).logits)
