"""Edits that the attention kernel makes itself equal the hooks of an eager model, and save the work that they can."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import interp
from interp.tracing.edits import Edit
from interp.tracing.sites import Site
from kernels import attention
from kernels.integration import LayerPlan, install, intervene
from kernels.request import Output, Request
from kernels.types import CaptureSpec, HeadGates
from tests.families import FAMILIES, OWN_ATTENTION, build, ragged, word_tokenizer

SUPPORTED = [name for name in FAMILIES if name not in (*OWN_ATTENTION, "modernbert")]
FEW = ["gpt2", "llama", "gemma2", "gpt_oss"]
PADDED = [*((family, "left") for family in SUPPORTED), *((family, "right") for family in FEW)]
HEADS, DIM = 4, 32
TOLERANCE = {"gemma": 2e-5}
"""Relative; 1e-5 otherwise. This Gemma multiplies a rounding error of its first layer by ten."""

install()


@cache
def on_kernels(family: str) -> interp.Model:
    """A model on the kernels, past the checks of its first use, which are calls of the kernels too."""
    model = interp.wrap(build(family, "workbench"), tokenizer=word_tokenizer())
    model.run([[1, 2]], edits=interp.zero("z.0.1"))
    return model


@cache
def eager(family: str) -> interp.Model:
    return interp.wrap(build(family), tokenizer=word_tokenizer())


class Calls(NamedTuple):
    """What the kernels were asked for and gave, call by call."""

    requests: list[Request]
    outputs: list[Output]

    @property
    def gated(self) -> int:
        return sum(request.gates is not None for request in self.requests)

    @property
    def flops(self) -> int:
        return sum(output.flops for output in self.outputs)


@pytest.fixture
def calls(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Calls:
    parameters = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    on_kernels(parameters.get("family", "llama"))
    seen, choose = Calls([], []), attention.choose

    def watched(request: Request, backend: str = "auto") -> tuple[str, SimpleNamespace, dict[str, str]]:
        name, module, refused = choose(request, backend)

        def run(request: Request) -> Output:
            seen.requests.append(request)
            seen.outputs.append(module.run(request))
            return seen.outputs[-1]

        return name, SimpleNamespace(run=run), refused

    monkeypatch.setattr(attention, "choose", watched)
    return seen


def random(*shape: int, seed: int = 3) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def close(got: Tensor, wanted: Tensor, what: str = "", tolerance: float = 1e-5) -> None:
    error = float((got - wanted).abs().max() / wanted.abs().max().clamp(min=1e-6))
    assert error <= tolerance, f"{what}: relative error {error:.2g}"


def real(value: Tensor, rows: list[list[int]]) -> Tensor:
    """What belongs to real tokens of `value` `[batch position ...]`, one after the other."""
    return torch.cat([value[i, : len(row)] for i, row in enumerate(rows)])


def assert_as_eager(family: str, edits: list[Edit], what: str, **options: object) -> None:
    """Logits and what the edits make of z are those of hooks on the eager model, and not those of no edits."""
    rows = ragged()
    read = ["z.0", "z.1", "logits"]
    got, wanted = (model(family).run(rows, read, edits, **options) for model in (on_kernels, eager))
    for site in read:
        close(real(got[site], rows), real(wanted[site], rows), f"{what}, {site}", TOLERANCE.get(family, 1e-5))
    plain = eager(family).run(rows, "logits", **options)["logits"]
    assert (real(got["logits"], rows) - real(plain, rows)).abs().max() > 5e-3, f"{what} has no effect"


AFFINE: dict[str, list[Edit]] = {
    "zero": [interp.zero("z.0.1")],
    "scale": [interp.scale("z.0.1", -1.5)],
    "mean": [interp.mean("z.0.1", random(DIM))],
    "add": [interp.add("z.0.1", random(DIM), 2.0)],
    "a whole layer": [interp.mean("z.0", random(HEADS, DIM)), interp.zero("z.1")],
    "rows": [interp.zero("z.0.1").at(rows=1), interp.add("z.0.2", random(DIM)).at(rows=(0, 2))],
    "positions": [interp.zero("z.0.1").at(positions=-1), interp.mean("z.1.2", random(DIM)).at(positions=slice(2, -2))],
    "rows and positions": [interp.scale("z.0.3", 3.0).at(positions=(1, -3), rows=2)],
    "one after the other": [
        interp.scale("z.0.1", 2.0),
        interp.add("z.0", random(HEADS, DIM)).at(positions=slice(1, None)),
        interp.zero("z.0.2"),
        interp.scale("z.0", -0.5).at(rows=(0, 1)),
    ],
}


@pytest.mark.parametrize(("family", "side"), PADDED)
def test_gates_are_what_hooks_do(family: str, side: str, calls: Calls) -> None:
    for name, edits in AFFINE.items():
        before = calls.gated
        assert_as_eager(family, edits, name, padding_side=side)
        layers = {edit.site.layer for edit in edits}
        assert calls.gated - before == (0 if family == "bitnet" else len(layers)), name


@pytest.mark.parametrize("family", ["llama", "bitnet", "bert"])
def test_what_the_kernel_does_not_return_is_not_its_to_edit(family: str, calls: Calls) -> None:
    """BitNet normalises what its kernel returns before W_O reads it as z; patterns are the kernel's everywhere."""
    assert_as_eager(family, [interp.zero("z.0.1")], "z")
    assert calls.gated == (0 if family == "bitnet" else 1)
    assert_as_eager(family, [interp.attend("pattern.0.1"), interp.scale("z.0.1", 2.0)], "both")
    assert calls.requests[-2].gates is not None


