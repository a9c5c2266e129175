"""Attention in C++ with AVX2 and OpenMP, compiled by the system's compiler when it is first needed.

`cpu.cpp` says how: scores in float32 whatever the inputs, results the same for any number of threads. Here requests
become its struct and back, and gradients are added.
"""

from __future__ import annotations

import ctypes
import logging
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from kernels.backends import compiled
from kernels.patterns import HeadKind
from kernels.request import Output, Request, Work
from kernels.types import AttentionStats, CaptureSpec

log = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("cpu.cpp")
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
LANES = 16
"""Head widths are padded with zeros to a multiple of this many."""
STRIPS = 8
"""Column sums of a head are summed in so many parts, in an order that no number of threads changes."""

# The struct of cpu.cpp: 64-bit integers, 64-bit floats and pointers, in its order.
FIELDS = """
    int batch heads kv_heads queries keys dim v_dim dtype threads dry
    pointer q k v out
    int q_b q_h q_t k_b k_h k_t v_b v_h v_t o_b o_h o_t
    int causal window q_offset kv_offset
    float scale softcap
    pointer alibi starts hidden_before
    int starts_b starts_t hidden_b
    pointer gate add logit_scale
    int gate_b gate_h gate_t add_b add_h add_t logit_b logit_h logit_t
    pointer computed kind plan_sinks plan_window block_offsets block_indices token_offsets token_indices
    int plan_b query_blocks block
    pointer extra_k extra_v extra_log
    int extras extra_k_b extra_v_b extra_log_b
    pointer slots times
    int slots_b captured spans topk strips
    pointer span_bounds
    int span_b
    pointer argmax topk_key probability entropy log_sum_exp mass topk_probability column_sums
    int tiles scores team
"""
KINDS: dict[str, Any] = {"int": ctypes.c_int64, "float": ctypes.c_double, "pointer": ctypes.c_void_p}


class CRequest(ctypes.Structure):
    _fields_ = [(name, KINDS[kind]) for kind, *names in map(str.split, FIELDS.split("\n")[1:-1]) for name in names]


@cache
def library() -> ctypes.CDLL | str:
    """The compiled kernel, or the reason why there is none, which the log says once."""
    capability = torch.backends.cpu.get_cpu_capability()
    reason = f"this processor has no AVX2 and FMA (PyTorch calls it {capability})"
    if capability.startswith("AVX"):
        try:
            loaded = compiled.load(SOURCE)
        except compiled.NotCompiled as error:
            reason = str(error)
        else:
            loaded.request_bytes.restype = ctypes.c_int64
            assert loaded.request_bytes() == ctypes.sizeof(CRequest), "cpu.cpp and FIELDS differ"
            loaded.attend.argtypes = [ctypes.POINTER(CRequest)]
            return loaded
    log.warning("the cpu attention kernel is not available: %s", reason)
    return reason


def supports(request: Request) -> str | None:
    if request.q.device.type != "cpu":
        return f"the tensors are on {request.q.device}"
    if request.q.dtype not in DTYPES:
        return f"q is {request.q.dtype}; scores are float32 here"
    if needs_grad(request) and (reason := why_no_gradient(request)):
        return reason
    found = library()
    return found if isinstance(found, str) else None


def predict(request: Request) -> Work:
    """The walk over the key tiles that `run` does, without its arithmetic."""
    return Work(_call(request, dry=True)[2], request.io_bytes)


def run(request: Request) -> Output:
    if not request.needs_grad:
        return Output(*_call(request))
    scaled = request.q
    if request.gates is not None and (by := request.gates.logit_scale) is not None:
        scaled = request.q * (by[:, :, None, None] if by.ndim == 2 else by[..., None]).to(request.q.dtype)
    # Gates by PyTorch: autograd knows their gradients.
    plain = replace(request, q=scaled, gates=None)
    z, out = FlashAttention.apply(scaled, request.k, request.v, plain)
    return Output(request.epilogue(z), out.stats, out.flops)


def _call(request: Request, *, dry: bool = False) -> tuple[Tensor, AttentionStats | None, int]:
    """Output after gates, statistics, floating point operations done (counted, if `dry`, and nothing done)."""
    call = Call(request, dry)
    call.make()
    return call.out[..., : request.v.shape[3]], call.stats(), call.flops


