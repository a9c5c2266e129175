"""What attention costs on these kernels, beside PyTorch's fused kernel and transformers' eager attention.

`alternatives` are calls on the same tensors, for `kernels.measure.compare`. Their outputs were found to be the same
where they compute the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from kernels.attention import explain, head_attention
from kernels.errors import InvalidRequest, UnsupportedRequest
from kernels.patterns import full, pruned, streaming
from kernels.types import CaptureSpec, HeadPlan, on_device

Work = Callable[[], Any]
Tensors = tuple[Tensor, Tensor, Tensor]

SPAN = slice(100, 132)
STATISTICS = CaptureSpec(entropy=True, spans=torch.tensor([[[SPAN.start, SPAN.stop]]]))
"""All statistics of a row: argmax, its probability, log-sum-exp, entropy, and the mass on a span."""
TOLERANCE = {torch.bfloat16: 4e-2, torch.float16: 5e-3}
"""By which outputs may differ; 1e-4 for other dtypes."""
EAGER_LIMIT = 2**28
"""Elements of the matrix of all heads beyond which eager attention is left out: it holds several of them."""


@dataclass(frozen=True)
class Shape:
    """Queries, the last of them at the last key, of `heads` that share `kv_heads`, each `dim` wide."""

    queries: int
    keys: int
    heads: int = 12
    kv_heads: int = 12
    dim: int = 64
    dtype: torch.dtype = torch.float32
    device: str = "cpu"

    def __post_init__(self) -> None:
        if min(self.queries, self.keys, self.heads, self.kv_heads, self.dim) < 1 or self.heads % self.kv_heads:
            raise InvalidRequest(f"{self}: sizes are positive, and heads share key/value heads evenly")
        if self.queries not in (1, self.keys):
            raise InvalidRequest(f"{self}: either as many queries as keys, or one")

    def __str__(self) -> str:
        shared = "" if self.kv_heads == self.heads else f" on {self.kv_heads} key/value heads"
        tokens = f"{self.queries} tokens" if self.queries > 1 else f"one query, {self.keys} keys"
        return f"{tokens}, {self.heads} heads of {self.dim}{shared}, {str(self.dtype).removeprefix('torch.')}"

    def tensors(self) -> Tensors:
        """Random q `[1 H T D]`, k and v `[1 K S D]`."""
        random = torch.Generator().manual_seed(0)
        sizes = ((self.heads, self.queries), (self.kv_heads, self.keys), (self.kv_heads, self.keys))
        q, k, v = (torch.randn(1, count, length, self.dim, generator=random) for count, length in sizes)
        return q.to(self.device, self.dtype), k.to(self.device, self.dtype), v.to(self.device, self.dtype)


def half_pruned(heads: int) -> HeadPlan:
    """The first half of the heads is not computed."""
    return HeadPlan.of([pruned()] * (heads // 2) + [full()] * (heads - heads // 2))


def half_streaming(heads: int) -> HeadPlan:
    """The first half of the heads sees four sinks and a window of 256."""
    return HeadPlan.of([streaming(4, 256)] * (heads // 2) + [full()] * (heads - heads // 2))


def torch_sdpa(q: Tensor, k: Tensor, v: Tensor) -> Work:
    """PyTorch's fused attention, `[batch query head dim]` like ours."""
    causal, shared = q.shape[2] > 1, q.shape[1] != k.shape[1]
    return lambda: scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=shared).transpose(1, 2)


def attention(q: Tensor, k: Tensor, v: Tensor, backend: str = "cpu", **how: Any) -> Work:
    """`head_attention` on these tensors."""
    return lambda: head_attention(q, k, v, backend=backend, **how)


def eager(q: Tensor, k: Tensor, v: Tensor, *, statistics: bool = True) -> Work:
    """transformers' eager attention, and from its matrix the statistics that the kernels measure."""
    from transformers.models.llama.modeling_llama import eager_attention_forward

    module: Any = SimpleNamespace(num_key_value_groups=q.shape[1] // k.shape[1], training=False)
    queries, keys = q.shape[2], k.shape[2]
    hidden = torch.full((queries, keys), -torch.inf, device=q.device, dtype=q.dtype).triu(keys - queries + 1)

    def attend() -> tuple[Tensor, ...]:
        out, weights = eager_attention_forward(module, q, k, v, hidden[None, None], scaling=q.shape[3] ** -0.5)
        if not statistics:
            return (out,)
        return out, *weights.max(-1), torch.special.entr(weights).sum(-1), weights[..., SPAN].sum(-1)

    return attend


def agree(alternatives: dict[str, Work]) -> dict[str, Work]:
    """The alternatives, once their outputs `[batch query head dim]` were found to be the same."""
    outputs = {name: out if isinstance(out := work(), Tensor) else out[0] for name, work in alternatives.items()}
    wanted = next(iter(outputs.values()))
    close = TOLERANCE.get(wanted.dtype, 1e-4)
    for name, out in outputs.items():
        torch.testing.assert_close(out, wanted, rtol=close, atol=close, msg=partial("{}: {}".format, name))
    return alternatives


@torch.no_grad()
def alternatives(shape: Shape, backends: Sequence[str]) -> tuple[dict[str, Work], dict[str, str]]:
    """PyTorch's attention, which is the baseline, eager attention, and what each backend does; and who refuses why.

    Raises InvalidRequest for names that are no backends.
    """
    tensors = q, k, v = shape.tensors()
    works: dict[str, Work] = {"torch SDPA": torch_sdpa(*tensors)}
    left_out: dict[str, str] = {}
    if shape.heads * shape.queries * shape.keys <= EAGER_LIMIT:
        works["transformers eager"] = eager(*tensors, statistics=False)
        works["transformers eager, statistics"] = eager(*tensors)
    else:
        left_out["transformers eager"] = f"{shape.queries} x {shape.keys} matrices of {shape.heads} heads are too large"
    ways: dict[str, dict[str, Any]] = {"": {}, ", all statistics": {"capture": STATISTICS}}
    if shape.heads > 1:
        plans = {"pruned": half_pruned(shape.heads), "streaming (4 + 256)": half_streaming(shape.heads)}
        ways |= {f", half the heads {kind}": {"plan": plan} for kind, plan in plans.items()}
    others = set()
    for backend in backends:
        for way, given in ways.items():
            how = {name: on_device(value, q.device) for name, value in given.items()}
            try:
                explain(q, k, v, backend=backend, **how)
            except UnsupportedRequest as refusal:
                left_out[backend + way] = str(refusal)
                continue
            works[backend + way] = attention(*tensors, backend, **how)
            others |= {backend + way} if "plan" in how else set()
    agree({name: work for name, work in works.items() if name not in others})
    return works, left_out


def clock(device: str) -> Callable[[], float]:
    """CPU time of the process, or for a GPU the wall time once it has done all it was given."""
    if torch.device(device).type != "cuda":
        return time.process_time

    def finished() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return finished