@pytest.mark.parametrize(("family", "side"), PADDED)
def test_even_attention_is_scores_times_zero(family: str, side: str, calls: Calls) -> None:
    cases = {
        "a head": [interp.attend("pattern.0.1")],
        "layers": [interp.attend("pattern.0"), interp.attend("pattern.1")],
        "rows and positions": [interp.attend("pattern.0.2").at(positions=(-1, 3), rows=(0, 2))],
        "and then its output": [interp.scale("z.0.1", 2.0), interp.attend("pattern.0.1")],
    }
    for name, edits in cases.items():
        assert_as_eager(family, edits, name, padding_side=side)
    scaled = [request for request in calls.requests if request.gates and request.gates.logit_scale is not None]
    assert len(scaled) == (0 if family == "gpt_oss" else 5)


def test_a_uniform_gate_leaves_a_sink_its_share_and_an_edit_does_not(calls: Calls) -> None:
    """Why attend() is not compiled where there are sink logits."""
    rows, model = ragged(), on_kernels("gpt_oss")
    edited = model.run(rows, "z.0", interp.attend("pattern.0.1"))["z.0.1"]
    assert calls.gated == 0
    with intervene(model.hf, {0: LayerPlan(gates=HeadGates.uniform([1], n_heads=HEADS))}):  # type: ignore[arg-type]
        gated = model.run(rows, "z.0")["z.0.1"]
    v = model.run(rows, "v.0")["v.0.0"]
    close(edited[0, :5], v[0, :5].cumsum(0) / torch.arange(1, 6)[:, None], "all of the row is on tokens")
    share = gated[0, :5] / edited[0, :5]
    assert (share < 0.99).all()
    close(share, share.mean(-1, keepdim=True).expand_as(share), "less by the sink's share alone")


STAYING: dict[str, tuple[list[Edit], int]] = {
    "a donor after a zero": ([interp.zero("z.0.1"), interp.patch("z.0.1", random(1, 12, HEADS, DIM)[:, :, 1])], 1),
    "a zero after a donor": (
        [
            interp.patch("z.0.1", random(1, 12, DIM)).at(positions=slice(0, 3)),
            interp.zero("z.0.1").at(positions=slice(2, None)),
        ],
        0,
    ),
    "a coordinate between": (
        [interp.scale("z.0", 2.0), interp.set_coordinate("z.0.1", random(DIM), 3.0), interp.scale("z.0.1", -1.0)],
        1,
    ),
    "attention to a token before": ([interp.attend("pattern.0.1", to=0), interp.add("z.0.1", random(DIM))], 0),
    "attention to a token after": ([interp.attend("pattern.0"), interp.attend("pattern.0.1", to=0)], 1),
    "a head's output, edited later": ([interp.zero("z.0.1"), interp.scale("head_out.0.2", 2.0)], 1),
    "the same edit twice, and a donor between": (
        [
            (twice := interp.add("z.0.1", random(DIM))),
            interp.project_out("z.0.1", random(DIM, seed=4)),
            twice,
        ],
        1,
    ),
}


