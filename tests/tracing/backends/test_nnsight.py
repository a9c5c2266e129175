"""On nnsight models: the same values, edits and tokens as on the model itself, through nnsight's own traces."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import nnsight
import pytest
import torch
from nnsight import LanguageModel, NNsight, TransformersModel
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import interp
from interp.errors import BadInput, ModelNotLoadable, SiteDidNotFire, UnsupportedArchitecture
from interp.tracing.interventions import KINDS
from interp.tracing.sites import SITES
from tests.families import build, prompts, ragged, word_tokenizer
from tests.tracing.handwritten import HandModel
from tests.tracing.test_plans import everything, hooks_of, live_tensors
from tests.tracing.test_reads import close, tensors
from tests.tracing.test_threads import wrong_answers

Pair = tuple[interp.Model, interp.Model]
ORDERS = ["gpt2", "gpt_neox", "opt", "mistral", "gemma3", "cohere", "gpt_oss", "gptj", "falcon_grouped", "bert"]
"""Families that compute their parts in different orders."""


@cache
def pair(family: str, attention: str = "sdpa", dtype: torch.dtype = torch.float32) -> Pair:
    """One model wrapped twice: by nnsight, and plainly."""
    hf = build(family, attention, dtype)
    if hf.can_generate():
        hf.generation_config.eos_token_id = None
    return interp.wrap(hf, word_tokenizer(), backend="nnsight"), interp.wrap(hf, word_tokenizer())


@pytest.fixture
def llama() -> Pair:
    return pair("llama")


@pytest.fixture
def uncompiled() -> Iterator[None]:
    with torch.compiler.set_stance("force_eager"):
        yield


def names(model: interp.Model) -> list[str]:
    return [name for name in SITES if name not in model.refusals]


def assert_same(a: interp.Trace, b: interp.Trace) -> None:
    assert a.keys() == b.keys()
    for site in a:
        for x, y in zip(tensors(a[site]), tensors(b[site]), strict=True):
            close(x, y, site)


@pytest.mark.filterwarnings("ignore:Module .* has a submodule named 'output'")
def test_every_site_equals_its_hand_computation_and_that_of_the_hooks(family: str) -> None:
    ids = prompts()
    ours, plain = pair(family, "eager")
    trace = ours.run(ids, read=names(ours), logits="all")
    assert_same(trace, plain.run(ids, read=names(plain)))
    assert ours.refusals == plain.refusals
    with torch.no_grad():
        expected = HandModel(ours.hf).run(ids)
    assert len(trace) > 15
    for site in trace:
        if site.name != "attention_stats":
            close(trace[site], expected[str(site)], site)
    close(trace.logits, expected["logits"])


@pytest.mark.filterwarnings("ignore:Module .* has a submodule named 'output'")
@pytest.mark.parametrize("family", ORDERS)
def test_an_edit_of_every_site_equals_that_of_the_hooks(family: str) -> None:
    ids = prompts()
    ours, plain = pair(family, "eager")
    unedited = plain.run(ids, logits="all").logits
    for name in names(ours):
        if SITES[name].editable:
            edit = interp.scale(name if SITES[name].scope == "model" else f"{name}.1", -0.6)
            logits = ours.run(ids, edits=edit, logits="all").logits
            close(logits, plain.run(ids, edits=edit, logits="all").logits, name)
            assert (logits - unedited).abs().max() > 1e-2, f"{name} had no effect"


def edits_of(site: str, features: tuple[int, ...], donor: interp.Trace) -> list[interp.Edit]:
    """One edit of every kind."""
    generator = torch.Generator().manual_seed(3)
    vector = torch.randn(features, generator=generator)
    basis = torch.randn(2, vector.numel(), generator=generator)
    return [
        interp.zero(site),
        interp.scale(site, -1.7),
        interp.mean(site, donor),
        interp.patch(site, donor).at(positions=slice(2, 9)),
        interp.resample(site, donor),
        interp.add(site, vector, -2.0).at(rows=1),
        interp.set_coordinate(site, vector, 2.0),
        interp.project_out(site, basis).at(positions=(0, -1)),
        interp.swap_subspace(site, basis, donor),
    ]


@pytest.mark.parametrize(
    "site", ["embed", "resid_pre.1", "k.0.1", "q_rot.1.3", "z.1.2", "head_out.1.0", "resid_mid.0", "mlp_post.1"]
)
def test_every_kind_of_edit_equals_that_of_the_hooks(llama: Pair, site: str) -> None:
    ids = prompts()
    ours, plain = llama
    unedited = plain.run(ids, logits="all").logits
    donor = plain.run(prompts(seed=9), read=site)
    edits = edits_of(site, tuple(donor[site].shape[2:]), donor)
    assert {edit.kind for edit in edits} == set(KINDS)
    for edit in edits:
        logits = ours.run(ids, edits=edit, logits="all").logits
        close(logits, plain.run(ids, edits=edit, logits="all").logits, edit)
        assert (logits - unedited).abs().max() > 1e-2, f"{edit} had no effect"


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile", "ignore:_compile flag")
@pytest.mark.parametrize("attention", ["eager", "sdpa", "flex_attention"])
def test_the_attention_implementation_stays_and_its_rows_are_read_and_forced(attention: str, uncompiled: None) -> None:
    ids = prompts()
    ours, plain = pair("llama", attention)
    assert ours.attention == ours.hf.config._attn_implementation == attention
    mass = interp.RowFold("mass", lambda rows, _positions, _layer: rows.pattern.sum(2))
    read = ["q_rot", "k_rot", "pattern", "attention_stats", "z", mass]
    edits = [interp.attend("pattern.0.1", "uniform"), interp.scale("k_rot.1", 0.5), interp.attend("pattern.1", 3)]
    a, b = (model.run(ids, read=read, edits=edits, logits="all") for model in (ours, plain))
    assert_same(a, b)
    close(a.logits, b.logits)
    close(a.folds["mass"][1], b.folds["mass"][1])
    assert (a.logits - plain.run(ids, logits="all").logits).abs().max() > 1e-2


def test_a_kernel_of_the_users_own_is_the_one_that_computes(llama: Pair) -> None:
    ours, _ = llama
    calls = []

    def mine(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        calls.append(module.layer_idx)
        return ALL_ATTENTION_FUNCTIONS._global_mapping["sdpa"](module, *args, **kwargs)

    ALL_ATTENTION_FUNCTIONS["sdpa"] = mine
    try:
        ours.run(prompts(), read="pattern.0", edits=interp.zero("z.0.1"), logits="last")
    finally:
        del ALL_ATTENTION_FUNCTIONS["sdpa"]
    assert calls == [0, 1]


def objects(hf: PreTrainedModel) -> dict[str, Callable[[], Any]]:
    return {
        "NNsight": lambda: NNsight(hf),
        "TransformersModel": lambda: TransformersModel(hf, tokenizer=word_tokenizer()),
        "LanguageModel": lambda: LanguageModel(hf, tokenizer=word_tokenizer()),
    }


@pytest.mark.filterwarnings("ignore:LanguageModel")
@pytest.mark.parametrize("kind", ["NNsight", "TransformersModel", "LanguageModel"])
def test_an_nnsight_object_is_recognised_and_used_as_it_is(kind: str) -> None:
    hf = build("llama", "sdpa")
    plain = interp.wrap(hf, word_tokenizer())
    where = [p.data_ptr() for p in hf.parameters()]
    obj = objects(hf)[kind]()
    model = interp.wrap(obj)
    assert model.backend_object is obj
    assert model.backend.name == "nnsight"
    assert model.hf is obj._module is hf
    assert model.lock is plain.lock
    assert [p.data_ptr() for p in model.hf.parameters()] == where
    text = "w3 w4 w5" if kind != "NNsight" else [[3, 4, 5]]
    if kind == "NNsight":
        assert model.tokenizer is None
    else:
        assert model.tokenizer is obj.tokenizer
    read = ["resid_mid.0", "pattern.1", "z.1"]
    assert_same(model.run(text, read=read), plain.run([[3, 4, 5]], read=read))
    rows = ragged()
    assert model.generate(rows, max_new_tokens=3).tokens == plain.generate(rows, max_new_tokens=3).tokens
    again = interp.wrap(model, tokenizer=word_tokenizer())
    assert again.backend_object is obj


def test_a_plain_model_is_wrapped_and_loaded_without_copying_a_weight(tmp_path: Path) -> None:
    hf = build("llama", "sdpa")
    where = [p.data_ptr() for p in hf.parameters()]
    model = interp.wrap(hf, backend="nnsight")
    assert model.hf is hf
    assert [p.data_ptr() for p in model.hf.parameters()] == where
    assert isinstance(model.backend_object, NNsight)
    assert interp.wrap(model).backend_object is model.backend_object
    hf.save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    loaded = interp.load(tmp_path, backend="nnsight", device="cpu")
    assert loaded.backend.name == "nnsight"
    close(loaded.run("w3 w4 w5").logits, model.run([[3, 4, 5]]).logits)


def test_a_wrapped_model_goes_over_to_another_backend(llama: Pair) -> None:
    ours, plain = llama
    back = interp.wrap(ours, backend="hooks")
    assert (back.backend.name, back.hf, back.tokenizer) == ("hooks", ours.hf, ours.tokenizer)
    assert interp.wrap(plain, backend="nnsight").backend.name == "nnsight"
    assert interp.wrap(ours, backend="nnsight").backend_object is ours.backend_object


def test_a_model_that_nnsight_has_not_loaded_yet_is_loaded_when_wrapped(tmp_path: Path) -> None:
    build("llama", "sdpa").save_pretrained(tmp_path)
    lazy = [TransformersModel(str(tmp_path), task="text-generation", tokenizer=word_tokenizer()) for _ in range(2)]
    assert not lazy[0].dispatched
    model = interp.wrap(lazy[0])
    assert lazy[0].dispatched
    assert not any(p.is_meta for p in model.hf.parameters())
    close(model.run(prompts()).logits, pair("llama")[1].run(prompts()).logits)
    next(tmp_path.glob("*.safetensors")).unlink()
    with pytest.raises(ModelNotLoadable, match=f"nnsight cannot load the weights of {tmp_path}"):
        interp.wrap(lazy[1])


def by_hand_gpt2(m: Any, ids: Tensor) -> dict[str, Tensor]:
    """What an nnsight user writes for GPT-2, with that library's names for the places."""
    layers, heads, dim = 2, 4, 32
    with torch.no_grad(), m.trace(ids):
        saved = nnsight.save({})
        for i in range(layers):
            block = m.transformer.h[i]
            saved[f"resid_pre.{i}"] = block.input
            saved[f"attn_in.{i}"] = block.ln_1.output
            for name, part in zip("qkv", block.attn.c_attn.output.chunk(3, dim=-1), strict=True):
                saved[f"{name}.{i}"] = part.unflatten(-1, (heads, dim))
            saved[f"z.{i}"] = block.attn.c_proj.input.unflatten(-1, (heads, dim))
            saved[f"attn_out.{i}"] = block.attn.output[0]
            saved[f"resid_mid.{i}"] = block.ln_2.input
            saved[f"mlp_in.{i}"] = block.ln_2.output
            saved[f"mlp_post.{i}"] = block.mlp.c_proj.input
            saved[f"mlp_out.{i}"] = block.mlp.output
            saved[f"resid_post.{i}"] = block.output
        saved["final_norm"] = m.transformer.ln_f.output
        saved["logits"] = m.output.logits
    return saved


