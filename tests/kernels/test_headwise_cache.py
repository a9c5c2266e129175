"""A cache that forgets for some heads gives what a full cache gives under those heads' masks, in less memory."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from kernels.compaction import LAYOUTS, compact
from kernels.errors import InvalidRequest, UnsupportedRequest
from kernels.headwise_cache import ATTENTION, FullHeads, HeadwiseCache, kv_scores
from kernels.types import MaskSpec
from tests.families import WINDOW, build, prompts

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "phi3", "gemma2", "gemma3", "gpt_oss", "gpt2", "gpt_neox", "opt")
SINKS, RECENT, LENGTH, PREFILL = 2, 4, 26, 17
FOUR = {"gpt2": [[1, 0, 0, 1], [0, 1, 0, 0]], "gpt_neox": [[1, 0, 0, 1], [0, 1, 0, 0]], "opt": [[1, 1, 0, 1], [0] * 4]}
"""Full heads by layer, where the family has four key/value heads."""


def full_heads(family: str) -> FullHeads:
    return FullHeads(torch.tensor(FOUR.get(family, [[1, 0], [0, 1]]), dtype=torch.bool))


def cache_of(model: PreTrainedModel, heads: FullHeads, **others: Any) -> HeadwiseCache:
    settings = {"max_length": 48, "sinks": SINKS, "window": RECENT, "backend": "sdpa"}
    return HeadwiseCache(model.config, heads, **{**settings, **others})


def padded(padding: tuple[int, ...] = (0, 5)) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, attention mask and positions of rows with so much left padding."""
    ids = prompts(len(padding), LENGTH)
    real = (torch.arange(LENGTH) >= torch.tensor(padding)[:, None]).long()
    return ids, real, (real.cumsum(-1) - 1).clamp(min=0)


def run(model: PreTrainedModel, cache: Any, inputs: tuple[Tensor, Tensor, Tensor], *cuts: int) -> Tensor:
    """Logits of the rows, given to the model in stretches that end at `cuts`."""
    ids, real, positions = inputs
    logits, first = [], 0
    for end in (*cuts, LENGTH):
        now = slice(first, end)
        given = {"attention_mask": real[:, :end], "position_ids": positions[:, now], "past_key_values": cache}
        logits.append(model(ids[:, now], **given).logits)
        first = end
    return torch.cat(logits, dim=1)


@contextmanager
def masked(model: PreTrainedModel, heads: FullHeads, real: Tensor) -> Iterator[None]:
    """Eager attention in which streaming heads see sinks and window by a mask for every head."""
    layout, config = LAYOUTS.get(model.config.model_type, LAYOUTS["llama"]), model.config
    position = torch.arange(LENGTH)
    distance = position[:, None] - position
    starts = real.argmax(-1)[:, None, None]
    causal = (distance >= 0) & (position >= starts)
    streamed = causal & ((distance < RECENT) | (position - starts < SINKS))
    hooks = []
    for layer, block in enumerate(model.base_model.get_submodule(layout.blocks)):
        keeps = heads.full[layer].repeat_interleave(config.num_attention_heads // heads.full.shape[1])
        seen = torch.where(keeps[None, :, None, None], causal[:, None], streamed[:, None])
        types = getattr(config, "layer_types", None)
        local = types[layer] == "sliding_attention" if types else getattr(config, "sliding_window", None)
        seen = seen & (distance < WINDOW) if local else seen
        bias = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)

        def give(_: nn.Module, args: tuple[Any], kwargs: dict[str, Any], bias: Tensor = bias) -> tuple[Any, Any]:
            assert "attention_mask" in kwargs
            return args, {**kwargs, "attention_mask": bias}

        hooks.append(getattr(block, layout.attention).register_forward_pre_hook(give, with_kwargs=True))
    yield
    for hook in hooks:
        hook.remove()


