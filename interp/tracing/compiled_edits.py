"""What of a run the attention kernel does itself, instead of hooks around it: edits as head gates, and statistics.

Under attention "workbench" an affine edit of `z` (zero, scale, mean, add) becomes `gate * z + add` of the kernel, and
`attend(to="uniform")` scores times 0, by head, prompt and token. Of the edits of one site the leading ones are taken,
up to the first that is neither; hooks make the rest, in order. A head that is left nothing of its own is not computed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from interp.tracing.architectures import Parts
from interp.tracing.attention import KernelCall
from interp.tracing.backends.kernel_tap import Kernel, kernel_tap
from interp.tracing.edits import Edit
from interp.tracing.frame import Frame
from interp.tracing.interventions import selected
from interp.tracing.plan import Plan
from interp.tracing.sites import Site
from kernels.integration import NAME, LayerPlan
from kernels.types import AttentionStats, CaptureSpec, HeadGates

_writers: WeakKeyDictionary[nn.Module, frozenset[int]] = WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class KernelWork:
    """`plan` for the kernel in one call, how many leading edits of a site that makes, and which of them act here."""

    plan: LayerPlan | None = None
    made: Mapping[Site, int] = field(default_factory=dict)
    acting: tuple[Edit, ...] = ()


def kernel_sites(plan: Plan, hf: nn.Module, parts: Parts, attention: str) -> frozenset[Site]:
    """Sites of the plan whose edits or reads the kernel can take over; none where gradients are asked for.

    `z` is left to hooks where it is not what the kernel returns (BitNet normalises it first), and where a hook of
    somebody else's is to see it before it is edited.
    """
    if attention != NAME or plan.grad:
        return frozenset()
    layers = range(plan.layers)
    sites = {Site(name, n) for name in ("pattern", "attention_stats") for n in layers if plan.touches(name, n)}
    for layer in {edit.site.layer for edit in plan.edits if edit.site.name == "z"}:
        if layer in _kernel_writes_z(hf, parts) and not parts.blocks[layer].o._forward_pre_hooks:
            sites.add(Site("z", layer))
    return frozenset(sites)


def kernel_work(
    plan: Plan, call: KernelCall, frame: Frame, columns: Tensor | None, sites: frozenset[Site]
) -> KernelWork:
    """What the kernel does in this call of what the plan wants of its layer; `columns` `[batch kept]` are read."""
    pattern, z, stats = (Site(name, call.layer) for name in ("pattern", "z", "attention_stats"))
    forced = plan.edits_at(pattern)
    even = _leading(forced, _is_even) if pattern in sites and call.sinks is None else []  # a sink keeps its share
    affine = _leading(plan.edits_at(z), _is_affine) if z in sites and len(even) == len(forced) else []
    capture = None
    computed = forced or plan.folds or pattern in plan.reads  # such rows are summarised from themselves
    if stats in plan.reads and stats in sites and columns is not None and not computed:
        capture = CaptureSpec(rows="all" if plan.positions is None else columns, entropy=True)
    frame = frame.to(call.q.device)
    acting = [(edit, at) for edit in (*even, *affine) if bool((at := _where(edit, frame, call.q.shape[1])).any())]
    gates = _gates(acting, call) if acting else None
    plan_here = None if gates is None and capture is None else LayerPlan(gates=gates, capture=capture)
    return KernelWork(plan_here, {pattern: len(even), z: len(affine)}, tuple(edit for edit, _ in acting))


def by_position(stats: AttentionStats, frame: Frame) -> AttentionStats:
    """Statistics whose argmax is a column of the padded batch, with the token's position instead."""
    assert stats.argmax is not None
    positions = frame.to(stats.argmax.device).whole.positions
    found = positions.gather(1, stats.argmax.clamp(min=0).flatten(1)).view_as(stats.argmax)
    return replace(stats, argmax=torch.where(stats.argmax < 0, -1, found))


def _leading(edits: Sequence[Edit], test: Callable[[Edit], bool]) -> list[Edit]:
    return list(takewhile(test, edits))


def _is_even(edit: Edit) -> bool:
    return edit.kind == "attend" and edit.parameters["to"] == "uniform"