def by_hand_llama(m: Any, ids: Tensor) -> dict[str, Tensor]:
    layers, dim = 2, 32
    with torch.no_grad(), m.trace(ids):
        saved = nnsight.save({})
        for i in range(layers):
            block = m.model.layers[i]
            saved[f"resid_pre.{i}"] = block.input
            saved[f"attn_in.{i}"] = block.input_layernorm.output
            saved[f"q.{i}"] = block.self_attn.q_proj.output.unflatten(-1, (-1, dim))
            saved[f"k.{i}"] = block.self_attn.k_proj.output.unflatten(-1, (-1, dim))
            saved[f"v.{i}"] = block.self_attn.v_proj.output.unflatten(-1, (-1, dim))
            saved[f"z.{i}"] = block.self_attn.o_proj.input.unflatten(-1, (-1, dim))
            saved[f"attn_out.{i}"] = block.self_attn.output[0]
            saved[f"pattern.{i}"] = block.self_attn.output[1]
            saved[f"resid_mid.{i}"] = block.post_attention_layernorm.input
            saved[f"mlp_in.{i}"] = block.post_attention_layernorm.output
            saved[f"mlp_post.{i}"] = block.mlp.down_proj.input
            saved[f"mlp_out.{i}"] = block.mlp.output
            saved[f"resid_post.{i}"] = block.output
        saved["final_norm"] = m.model.norm.output
        saved["logits"] = m.output.logits
    return saved