@pytest.mark.parametrize("case", STAYING)
def test_what_gates_cannot_say_stays_with_the_hooks_and_in_order(case: str, calls: Calls) -> None:
    edits, gated = STAYING[case]
    assert_as_eager("llama", edits, case)
    assert calls.gated == gated


def test_an_edit_that_is_not_finite_stays_with_the_hooks(calls: Calls) -> None:
    poison = interp.add("z.0.1", torch.full((DIM,), torch.inf)).at(positions=3)
    z = on_kernels("llama").run(ragged(), "z.0", poison)["z.0.1"]
    assert z[:, 3].isinf().all()
    assert z[:, 4:7].isfinite().all()
    assert calls.gated == 0


@st.composite
def sequences(draw: st.DrawFn) -> list[Edit]:
    def edit() -> Edit:
        layer, head = draw(st.sampled_from([0, 0, 1])), draw(st.sampled_from([None, 0, 1]))
        site = f"z.{layer}" if head is None else f"z.{layer}.{head}"
        shape = (HEADS, DIM) if head is None else (DIM,)
        vector = random(*shape, seed=draw(st.integers(0, 3)))
        kinds: dict[str, Callable[[], Edit]] = {
            "zero": lambda: interp.zero(site),
            "scale": lambda: interp.scale(site, draw(st.sampled_from([-1.0, 0.0, 0.5, 2.0]))),
            "mean": lambda: interp.mean(site, vector),
            "add": lambda: interp.add(site, vector),
            "attend": lambda: interp.attend(site.replace("z", "pattern")),
            "attend to": lambda: interp.attend(site.replace("z", "pattern"), to=(0, -1)),
            "patch": lambda: interp.patch(site, vector.expand(1, 12, *shape)),
            "project_out": lambda: interp.project_out(site, vector.flatten()),
        }
        made = kinds[draw(st.sampled_from(["zero", "scale", "mean", "add", *kinds]))]()
        positions = draw(st.sampled_from([None, None, 0, -1, (2, -2), slice(3, None), slice(None, -4)]))
        return made.at(positions=positions, rows=draw(st.sampled_from([None, None, 0, (1, 2)])))

    return [edit() for _ in range(draw(st.integers(1, 5)))]


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(edits=sequences(), family=st.sampled_from(FEW), side=st.sampled_from(["left", "right"]))
def test_any_sequence_of_edits_is_what_hooks_make_of_it(edits: list[Edit], family: str, side: str) -> None:
    rows = ragged()
    read = ["z.0", "z.1", "logits"]
    got, wanted = (model(family).run(rows, read, edits, padding_side=side) for model in (on_kernels, eager))
    for site in read:
        close(real(got[site], rows), real(wanted[site], rows), f"{[str(edit) for edit in edits]}, {site}")


GENERATED: dict[str, list[Edit]] = {
    "everywhere": [interp.zero("z.0.1"), interp.mean("z.1", random(HEADS, DIM))],
    "what is new": [interp.scale("z.0", -1.0).at(positions=slice(12, None))],
    "the prompt": [interp.add("z.0.1", random(DIM)).at(positions=slice(0, 6)), interp.attend("pattern.1").at(rows=1)],
    "even attention": [interp.attend("pattern.0"), interp.zero("z.0.2").at(positions=-1)],
}


@pytest.mark.parametrize("case", GENERATED)
@pytest.mark.parametrize("family", ["gpt2", "mistral", "gpt_oss"])
def test_generation_is_that_of_hooks(family: str, case: str, calls: Calls) -> None:
    rows, edits, options = ragged(), GENERATED[case], {"max_new_tokens": 5, "read": ["z.0", "attention_stats.0"]}
    got, wanted = (model(family).generate(rows, edits=edits, **options) for model in (on_kernels, eager))
    assert got.tokens == wanted.tokens
    for ours, theirs in zip(got.log_probabilities, wanted.log_probabilities, strict=True):
        close(torch.tensor(ours), torch.tensor(theirs), case)
    assert got.log_probabilities != eager(family).generate(rows, max_new_tokens=5).log_probabilities
    assert (calls.gated > 0) is (family != "gpt_oss" or case != "even attention")
    assert got.trace is not None
    assert wanted.trace is not None
    for i, (row, new) in enumerate(zip(rows, got.tokens, strict=True)):
        live = len(row) + len(new) - 1
        close(got.trace["z.0"][i, :live], wanted.trace["z.0"][i, :live], case)
        ours, theirs = (trace["attention_stats.0"].entropy[i, :, :live] for trace in (got.trace, wanted.trace))
        close(ours, theirs, f"{case}, entropy")