def assert_same(got: Tensor, wanted: Tensor, real: Tensor) -> None:
    live = real.bool()
    torch.testing.assert_close(got[live], wanted[live], rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_streaming_heads_see_sinks_and_window_at_every_step(family: str) -> None:
    """The prompt in one pass or cut up, single tokens after it, one row padded: eager attention with masks."""
    model, heads, inputs = build(family), full_heads(family), padded()
    real = inputs[1]
    plain = run(model, None, inputs)
    with masked(model, heads, real):
        wanted = run(model, None, inputs)
    assert not torch.allclose(plain[:, -1], wanted[:, -1], atol=1e-2)
    model.set_attn_implementation(ATTENTION)
    assert_same(run(model, cache_of(model, heads), inputs, *range(PREFILL, LENGTH)), wanted, real)
    assert_same(run(model, cache_of(model, heads), inputs, 3, 4, 11, 12, 13), wanted, real)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_with_all_heads_full_generation_is_that_of_the_ordinary_cache(family: str) -> None:
    model = build(family)
    ids, real, _ = padded()
    options = {"attention_mask": real, "max_new_tokens": 8, "do_sample": False, "pad_token_id": 2, "eos_token_id": None}
    scores = {"output_scores": True, "return_dict_in_generate": True}
    wanted = model.generate(ids, **options, **scores)
    everything = FullHeads(torch.ones_like(full_heads(family).full))
    model.set_attn_implementation(ATTENTION)
    for cache in (cache_of(model, everything), DynamicCache(config=model.config)):
        got = model.generate(ids, **options, **scores, past_key_values=cache)
        assert got.sequences.tolist() == wanted.sequences.tolist()
        torch.testing.assert_close(torch.stack(got.scores), torch.stack(wanted.scores), rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_generation_with_streaming_heads_follows_the_masked_model() -> None:
    model, heads, (ids, real, _) = build("llama"), full_heads("llama"), padded((0, 3))
    model.set_attn_implementation(ATTENTION)
    options = {"max_new_tokens": LENGTH - PREFILL, "do_sample": False, "pad_token_id": 2, "eos_token_id": None}
    given = {"attention_mask": real[:, :PREFILL], "past_key_values": cache_of(model, heads)}
    ids = model.generate(ids[:, :PREFILL], **given, **options)
    model.set_attn_implementation("eager")
    with masked(model, heads, real):
        logits = run(model, None, (ids, real, (real.cumsum(-1) - 1).clamp(min=0)))
    assert logits[:, PREFILL - 1 : -1].argmax(-1).tolist() == ids[:, PREFILL:].tolist()


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "mistral"])
@pytest.mark.parametrize("compensation", [False, True])
def test_one_pass_and_many_give_the_same(family: str, compensation: bool) -> None:
    """Also where a row is nothing but padding at first, after a reset, and by another backend."""
    model, heads, inputs = build(family, ATTENTION), full_heads(family), padded((7, 0, 1))
    wanted = run(model, cache_of(model, heads, compensation=compensation), inputs)
    cache = cache_of(model, heads, compensation=compensation, backend="auto")
    for cuts in ((5, 6, 7, 20), range(1, LENGTH), (10,)):
        cache.reset()
        assert cache.get_seq_length() == 0
        assert_same(run(model, cache, inputs, *cuts), wanted, inputs[1])


def attention_with_token(q: Tensor, k: Tensor, v: Tensor, starts: list[int], scale: float) -> Tensor:
    """Sinks, window, and RazorAttention's token for the rest, one query at a time."""
    out = torch.zeros(q.shape[0], q.shape[2], q.shape[1], v.shape[3], dtype=q.dtype)
    group = q.shape[1] // k.shape[1]
    for row, start in enumerate(starts):
        for head in range(q.shape[1]):
            keys, values = k[row, head // group], v[row, head // group]
            for i in range(start, q.shape[2]):
                near = [p for p in range(start, i + 1) if i - p < RECENT or p - start < SINKS]
                gone = [p for p in range(start, i + 1) if p not in near]
                scores, seen = keys[near] @ q[row, head, i] * scale, values[near]
                weights = scores.exp()
                if gone:
                    score = keys[gone].mean(0) @ q[row, head, i] * scale
                    weights = torch.cat([weights, len(gone) * score.exp()[None]])
                    seen = torch.cat([seen, values[gone].mean(0, keepdim=True)])
                out[row, i, head] = weights @ seen / weights.sum()
    return out


@pytest.mark.parametrize("cuts", [(), (3, 10), tuple(range(1, 20))])
def test_the_compensation_token_counts_as_the_dropped_keys(cuts: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, heads, 20, 8, generator=generator, dtype=torch.float64) for heads in (4, 2, 2))
    config = build("llama").config
    heads = FullHeads(torch.zeros(2, 2, dtype=torch.bool))
    wanted = attention_with_token(q, k, v, [0, 3], 0.5)
    settings = {"max_length": 20, "sinks": SINKS, "window": RECENT, "backend": "sdpa"}
    outs = []
    for compensation in (True, False):
        cache, parts = HeadwiseCache(config, heads, compensation=compensation, **settings), []
        for first, end in zip((0, *cuts), (*cuts, 20), strict=True):
            cache.update(k[:, :, first:end], v[:, :, first:end], 1)
            parts.append(cache.attend(1, q[:, :, first:end], MaskSpec(scale=0.5, starts=torch.tensor([0, 3]))))
        outs.append(torch.cat(parts, dim=1))
    torch.testing.assert_close(outs[0], wanted, rtol=1e-9, atol=1e-9)
    assert (outs[1] - wanted).abs().max() > 1e-2


