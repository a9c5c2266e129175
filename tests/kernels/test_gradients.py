"""Gradients reach queries, keys, values and gates: those of autograd through the reference, and of an eager model."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from kernels.attention import head_attention
from kernels.patterns import full, streaming
from kernels.types import CaptureSpec, HeadGates, HeadPlan, MaskSpec
from tests.families import build, prompts
from tests.kernels.cases import CASES, EVERYTHING, LONG, Case
from tests.kernels.oracle import random


def _gradients(case: Case, backend: str, **others: Any) -> dict[str, Tensor]:
    leaves = dict(zip("qkv", (x.requires_grad_() for x in case.tensors()), strict=True))
    mask, gates = case.mask, case.gates
    if gates is not None:
        for field in ("gate", "add", "logit_scale"):
            value = getattr(gates, field)
            if value is not None:
                leaves[field] = value.detach().double().requires_grad_()
        gates = replace(gates, **{name: leaves[name] for name in leaves if name in {f.name for f in fields(gates)}})
    if mask.alibi is not None:
        leaves["alibi"] = mask.alibi.detach().double().requires_grad_()
        mask = replace(mask, alibi=leaves["alibi"])
    if mask.sinks is not None:
        leaves["sinks"] = mask.sinks.detach().double().requires_grad_()
        mask = replace(mask, sinks=leaves["sinks"])
    out, _ = head_attention(
        leaves["q"], leaves["k"], leaves["v"], mask=mask, gates=gates, plan=case.plan, backend=backend, **others
    )
    weight = random(*out.shape, seed=99)
    grads = torch.autograd.grad((out * weight).sum(), list(leaves.values()), allow_unused=True)
    return {name: torch.zeros_like(leaves[name]) if g is None else g for name, g in zip(leaves, grads, strict=True)}


DIFFERENTIABLE = [case for case in CASES if case.name != "all pruned"]
DIFFERENTIABLE += [
    case for case in LONG if case.name in ("left padding", "left padding, gates", "soft-cap, left padding")
]


@pytest.mark.parametrize("case", DIFFERENTIABLE, ids=lambda case: case.name)
def test_gradients_equal_those_through_the_reference(case: Case) -> None:
    wanted = _gradients(case, "reference", allow_dense=True)
    for name, value in _gradients(case, "sdpa").items():
        assert torch.isfinite(value).all(), name
        torch.testing.assert_close(value, wanted[name], rtol=1e-8, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")
    assert any((value != 0).any() for value in wanted.values())


@pytest.mark.parametrize("backend", ["reference", "sdpa"])
def test_gradients_through_the_kernel_are_those_of_finite_differences(backend: str) -> None:
    case = Case("finite", heads=2, kv_heads=1, queries=5, keys=7, dim=4, batch=1)
    plan = HeadPlan.of([full(), streaming(1, 2)])
    leaves = [*case.tensors(), random(1, 2, seed=1), random(1, 2, 4, seed=2), random(1, 2, seed=3), random(2, seed=4)]

    def attend(
        q: Tensor, k: Tensor, v: Tensor, gate: Tensor, add: Tensor, logit_scale: Tensor, sinks: Tensor
    ) -> Tensor:
        gates, mask = HeadGates(gate, add, logit_scale), MaskSpec(sinks=sinks, softcap=3.0)
        return head_attention(
            q, k, v, mask=mask, gates=gates, plan=plan, backend=backend, allow_dense=backend == "reference"
        )[0]

    assert torch.autograd.gradcheck(attend, [x.requires_grad_() for x in leaves])


@pytest.mark.parametrize("name", ["sinks", "alibi"])
def test_a_gradient_of_the_mask_alone_is_not_lost(name: str) -> None:
    q, k, v = Case("mask").tensors(torch.float32)
    value = random(4, seed=1, dtype=torch.float32).requires_grad_()
    out, _ = head_attention(q, k, v, mask=MaskSpec(**{name: value}))  # type: ignore[arg-type]
    grad = torch.autograd.grad(out.square().sum(), value)[0]
    exact, _ = head_attention(q, k, v, mask=MaskSpec(**{name: value}), backend="reference", allow_dense=True)  # type: ignore[arg-type]
    torch.testing.assert_close(grad, torch.autograd.grad(exact.square().sum(), value)[0], rtol=1e-4, atol=1e-4)


def test_a_gate_of_zero_still_has_the_gradient_that_ranks_heads() -> None:
    case = Case("pruned")
    q, k, v = case.tensors()
    gate = torch.tensor([[1.0, 0.0, 1.0, 0.0]], dtype=torch.float64, requires_grad=True)
    for backend in ("reference", "sdpa"):
        out, _ = head_attention(q, k, v, gates=HeadGates(gate), backend=backend, allow_dense=backend == "reference")
        weight = random(*out.shape, seed=1)
        grad = torch.autograd.grad((out * weight).sum(), gate)[0]
        z, _ = head_attention(q, k, v, backend=backend, allow_dense=backend == "reference")
        torch.testing.assert_close(grad, (z * weight).sum((0, 1, 3))[None])


def test_statistics_are_measured_beside_a_gradient_and_carry_none() -> None:
    case = Case("both", plan=HeadPlan.of([full(), streaming(1, 3), full(), full()]))
    q, k, v = (x.requires_grad_() for x in case.tensors())
    out, stats = head_attention(q, k, v, plan=case.plan, capture=EVERYTHING, backend="sdpa")
    assert stats is not None
    assert not any(value.requires_grad for value in stats.measured.values())
    out.sum().backward()
    plain, _ = head_attention(q.detach(), k.detach(), v.detach(), plan=case.plan, capture=CaptureSpec(), backend="sdpa")
    torch.testing.assert_close(out.detach(), plain)


def _gate_gradient_by_hook(model: PreTrainedModel, ids: Tensor, gates: list[Tensor], width: int) -> list[Tensor]:
    """The gradient of the loss with respect to a factor on each head's part of the output projection's input."""
    handles = []
    for layer, gate in zip(model.model.layers, gates, strict=True):
        factor = gate.repeat_interleave(width, dim=1)[:, None]
        handles.append(layer.self_attn.o_proj.register_forward_pre_hook(lambda _, args, f=factor: (args[0] * f,)))
    try:
        return list(torch.autograd.grad(model(ids, labels=ids).loss, gates))
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("backend", ["reference", "sdpa"])
def test_gate_gradients_of_a_model_are_those_of_a_hook_on_z(
    family: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = prompts(2, 12)
    start = random(2, 4, seed=3, dtype=torch.float32)
    wanted = _gate_gradient_by_hook(build(family), ids, [start.clone().requires_grad_() for _ in range(2)], width=32)
    gates = [start.clone().requires_grad_() for _ in range(2)]

    def gated(
        module: Any, query: Tensor, key: Tensor, value: Tensor, _mask: object, **kwargs: Any
    ) -> tuple[Tensor, None]:
        mask = MaskSpec(scale=kwargs["scaling"])
        gate = HeadGates(gates[module.layer_idx])
        out, _ = head_attention(
            query, key, value, mask=mask, gates=gate, backend=backend, allow_dense=backend == "reference"
        )
        return out, None

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "gated", gated)
    model = build(family)
    model.set_attn_implementation("gated")
    got = torch.autograd.grad(model(ids, labels=ids).loss, gates)
    for a, b in zip(got, wanted, strict=True):
        assert b.abs().max() > 1e-4
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6 * float(b.abs().max()) + 1e-7)