class Call:
    """A request as the C struct, and the tensors it points to."""

    def __init__(self, request: Request, dry: bool = False) -> None:
        self.request = request
        self.c = CRequest(threads=torch.get_num_threads(), dry=dry, dtype=DTYPES[request.q.dtype])
        self.kept: list[Tensor] = []
        self.measured: dict[str, Tensor] = {}
        self._set_tensors()
        self._set_mask()
        self._set_gates()
        self._set_plan()
        if request.capture is not None:
            self._set_capture(request.capture)

    def make(self) -> None:
        loaded = library()
        assert not isinstance(loaded, str), loaded
        if loaded.attend(ctypes.byref(self.c)):
            raise MemoryError(
                f"attention of {self.request.queries} queries to {self.request.keys} keys ran out of memory"
            )

    @property
    def flops(self) -> int:
        """Operations of the two products, done or counted."""
        return 2 * self.c.scores * (self.request.q.shape[3] + self.request.v.shape[3])

    def _point(self, name: str, value: Tensor, dtype: torch.dtype | None = None) -> None:
        value = value.detach().to("cpu", dtype or value.dtype)
        self.kept.append(value)
        setattr(self.c, name, value.data_ptr())

    def _strides(self, name: str, value: Tensor, dims: str) -> None:
        for dim, stride in zip(dims, value.stride(), strict=False):
            setattr(self.c, f"{name}_{dim}", stride)

    def _set_tensors(self) -> None:
        r, c = self.request, self.c
        for name in "qkv":
            x = padded(getattr(r, name))
            self._strides(name, x, "bht")
            self._point(name, x)
        c.batch, c.heads, c.queries, c.keys, c.kv_heads = r.batch, r.heads, r.queries, r.keys, r.kv_heads
        c.dim, c.v_dim = (-(-x.shape[3] // LANES) * LANES for x in (r.q, r.v))
        self.out = r.q.new_empty(r.batch, r.queries, r.heads, c.v_dim)
        self._strides("o", self.out, "bth")
        self._point("out", self.out)

    def _set_mask(self) -> None:
        mask, c = self.request.mask, self.c
        c.causal, c.window, c.softcap, c.scale = mask.causal, mask.window or 0, mask.softcap or 0.0, self.request.scale
        c.q_offset, c.kv_offset = self.request.q_offset, mask.kv_offset
        if mask.alibi is not None:
            self._point("alibi", mask.alibi.contiguous(), torch.float32)
        if (beside := self.request.beside) is not None:
            c.extras = beside.k.shape[2]
            for name, value in (("k", padded(beside.k)), ("v", padded(beside.v)), ("log", beside.log_count)):
                value = value.float().contiguous()
                setattr(c, f"extra_{name}_b", 0 if len(value) == 1 else value.stride(0))
                self._point(f"extra_{name}", value)
        if mask.starts is not None:
            starts = mask.starts if mask.starts.ndim == 2 else mask.starts[:, None]
            starts = starts.to(torch.int32).expand(self.request.batch, self.request.queries)
            self._strides("starts", starts, "bt")
            self._point("starts", starts)
        if mask.key_mask is not None:
            before = pad((~mask.key_mask).cumsum(-1, dtype=torch.int32), (1, 0))
            c.hidden_b = before.expand(self.request.batch, -1).stride(0)
            self._point("hidden_before", before)

    def _set_gates(self) -> None:
        gates, r = self.request.gates, self.request
        if gates is None:
            return
        for name, field in (("gate", "gate"), ("logit", "logit_scale")):
            value = getattr(gates, field)
            if value is not None:
                value = value.float() if value.ndim == 3 else value.float()[..., None]
                value = value.expand(r.batch, r.heads, r.queries)
                self._strides(name, value, "bht")
                self._point(field, value)
        if gates.add is not None:
            add = padded(gates.add.float() if gates.add.ndim == 4 else gates.add.float()[:, :, None])
            add = add.expand(r.batch, r.heads, r.queries, -1)
            self._strides("add", add, "bht")
            self._point("add", add)

    def _set_plan(self) -> None:
        r, c, plan = self.request, self.c, self.request.plan
        self._point("computed", r.computed.contiguous(), torch.int8)
        if plan is None:
            return
        c.plan_b = 0 if len(plan.kind) == 1 else r.heads
        c.query_blocks, c.block = plan.block_offsets.shape[2] - 1, plan.block
        self._point("kind", plan.kind.contiguous(), torch.int8)
        for name, value in (("plan_sinks", plan.sinks), ("plan_window", plan.window)):
            self._point(name, value.contiguous(), torch.int32)
        for name in ("block_offsets", "block_indices", "token_offsets", "token_indices"):
            self._point(name, getattr(plan, name).contiguous(), torch.int32)

    def _set_capture(self, capture: CaptureSpec) -> None:
        r, c = self.request, self.c
        rows = r.rows
        assert rows is not None
        c.captured = rows.shape[1]
        # Of a query asked for twice, one row of the statistics is written, and read twice.
        slots = torch.full((r.batch, r.queries), -1, dtype=torch.int32)
        slots.scatter_(1, rows, torch.arange(c.captured, dtype=torch.int32).expand_as(rows))
        self.slot = slots.gather(1, rows) if isinstance(capture.rows, Tensor) else None
        c.slots_b = r.queries
        self._point("slots", slots)
        shape = (r.batch, r.heads, c.captured)

        def measure(asked: bool, name: str, *size: int, fill: float = 0, dtype: torch.dtype = torch.float32) -> None:
            if asked:
                self.measured[name] = torch.full(size, fill, dtype=dtype)
                self._point(name, self.measured[name])

        measure(capture.argmax, "argmax", *shape, fill=-1, dtype=torch.int64)
        measure(capture.probability, "probability", *shape)
        measure(capture.entropy, "entropy", *shape)
        measure(capture.log_sum_exp, "log_sum_exp", *shape, fill=float("-inf"))
        if capture.spans is not None:
            c.spans = capture.spans.shape[1]
            spans = (capture.spans - r.mask.kv_offset).clamp(-1, r.keys).int().expand(r.batch, -1, -1)
            c.span_b = spans.stride(0)
            self._point("span_bounds", spans.contiguous() if c.span_b else spans[:1].contiguous())
            measure(True, "mass", *shape, c.spans)
        if capture.topk:
            c.topk = capture.topk
            measure(True, "topk_key", *shape, c.topk, fill=-1, dtype=torch.int64)
            measure(True, "topk_probability", *shape, c.topk)
        c.strips = STRIPS if capture.column_sums else 0
        if capture.column_sums:
            measure(True, "column_sums", STRIPS, r.batch, r.heads, r.keys)
            self._point("times", torch.zeros(slots.shape).scatter_add_(1, rows, torch.ones(rows.shape)))

    def stats(self) -> AttentionStats | None:
        if self.request.capture is None:
            return None
        measured = dict(self.measured)
        columns = measured.pop("column_sums", None)
        if "topk_key" in measured:
            measured["topk"] = measured.pop("topk_key")
        stats = AttentionStats(**measured)
        if (slot := self.slot) is not None:
            row = torch.arange(len(slot))[:, None]
            stats = stats.by_row(lambda x: x[row, :, slot].transpose(1, 2))
        return stats if columns is None else replace(stats, column_sums=columns.sum(0))


def padded(x: Tensor) -> Tensor:
    """Last dimension contiguous and a multiple of LANES, by zeros, which change no product."""
    x = pad(x, (0, -x.shape[-1] % LANES)) if x.shape[-1] % LANES else x
    return x if x.stride(-1) == 1 else x.contiguous()


def needs_grad(request: Request) -> bool:
    """Whether anything that comes into the output asks for a gradient, what only masks and plans hold too."""
    extra = None if request.plan is None else request.plan.extra
    held = [request.mask.sinks, request.mask.alibi, *([] if extra is None else (extra.k, extra.v, extra.log_count))]
    asking = any(x is not None and x.requires_grad for x in held)
    return request.needs_grad or (asking and torch.is_grad_enabled())


def why_no_gradient(request: Request) -> str | None:
    """Gradients come from PyTorch's flash backward, which knows causal and full attention of all heads."""
    mask, plan, capture = request.mask, request.plan, request.capture
    for name in ("window", "softcap", "alibi", "sinks", "starts", "key_mask"):
        if getattr(mask, name) is not None:
            return f"no gradients with MaskSpec.{name}"
    if mask.causal and request.q_offset != mask.kv_offset:
        return f"no gradients where the first query (at {request.q_offset}) is not at the first key ({mask.kv_offset})"
    if plan is not None and (plan.extra is not None or not bool((plan.kind == HeadKind.FULL).all())):
        return "no gradients with a HeadPlan of other than full heads"
    if capture is not None and (isinstance(capture.rows, Tensor) or capture.rows != "all"):
        return "no gradients with CaptureSpec.rows other than 'all'"
    if request.q.shape[3] != request.v.shape[3]:
        return f"no gradients with values of {request.v.shape[3]} and queries of {request.q.shape[3]} dimensions"
    if not bool(request.computed.all()):
        return "no gradients where a gate without gradient is 0"
    return None


class FlashAttention(torch.autograd.Function):
    """This kernel forward, PyTorch's flash attention backward: both need the output and the log-sum-exp alone."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, request: Request) -> tuple[Tensor, Output]:
        asked = request.capture
        capture = replace(asked, log_sum_exp=True) if asked else CaptureSpec(argmax=False, probability=False)
        out, stats, flops = _call(replace(request, capture=capture))
        assert stats is not None
        ctx.save_for_backward(q, k, v, out, stats.log_sum_exp)
        ctx.causal, ctx.scale = request.mask.causal, request.scale
        if asked is None:
            stats = None
        elif not asked.log_sum_exp:
            stats = replace(stats, log_sum_exp=None)
        return out, Output(out.detach(), stats, flops)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        z, dz = out.transpose(1, 2), grad.transpose(1, 2)
        return (*backward(dz, q, k, v, z, lse, 0.0, ctx.causal, attn_mask=None, scale=ctx.scale), None)
