"""The transformer_lens backend: the numbers of the other backends, on bridges that it leaves as they were."""

from __future__ import annotations

import ast
import dataclasses
import gc
import inspect
import threading
import weakref
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

import interp
import tests.tracing.test_edits as hand_edits
import tests.tracing.test_reads as hand_reads
from interp.errors import BadInput, UnsupportedArchitecture
from interp.tracing.backends import transformer_lens as backend_module
from interp.tracing.backends import transformer_lens_points as points_module
from tests.families import DECODERS, FAMILIES, OWN_ATTENTION, build, prompts, ragged, word_tokenizer
from tests.tracing.test_generation import generation_edits
from tests.tracing.test_reads import REFUSED, close, tensors
from tests.tracing.test_threads import jobs_on, wrong_answers

Boot = Callable[[str], Any]

UNBRIDGED = {
    "falcon_grouped": "cannot bridge this FalconForCausalLM",
    "xlm-roberta": "no adapter for XLMRobertaForMaskedLM",
    "distilbert": "no adapter for DistilBertForMaskedLM",
    "modernbert": "no adapter for ModernBertForMaskedLM",
}
"""Families that TransformerLens 4.3 takes no models of, and what is said then: it has no adapter for the class, or its
adapter splits the fused projection of Falcon-40B as if every key/value head had one query."""
BRIDGED = [name for name in FAMILIES if name not in UNBRIDGED]
SAMPLE = ["gpt2", "gpt_neox", "opt", "phi3", "gemma2", "gpt_oss", "bitnet"]
"""One family of every way in which bridges see attention."""


@cache
def hooked(family: str) -> interp.Model:
    return interp.wrap(build(family), tokenizer=word_tokenizer())


@cache
def bridged(family: str) -> interp.Model:
    return interp.wrap(hooked(family).hf, word_tokenizer(), backend="transformer_lens")


@pytest.fixture(params=BRIDGED)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def boot(tmp_path_factory: pytest.TempPathFactory) -> Boot:
    """`boot("llama")`: a bridge as a user makes it."""
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("words")
    word_tokenizer().save_pretrained(folder)
    words = AutoTokenizer.from_pretrained(folder)
    return lambda family: TransformerBridge.boot_transformers(
        "tiny", hf_model=build(family), tokenizer=words, device="cpu"
    )


@pytest.fixture
def bridge(boot: Boot) -> Any:
    return boot("llama")


def hooks_on(bridge: Any) -> dict[str, list[Any]]:
    return {name: [*point.fwd_hooks, *point._forward_hooks] for name, point in bridge.hook_dict.items()}


def test_every_site_equals_its_hand_computation(family: str) -> None:
    hand_reads.test_every_site_equals_its_hand_computation(bridged(family), family)
    if family not in OWN_ATTENTION:
        hand_reads.test_attention_statistics_summarise_the_pattern(bridged(family))


@torch.no_grad()
def test_an_unedited_run_is_the_eager_pass_of_the_model_bit_for_bit(family: str) -> None:
    got, wanted = bridged(family).run(prompts(), logits="all").logits, hooked(family).hf(prompts()).logits
    if family == "falcon":  # divides its scores by what TransformerLens multiplies them by the inverse of
        close(got, wanted)
    else:
        assert torch.equal(got, wanted)


def test_an_edit_of_every_site_equals_the_hand_edit(family: str) -> None:
    hand_edits.test_an_edit_of_every_site_equals_the_hand_edit(bridged(family), family)


@pytest.mark.parametrize("to", ["uniform", 3, (1, -4)])
def test_attend_forces_rows_of_a_head_and_of_a_layer(family: str, to: object) -> None:
    if family in OWN_ATTENTION:
        assert "pattern" in bridged(family).refusals
    else:
        hand_edits.test_attend_forces_rows_of_a_head_and_of_a_layer(bridged(family), family, to)


def test_a_bridged_model_passes_its_own_check(family: str) -> None:
    hand_reads.test_the_model_passes_its_own_check(bridged(family), family)