@torch.no_grad()
@pytest.mark.parametrize("compensation", [False, True])
def test_bytes_are_those_that_are_allocated_and_do_not_grow(compensation: bool) -> None:
    model = build("llama", ATTENTION, dtype=torch.bfloat16, max_position_embeddings=512)
    heads = FullHeads(torch.tensor([[1, 0], [0, 0]], dtype=torch.bool))
    cache, sizes, inputs = cache_of(model, heads, compensation=compensation, max_length=512), [], padded((0, 0))
    assert cache.bytes == 0
    for first, end in ((0, PREFILL), (PREFILL, PREFILL + 1), (PREFILL + 1, LENGTH)):
        model(inputs[0][:, first:end], past_key_values=cache)
        sizes.append(cache.bytes)
    held = [x for layer in cache.layers for part in layer.parts for x in vars(part).values() if isinstance(x, Tensor)]
    assert sizes == [sum({x.data_ptr(): x.untyped_storage().nbytes() for x in held}.values())] * 3
    assert all(layer.new is None for layer in cache.layers)
    one = 2 * 2 * 32 * 2  # rows, keys and values, width, bytes
    sums = 3 * 2 * 2 * 32 * 4 + 2 * 2 * 8 if compensation else 0  # of three heads in two layers, and their counts
    assert cache.bytes == one * (512 + 3 * (SINKS + RECENT)) + sums
    assert cache.bytes_if_full == one * 512 * 4
    assert cache.bytes < 0.27 * cache.bytes_if_full
    kept = weakref.ref(held.pop())
    held.clear()
    del cache
    assert kept() is None


@torch.no_grad()
def test_rows_can_be_chosen_reordered_and_repeated() -> None:
    """Beam search does, and sampling several answers to one prompt."""
    model, heads, (ids, real, positions) = build("llama", ATTENTION), full_heads("llama"), padded((0, 5))
    order = torch.tensor([1, 0, 1])
    caches = [cache_of(model, heads, compensation=True) for _ in range(4)]
    for cache in caches[:3]:
        model(ids[:, :-1], attention_mask=real[:, :-1], position_ids=positions[:, :-1], past_key_values=cache)
    chosen = [x[order] for x in (ids, real, positions)]
    wanted = run(model, caches[3], tuple(chosen))[:, -1]
    caches[0].reorder_cache(order)
    caches[1].batch_select_indices(order)
    caches[2].batch_repeat_interleave(2)
    for cache, rows in ((caches[0], [0, 1, 2]), (caches[1], [0, 1, 2]), (caches[2], [1, 1, 0, 0])):
        now = [x[rows] for x in chosen]
        given = {"attention_mask": now[1], "position_ids": now[2][:, -1:], "past_key_values": cache}
        torch.testing.assert_close(model(now[0][:, -1:], **given).logits[:, 0], wanted[rows], rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_any_other_attention_is_refused(attention: str) -> None:
    model = build("llama", attention)
    with pytest.raises(UnsupportedRequest, match="model.set_attn_implementation"):
        model(prompts(), past_key_values=cache_of(model, full_heads("llama")))


@torch.no_grad()
def test_what_the_cache_cannot_hold_is_refused() -> None:
    model, heads, ids = build("llama", ATTENTION), full_heads("llama"), prompts(2, 12)

    def given(cache: HeadwiseCache | None = None, rows: int = 2, **inputs: Any) -> None:
        model(ids[:rows], past_key_values=cache or cache_of(model, heads), **inputs)

    real = torch.ones_like(ids)
    real[0, -3:] = 0
    with pytest.raises(UnsupportedRequest, match="left padding alone"):
        given(attention_mask=real)
    with pytest.raises(UnsupportedRequest, match=r"a mask of shape \[2, 1, 12, 12\]"):
        given(attention_mask=torch.zeros(2, 1, 12, 12))
    with pytest.raises(InvalidRequest, match="12 positions: this cache holds max_length=11"):
        given(cache_of(model, heads, max_length=11))
    with torch.enable_grad(), pytest.raises(UnsupportedRequest, match=r"torch\.no_grad"):
        given()
    cache = cache_of(model, heads)
    given(cache)
    with pytest.raises(InvalidRequest, match="this cache has 2 of 2"):
        given(cache, rows=1)
    real = torch.ones(2, 24, dtype=torch.long)
    real[1, :4] = 0
    with pytest.raises(InvalidRequest, match="padding moved"):
        given(cache, attention_mask=real)
    with pytest.raises(UnsupportedRequest, match="what they dropped is gone"):
        cache.crop(-1)
    with pytest.raises(InvalidRequest, match="update comes first"):
        cache.attend(0, torch.zeros(2, 4, 1, 32), MaskSpec())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": 0}, "window=0"),
        ({"sinks": -1}, "sinks=-1"),
        ({"window": -3}, "window=-3"),
        ({"max_length": 0}, "max_length=0"),
        ({"max_length": -5}, "max_length=-5"),
        ({"max_length": 97}, "max_length=97 is longer than the 96 positions of the model"),
        (
            {"heads": FullHeads(torch.ones(2, 4, dtype=torch.bool))},
            r"\[2, 4\]; the model has \[layer, kv_head\] \[2, 2\]",
        ),
    ],
)
def test_sizes_and_heads_that_do_not_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    config = build("llama").config
    with pytest.raises(InvalidRequest, match=message):
        HeadwiseCache(config, **{"heads": full_heads("llama"), "max_length": 8, **settings})


