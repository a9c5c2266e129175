"""One kernel call, checked and brought into the one form that every backend reads."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from kernels.errors import InvalidRequest
from kernels.patterns import HeadKind
from kernels.types import AttentionStats, CaptureSpec, ExtraKeys, HeadGates, HeadPlan, MaskSpec

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class Work(NamedTuple):
    """What a call costs: floating point operations of the two products, bytes read and written at least once."""

    flops: int
    bytes: int


class Output(NamedTuple):
    """`out` `[batch query head dim]`, the statistics if any were asked for, and the operations counted while
    running."""

    out: Tensor
    stats: AttentionStats | None
    flops: int


@dataclass(frozen=True, eq=False)
class Request:
    """A checked call: q `[B H T D]`, k `[B K S D]`, v `[B K S Dv]`; query head h reads kv head `h // (H / K)`.

    `gates` apply to this very call (phase and positions are resolved) or are None; `mask.q_offset` and `mask.scale` are
    numbers. `allow_dense` permits a `T x S` matrix.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    mask: MaskSpec
    gates: HeadGates | None = None
    plan: HeadPlan | None = None
    capture: CaptureSpec | None = None
    allow_dense: bool = False

    @classmethod
    def of(
        cls,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        mask: MaskSpec | None = None,
        gates: HeadGates | None = None,
        plan: HeadPlan | None = None,
        capture: CaptureSpec | None = None,
        allow_dense: bool = False,
    ) -> Request:
        """Check everything against everything; raises InvalidRequest before anything is computed."""
        _check_tensors(q, k, v)
        mask = mask or MaskSpec()
        if mask.q_offset is None:
            if k.shape[2] + mask.kv_offset < q.shape[2]:
                raise InvalidRequest(
                    f"{q.shape[2]} queries, {k.shape[2]} keys: the last query cannot be at the last key; give q_offset"
                )
            mask = replace(mask, q_offset=mask.kv_offset + k.shape[2] - q.shape[2])
        if mask.scale is None:
            mask = replace(mask, scale=q.shape[3] ** -0.5)
        for spec in (mask, gates, plan, None if plan is None else plan.extra):
            _check_device(q.device, spec)
        request = cls(q, k, v, mask, None, plan, capture, allow_dense)
        _check_mask(request)
        if plan is not None:
            _check_plan(request, plan)
        if capture is not None:
            _check_capture(request, capture)
        return replace(request, gates=None if gates is None else _resolved(request, gates))

    @property
    def batch(self) -> int:
        return self.q.shape[0]

    @property
    def heads(self) -> int:
        return self.q.shape[1]

    @property
    def kv_heads(self) -> int:
        return self.k.shape[1]

    @property
    def group(self) -> int:
        """Query heads that share a key/value head."""
        return self.heads // self.kv_heads

    @property
    def queries(self) -> int:
        return self.q.shape[2]

    @property
    def keys(self) -> int:
        return self.k.shape[2]

    @property
    def q_offset(self) -> int:
        assert self.mask.q_offset is not None
        return self.mask.q_offset

    @property
    def scale(self) -> float:
        assert self.mask.scale is not None
        return self.mask.scale

    @property
    def precise(self) -> torch.dtype:
        """What scores and statistics are computed in: float32, or float64 for float64 inputs."""
        return torch.promote_types(self.q.dtype, torch.float32)

    @property
    def needs_grad(self) -> bool:
        extra = None if self.plan is None else self.plan.extra
        values = [x for spec in (self.mask, self.gates, extra) if spec is not None for x in vars(spec).values()]
        tensors = [x for x in (self.q, self.k, self.v, *values) if isinstance(x, Tensor)]
        return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)

    @property
    def extra_keys(self) -> int:
        """How many keys the plan adds beside the cached ones."""
        return 0 if self.plan is None or self.plan.extra is None else self.plan.extra.k.shape[2]

    @cached_property
    def beside(self) -> ExtraKeys | None:
        """What takes part in the softmax beside the cached keys: the plan's extra keys, sink logits as keys of 0."""
        parts = [] if self.plan is None or self.plan.extra is None else [self.plan.extra]
        if self.mask.sinks is not None:
            k, v = (x.new_zeros(1, self.kv_heads, 1, x.shape[3]) for x in (self.k, self.v))
            parts.append(ExtraKeys(k, v, self.mask.sinks[None, :, None]))
        if len(parts) < 2:
            return parts[0] if parts else None
        whole = [(x.expand(self.batch, -1, -1, -1) for x in (part.k, part.v)) for part in parts]
        k, v = (torch.cat(x, dim=2) for x in zip(*whole, strict=True))
        counts = [part.log_count.expand(self.batch, -1, -1) for part in parts]
        return ExtraKeys(k, v, torch.cat(counts, dim=2))

    @property
    def phase(self) -> str:
        """ "decode" where one query meets keys cached before it, "prefill" everywhere else."""
        return "decode" if self.queries == 1 and self.keys > 1 else "prefill"

    @cached_property
    def kinds(self) -> Tensor:
        """The HeadKind of every head of every batch row, `[B H]` int8, on the CPU."""
        if self.plan is None:
            return torch.full((self.batch, self.heads), int(HeadKind.FULL), dtype=torch.int8)
        return self.plan.kind.cpu().expand(self.batch, -1)

    @cached_property
    def computed(self) -> Tensor:
        """Heads whose softmax has to be computed, `[B H]` bool on the CPU: not pruned, not gated to 0 unmeasured."""
        computed = self.kinds != HeadKind.PRUNED
        gate = None if self.gates is None else self.gates.gate
        if gate is None or self.capture is not None or (gate.requires_grad and torch.is_grad_enabled()):
            return computed
        used = (gate != 0).flatten(2).any(-1) if gate.ndim == 3 else gate != 0
        return computed & used.cpu().expand(self.batch, -1)

    @cached_property
    def io_bytes(self) -> int:
        """Bytes of the queries, keys, values and outputs of the heads that are computed, each once."""
        width = self.q.shape[3] + self.v.shape[3]
        kv_heads = self.computed.unflatten(1, (self.kv_heads, self.group)).any(-1)
        rows = int(self.computed.sum()) * self.queries + int(kv_heads.sum()) * self.keys
        return rows * width * self.q.element_size()

    @cached_property
    def rows(self) -> Tensor | None:
        """The captured queries, `[B R]` int64 indices into this call; None where nothing is captured."""
        if self.capture is None:
            return None
        rows = self.capture.rows
        if isinstance(rows, Tensor):
            return rows.to(self.q.device, torch.int64).reshape(-1, rows.shape[-1]).expand(self.batch, -1)
        first = 0 if rows == "all" else self.queries - 1
        return torch.arange(first, self.queries, device=self.q.device).expand(self.batch, -1)

    def epilogue(self, z: Tensor) -> Tensor:
        """`gate * z + add` of `z` `[B T H D]`; where the gate is 0 whatever z holds, NaN too, does not come through."""
        if self.gates is None:
            return z
        gate, add = self.gates.gate, self.gates.add
        if gate is not None:
            gate = per_query(gate).to(z.dtype)
            z = gate * z if gate.requires_grad else torch.where(gate == 0, torch.zeros_like(z), gate * z)
        return z if add is None else z + (add[:, None] if add.ndim == 3 else add.transpose(1, 2)).to(z.dtype)