def test_bridges_refuse_no_site_that_the_family_has(family: str) -> None:
    assert bridged(family).backend.refusals == {}
    assert set(bridged(family).refusals) == REFUSED.get(family, frozenset())


@pytest.mark.parametrize("name", UNBRIDGED)
def test_what_transformer_lens_cannot_bridge_is_refused_with_its_reason(name: str) -> None:
    with pytest.raises(UnsupportedArchitecture, match=UNBRIDGED[name]):
        bridged(name)


# What TransformerLens itself calls these places.
NAMES = {
    "resid_pre": "blocks.{}.hook_resid_pre",
    "attn_in": "blocks.{}.ln1.hook_out",
    "q": "blocks.{}.attn.hook_q",
    "k": "blocks.{}.attn.hook_k",
    "v": "blocks.{}.attn.hook_v",
    "q_rot": "blocks.{}.attn.hook_rot_q",
    "k_rot": "blocks.{}.attn.hook_rot_k",
    "pattern": "blocks.{}.attn.hook_pattern",
    "z": "blocks.{}.attn.hook_z",
    "head_out": "blocks.{}.attn.hook_result",
    "attn_out": "blocks.{}.hook_attn_out",
    "resid_mid": "blocks.{}.hook_resid_mid",
    "mlp_in": "blocks.{}.ln2.hook_out",
    "mlp_post": "blocks.{}.mlp.hook_post",
    "mlp_out": "blocks.{}.hook_mlp_out",
    "resid_post": "blocks.{}.hook_resid_post",
    "final_norm": "ln_final.hook_out",
    "logits": "unembed.hook_out",
}


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_reads_equal_the_activations_that_transformer_lens_caches_by_name(name: str, boot: Boot) -> None:
    bridge, ids = boot(name), prompts()
    bridge.set_use_attn_result(True)
    logits, cached = bridge.run_with_cache(ids, use_cache=False)
    model = interp.wrap(bridge)
    trace = model.run(ids, read=[site for site in NAMES if site not in REFUSED.get(name, ())], logits="all")
    assert len(trace) >= 30
    for site, value in trace.items():
        close(value, cached[NAMES[site.name].format(site.layer)], site)
    assert torch.equal(trace.logits, logits)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_edits_equal_the_same_hooks_given_to_transformer_lens(name: str, boot: Boot) -> None:
    bridge, ids = boot(name), prompts()
    model, vector = interp.wrap(bridge), torch.randn(4, 32, generator=torch.Generator().manual_seed(0))

    def uniform(pattern: Tensor, hook: Any) -> Tensor:
        visible = torch.ones(12, 12).tril()
        return (visible / visible.sum(-1, keepdim=True)).expand_as(pattern)

    for edit, point, hook in (
        (interp.add("z.0", vector), "blocks.0.attn.hook_z", lambda x, hook: x + vector),
        (interp.scale("resid_post.0", -0.5), "blocks.0.hook_resid_post", lambda x, hook: -0.5 * x),
        (interp.zero("mlp_post.1"), "blocks.1.mlp.hook_post", lambda x, hook: 0 * x),
        (interp.attend("pattern.1", "uniform"), "blocks.1.attn.hook_pattern", uniform),
    ):
        wanted = bridge.run_with_hooks(ids, fwd_hooks=[(point, hook)], use_cache=False).detach()
        close(model.run(ids, edits=edit, logits="all").logits, wanted, edit)
        assert (wanted - bridge(ids)).abs().max() > 1e-2


def test_an_edit_of_resid_mid_is_not_one_of_the_branch_that_hook_resid_mid_lies_on(bridge: Any) -> None:
    branch = bridge.run_with_hooks(prompts(), fwd_hooks=[("blocks.0.hook_resid_mid", lambda x, hook: 0 * x)])
    stream = interp.wrap(bridge).run(prompts(), edits=interp.zero("resid_mid.0"), logits="all").logits
    assert (stream - branch).abs().max() > 1e-2


