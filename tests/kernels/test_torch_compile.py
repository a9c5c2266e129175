"""Models on the kernels compile into one graph, which computes what the model does and obeys the plan that holds."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.exc import Unsupported
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import PreTrainedModel
from transformers.models.llama import modeling_llama

from kernels import integration
from kernels.errors import UnsupportedRequest
from kernels.integration import EagerDisagreement, LayerPlan, install, intervene
from kernels.model_masks import TracedMask, make_mask
from kernels.patterns import full, streaming
from kernels.types import CaptureSpec, HeadGates, HeadPlan
from tests.families import build, prompts

HEADS = 4

install()


@pytest.fixture(autouse=True)
def _no_graphs_of_other_tests() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def checked(family: str, **changes: Any) -> PreTrainedModel:
    """A model that has run once, as its layers must have."""
    model = (
        build(family, "workbench", num_hidden_layers=1, **changes) if family == "llama" else build(family, "workbench")
    )
    with torch.no_grad():
        model(prompts(1, 4))
    return model.requires_grad_(False)


def whole(model: PreTrainedModel, backend: Any = "eager") -> Callable[..., Any]:
    compiled: Callable[..., Any] = torch.compile(model, fullgraph=True, backend=backend)
    return compiled


def inputs(kind: str, rows: int = 2, length: int = 12) -> dict[str, Any]:
    ids, real = prompts(rows, length), torch.ones(rows, length, dtype=torch.long)
    if kind == "left padding":
        real[1, :3] = 0
    if kind == "right padding":
        real[1, -3:] = 0
    if kind == "no mask":
        return {"input_ids": ids}
    if kind == "packed":
        positions = torch.cat([torch.arange(length - 5), torch.arange(5)]).expand(rows, -1)
        return {"input_ids": ids, "position_ids": positions, "use_cache": False}
    return {"input_ids": ids, "attention_mask": real}


def agree(got: Tensor, wanted: Tensor, live: Tensor | None = None) -> None:
    if live is not None:
        got, wanted = got[live.bool()], wanted[live.bool()]
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))


ZERO = LayerPlan(gates=HeadGates.zero([1], n_heads=HEADS))
STREAMING = LayerPlan(plan=HeadPlan.of([streaming(sinks=1, window=2), *[full()] * 3]))


@torch.no_grad()
@pytest.mark.parametrize(
    ("family", "kind"),
    [
        ("llama", "no mask"),
        ("llama", "left padding"),
        ("llama", "packed"),
        ("gpt2", "right padding"),
        ("mistral", "left padding"),
        pytest.param("gemma2", "left padding", marks=pytest.mark.slow),
    ],
)
def test_one_graph_computes_what_the_model_computes(family: str, kind: str) -> None:
    model, given = checked(family), inputs(kind)
    plain = model(**given).logits
    compiled = whole(model)
    agree(compiled(**given).logits, plain, given.get("attention_mask"))
    for plan in (ZERO, STREAMING):
        with intervene(model, {0: plan}):
            got, wanted = compiled(**given).logits, model(**given).logits
        agree(got, wanted, given.get("attention_mask"))
        assert not torch.allclose(got, plain, atol=1e-2)
    agree(compiled(**given).logits, plain, given.get("attention_mask"))


@torch.no_grad()
def test_so_does_that_of_an_encoder() -> None:
    model, given = checked("bert"), inputs("right padding")
    agree(whole(model)(**given).logits, model(**given).logits, given.get("attention_mask"))


@torch.no_grad()
def test_plans_come_and_go_without_another_compilation() -> None:
    model, given = checked("llama"), inputs("left padding")
    counter = CompileCounterWithBackend("eager")
    compiled = whole(model, counter)
    plain = compiled(**given).logits
    with intervene(model, {0: LayerPlan(gates=ZERO.gates, capture=CaptureSpec(entropy=True))}) as measured:
        gated = compiled(**given).logits
    with intervene(model, {0: STREAMING}):
        streamed = compiled(**given).logits
    assert counter.frame_count == 1
    assert not torch.allclose(gated, plain, atol=1e-2)
    assert not torch.allclose(streamed, plain, atol=1e-2)
    with intervene(model, {0: LayerPlan(capture=CaptureSpec(entropy=True))}) as wanted:
        model(**given)
    assert len(measured.steps[0]) == 1
    assert torch.equal(measured[0].argmax, wanted[0].argmax)
    agree(measured[0].entropy, wanted[0].entropy)


@torch.no_grad()
def test_prompts_of_another_length_and_number_are_right_too() -> None:
    model = checked("mistral")
    compiled = whole(model)
    for rows, length in ((2, 12), (3, 20)):
        given = inputs("no mask", rows, length)
        agree(compiled(**given).logits, model(**given).logits)


@torch.no_grad()
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_other_compilers_take_it(backend: str) -> None:
    model, given = checked("llama"), inputs("left padding")
    with intervene(model, {0: ZERO}):
        agree(whole(model, backend)(**given).logits, model(**given).logits, given["attention_mask"])


@torch.no_grad()
def test_a_module_is_checked_before_it_becomes_part_of_a_graph() -> None:
    model, given = build("llama", "workbench", num_hidden_layers=1).requires_grad_(False), inputs("no mask")
    with pytest.raises(Unsupported, match="a call that checks a module"):
        whole(model)(**given)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    broken = torch.compile(model, backend=counter)
    logits = broken(**given).logits
    parts = counter.frame_count
    assert parts > 1
    agree(broken(**given).logits, logits)
    assert counter.frame_count == parts + 1, "once checked, one graph"
    agree(model(**given).logits, logits)


def test_a_graph_breaks_for_gradients_which_are_right() -> None:
    given, gradients = inputs("right padding"), []
    for compile_it in (True, False):
        model = checked("llama").requires_grad_(True)
        run = torch.compile(model, backend="eager") if compile_it else model
        run(**given).logits[given["attention_mask"].bool()].square().mean().backward()
        gradients.append(model.model.layers[0].self_attn.q_proj.weight.grad)
    assert gradients[0].abs().max() > 0
    agree(*gradients)


@torch.no_grad()
def test_a_graph_breaks_for_statistics_that_are_returned() -> None:
    model, ids = checked("llama"), prompts(2, 9)
    got = torch.compile(model, backend="eager")(ids, output_attentions=True).attentions
    wanted = model(ids, output_attentions=True).attentions
    assert torch.equal(got[0].argmax, wanted[0].argmax)


def traced_mask(**call: Any) -> TracedMask:
    """What `make_mask` gives inside a graph."""
    made: TracedMask = torch.compile(lambda: make_mask(**call), backend="eager", fullgraph=True)()
    return made


def test_a_mask_that_is_something_else_is_refused_when_the_graph_runs() -> None:
    def prefix_sees_itself(_row: Tensor, _head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (k <= q) | (k < 4)

    mask = traced_mask(batch_size=1, q_length=9, kv_length=9, mask_function=prefix_sees_itself)
    with pytest.raises(UnsupportedRequest, match="neither causal"):
        mask.decided()


@torch.no_grad()
def test_the_operator_is_what_it_says_of_itself() -> None:
    model = checked("llama")
    attention = model.model.layers[0].self_attn
    q, k = torch.randn(2, HEADS, 9, 24), torch.randn(2, 2, 9, 24)  # a width that the kernel pads
    mask = traced_mask(batch_size=2, q_length=9, kv_length=9)
    arguments = (q, k, k, id(attention), 0.3, None, None, *mask)
    torch.library.opcheck(torch.ops.workbench.attend.default, arguments, test_utils=("test_schema", "test_faketensor"))


@torch.no_grad()
def test_the_successor_of_a_module_is_checked_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python gives the id of an object that is gone to another: here all modules have one."""
    monkeypatch.setattr(integration, "id", lambda _module: -1, raising=False)
    model = checked("llama")
    eager = modeling_llama.eager_attention_forward
    monkeypatch.setattr(
        modeling_llama, "eager_attention_forward", lambda *args, **kw: (eager(*args, **kw)[0] + 1, None)
    )
    model(prompts(1, 4))
    del model
    gc.collect()
    with pytest.raises(EagerDisagreement):
        checked("llama")