@pytest.mark.parametrize(("family", "by_hand"), [("gpt2", by_hand_gpt2), ("llama", by_hand_llama)])
def test_reads_equal_what_nnsight_saves_by_hand_name_by_name(
    family: str, by_hand: Callable[[Any, Tensor], dict[str, Tensor]]
) -> None:
    ids = prompts()
    obj = NNsight(build(family, "eager"))
    saved = by_hand(obj, ids)
    trace = interp.wrap(obj).run(ids, read=list(saved))
    assert {str(site) for site in trace} == set(saved)
    for name, value in saved.items():
        close(trace[name], value, name)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3"])
def test_generation_under_edits_gives_the_tokens_and_reads_of_the_hooks(family: str) -> None:
    ours, plain = pair(family)
    width = ours.spec.width
    edits = [
        interp.scale("z.0.1", -2.0),
        interp.add("resid_mid.1", torch.ones(width)),
        interp.attend("pattern.1.0", "uniform"),
        interp.scale("resid_post.0", 0.5).at(positions=-1),
        interp.zero("mlp_post.0").at(positions=slice(5, 15)),
    ]
    ask: dict[str, Any] = {"max_new_tokens": 5, "edits": edits, "read": ["resid_post.1", "attention_stats", "k.0"]}
    a, b = (model.generate(ragged(), **ask) for model in (ours, plain))
    assert a.tokens == b.tokens
    torch.testing.assert_close(a.log_probabilities, b.log_probabilities, rtol=1e-4, atol=1e-4)
    assert a.trace is not None
    assert b.trace is not None
    assert_same(a.trace, b.trace)
    unedited = plain.generate(ragged(), max_new_tokens=5)
    changed = [abs(x[0] - y[0]) for x, y in zip(a.log_probabilities, unedited.log_probabilities, strict=True)]
    assert max(changed) > 1e-2