@pytest.mark.parametrize("name", ["gpt_neox", "phi3"])
def test_rotated_queries_are_edited_where_the_hooks_of_the_bridge_never_fire(name: str, boot: Boot) -> None:
    bridge, ids = boot(name), prompts()
    dead = bridge.run_with_hooks(ids, fwd_hooks=[("blocks.0.attn.hook_rot_q", lambda x, hook: 0 * x)])
    assert torch.equal(dead, bridge(ids)), "TransformerLens calls hook_rot_q now: use it"
    model = interp.wrap(bridge)
    for site in ("q_rot.0", "k_rot.0"):
        hand_edits.assert_equals_by_hand(model, ids, interp.scale(site, -0.6), {site: lambda x: -0.6 * x}, site)
    assert "_apply_rotary_pos_emb" not in vars(bridge.blocks[0].attn)


@pytest.mark.parametrize("name", SAMPLE)
def test_every_kind_of_edit_equals_the_hooks_backend(name: str) -> None:
    ids, plain = prompts(), hooked(name).run(prompts(), logits="all").logits
    donor = hooked(name).run(prompts(seed=9), read=["z.0", "resid_post.0"])
    unit = torch.nn.functional.normalize(torch.randn(2, hooked(name).spec.width), dim=-1)
    for edit in (
        interp.zero("z.0.1"),
        interp.scale("head_out.0.2", -2.0),
        interp.mean("z.0", donor),
        interp.resample("resid_post.0", donor, seed=1),
        interp.patch("resid_post.0", donor).at(positions=[3, -1]),
        interp.add("embed", unit[0], 3.0).at(rows=1),
        interp.set_coordinate("resid_post.0", unit[0], 6.0),
        interp.project_out("resid_post.0", unit),
        interp.swap_subspace("resid_post.0", unit, donor),
        interp.attend("pattern.1.2", (1, -4)).at(positions=slice(4, None)),
    ):
        mine, theirs = (m.run(ids, edits=edit, logits="all").logits for m in (bridged(name), hooked(name)))
        close(mine, theirs, edit)
        assert (mine - plain).abs().max() > 1e-3, edit


@pytest.mark.parametrize("name", [f for f in BRIDGED if f in DECODERS])
def test_generation_under_edits_gives_the_tokens_of_the_hooks_backend(name: str) -> None:
    mine, theirs = bridged(name), hooked(name)
    theirs.hf.generation_config.eos_token_id = None
    edits = [interp.scale("z.0.1", -2.0), interp.add("resid_post.0", torch.ones(theirs.spec.width)).at(positions=-1)]
    read = ["k.0", "resid_post.1"]
    if name not in OWN_ATTENTION:
        edits += [*generation_edits(theirs, new_token=10), interp.attend("pattern.1", 4)]
        read += ["attention_stats.0", *(["k_rot.1", "q_rot.0"] if "k_rot" not in theirs.refusals else [])]
    edits = [edit for edit in edits if edit.positions != (1, 8)]
    got, wanted = (m.generate(ragged(), max_new_tokens=5, edits=edits, read=read) for m in (mine, theirs))
    assert got.tokens == wanted.tokens
    assert got.tokens != theirs.generate(ragged(), max_new_tokens=5).tokens
    assert got.trace is not None
    assert wanted.trace is not None
    for site in wanted.trace:
        for i, row in enumerate(ragged()):
            for a, b in zip(tensors(got.trace[site]), tensors(wanted.trace[site]), strict=True):
                if site.name == "attention_stats":
                    a, b = a.transpose(1, 2), b.transpose(1, 2)
                torch.testing.assert_close(a[i, : len(row) + 4], b[i, : len(row) + 4], rtol=1e-3, atol=1e-4)


