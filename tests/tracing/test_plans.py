"""What a run keeps, where it stops, what it refuses, and what it leaves behind."""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import interp
from interp.errors import BadInput, MemoryBudgetExceeded, SiteDidNotFire, UnknownSite
from interp.tracing.interventions import KINDS
from tests.families import ENCODERS, REPRESENTATIVES, build, prompts
from tests.tracing.test_reads import close, tensors


@pytest.mark.parametrize(
    ("read", "blocks", "mlps", "unembeds"),
    [
        ("embed", 0, 0, 0),
        ("resid_pre.0", 0, 0, 0),
        ("z.0", 0, 0, 0),
        ("pattern.0", 0, 0, 0),
        ("resid_mid.0", 0, 0, 0),
        ("resid_post.0", 1, 1, 0),
        ("attention_stats.1", 1, 1, 0),
        ("final_norm", 2, 2, 0),
        ("logits", 2, 2, 1),
    ],
)
def test_a_run_stops_after_the_last_site_it_reads(
    llama: interp.Model, read: str, blocks: int, mlps: int, unembeds: int
) -> None:
    finished = dict.fromkeys(("block", "mlp", "unembed"), 0)

    def count(name: str) -> Callable[..., None]:
        def hook(*_: object) -> None:
            finished[name] += 1

        return hook

    handles = [llama.hf.lm_head.register_forward_hook(count("unembed"))]
    for block in llama.hf.model.layers:
        handles += [block.register_forward_hook(count("block")), block.mlp.register_forward_hook(count("mlp"))]
    try:
        trace = llama.run(prompts(), read=read)
    finally:
        for handle in handles:
            handle.remove()
    assert finished == {"block": blocks, "mlp": mlps, "unembed": unembeds}
    full = llama.run(prompts(), read=read, logits="last")
    for short, whole in zip(tensors(trace[read]), tensors(full[read]), strict=True):
        close(short, whole)


def test_reading_nothing_keeps_the_last_logits_and_reading_keeps_none(llama: interp.Model) -> None:
    assert llama.run(prompts()).logits.shape == (2, 199)
    with pytest.raises(BadInput, match="kept no logits and stopped after resid_post.0"):
        llama.run(prompts(), read="resid_post.0").logits  # noqa: B018


def test_an_edit_after_the_last_read_is_refused(llama: interp.Model) -> None:
    with pytest.raises(BadInput, match=r"scale\(z.1\) comes after resid_post.0"):
        llama.run(prompts(), read="resid_post.0", edits=interp.scale("z.1", 2.0))
    llama.run(prompts(), read="resid_post.0", edits=interp.scale("z.1", 2.0), logits="last")


@pytest.mark.parametrize(
    ("site", "message"),
    [
        ("resid_psot", "did you mean 'resid_post'"),
        ("z.2", "layers 0 to 1"),
        ("z.1-2", "layers 0 to 1"),
        ("z.1-0", "empty range"),
        ("z.0.4", "query heads 0 to 3"),
        ("k.0.2", "key/value heads 0 to 1"),
        ("resid_post.0.1", "a head needs"),
        ("embed.0", "takes no layer"),
        ("z.x", "write name, name.LAYER or name.LAYER.HEAD"),
        ("z.-1", "write name, name.LAYER or name.LAYER.HEAD"),
    ],
)
def test_a_site_that_does_not_exist_names_what_does(llama: interp.Model, site: str, message: str) -> None:
    with pytest.raises(UnknownSite, match=message):
        llama.run(prompts(), read=site)