@pytest.mark.parametrize("family", FEW)
def test_edits_after_and_inside_a_prefix_are_those_of_the_whole_prompts(family: str, calls: Calls) -> None:
    start = ragged((7,))[0]
    rows = [start + row for row in ragged((5, 5), seed=9)]
    edits = [interp.zero("z.0.1"), interp.add("z.1.2", random(DIM)).at(positions=slice(4, None))]
    model = on_kernels(family)
    prefix = model.prefill(start, edits=edits)
    got = model.run(rows, ["z.1", "logits"], edits, prefix=prefix)
    wanted = eager(family).run(rows, ["z.1", "logits"], edits)
    for site in ("z.1", "logits"):
        close(got[site], wanted[site][:, 7:], site)
    assert calls.gated == 4


# --- work ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ablation", ["zero", "mean", "scale by 0"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_an_ablated_head_is_not_computed(family: str, ablation: str, calls: Calls) -> None:
    make = {
        "zero": interp.zero,
        "mean": lambda site: interp.mean(site, random(DIM)),
        "scale by 0": lambda site: interp.scale(site, 0),
    }
    model, rows = on_kernels(family), ragged()

    def flops(edits: list[Edit], **options: object) -> int:
        before = calls.flops
        model.run(rows, edits=edits, **options)
        return calls.flops - before

    whole = flops([])
    ablated = [make[ablation](f"z.{layer}.{head}") for layer in (0, 1) for head in (0, 1)]
    assert flops(ablated) * 2 == whole
    assert flops([make[ablation](f"z.0.{head}") for head in range(HEADS)]) * 2 == whole
    assert flops([edit.at(positions=-1) for edit in ablated]) == whole
    assert flops([make[ablation]("z.0.1").at(rows=0)]) < whole
    assert flops([*ablated, interp.scale("z.0", 2.0)]) * 2 == whole


def test_a_head_that_is_given_something_of_its_own_again_is_computed(calls: Calls) -> None:
    model, rows = on_kernels("llama"), ragged()
    model.run(rows, edits=[interp.zero("z.0.1").at(positions=slice(0, 3)), interp.scale("z.0.1", 2.0)])
    assert calls.requests[0].computed.all()


def test_nothing_of_an_ablated_head_reaches_the_output(calls: Calls) -> None:
    model, clean = interp.wrap(build("gpt2", "workbench")), eager("gpt2")
    rows = ragged()
    width = HEADS * DIM

    def poison(_module: object, _args: object, qkv: Tensor) -> Tensor:
        qkv = qkv.clone()
        for part in range(3):
            qkv[..., part * width + DIM : part * width + 2 * DIM] = torch.nan  # head 1
        return qkv

    model.run(rows, edits=interp.zero("z.0.1"))  # what is checked at first use needs numbers
    handle = model.parts.blocks[0].projections[0].register_forward_hook(poison)
    try:
        assert model.run(rows).logits.isnan().all()
        for edit in (interp.zero("z.0.1"), interp.mean("z.0.1", random(DIM))):
            close(model.run(rows, edits=edit).logits, clean.run(rows, edits=edit).logits)
    finally:
        handle.remove()


# --- statistics ---------------------------------------------------------------------------------------------------