def test_a_run_after_a_prefix_equals_the_whole_run() -> None:
    for name in ("llama", "opt", "gpt_neox"):
        model, row = bridged(name), prompts(1)[0].tolist()
        edits = [interp.scale("k.0", 2.0).at(positions=slice(0, 5)), interp.attend("pattern.1", 2)]
        prefix = model.prefill(row[:7], edits=edits)
        read = ["pattern", "z", "resid_post.1"]
        whole = model.run([row], read=read, edits=edits, logits="last")
        short = model.run([row], read=read, edits=edits, logits="last", prefix=prefix)
        close(short.logits, whole.logits)
        close(short["z.1"], whole["z.1"][:, 7:])
        close(short["pattern.0"], whole["pattern.0"][:, :, 7:])


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", [*SAMPLE, "bert"])
def test_padded_rows_equal_each_row_alone(name: str, side: Any) -> None:
    model = bridged(name)
    edits = [interp.add("resid_post.0", torch.ones(model.spec.width)).at(positions=-1), interp.attend("pattern.0", 1)]
    read = ["z", "pattern", "resid_post"]
    together = model.run(ragged(), read=read, edits=edits, logits="last", padding_side=side)
    for i, row in enumerate(ragged()):
        alone, n = model.run([row], read=read, edits=edits, logits="last"), len(row)
        close(together.logits[i], alone.logits[0])
        for site in alone:
            got = together[site][i, :, :n, :n] if site.name == "pattern" else together[site][i, :n]
            close(got, alone[site][0], site)


@pytest.mark.parametrize("name", SAMPLE)
def test_gradients_equal_those_of_the_hooks_backend(name: str) -> None:
    sites = ["embed", "q.0", "z.0", "head_out.0", "mlp_post.0", "resid_post.1"]
    sites = [site for site in sites if site.split(".")[0] not in REFUSED.get(name, ())]
    traces = [m.run(prompts(), read=sites, logits="all", grad=True) for m in (bridged(name), hooked(name))]
    for trace in traces:
        trace.logits.pow(2).sum().backward()
    for site in sites:
        mine, theirs = (trace.grad(site) for trace in traces)
        assert theirs.abs().max() > 0
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4 * float(theirs.abs().max()))


def test_frozen_weights_stay_frozen_also_where_the_bridge_splits_them() -> None:
    hf = build("gpt_neox").requires_grad_(False)
    model = interp.wrap(hf, backend="transformer_lens")
    model.run(prompts(), read="z.0", logits="all", grad=True).logits.sum().backward()
    inside = model.backend_object.original_model
    assert [p for p in inside.parameters() if p.requires_grad or p.grad is not None] == []


def modules_of(model: nn.Module) -> list[tuple[str, type, int]]:
    return [(name, type(m), len(m._forward_hooks) + len(m._forward_pre_hooks)) for name, m in model.named_modules()]


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox", "bert"])
@torch.no_grad()
def test_the_users_model_is_not_disturbed_and_its_weights_are_shared(name: str) -> None:
    hf, ids = build(name, "sdpa"), prompts()
    hf(ids, output_hidden_states=True)  # leaves hooks of transformers' own in place
    logits, modules, keys = hf(ids).logits, modules_of(hf), list(hf.state_dict())
    model = interp.wrap(hf, backend="transformer_lens")
    assert model.hf is hf
    again = interp.wrap(model)
    assert (again.backend_object, again.hf) == (model.backend_object, hf)
    model.run(ids, read="resid_post", edits=interp.zero("z.0"), logits="all")
    assert torch.equal(hf(ids).logits, logits)
    assert len(hf(ids, output_hidden_states=True).hidden_states) == 3
    assert modules_of(hf) == modules
    assert list(hf.state_dict()) == keys
    assert hf.config._attn_implementation == "sdpa"
    theirs = {p.untyped_storage().data_ptr() for p in hf.parameters()}
    inside: PreTrainedModel = model.backend_object.original_model
    copied = {n: p.numel() for n, p in inside.named_parameters() if p.untyped_storage().data_ptr() not in theirs}
    fused = sum(p.numel() for n, p in hf.named_parameters() if "query_key_value" in n)
    assert sum(copied.values()) == fused
    assert (f"{fused:,} parameters" in str(model.describe())) == bool(fused)
    with torch.no_grad():
        model.parts.blocks[0].o.weight.mul_(2)
    close(model.run(ids, logits="all").logits, hf(ids).logits)