@pytest.mark.parametrize("wrapper", [NNsight, TransformersModel])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", ["gpt2", "mistral"])
def test_padded_prompts_read_what_each_reads_alone(family: str, side: Any, wrapper: Any) -> None:
    hf = build(family, "sdpa")
    model = interp.wrap(NNsight(hf) if wrapper is NNsight else TransformersModel(hf, tokenizer=word_tokenizer()))
    read = ["resid_mid.1", "k.1", "mlp_post.0", "attention_stats.1"]
    edit = interp.scale("z.0.1", -3.0).at(positions=-1)
    together = model.run(ragged(), read=read, edits=edit, logits="last", padding_side=side)
    for i, row in enumerate(ragged()):
        alone = model.run([row], read=read, edits=edit, logits="last")
        close(together.logits[i], alone.logits[0])
        for site in ("resid_mid.1", "k.1", "mlp_post.0"):
            close(together[site][i, : len(row)], alone[site][0], site)
        assert torch.equal(together["attention_stats.1"].argmax[i, :, : len(row)], alone["attention_stats.1"].argmax[0])


@pytest.mark.parametrize("wrapper", [NNsight, TransformersModel])
def test_a_prefix_is_computed_once_and_shared(wrapper: Any) -> None:
    hf = build("llama", "sdpa")
    model = interp.wrap(NNsight(hf) if wrapper is NNsight else TransformersModel(hf, tokenizer=word_tokenizer()))
    plain = interp.wrap(hf)
    start = prompts(1, 6)[0].tolist()
    rows = [start + prompts(1, n, seed=n)[0].tolist() for n in (4, 2)]
    edit = interp.scale("z.0.1", -3.0)
    prefix = model.prefill([start], edits=edit)
    whole = plain.run(rows, read="resid_post.1", edits=edit, logits="last")
    shared = model.run(rows, read="resid_post.1", edits=edit, logits="last", prefix=prefix)
    close(shared.logits, whole.logits)
    close(shared["resid_post.1"][0], whole["resid_post.1"][0, 6:])


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_gradients_equal_those_of_the_hooks(family: str) -> None:
    ids = prompts()
    ours, plain = pair(family, dtype=torch.float64)
    sites = ["embed", "resid_pre.0", "resid_mid.0", "q.0", "z.1", "head_out.0", "mlp_post.1"]
    found = []
    for model in (ours, plain):
        vector = torch.ones(model.spec.width, dtype=torch.float64, requires_grad=True)
        trace = model.run(ids, read=sites, edits=interp.add("resid_mid.0", vector), logits="last", grad=True)
        trace.logits.pow(2).sum().backward()
        assert vector.grad is not None
        found.append([vector.grad, *(trace.grad(site) for site in sites)])
    for mine, theirs in zip(*found, strict=True):
        assert mine.abs().max() > 1e-3
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)
    assert not ours.run(ids, read="z.0")["z.0"].requires_grad