def _is_affine(edit: Edit) -> bool:
    """Whether gates can say the edit; they take one factor a head, and finite numbers only."""
    factor = edit.parameters.get("factor", 0.0)
    if edit.kind not in _AFFINE or isinstance(factor, Tensor):
        return False
    return all(bool(torch.isfinite(x).all()) for x in (torch.tensor(factor), *edit.tensors.values()))


_AFFINE: dict[str, Callable[[Edit], tuple[float, Tensor | None]]] = {
    "zero": lambda _edit: (0.0, None),
    "scale": lambda edit: (edit.parameters["factor"], None),
    "mean": lambda edit: (0.0, edit.tensors["value"]),
    "add": lambda edit: (1.0, edit.parameters["factor"] * edit.tensors["vector"]),
}
"""By kind: what z is multiplied by, and what is added, in the site's shape without batch and tokens."""


def _gates(edits: Sequence[tuple[Edit, Tensor]], call: KernelCall) -> HeadGates:
    """Edits of one layer and where they act, in order, as one map; `[batch head query]`, with 1 where all agree."""
    heads, dim = call.q.shape[1], call.v.shape[3]
    dtype = torch.promote_types(call.q.dtype, torch.float32)
    gate = logit_scale = call.q.new_ones(1, heads, 1, dtype=dtype)
    add = call.q.new_zeros(1, heads, 1, 1, dtype=dtype)
    for edit, at in edits:
        if edit.kind == "attend":
            logit_scale = logit_scale.where(~at, 0.0)
            continue
        factor, more = _AFFINE[edit.kind](edit)
        gate = torch.where(at, factor * gate, gate)
        changed = factor * add
        if more is not None:
            changed = changed + more.detach().to(add).reshape(1, -1, 1, dim)
        add = torch.where(at[..., None], changed, add)
    return HeadGates(
        gate=_narrow(gate) if bool((gate != 1).any()) else None,
        add=_narrow(add.expand(-1, -1, -1, dim)) if bool((add != 0).any()) else None,
        logit_scale=_narrow(logit_scale) if bool((logit_scale != 1).any()) else None,
    )


def _where(edit: Edit, frame: Frame, heads: int) -> Tensor:
    """Where an edit acts, `[1|batch head 1|query]`: padding, which nobody sees, goes with the tokens of its prompt."""
    head = torch.arange(heads, device=frame.positions.device)
    chosen_heads = (head == (head if edit.site.head is None else edit.site.head))[None, :, None]
    if edit.positions is None and edit.rows is None:
        return chosen_heads
    chosen = selected(edit, frame)
    whole = (chosen | (frame.positions < 0)).all(1, keepdim=True)
    at = whole if bool((whole | ~chosen.any(1, keepdim=True)).all()) else chosen
    at = at[:1] if bool((at == at[:1]).all()) else at
    return at[:, None] & chosen_heads


def _narrow(value: Tensor) -> Tensor:
    """Without the dimension of queries where they all agree."""
    return value[:, :, 0] if value.shape[2] == 1 else value


@torch.no_grad()
def _kernel_writes_z(hf: nn.Module, parts: Parts) -> frozenset[int]:
    """Layers where what enters W_O is the kernel's output itself, seen once a model, on two tokens."""
    if hf not in _writers:
        written: dict[int, Tensor] = {}
        entered: dict[int, Tensor] = {}

        def tap(layer: int) -> Callable[..., Any]:
            def handler(kernel: Kernel, *args: Any, **kwargs: Any) -> Any:
                z, weights = kernel(*args, **kwargs)
                written[layer] = z.flatten(2)
                return z, weights

            return handler

        with ExitStack() as stack:
            for layer, block in enumerate(parts.blocks):
                enter = block.o.register_forward_pre_hook(lambda _, args, n=layer: entered.update({n: args[0]}))
                stack.callback(enter.remove)
            stack.enter_context(kernel_tap(NAME, {block.attn: tap(n) for n, block in enumerate(parts.blocks)}))
            hf(torch.zeros((1, 2), dtype=torch.long, device=next(hf.parameters()).device))
        if not all(bool(z.isfinite().all()) for z in written.values()):
            return frozenset()  # nothing is proven by what is no number
        _writers[hf] = frozenset(n for n, z in written.items() if torch.equal(z, entered[n]))
    return _writers[hf]