def test_describe_says_that_attention_is_always_eager() -> None:
    model = interp.wrap(build("llama", "sdpa"), backend="transformer_lens")
    assert model.attention == "eager"
    assert "always computes eager attention" in str(model.describe())


def test_loading_keeps_one_copy_of_the_weights_and_refuses_another_attention(tmp_path: Path) -> None:
    build("llama").save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    model = interp.load(tmp_path, backend="transformer_lens")
    assert model.backend.name == "transformer_lens"
    close(model.run("w4 w5 w6").logits, interp.load(tmp_path).run("w4 w5 w6").logits)
    with pytest.raises(BadInput, match="attention='sdpa'"):
        interp.load(tmp_path, backend="transformer_lens", attention="sdpa")


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "llama"])
def test_the_same_weights_have_the_same_fingerprint(name: str, tmp_path: Path) -> None:
    from transformer_lens.model_bridge import TransformerBridge

    build(name).save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    plain = interp.load(tmp_path)
    loaded = TransformerBridge.boot_transformers(str(tmp_path), device="cpu")
    assert interp.wrap(loaded).fingerprint == plain.fingerprint
    assert interp.wrap(plain, backend="transformer_lens").fingerprint == plain.fingerprint
    with torch.no_grad():
        loaded.original_model.get_input_embeddings().weight[3] += 1
    assert interp.wrap(loaded).fingerprint != plain.fingerprint


@torch.no_grad()
def test_a_users_bridge_stays_as_it_is_and_its_own_hooks_work(bridge: Any) -> None:
    ids, seen = prompts(), []
    model = interp.wrap(bridge)
    assert model.backend_object is bridge
    assert model.tokenizer is bridge.tokenizer
    plain = model.run(ids, logits="all").logits
    bridge.add_hook("blocks.0.hook_resid_post", lambda x, hook: x + 1.0)
    bridge.add_hook("unembed.hook_out", lambda x, hook: seen.append(x.shape))
    bridge.add_perma_hook("blocks.1.attn.hook_pattern", lambda x, hook: seen.append(x.shape))
    before, hooks = bridge(ids), hooks_on(bridge)
    seen.clear()
    trace = model.run(ids, read=["resid_post.0", "pattern.1"], logits="last")
    assert seen == [(2, 4, 12, 12), (2, 12, 199)], "the user's hooks see every position"
    close(trace.logits, before[:, -1])
    close(trace.logits, interp.wrap(build("llama")).run(ids, edits=interp.add("resid_post.0", torch.ones(64))).logits)
    assert (before - plain).abs().max() > 1e-2
    model.run(ids, edits=[interp.zero("z.0"), interp.attend("pattern.0", 1), interp.add("q_rot.1", torch.ones(4, 32))])
    model.generate(ids, max_new_tokens=2)
    assert hooks_on(bridge) == hooks
    assert torch.equal(bridge(ids), before)
    bridge.reset_hooks(including_permanent=True)
    assert torch.equal(model.run(ids, logits="all").logits, plain)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("name", ["llama", "gpt_neox", "bitnet"])
