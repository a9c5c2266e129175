"""What the Triton kernels cost on a GPU, beside PyTorch's flash attention, FlexAttention and attention with its matrix.

bfloat16, the heads of Llama 3 8B (32 on 8 key/value heads, 128 wide), one causal prefill of 4k to 128k tokens. Times
are medians by CUDA events after the caches of the device were emptied (`triton.testing.do_bench`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from kernels.attention import explain, head_attention
from kernels.patterns import full, pruned, streaming
from kernels.types import CaptureSpec, HeadPlan, on_device
from tests.benchmarks.measure import OUT

pytest.importorskip("triton")
pytestmark = [pytest.mark.bench, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]

HEADS, KV_HEADS, DIM = 32, 8, 128
LENGTHS = [4096, 8192, 16384, 32768, 65536, 131072]
EAGER_UP_TO = 8192
"""Longest text whose matrix of scores is held, several times over."""

STATISTICS = CaptureSpec(entropy=True, spans=torch.tensor([[[100, 132]]]))
HALF_PRUNED = HeadPlan.of([pruned(), full()] * (HEADS // 2))
HALF_STREAMING = HeadPlan.of([streaming(4, 256), full()] * (HEADS // 2))

TARGETS = {
    ("triton", "SDPA flash"): 1.3,
    ("triton, all statistics", "triton"): 1.2,
    ("triton, half the heads pruned", "triton"): 0.55,
    ("triton, half the heads streaming (4 + 256)", "triton"): 0.62,
}
"""What the first may cost of the second; streaming is proportional only where texts are long."""

Work = Callable[[], Any]


def flash(q: Tensor, k: Tensor, v: Tensor) -> Work:
    def attend() -> Tensor:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2)

    return attend


def flex(q: Tensor, k: Tensor, v: Tensor) -> Work:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    compiled = torch.compile(flex_attention, dynamic=False)
    length = q.shape[2]
    causal = create_block_mask(lambda b, h, i, j: i >= j, None, None, length, length, device="cuda", _compile=True)
    return lambda: compiled(q, k, v, block_mask=causal, enable_gqa=True).transpose(1, 2)


def eager(q: Tensor, k: Tensor, v: Tensor) -> Work:
    """Attention with its weights, and the statistics from them."""
    length = q.shape[2]
    hidden = torch.ones(length, length, dtype=torch.bool, device=q.device).triu(1)

    def attend() -> tuple[Tensor, ...]:
        keys, values = (x.repeat_interleave(HEADS // KV_HEADS, dim=1) for x in (k, v))
        scores = (q @ keys.mT * DIM**-0.5).masked_fill(hidden, -torch.inf)
        weights = scores.softmax(-1, dtype=torch.float32).to(q.dtype)
        entropy = torch.special.entr(weights).sum(-1)
        return (weights @ values).transpose(1, 2), *weights.max(-1), entropy, weights[..., 100:132].sum(-1)

    return attend


def ours(q: Tensor, k: Tensor, v: Tensor, plan: HeadPlan | None = None, capture: CaptureSpec | None = None) -> Work:
    here: dict[str, Any] = {
        "plan": None if plan is None else on_device(plan, q.device),
        "capture": None if capture is None else on_device(capture, q.device),
    }
    assert explain(q, k, v, **here).backend == "triton"
    return lambda: head_attention(q, k, v, **here)


def agree(alternatives: dict[str, Work], exact: tuple[str, ...]) -> None:
    """Raise unless the outputs `[batch query head dim]` of those that compute the same are the same."""
    outputs = {name: out if isinstance(out := alternatives[name](), Tensor) else out[0] for name in exact}
    wanted = next(iter(outputs.values()))
    for name, out in outputs.items():
        torch.testing.assert_close(out, wanted, rtol=2e-2, atol=2e-2, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("length", LENGTHS)
@torch.no_grad()
def test_speed(length: int) -> None:
    from triton.testing import do_bench

    random = torch.Generator("cuda").manual_seed(0)
    q, k, v = (
        torch.randn(1, heads, length, DIM, generator=random, device="cuda", dtype=torch.bfloat16)
        for heads in (HEADS, KV_HEADS, KV_HEADS)
    )
    alternatives = {
        "SDPA flash": flash(q, k, v),
        "triton": ours(q, k, v),
        "triton, all statistics": ours(q, k, v, capture=STATISTICS),
        "FlexAttention, compiled": flex(q, k, v),
    }
    if length <= EAGER_UP_TO:
        alternatives["eager with weights, all statistics"] = eager(q, k, v)
    exact = tuple(alternatives)
    alternatives["triton, half the heads pruned"] = ours(q, k, v, plan=HALF_PRUNED)
    alternatives["triton, half the heads streaming (4 + 256)"] = ours(q, k, v, plan=HALF_STREAMING)
    agree(alternatives, exact)
    milliseconds = {name: do_bench(work, return_mode="median") for name, work in alternatives.items()}
    report(length, milliseconds)


def report(length: int, milliseconds: dict[str, float]) -> None:
    """Print the table, and write it beside those of the other benchmarks."""
    baseline = milliseconds["SDPA flash"]
    operations = 4 * HEADS * DIM * length * (length + 1) / 2
    device = torch.cuda.get_device_name()
    print(f"\nkernels-triton-{length}: {HEADS} heads of {DIM} on {KV_HEADS}, {length} tokens, bfloat16, {device}")
    for name, time in milliseconds.items():
        rate = f"{operations / time / 1e9:6.0f} TFLOP/s" if "half" not in name else ""
        print(f"  {name:<44} {time:9.3f} ms   {time / baseline:6.3f} x flash   {rate}")
    for (name, other), most in TARGETS.items():
        ratio = milliseconds[name] / milliseconds[other]
        verdict = "met" if ratio <= most else "MISSED"
        print(f"  target {verdict}: {name} at {ratio:.3f} x {other}, asked for at most {most} x")
    folder = Path(os.environ.get(OUT, "runs/bench"))
    folder.mkdir(parents=True, exist_ok=True)
    record = {"device": device, "torch": torch.__version__, "length": length, "milliseconds": milliseconds}
    (folder / f"kernels-triton-{length}.json").write_text(json.dumps(record, indent=1))