def per_query(value: Tensor) -> Tensor:
    """A gate or logit scale `[B|1 H]` or `[B|1 H T]` as `[B|1 T|1 H 1]`, to multiply `[B T H D]`."""
    return value[:, None, :, None] if value.ndim == 2 else value.transpose(1, 2)[..., None]


def _fits(name: str, shape: torch.Size, *wanted: tuple[int, ...]) -> None:
    """Raise unless the shape is one of the wanted ones, its first dimension being 1 where all batch rows agree."""
    for one in wanted:
        if tuple(shape) in (one, (1, *one[1:])):
            return
    choices = " or ".join(str([f"{one[0]}|1", *one[1:]]).replace("'", "") for one in wanted)
    raise InvalidRequest(f"{name} has shape {list(shape)}; this call takes {choices}")


def _check_tensors(q: Tensor, k: Tensor, v: Tensor) -> None:
    if not q.ndim == k.ndim == v.ndim == 4:
        shapes = [list(x.shape) for x in (q, k, v)]
        raise InvalidRequest(f"q, k, v of shapes {shapes}; each is [batch, head, position, dim]")
    if q.dtype not in DTYPES or not q.dtype == k.dtype == v.dtype:
        raise InvalidRequest(f"q, k, v are {q.dtype}, {k.dtype}, {v.dtype}; give one of {', '.join(map(str, DTYPES))}")
    if not q.device == k.device == v.device:
        raise InvalidRequest(f"q, k, v are on {q.device}, {k.device}, {v.device}; give one device")
    if k.shape[:3] != v.shape[:3] or q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
        shapes = [list(x.shape) for x in (q, k, v)]
        raise InvalidRequest(f"q, k, v of shapes {shapes} do not fit [B, H, T, D], [B, K, S, D], [B, K, S, Dv]")
    if 0 in (*q.shape, *k.shape, *v.shape):
        raise InvalidRequest(f"an empty tensor: q {list(q.shape)}, k {list(k.shape)}, v {list(v.shape)}")
    if q.shape[1] % k.shape[1]:
        raise InvalidRequest(f"{q.shape[1]} query heads cannot share {k.shape[1]} key/value heads evenly")