class Skipping(nn.Module):
    """A block that leaves its MLP out."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def __getattr__(self, name: str) -> object:
        return super().__getattr__(name) if name == "block" else getattr(self.block, name)

    def forward(self, hidden_states: torch.Tensor, **kwargs: object) -> torch.Tensor:
        attended, _ = self.block.self_attn(hidden_states=self.block.input_layernorm(hidden_states), **kwargs)
        return hidden_states + attended


def test_a_planned_read_or_edit_that_never_happens_raises() -> None:
    hf = build("llama")
    hf.model.layers[1] = Skipping(hf.model.layers[1])
    model = interp.wrap(hf)
    model.run(prompts(), read=["mlp_out.0", "resid_post.1"])
    with pytest.raises(SiteDidNotFire, match=r"never reached: mlp_out.1\."):
        model.run(prompts(), read="mlp_out", logits="last")
    with pytest.raises(SiteDidNotFire, match=r"never reached: zero\(mlp_post.1\)"):
        model.run(prompts(), edits=[interp.zero("mlp_post.1"), interp.zero("mlp_post.0")])


class Features(nn.Module):
    """An MLP whose argument has another name, and which returns more than its output."""

    def __init__(self, mlp: nn.Module) -> None:
        super().__init__()
        self.mlp = mlp
        self.down_proj = mlp.down_proj

    def forward(self, features: torch.Tensor) -> list[torch.Tensor]:
        return [self.mlp(features), features]


class Naming(Skipping):
    """A block that calls its MLP by that name."""

    def forward(self, hidden_states: torch.Tensor, **kwargs: object) -> torch.Tensor:
        middle = super().forward(hidden_states, **kwargs)
        return middle + self.block.mlp(features=self.block.post_attention_layernorm(middle))[0]


def test_modules_called_by_other_names_and_returning_lists_are_read_and_edited(llama: interp.Model) -> None:
    hf = build("llama", attention="sdpa")
    hf.model.layers[1].mlp = Features(hf.model.layers[1].mlp)
    hf.model.layers[1] = Naming(hf.model.layers[1])
    model = interp.wrap(hf)
    edits = [interp.scale("mlp_in.1", -2.0), interp.scale("mlp_out.1", 3.0)]
    got, wanted = (m.run(prompts(), read=["mlp_in.1", "mlp_out.1"], edits=edits, logits="all") for m in (model, llama))
    for site in wanted:
        close(got[site], wanted[site])
    close(got.logits, wanted.logits)
    assert (got.logits - llama.run(prompts(), logits="all").logits).abs().max() > 1e-2


class Hiding(Naming):
    """A block whose MLP is given something that no site can be."""

    def forward(self, hidden_states: torch.Tensor, **kwargs: object) -> torch.Tensor:
        self.block.mlp.forward = lambda **names: [self.block.mlp.mlp(names["features"])]
        return super().forward(hidden_states, **kwargs)


def test_a_module_whose_input_cannot_be_told_says_so() -> None:
    hf = build("llama")
    hf.model.layers[1].mlp = Features(hf.model.layers[1].mlp)
    hf.model.layers[1] = Hiding(hf.model.layers[1])
    model = interp.wrap(hf)
    model.run(prompts(), read="mlp_in.0", logits="last")
    with pytest.raises(
        SiteDidNotFire, match="Features is called with features, none of which is known to be the hidden"
    ):
        model.run(prompts(), read="mlp_in.1", logits="last")


class Wrapping(Features):
    def forward(self, features: torch.Tensor) -> dict[int, torch.Tensor]:  # type: ignore[override]
        return {0: self.mlp(features)}


def test_a_module_whose_output_is_no_tensor_says_so() -> None:
    hf = build("llama")
    hf.model.layers[1].mlp = Wrapping(hf.model.layers[1].mlp)
    hf.model.layers[1] = Naming(hf.model.layers[1])
    with pytest.raises(SiteDidNotFire, match="Wrapping returns a dict, where a tensor is read"):
        interp.wrap(hf).run(prompts(), read="mlp_out.1")


def test_a_generation_that_never_computes_a_planned_position_raises(llama: interp.Model) -> None:
    stop = llama.generate(prompts(1), max_new_tokens=4).tokens[0]
    edit = interp.zero("z.0").at(positions=14)
    llama.generate(prompts(1), max_new_tokens=4, edits=edit)
    with pytest.raises(BadInput, match="position 15 is outside a prompt of 12 tokens and 3 more"):
        llama.generate(prompts(1), max_new_tokens=4, edits=interp.zero("z.0").at(positions=15))
    llama.hf.generation_config.eos_token_id = stop[0]
    try:
        with pytest.raises(SiteDidNotFire, match=r"zero\(z.0\) at 14"):
            llama.generate(prompts(1), max_new_tokens=4, edits=edit)
    finally:
        llama.hf.generation_config.eos_token_id = 1


def hooks_of(hf: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in hf.modules())


def everything() -> dict[str, object]:
    read = ["resid_pre", "q_rot", "k_rot", "pattern", "attention_stats", "z", "head_out", "resid_mid", "mlp_post"]
    return {"read": read, "edits": [interp.scale("z.0.1", 2.0), interp.attend("pattern.1", "uniform")], "logits": "all"}


class Stop(Exception):
    pass


@pytest.mark.parametrize("interruption", [None, Stop, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("family", REPRESENTATIVES, indirect=True)
def test_nothing_stays_behind_after_a_run_an_error_or_an_interrupt(
    model: interp.Model, family: str, interruption: type[BaseException] | None
) -> None:
    ids = prompts()
    hf = model.hf
    request = everything()
    request["read"] = [name for name in request["read"] if name not in model.parts.refusals]  # type: ignore[attr-defined]
    if "pattern" in model.parts.refusals:
        request["edits"] = request["edits"][:1]  # type: ignore[index]
    with torch.no_grad():
        before = hf(ids).logits
    hooks, table = hooks_of(hf), dict(ALL_ATTENTION_FUNCTIONS._local_mapping)
    if interruption is None:
        model.run(ids, **request)  # type: ignore[arg-type]
        if family not in ENCODERS:
            model.generate(ids, max_new_tokens=3, edits=request["edits"])  # type: ignore[arg-type]
    else:

        def interrupt(*_: object) -> None:
            raise interruption

        handle = model.parts.blocks[1].mlp.register_forward_pre_hook(interrupt)
        calls: list[Callable[[], object]] = [lambda: model.run(ids, **request)]  # type: ignore[arg-type]
        if family not in ENCODERS:
            calls.append(lambda: model.generate(ids, edits=request["edits"]))  # type: ignore[arg-type]
        for call in calls:
            with pytest.raises(interruption):
                call()
        handle.remove()
    assert hooks_of(hf) == hooks
    assert dict(ALL_ATTENTION_FUNCTIONS._local_mapping) == table
    with torch.no_grad():
        assert torch.equal(hf(ids).logits, before)


def test_an_attention_function_registered_by_somebody_else_survives(llama: interp.Model) -> None:
    calls = []
    plain = llama.run(prompts(), read="pattern.0", logits="last")

    def mine(*args: object, **kwargs: object) -> object:
        calls.append(args[0])
        return ALL_ATTENTION_FUNCTIONS._global_mapping["sdpa"](*args, **kwargs)

    ALL_ATTENTION_FUNCTIONS["sdpa"] = mine
    try:
        trace = llama.run(prompts(), read="pattern.0", logits="last")
        assert ALL_ATTENTION_FUNCTIONS._local_mapping == {"sdpa": mine}
    finally:
        del ALL_ATTENTION_FUNCTIONS["sdpa"]
    assert len(calls) == 2
    assert torch.equal(trace.logits, plain.logits)
    assert torch.equal(trace["pattern.0"], plain["pattern.0"])


def test_a_run_inside_a_run_is_refused(llama: interp.Model) -> None:
    fold = interp.RowFold("again", lambda *_: llama.run(prompts()).logits)
    with pytest.raises(BadInput, match="in the middle of a run"):
        llama.run(prompts(), read=fold)
    llama.run(prompts())


def test_a_run_over_its_memory_budget_is_refused_with_both_numbers(llama: interp.Model) -> None:
    # 2 layers x 2 prompts x 12 tokens x 64 floats of 4 bytes, and 2 x 12 x 199 logits.
    need = 2 * 2 * 12 * 64 * 4 + 2 * 12 * 199 * 4
    ask = {"read": "resid_post", "logits": "all"}
    llama.run(prompts(), **ask, memory_budget=need)  # type: ignore[arg-type]
    with pytest.raises(MemoryBudgetExceeded, match=r"keep 0\.030 MiB .* budget is 0\.030 MiB"):
        llama.run(prompts(), **ask, memory_budget=need - 1)  # type: ignore[arg-type]
    with pytest.raises(MemoryBudgetExceeded):
        llama.run(prompts(), read="pattern.0", memory_budget=2 * 4 * 12 * 12 * 4 - 1)
    llama.run(prompts(), read="pattern.0", positions=-1, memory_budget=2 * 4 * 12 * 4)


def test_a_large_dense_pattern_must_be_asked_for(llama: interp.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("interp.tracing.plan.DENSE_PATTERN_LIMIT", 2 * 4 * 12 * 12 - 1)
    with pytest.raises(MemoryBudgetExceeded, match="materialize=True"):
        llama.run(prompts(), read="pattern.0")
    llama.run(prompts(), read="pattern.0", materialize=True)
    llama.run(prompts(), read="pattern.0", positions=-1)


def live_tensors() -> int:
    gc.collect()
    return sum(1 for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor))


def test_fifty_runs_keep_no_more_tensors_than_one(llama: interp.Model) -> None:
    def once() -> None:
        llama.run(prompts(), **everything())  # type: ignore[arg-type]
        llama.generate(prompts(), max_new_tokens=2, read="attention_stats")
        llama.run(prompts(), read="z.0", logits="last", grad=True).logits.sum().backward()
        with pytest.raises(UnknownSite):
            llama.run(prompts(), read="z.9")

    once()
    before = live_tensors()
    for _ in range(50):
        once()
    assert live_tensors() <= before


def test_the_model_in_training_mode_is_refused(llama: interp.Model) -> None:
    llama.hf.train()
    try:
        with pytest.raises(BadInput, match="training mode"):
            llama.run(prompts())
    finally:
        llama.hf.eval()


def test_every_kind_of_edit_can_be_made_by_a_constructor() -> None:
    assert set(KINDS) <= {name for name in dir(interp) if name.islower()}