@pytest.mark.parametrize("last", ["resid_mid.0", "pattern.0", "mlp_out.0"])
def test_a_run_stops_after_the_last_site_it_reads(llama: Pair, last: str) -> None:
    ours, plain = llama
    reached: list[int] = []
    handles = [
        block.module.register_forward_hook(lambda *_, layer=layer: reached.append(layer))
        for layer, block in enumerate(ours.parts.blocks)
    ]
    try:
        trace = ours.run(prompts(), read=["resid_pre.0", last])
    finally:
        for handle in handles:
            handle.remove()
    assert reached == []
    assert_same(trace, plain.run(prompts(), read=["resid_pre.0", last]))


def test_the_model_passes_its_own_check(llama: Pair) -> None:
    ours, _ = llama
    assert ours.doctor().ok, str(ours.doctor())
    assert "nnsight backend, sdpa attention" in str(ours.describe())


class Interruption(Exception):
    pass


def state_of(obj: Any) -> tuple[Any, ...]:
    """What a run could leave behind: in nnsight, on the modules, in transformers' table, in Python."""
    interleaver = obj.interleaver
    return (
        list(interleaver.mediators),
        interleaver.batcher,
        interleaver.interleaving,
        hooks_of(obj._module),
        dict(ALL_ATTENTION_FUNCTIONS._local_mapping),
        sys.gettrace(),
        torch.is_grad_enabled(),
    )


@pytest.mark.parametrize("where", ["the model", "the kernel", "the trace", "nowhere"])
@pytest.mark.parametrize("interruption", [Interruption, KeyboardInterrupt, SystemExit])
def test_nothing_stays_behind_after_a_run_an_error_or_an_interrupt(
    llama: Pair, where: str, interruption: type[BaseException]
) -> None:
    ours, plain = llama
    ids = prompts()
    read = ["resid_pre", "pattern", "z", "resid_mid"]
    expected = plain.run(ids, read=read, logits="all")
    ours.run(ids, read="z.0")
    before = state_of(ours.backend_object)

    def interrupt(*_: object) -> Any:
        raise interruption

    ask: dict[str, Any] = {"read": list(read), "logits": "all"}
    handle = None
    if where == "the model":
        handle = ours.parts.blocks[1].mlp.register_forward_pre_hook(interrupt)
    elif where == "the kernel":
        ask["read"].append(interp.RowFold("stop", interrupt))
    elif where == "the trace":
        ask["edits"] = interp.Edit("scale", interp.Site("z", 0), {}, Raising(interruption))
    if where == "nowhere":
        ours.run(ids, **ask)
    else:
        with pytest.raises(interruption):
            ours.run(ids, **ask)
    if handle is not None:
        handle.remove()
    assert state_of(ours.backend_object) == before
    trace = ours.run(ids, read=read, logits="all")
    assert_same(trace, expected)
    close(trace.logits, expected.logits)


class Raising(dict):
    """Parameters of an edit that cannot be read, as when Ctrl-C comes while an edit acts."""

    def __init__(self, error: type[BaseException]) -> None:
        self.error = error

    def __getitem__(self, _key: object) -> Any:
        raise self.error