def assert_same_statistics(family: str, positions: object, **options: object) -> None:
    rows = ragged()
    if positions is None:
        counts = [len(row) for row in rows]
    got, wanted = (
        model(family).run(rows, ["attention_stats"], positions=positions, **options) for model in (on_kernels, eager)
    )
    patterns = eager(family).run(rows, ["pattern"], positions=positions, **options)
    for layer in (0, 1):
        ours, theirs = got[f"attention_stats.{layer}"], wanted[f"attention_stats.{layer}"]
        assert set(ours.measured) == set(theirs.measured) == {"argmax", "probability", "entropy", "log_sum_exp"}
        top = patterns[f"pattern.{layer}"].topk(2).values
        clear = top[..., 0] - top[..., 1] > 1e-5
        for i in range(len(rows)):
            live = counts[i] if positions is None else ours.entropy.shape[2]
            assert torch.equal(*(x.argmax[i, :, :live].where(clear[i, :, :live], -1) for x in (ours, theirs)))
            for name in ("probability", "entropy", "log_sum_exp"):
                parts = (getattr(x, name)[i, :, :live] for x in (ours, theirs))
                torch.testing.assert_close(*parts, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(("family", "side"), PADDED)
def test_statistics_are_measured_by_the_kernel(family: str, side: str, calls: Calls) -> None:
    for positions in (None, -1, (0, -2), slice(-4, None)):
        before = len(calls.requests)
        assert_same_statistics(family, positions, padding_side=side)
        assert [r.capture is not None for r in calls.requests[before:]] == [True, True]


def test_statistics_of_a_prefixed_run_name_positions_of_the_whole_prompt() -> None:
    start = ragged((7,))[0]
    rows = [start + row for row in ragged((5, 5), seed=9)]
    model = on_kernels("llama")
    got = model.run(rows, "attention_stats", prefix=model.prefill(start))["attention_stats.1"]
    wanted = eager("llama").run(rows, "attention_stats")["attention_stats.1"]
    assert torch.equal(got.argmax, wanted.argmax[:, :, 7:])
    close(got.entropy, wanted.entropy[:, :, 7:])


def test_a_run_that_reads_statistics_last_stops_after_them(calls: Calls) -> None:
    trace = on_kernels("llama").run(ragged(), "attention_stats.0")
    assert trace.stopped_after == Site("attention_stats", 0)
    assert len(calls.requests) == 1


@pytest.mark.parametrize("beside", [["pattern"], [interp.RowFold("sum", lambda rows, *_: rows.pattern.sum())]])
def test_rows_that_are_computed_anyway_are_summarised_without_the_kernel(beside: list, calls: Calls) -> None:
    on_kernels("llama").run(ragged(), ["attention_stats", *beside])
    assert all(request.capture is None for request in calls.requests)


@pytest.mark.parametrize("to", ["uniform", 2])
def test_statistics_of_forced_rows_describe_them(to: object, calls: Calls) -> None:
    rows, edit = ragged(), interp.attend("pattern.0.1", to)  # type: ignore[arg-type]
    got, wanted = (m("llama").run(rows, ["attention_stats", "z.0"], edit) for m in (on_kernels, eager))
    for i, row in enumerate(rows):
        live = len(row)
        ours, theirs = (trace["attention_stats.0.1"] for trace in (got, wanted))
        for name in ("probability", "entropy", "log_sum_exp"):
            close(*(getattr(stats, name)[i, 2:live] for stats in (ours, theirs)), name)
    if to == "uniform":
        close(ours.probability[0], 1 / torch.arange(1.0, 13.0))
    assert [request.capture is not None for request in calls.requests] == [False, True]


def test_what_a_head_attends_to_does_not_depend_on_what_becomes_of_its_output() -> None:
    rows, model = ragged(), on_kernels("llama")
    plain = model.run(rows, "attention_stats.0")["attention_stats.0.1"]
    ablated = model.run(rows, "attention_stats.0", interp.zero("z.0.1").at(positions=0), logits="last")
    assert torch.equal(ablated["attention_stats.0.1"].argmax, plain.argmax)


# --- scopes -------------------------------------------------------------------------------------------------------


def test_gradients_are_those_of_hooks(calls: Calls) -> None:
    gradients = []
    for model in (on_kernels("llama"), eager("llama")):
        vector = random(DIM).requires_grad_()
        edits = [interp.scale("z.0.2", 0.5), interp.add("z.0.1", vector), interp.zero("z.1.0")]
        trace = model.run(ragged(), ["z.0", "z.1", "logits"], edits, grad=True)
        real(trace["logits"], ragged()).square().mean().backward()
        gradients.append([vector.grad, trace.grad("z.0")[0], trace.grad("z.1")[0]])
    for got, wanted in zip(*gradients, strict=True):
        assert got.abs().max() > 0
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))
    assert calls.gated == 0


