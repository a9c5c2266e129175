"""One attention for study and production: fused kernels that take head gates and head plans and return statistics.

`head_attention` computes, `explain` says beforehand how, and at what cost. Backends are the modules of
`kernels.backends`; the first of `PREFERENCE` that supports a request computes it, or the one that was named does. There
is no other fallback: what nothing supports is refused with the reason of each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType

from torch import Tensor

from kernels.errors import InvalidRequest, UnsupportedRequest
from kernels.request import Request
from kernels.types import AttentionStats, CaptureSpec, HeadGates, HeadPlan, MaskSpec

BACKENDS: dict[str, str] = {name: f"kernels.backends.{name}" for name in ("reference", "sdpa", "cpu", "flex", "triton")}
"""The module of every backend; what it must define is said in `kernels.backends`."""

PREFERENCE: Mapping[str, tuple[str, ...]] = {
    "cpu": ("cpu", "sdpa", "reference"),
    "cuda": ("triton", "sdpa", "flex", "reference"),
}
"""What "auto" tries on a device, in this order; other devices are served like the CPU without compiled code."""


@dataclass(frozen=True)
class Dispatch:
    """How a call would be computed: the backend, why the others before it are not used, predicted work and bytes."""

    backend: str
    refused: Mapping[str, str]
    flops: int
    bytes: int

    def __str__(self) -> str:
        because = "".join(f"\n  not {name}: {reason}" for name, reason in self.refused.items())
        return f"{self.backend}, {self.flops / 1e9:.3g} GFLOP, {self.bytes / 2**20:.3g} MiB{because}"


def head_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: MaskSpec | None = None,
    gates: HeadGates | None = None,
    plan: HeadPlan | None = None,
    capture: CaptureSpec | None = None,
    backend: str = "auto",
    allow_dense: bool = False,
) -> tuple[Tensor, AttentionStats | None]:
    """Attention of q `[B H T D]` over k `[B K S D]` and v `[B K S Dv]`: out `[B T H Dv]`, and statistics if captured.

    Query head h reads key/value head `h // (H / K)`. Without a mask: causal, the last query at the last key. Each head
    sees what its plan shows of the mask; its output z becomes `gate * z + add`. Heads that are pruned, or gated to 0
    and not measured, are not computed: nothing their inputs hold reaches the output.

    backend: a name, or "auto" for the first in `PREFERENCE` that supports the request. allow_dense permits `T x S`
    matrices (the reference backend). Raises InvalidRequest for what does not fit, UnsupportedRequest with every
    backend's reason for what none computes; both before anything is computed.
    """
    request = Request.of(q, k, v, mask=mask, gates=gates, plan=plan, capture=capture, allow_dense=allow_dense)
    _, module, _ = choose(request, backend)
    out, stats, _ = module.run(request)
    return out, stats


def explain(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: MaskSpec | None = None,
    gates: HeadGates | None = None,
    plan: HeadPlan | None = None,
    capture: CaptureSpec | None = None,
    backend: str = "auto",
    allow_dense: bool = False,
) -> Dispatch:
    """How `head_attention` with the same arguments would compute; raises what it would raise."""
    request = Request.of(q, k, v, mask=mask, gates=gates, plan=plan, capture=capture, allow_dense=allow_dense)
    name, module, refused = choose(request, backend)
    return Dispatch(name, refused, *module.predict(request))


def choose(request: Request, backend: str = "auto") -> tuple[str, ModuleType, dict[str, str]]:
    """The backend for a request, its module, and the reasons of those that refused; raises UnsupportedRequest."""
    if backend != "auto" and backend not in BACKENDS:
        raise InvalidRequest(f"unknown backend {backend!r}; there are auto, {', '.join(BACKENDS)}")
    refused: dict[str, str] = {}
    for name in PREFERENCE.get(request.q.device.type, ("sdpa", "reference")) if backend == "auto" else (backend,):
        module = _load(name)
        reason = module if isinstance(module, str) else module.supports(request)
        if reason is None and isinstance(module, ModuleType):
            return name, module, refused
        refused[name] = str(reason)
    raise UnsupportedRequest("; ".join(f"{name} refuses: {reason}" for name, reason in refused.items()))


def _load(name: str) -> ModuleType | str:
    """A backend's module, or why it cannot be had here."""
    try:
        return import_module(BACKENDS[name])
    except ModuleNotFoundError as error:
        return f"not installed here ({error})"