def test_runs_and_the_users_own_traces_do_not_change_each_other() -> None:
    hf = build("llama", "sdpa")
    m = NNsight(hf)
    model, plain = interp.wrap(m), interp.wrap(hf)
    ids = prompts()

    def own_trace() -> Tensor:
        with torch.no_grad(), m.trace(ids):
            m.model.layers[0].mlp.output[:] = 0
            hidden = nnsight.save(m.model.layers[1].output)
        return hidden  # noqa: RET504

    wanted = plain.run(ids, read="resid_post.1", edits=interp.zero("mlp_out.0"))["resid_post.1"]
    first = model.run(ids, read=["resid_post.1", "pattern.1"], logits="all")
    close(own_trace(), wanted)
    model.run(ids, edits=interp.zero("resid_mid.0"), read="z.1")
    close(own_trace(), wanted)
    last = model.run(ids, read=["resid_post.1", "pattern.1"], logits="all")
    assert_same(first, last)
    assert torch.equal(first.logits, last.logits)
    with torch.no_grad():
        close(hf(ids).logits, first.logits)


def test_an_edit_that_the_object_itself_holds_stays_in_force() -> None:
    hf = build("llama", "sdpa")
    m = NNsight(hf)
    model, plain = interp.wrap(m), interp.wrap(hf)
    ids = prompts()
    with m.edit(inplace=True):
        m.model.layers[0].mlp.output = m.model.layers[0].mlp.output * 0
    zeroed = plain.run(ids, read="resid_post.1", edits=interp.zero("mlp_out.0"))
    assert_same(model.run(ids, read="resid_post.1"), zeroed)
    with m.edit(inplace=True):
        m.model.layers[1].mlp.output = m.model.layers[1].mlp.output * 0
    for earlier in ("resid_post.0", "pattern.1"):  # before the second of the object's edits can act
        wanted = plain.run(ids, read=earlier, edits=interp.zero("mlp_out.0"))
        assert_same(model.run(ids, read=earlier), wanted)
    m.clear_edits()
    assert_same(model.run(ids, read="resid_post.1"), plain.run(ids, read="resid_post.1"))


def test_a_run_inside_a_run_or_inside_a_trace_is_refused(llama: Pair) -> None:
    ours, _ = llama
    m = ours.backend_object
    fold = interp.RowFold("again", lambda *_: ours.run(prompts()).logits)
    with pytest.raises(BadInput, match="in the middle of a run"):
        ours.run(prompts(), read=fold)
    with pytest.raises(BadInput, match="in the middle of a trace"), m.trace(prompts()):
        m.model.layers[0].output  # noqa: B018
        ours.run(prompts())
    ours.run(prompts())


@pytest.fixture
def often() -> Iterator[None]:
    """Threads take turns every 10 microseconds."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def test_threads_on_one_model_and_on_two_wrappers_of_it_get_right_answers(often: None) -> None:
    hf = build("llama", "sdpa")
    first, second, plain = interp.wrap(NNsight(hf)), interp.wrap(NNsight(hf)), interp.wrap(hf)
    ids = prompts()
    edit, force = interp.scale("z.0.1", -3.0), interp.attend("pattern.1", "uniform")
    jobs: list[Callable[[], Tensor]] = [
        lambda: first.run(ids, edits=edit).logits,
        lambda: first.run(ids, read="resid_post.1")["resid_post.1"],
        lambda: second.run(ids, read="pattern.1", edits=force, logits="last").logits,
        lambda: torch.tensor(second.generate(ids, max_new_tokens=2, edits=edit).log_probabilities),
        lambda: plain.run(ids, edits=edit).logits,
    ]
    assert wrong_answers(jobs, rounds=20) == 0


def test_another_thread_than_the_one_that_wrapped_the_model_may_run_it() -> None:
    expected = pair("llama")[1].run(prompts(), edits=interp.zero("z.0.1")).logits
    made: list[interp.Model] = []
    maker = threading.Thread(target=lambda: made.append(interp.wrap(NNsight(build("llama", "sdpa")))))
    maker.start()
    maker.join()
    close(made[0].run(prompts(), edits=interp.zero("z.0.1")).logits, expected)


LAZY = """
import sys
import torch
import interp
from interp import load
from tests.families import build, prompts
trace = interp.wrap(build("llama", "sdpa")).run(prompts(), read="resid_post", edits=interp.zero("z.0.1"))
assert "nnsight" not in sys.modules
assert not hasattr(object(), "save")
assert torch.Tensor.backward.__module__ == "torch._tensor"
model = interp.wrap(build("llama", "sdpa"), backend="nnsight")
again = model.run(prompts(), read="resid_post", edits=interp.zero("z.0.1"))
assert "nnsight" in sys.modules
assert torch.equal(trace["resid_post.1"], again["resid_post.1"])
"""


def test_nnsight_is_imported_only_by_the_backend_that_needs_it(root: Path) -> None:
    """Importing nnsight adds a method `save` to every Python object."""
    subprocess.run([sys.executable, "-c", LAZY], check=True, cwd=root, timeout=120)


class Skipping(nn.Module):
    """A block that leaves its MLP out."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block
        for name, child in block.named_children():
            setattr(self, name, child)
        self.skips = True

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        if not self.skips:
            return self.block(hidden_states, **kwargs)
        attended, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **kwargs)
        return hidden_states + attended


