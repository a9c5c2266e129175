"""Which backend computes a call is said beforehand, with the reasons; none is ever taken silently."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch

import kernels.attention
from kernels.attention import PREFERENCE, explain, head_attention
from kernels.errors import UnsupportedRequest
from kernels.patterns import full, pruned
from kernels.types import CaptureSpec, HeadPlan
from tests.kernels.cases import Case, Request


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let the CPU prefer the named backends, of which some may be missing or refuse."""

    def prefer(*names: str, **modules: str) -> None:
        monkeypatch.setattr(kernels.attention, "BACKENDS", {**kernels.attention.BACKENDS, **modules})
        monkeypatch.setattr(kernels.attention, "PREFERENCE", {"cpu": names})

    return prefer


def test_the_named_backend_computes_or_refuses() -> None:
    tensors = Case("named").tensors(torch.float32)
    assert explain(*tensors, backend="sdpa").backend == "sdpa"
    with pytest.raises(UnsupportedRequest, match="reference refuses.*17 x 17 pairs.*allow_dense=True"):
        explain(*tensors, backend="reference")
    with pytest.raises(UnsupportedRequest, match="allow_dense=True"):
        head_attention(*tensors, backend="reference")
    assert explain(*tensors, backend="reference", allow_dense=True).backend == "reference"


def test_auto_takes_the_first_that_supports_the_call_and_says_why_not_the_others(only: Any) -> None:
    tensors = Case("auto").tensors(torch.float32)
    only("absent", "flex", "sdpa", absent="kernels.backends.absent")
    tensors[0].requires_grad_()
    chosen = explain(*tensors)
    assert chosen.backend == "sdpa"
    assert list(chosen.refused) == ["absent", "flex"]
    assert "No module named 'kernels.backends.absent'" in chosen.refused["absent"]
    assert "no backward pass" in chosen.refused["flex"]
    assert "not flex: FlexAttention has no backward pass on the CPU" in str(chosen)


def test_nothing_falls_back_to_a_matrix_of_scores(only: Any) -> None:
    tensors = Case("dense").tensors()
    only("flex", "reference")
    with pytest.raises(UnsupportedRequest, match="flex refuses: .*float64; reference refuses: .*allow_dense"):
        head_attention(*tensors)
    out, _ = head_attention(*tensors, allow_dense=True)
    wanted, _ = head_attention(*tensors, backend="sdpa")
    torch.testing.assert_close(out, wanted)
    assert all(names[-1] == "reference" for names in PREFERENCE.values())


def test_explaining_computes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(request: Request) -> None:
        raise AssertionError("computed")

    tensors = Case("explained").tensors(torch.float32)
    backend = explain(*tensors).backend
    module = kernels.attention._load(backend)
    assert isinstance(module, ModuleType)
    monkeypatch.setattr(module, "run", never)
    explain(*tensors)
    with pytest.raises(AssertionError, match="computed"):
        head_attention(*tensors)


def test_predicted_bytes_are_those_of_what_is_read_and_written() -> None:
    q, k, v = Case("bytes", heads=4, kv_heads=2, queries=8, keys=32, dim=16, batch=1).tensors(torch.float32)
    everything = 4 * (q.numel() + k.numel() + v.numel() + q.numel())
    assert explain(q, k, v, backend="sdpa").bytes == everything
    half = HeadPlan.of([full(), full(), pruned(), pruned()])
    assert explain(q, k, v, plan=half, backend="sdpa").bytes == everything // 2
    # A key/value head is read as long as one of its query heads is.
    some = HeadPlan.of([full(), pruned(), full(), pruned()])
    assert explain(q, k, v, plan=some, backend="sdpa").bytes == everything - 4 * q.numel()


def test_statistics_come_only_when_asked_for() -> None:
    tensors = Case("asked").tensors(torch.float32)
    assert head_attention(*tensors, backend="sdpa")[1] is None
    _, stats = head_attention(*tensors, backend="sdpa", capture=CaptureSpec(probability=False, log_sum_exp=False))
    assert stats is not None
    assert set(stats.measured) == {"argmax"}