@torch.no_grad()
def test_a_compacted_model_takes_a_cache_of_the_heads_it_has_left() -> None:
    """Gating says what it must answer; a layer with fewer heads than the others is refused by name."""
    sizes = {"num_attention_heads": 8, "num_key_value_heads": 4}
    model, inputs = build("llama", ATTENTION, **sizes), padded()
    whole = FullHeads(torch.tensor([[1, 1, 0, 1], [0, 1, 1, 0]], dtype=torch.bool))
    layers = model.model.layers
    removed = {0: [2, 3, 6, 7], 1: [0, 1, 2, 3]}
    gates = []
    for layer, heads in removed.items():

        def gate(_: nn.Module, inputs: tuple[Tensor], heads: list[int] = heads) -> tuple[Tensor]:
            z = inputs[0].unflatten(-1, (8, -1)).clone()
            z[..., heads, :] = 0
            return (z.flatten(-2),)

        gates.append(layers[layer].self_attn.o_proj.register_forward_pre_hook(gate))
    wanted = run(model, cache_of(model, whole), inputs, PREFILL)
    for hook in gates:
        hook.remove()
    assert not torch.allclose(run(model, cache_of(model, whole), inputs, PREFILL), wanted, atol=1e-2)
    compact(model, removed)
    left = FullHeads(torch.tensor([[1, 0], [1, 0]], dtype=torch.bool))
    assert_same(run(model, cache_of(model, left), inputs, PREFILL), wanted, inputs[1])
    uneven = build("llama", ATTENTION, **sizes)
    compact(uneven, {0: removed[0]})
    with pytest.raises(InvalidRequest, match="keys of 2 rows, 2 heads; this cache has 2 of 4"):
        run(uneven, cache_of(uneven, whole), inputs)


def test_layers_that_are_no_ordinary_attention_are_refused() -> None:
    config = build("llama").config
    config.layer_types = ["full_attention", "linear_attention"]
    with pytest.raises(UnsupportedRequest, match="linear_attention"):
        HeadwiseCache(config, full_heads("llama"), max_length=8)


def test_scores_of_query_heads_become_scores_of_key_value_heads() -> None:
    scores = torch.tensor([[0.0, 1.0, 0.6, 0.6], [0.2, 0.2, 0.3, 0.0]])
    torch.testing.assert_close(kv_scores(scores, 2, "max"), torch.tensor([[1.0, 0.6], [0.2, 0.3]]))
    torch.testing.assert_close(kv_scores(scores, 2, "mean"), torch.tensor([[0.5, 0.6], [0.2, 0.15]]))
    best = FullHeads.top(scores, kv_heads=2, keep=0.25)
    assert best.full.tolist() == [[True, False], [False, False]]
    assert (best.reduction, best.rule) == ("max", "top 0.25")
    assert FullHeads.top(scores, kv_heads=2, keep=0.25, reduction="mean").full.tolist() == [[False, True], [False] * 2]
    assert FullHeads.top(scores, kv_heads=4, keep=0).full.sum() == 0
    for wrong, message in (
        ({"kv_heads": 3}, "share 3 evenly"),
        ({"keep": 1.5}, r"keep=1\.5"),
        ({"reduction": "median"}, "there are max, mean"),
        ({"scores": scores * torch.nan}, "not finite"),
    ):
        with pytest.raises(InvalidRequest, match=message):
            FullHeads.top(**{"scores": scores, "kv_heads": 2, "keep": 0.5, **wrong})
    with pytest.raises(InvalidRequest, match=r"bool \[layer, kv_head\]"):
        FullHeads(scores)