@torch.no_grad()
def test_nothing_stays_behind_when_a_run_ends_badly(name: str, error: type[BaseException], boot: Boot) -> None:
    bridge, ids = boot(name), prompts()
    model = interp.wrap(bridge)
    before, hooks = bridge(ids), hooks_on(bridge)
    methods = [set(vars(block.attn)) for block in bridge.blocks]

    def fail(rows: object, positions: Tensor, layer: int) -> Tensor:
        if layer == 1:
            raise error("in the middle")
        return positions

    edits = [interp.scale("q_rot.0", 2.0), interp.zero("head_out.0.1")]
    with pytest.raises(error, match="in the middle"):
        model.run(ids, read=[interp.RowFold("broken", fail), "z"], edits=edits)
    assert hooks_on(bridge) == hooks
    assert [set(vars(block.attn)) for block in bridge.blocks] == methods
    assert bridge.context_level == 0
    assert model.backend.cache is None  # type: ignore[attr-defined]
    assert torch.equal(bridge(ids), before)
    close(model.run(ids, logits="all").logits, before)


@torch.no_grad()
def test_a_run_stops_after_the_last_layer_it_reads_and_leaves_the_bridge_clean(bridge: Any) -> None:
    ids, late = prompts(), []
    before = bridge(ids)
    bridge.add_hook("blocks.1.hook_resid_pre", lambda x, hook: late.append(hook.name))
    model = interp.wrap(bridge)
    for read in ("attn_in.0", "pattern.0", "z.0", "mlp_in.0", "resid_post.0"):
        assert model.run(ids, read=read).stopped_after is not None
    assert late == []
    assert torch.equal(bridge(ids), before)
    assert late == ["blocks.1.hook_in"]


def test_a_run_keeps_nothing_that_was_not_asked_for(bridge: Any) -> None:
    model, alive = interp.wrap(bridge), []

    def watch(value: Tensor, hook: Any) -> None:
        gc.collect()
        alive.append(sum(ref() is not None for ref in earlier))
        earlier.append(weakref.ref(value))

    earlier: list[weakref.ref[Tensor]] = []
    for layer in (0, 1):
        bridge.add_hook(f"blocks.{layer}.attn.hook_rot_q", watch)
    model.run(prompts(), read=["attention_stats", "resid_mid.1", "head_out.1"])
    assert alive == [0, 0], "the queries of layer 0 are gone when those of layer 1 are computed"


def test_rows_are_folded_as_on_the_hooks_backend() -> None:
    fold = interp.RowFold("first", lambda rows, positions, layer: rows.pattern[..., 0].sum((0, 2)))
    mine, theirs = (m("gemma2").run(prompts(), read=[fold, "attention_stats"]) for m in (bridged, hooked))
    for layer in (0, 1):
        close(mine.folds["first"][layer], theirs.folds["first"][layer])
        for a, b in zip(*(tensors(trace[f"attention_stats.{layer}"]) for trace in (mine, theirs)), strict=True):
            close(a, b)


def test_a_run_inside_a_run_is_refused(bridge: Any) -> None:
    model = interp.wrap(bridge)
    with pytest.raises(BadInput, match="in the middle of a run"):
        model.run(prompts(), read=interp.RowFold("again", lambda *_: model.run(prompts()).logits))
    model.run(prompts())


def test_threads_on_one_bridge_get_right_answers(bridge: Any) -> None:
    first, second = interp.wrap(bridge), interp.wrap(bridge)
    assert first.lock is second.lock
    assert wrong_answers(jobs_on(first, second), rounds=15) == 0


def test_without_the_lock_the_same_threads_fail(bridge: Any) -> None:
    first, second = interp.wrap(bridge), interp.wrap(bridge)
    first.lock, second.lock = threading.RLock(), threading.RLock()
    assert wrong_answers(jobs_on(first, second), rounds=15) > 0


def test_raw_compatibility_mode_is_read_as_it_is(bridge: Any) -> None:
    ids, edits = prompts(), [interp.zero("resid_mid.0"), interp.attend("pattern.1", "uniform"), interp.scale("z.1", 2)]
    bridge.enable_compatibility_mode(no_processing=True)
    mine = interp.wrap(bridge).run(ids, read=["resid_post", "head_out.0"], edits=edits, logits="all")
    theirs = hooked("llama").run(ids, read=["resid_post", "head_out.0"], edits=edits, logits="all")
    close(mine.logits, theirs.logits)
    for site in theirs:
        close(mine[site], theirs[site], site)
    padded = interp.wrap(bridge).run(ragged(), read=["pattern", "resid_post.1"], padding_side="left")
    for i, row in enumerate(ragged()):
        alone, n = hooked("llama").run([row], read=["pattern", "resid_post.1"]), len(row)
        close(padded["pattern.0"][i, :, :n, :n], alone["pattern.0"][0])
        close(padded["resid_post.1"][i, :n], alone["resid_post.1"][0])