def _check_device(device: torch.device, spec: object) -> None:
    for name, value in vars(spec).items() if spec is not None else ():
        if isinstance(value, Tensor) and value.device != device:
            owner = type(spec).__name__
            raise InvalidRequest(f"{owner}.{name} is on {value.device}, q on {device}: move it once, with on_device")


def _check_mask(request: Request) -> None:
    mask, batch = request.mask, request.batch
    for name, value in (("alibi", mask.alibi), ("sinks", mask.sinks)):
        if value is not None and len(value) != request.heads:
            raise InvalidRequest(f"MaskSpec.{name} has {len(value)} entries for {request.heads} heads")
    if mask.starts is not None and mask.starts.ndim == 1:
        _fits("MaskSpec.starts", mask.starts.shape, (batch,))
    elif mask.starts is not None:
        _fits("MaskSpec.starts", mask.starts.shape, (batch, request.queries))
    if mask.key_mask is not None:
        _fits("MaskSpec.key_mask", mask.key_mask.shape, (batch, request.keys))


def _check_plan(request: Request, plan: HeadPlan) -> None:
    _fits("HeadPlan.kind", plan.kind.shape, (request.batch, request.heads))
    if not request.mask.causal and bool((plan.kind == HeadKind.SPARSE).any()):
        raise InvalidRequest("sparse head patterns reach back from a causal query; this mask is not causal")
    last = request.q_offset + request.queries
    if plan.covers is not None and last > plan.covers:
        raise InvalidRequest(f"the plan's block lists cover {plan.covers} positions; this call's queries end at {last}")
    if plan.extra is not None:
        shared = (request.kv_heads, plan.extra.k.shape[2])
        _fits("ExtraKeys.k", plan.extra.k.shape, (request.batch, *shared, request.q.shape[3]))
        _fits("ExtraKeys.v", plan.extra.v.shape, (request.batch, *shared, request.v.shape[3]))
        _fits("ExtraKeys.log_count", plan.extra.log_count.shape, (request.batch, request.heads, shared[1]))


def _check_capture(request: Request, capture: CaptureSpec) -> None:
    if isinstance(capture.rows, Tensor):
        rows = capture.rows
        if rows.ndim == 2:
            _fits("CaptureSpec.rows", rows.shape, (request.batch, rows.shape[1]))
        if rows.numel() == 0 or int(rows.min()) < 0 or int(rows.max()) >= request.queries:
            raise InvalidRequest(f"CaptureSpec.rows {rows.tolist()}: this call has queries 0 to {request.queries - 1}")
    if capture.spans is not None:
        _fits("CaptureSpec.spans", capture.spans.shape, (request.batch, *capture.spans.shape[1:]))


def _resolved(request: Request, gates: HeadGates) -> HeadGates | None:
    """The gates of this very call: None in the other phase, and 1, 0, 1 at positions they leave alone."""
    batch, heads, queries, dim = request.batch, request.heads, request.queries, request.v.shape[3]
    for name, value in (("gate", gates.gate), ("logit_scale", gates.logit_scale)):
        if value is not None:
            _fits(f"HeadGates.{name}", value.shape, (batch, heads), (batch, heads, queries))
    if gates.add is not None:
        _fits("HeadGates.add", gates.add.shape, (batch, heads, dim), (batch, heads, queries, dim))
    if gates.positions is not None:
        _fits("HeadGates.positions", gates.positions.shape, (batch, queries))
    if gates.phase not in ("both", request.phase):
        return None
    if gates.positions is None:
        return gates
    at = gates.positions[:, None].to(request.q.device)

    def there(value: Tensor | None, elsewhere: float, rank: int) -> Tensor | None:
        if value is None:
            return None
        value = value if value.ndim == rank else value.unsqueeze(2)
        return torch.where(at if rank == 3 else at[..., None], value, torch.full_like(value, elsewhere))

    return HeadGates(there(gates.gate, 1.0, 3), there(gates.add, 0.0, 4), there(gates.logit_scale, 1.0, 3))