def test_a_hook_of_the_users_still_sees_z_before_it_is_edited(calls: Calls) -> None:
    model, rows = interp.wrap(build("llama", "workbench")), ragged()
    model.run(rows, edits=interp.zero("z.0.1"))
    assert calls.gated == 1
    handle = model.parts.blocks[0].o.register_forward_pre_hook(lambda _, args: (args[0] + 1,))
    try:
        trace = model.run(rows, "z.0", interp.zero("z.0.1"))
    finally:
        handle.remove()
    assert (real(trace["z.0.1"], rows) == 0).all()
    assert calls.gated == 1


def test_a_plan_that_holds_for_the_model_comes_before_the_edits(calls: Calls) -> None:
    model, rows = on_kernels("llama"), ragged()
    edits = [interp.add("z.0.1", random(DIM)), interp.attend("pattern.0.2")]
    alone = model.run(rows, edits=edits).logits
    plan = LayerPlan(gates=HeadGates.zero([1], n_heads=HEADS), capture=CaptureSpec())
    with intervene(model.hf, {0: plan}) as measured:  # type: ignore[arg-type]
        both = model.run(rows, edits=edits).logits
    order = [interp.attend("pattern.0.2"), interp.zero("z.0.1"), *edits]
    close(both, eager("llama").run(rows, edits=order).logits)
    assert not torch.allclose(both, alone, atol=1e-2)
    assert len(measured.steps[0]) == 1
    close(model.run(rows, edits=edits).logits, alone)


def test_nothing_is_left_after_an_exception(calls: Calls) -> None:
    model, rows = on_kernels("llama"), ragged()
    before = model.run(rows).logits

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    handle = model.parts.blocks[1].o.register_forward_pre_hook(interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            model.run(rows, "attention_stats.1", [interp.zero("z.0.1"), interp.attend("pattern.1")], logits="last")
    finally:
        handle.remove()
    assert calls.gated == 2
    assert [name for module in model.hf.modules() for name in module.__dict__ if "workbench" in name] == []
    assert torch.equal(model.run(rows).logits, before)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.bfloat16, 3e-2)])
def test_other_dtypes(dtype: torch.dtype, tolerance: float) -> None:
    rows = ragged((12, 12))  # eager softmax is float32 in float64, and NaN where padding sees nothing
    edits = [*AFFINE["positions"], interp.attend("pattern.1.3"), interp.add("z.1.3", random(DIM), 0.3)]
    got, wanted = (interp.wrap(build("llama", kind, dtype)).run(rows, edits=edits) for kind in ("workbench", "eager"))
    error = (got.logits - wanted.logits).abs().max() / wanted.logits.abs().max()
    assert error <= tolerance


@pytest.mark.parametrize("family", ["gpt2", "gpt_oss"])
def test_nnsight_runs_them_in_the_kernel_too(family: str, calls: Calls) -> None:
    pytest.importorskip("nnsight")
    model, rows = interp.wrap(build(family, "workbench"), backend="nnsight"), ragged()
    for name, edits in {**AFFINE, "even": [interp.attend("pattern.0.1"), interp.scale("z.0.1", 2.0)]}.items():
        read = ["z.0", "attention_stats.0", "logits"]
        got, wanted = model.run(rows, read, edits), eager(family).run(rows, read, edits)
        for site in ("z.0", "logits"):
            close(real(got[site], rows), real(wanted[site], rows), f"{name}, {site}")
        ours, theirs = (real(t["attention_stats.0"].entropy.transpose(1, 2), rows) for t in (got, wanted))
        close(ours, theirs, f"{name}, entropy")
    assert calls.gated >= len(AFFINE)
    tokens = [
        each.generate(rows, max_new_tokens=3, edits=GENERATED["everywhere"]).tokens for each in (model, eager(family))
    ]
    assert tokens[0] == tokens[1]


def test_edits_that_an_nnsight_model_holds_come_first(calls: Calls) -> None:
    nnsight = pytest.importorskip("nnsight")
    rows = ragged((12,))
    held = nnsight.NNsight(build("llama", "workbench"))
    with held.edit(inplace=True):
        held.model.layers[0].self_attn.o_proj.input = held.model.layers[0].self_attn.o_proj.input + 1
    trace = interp.wrap(held).run(rows, "z.0", interp.zero("z.0.1"))
    assert (trace["z.0.1"] == 0).all()
    assert calls.gated == 0