def test_processed_weights_are_refused_before_and_after_wrapping(boot: Boot) -> None:
    bridge = boot("gpt2")
    model = interp.wrap(bridge)
    bridge.enable_compatibility_mode()
    for attempt in (lambda: interp.wrap(bridge), lambda: model.run(prompts())):
        with pytest.raises(BadInput, match="no_processing=True"):
            attempt()


def test_a_bridge_in_training_mode_is_refused(bridge: Any) -> None:
    model = interp.wrap(bridge)
    bridge.train()
    with pytest.raises(BadInput, match=r"call bridge\.eval\(\)"):
        model.run(prompts())
    bridge.eval()
    model.run(prompts())


def test_objects_that_cannot_be_run_are_refused_saying_what_to_do(bridge: Any) -> None:
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge import TransformerBridge

    old = type("HookedTransformer", (nn.Module,), {"__module__": "transformer_lens.HookedTransformer"})
    with pytest.raises(UnsupportedArchitecture, match=r"TransformerLens 3 .*boot_transformers"):
        interp.wrap(old())
    other = type("RemoteBridge", (nn.Module,), {"__module__": "transformer_lens.model_bridge.remote_bridge"})
    with pytest.raises(UnsupportedArchitecture, match="not a RemoteBridge"):
        interp.wrap(other())
    config = TransformerBridgeConfig(
        n_layers=1, d_model=8, n_ctx=8, d_head=4, n_heads=2, d_vocab=9, act_fn="gelu", d_mlp=8
    )
    with pytest.raises(UnsupportedArchitecture, match="not a transformers model"):
        interp.wrap(TransformerBridge.boot_native(config))
    with pytest.raises(BadInput, match="runs on the transformer_lens backend; for hooks give the transformers model"):
        interp.wrap(bridge, backend="hooks")
    spread = build("llama")
    spread.model._hf_hook = object()
    with pytest.raises(UnsupportedArchitecture, match="device_map"):
        interp.wrap(spread, backend="transformer_lens")


def test_sites_that_a_bridge_does_not_show_are_refused_with_the_reason() -> None:
    model = bridged("opt")
    rotary = dataclasses.replace(model.parts.architecture, rotary=True)
    parts = dataclasses.replace(model.parts, architecture=rotary, refusals={})
    deeper = dataclasses.replace(model.spec, layers=3)
    bridge = model.backend_object
    refused = backend_module.TransformerLensBackend(bridge, model.hf, parts, deeper).refusals
    assert (
        refused["pattern"]
        == "the AttentionBridge of TransformerLens does not show queries and keys as attention uses them"
    )
    assert refused["z"] == "this TransformerBridge has no hook blocks.2.attn.hook_z"


def test_bridges_and_what_is_made_of_them_are_forgotten(boot: Boot) -> None:
    model = interp.wrap(boot("llama"))
    model.run(prompts(), read="pattern")
    gone = [weakref.ref(model.backend_object), weakref.ref(model.hf)]
    del model
    gc.collect()
    assert [ref() for ref in gone] == [None, None]


def test_transformer_lens_is_imported_only_when_it_is_needed() -> None:
    for module in (backend_module, points_module):
        tree = ast.parse(inspect.getsource(module))
        named = {
            name.split(".")[0]
            for node in tree.body
            for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [])
            + ([alias.name for alias in node.names] if isinstance(node, ast.Import) else [])
        }
        assert "transformer_lens" not in named
        assert "torch" in named