def test_a_planned_read_or_edit_that_never_happens_raises() -> None:
    hf = build("llama", "sdpa")
    hf.model.layers[1] = Skipping(hf.model.layers[1])
    model = interp.wrap(hf, backend="nnsight")
    model.run(prompts(), read=["mlp_out.0", "resid_post.1"])
    with pytest.raises(SiteDidNotFire, match=r"never reached: mlp_out.1\."):
        model.run(prompts(), read="mlp_out", logits="last")
    with pytest.raises(SiteDidNotFire, match=r"never reached: zero\(mlp_post.1\)"):
        model.run(prompts(), edits=[interp.zero("mlp_post.1"), interp.zero("mlp_post.0")])


def test_a_pass_that_goes_another_way_than_the_first_one_says_so() -> None:
    hf = build("llama", "sdpa")
    hf.model.layers[1] = Skipping(hf.model.layers[1])
    hf.model.layers[1].skips = False
    model = interp.wrap(hf, backend="nnsight")
    model.run(prompts(), read="mlp_out.1")
    hf.model.layers[1].skips = True
    with pytest.raises(SiteDidNotFire, match="went another way"):
        model.run(prompts(), read=["mlp_out.1", "resid_post.1"])
    model.run(prompts(), read="resid_post.1")


class CallingByName(nn.Module):
    """A block that names what it gives its MLP."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        for name, child in block.named_children():
            setattr(self, name, child)

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        attended, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **kwargs)
        middle = hidden_states + attended
        return middle + self.mlp(x=self.post_attention_layernorm(middle))


def test_a_module_that_is_called_by_name_is_read_and_edited() -> None:
    hf = build("llama", "sdpa")
    hf.model.layers[1] = CallingByName(hf.model.layers[1])
    plain = pair("llama")[1]
    for backend in ("nnsight", "hooks"):
        model = interp.wrap(hf, backend=backend)
        edit = interp.scale("mlp_in.1", -2.0)
        assert_same(model.run(prompts(), read="mlp_in.1"), plain.run(prompts(), read="mlp_in.1"))
        close(model.run(prompts(), edits=edit).logits, plain.run(prompts(), edits=edit).logits)


def test_a_part_of_an_nnsight_model_is_refused() -> None:
    m = NNsight(build("llama", "sdpa"))
    with pytest.raises(UnsupportedArchitecture, match=r"model.model.layers.1 is one part .* its .root"):
        interp.wrap(m.model.layers[1])
    assert interp.wrap(m.model.layers[1].root).backend_object is m


def test_an_nnsight_model_that_now_holds_another_module_is_refused() -> None:
    m = NNsight(build("llama", "sdpa"))
    model = interp.wrap(m)
    m._update(build("llama", "eager"))
    with pytest.raises(BadInput, match="holds another module"):
        model.run(prompts())
    assert interp.wrap(m).attention == "eager"


def test_twenty_runs_keep_no_more_tensors_than_one(llama: Pair) -> None:
    ours, _ = llama

    def once() -> None:
        ours.run(prompts(), **everything())  # type: ignore[arg-type]
        ours.run(prompts(), read="z.0", logits="last", grad=True).logits.sum().backward()

    once()
    before = live_tensors()
    for _ in range(20):
        once()
    assert live_tensors() <= before


def test_a_model_spread_over_devices_by_accelerate_is_traced(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    build("llama", "sdpa").save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    model = interp.load(tmp_path, backend="nnsight", device_map={"": "cpu"})
    edit = interp.scale("resid_mid.0", 2.0)
    read = ["resid_mid.0", "z.1", "pattern.1"]
    assert_same(model.run(prompts(), read=read, edits=edit), pair("llama")[1].run(prompts(), read=read, edits=edit))
