"""The moving part of a run: backends call `visit` wherever the forward pass reaches a planned site.

A session applies the edits of a site in order, keeps what is read, stops the pass after the last thing needed, and knows
afterwards whether everything planned has happened.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from einops import reduce
from torch import Tensor

from interp.errors import BadInput, SiteDidNotFire
from interp.tracing.edits import Edit, apply_edit
from interp.tracing.frame import Frame, select
from interp.tracing.plan import Plan, RowFold
from interp.tracing.sites import Site
from kernels.rows import (
    AttentionRows,
    AttentionStats,
    attention_rows,
    gather_values,
    row_statistics,
    visible_keys,
)

ROW_BLOCK_ELEMENTS = 2**24
"""Attention probabilities computed at a time when rows are read (64 MiB in float32)."""


Order = Callable[[Tensor, int | None], Tensor]
"""Brings dimension 1 from columns to positions; the second argument is its first column (None: where the run began)."""


class StopForward(Exception):
    """Raised inside a forward pass once everything planned has been read."""


@dataclass(frozen=True, eq=False)
class KernelCall:
    """What the attention kernel of one layer is given: `q` `[batch head query dim]`, `k` and `v` `[batch kv_head key dim]`."""

    layer: int
    q: Tensor
    k: Tensor
    v: Tensor
    scaling: float
    softcap: float | None
    sliding_window: int | None
    sinks: Tensor | None


class Session:
    """State of one `Model.run` or `Model.generate`; `frame` is set by the backend's caller before every forward call."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.frame: Frame
        self._kept: dict[Site, list[Any]] = defaultdict(list)
        self._folds: dict[tuple[str, int], list[Tensor]] = defaultdict(list)
        self._reached: set[Site] = set()
        self._hit: set[int] = set()
        self.leaves: dict[Site, Tensor] = {}

    def visit(self, name: str, layer: int | None, value: Tensor, frame: Frame | None = None) -> Tensor:
        """The value the model should go on with; the same object when nothing changes it.

        `frame` differs from the call's own only where a value covers other columns (cached keys).
        """
        site = Site(name, layer)
        frame = frame or self.frame
        for edit in self.plan.edits_at(site):
            value, hit = apply_edit(edit, value, frame)
            self._mark(edit, hit)
        if site in self.plan.reads:
            if self.plan.grad and value.requires_grad:
                value = value.view_as(value)
                value.retain_grad()
                self.leaves[site] = value
            self._keep(site, self._pick(value, frame))
        self.arrived(site)
        return value

    def arrived(self, site: Site) -> None:
        """Stop the pass once the last planned site has been read."""
        self._reached.add(site)
        if site == self.plan.stop_after:
            raise StopForward

    def _mark(self, edit: Edit, hit: bool) -> None:
        if hit:
            self._hit.add(id(edit))

    def _keep(self, site: Site, value: Any) -> None:
        if value is not None:
            self._kept[site].append(value)

    def _pick(self, value: Tensor, frame: Frame) -> Tensor | None:
        """The positions to keep, `[batch kept ...]`; None when this call computes none of them."""
        value = value if self.plan.grad else value.detach()
        if frame.width != self.frame.width:
            value, frame = value[:, frame.width - self.frame.width :], self.frame
        if self.plan.positions is None:
            return value
        columns = self.columns()
        return None if columns is None else value[_rows(columns), columns]

    def columns(self) -> Tensor | None:
        """Columns of this call whose reads are kept, `[batch kept]`, relative to the call's first column."""
        if self.plan.positions is None:
            return torch.arange(self.frame.width, device=self.frame.offsets.device).expand(self.frame.batch, -1)
        chosen = select(self.plan.positions, None, self.frame)
        counts = chosen.sum(1)
        if int(counts.max()) != int(counts.min()):
            raise BadInput(
                f"positions={self.plan.positions!r} keeps between {int(counts.min())} and {int(counts.max())} tokens a "
                "prompt; a trace needs the same number for each: run the prompts separately"
            )
        return chosen.nonzero()[:, 1].reshape(self.frame.batch, -1) if int(counts.max()) else None

    def read_rows(self, call: KernelCall) -> None:
        """Compute the attention rows that are read (`pattern`, `attention_stats`, folds), block by block."""
        sites = [site for site in self.plan.reads if site.layer == call.layer]
        wanted = {site.name for site in sites} & {"pattern", "attention_stats"}
        columns = self.columns() if wanted or self.plan.folds else None
        if columns is not None:
            kept: dict[str, list[Any]] = defaultdict(list)
            for block in self._blocks(columns, call):
                rows = _rows_of(call, block, self.frame)
                if "pattern" in wanted:
                    kept["pattern"].append(rows.pattern)
                if "attention_stats" in wanted:
                    kept["attention_stats"].append(self._statistics(rows))
                for fold in self.plan.folds:
                    self._fold(fold, call.layer, rows, block)
            for name in wanted:
                self._keep(Site(name, call.layer), _join(kept[name]))
        for name in ("pattern", "attention_stats"):
            self.arrived(Site(name, call.layer))

    def _statistics(self, rows: AttentionRows) -> AttentionStats:
        """Row statistics with the argmax as a position of its prompt."""
        stats = row_statistics(rows)
        positions = self.frame.whole().positions().to(stats.argmax.device)
        return stats._replace(argmax=positions[_rows(stats.argmax)[..., None], stats.argmax])

    def _blocks(self, columns: Tensor, call: KernelCall) -> Iterator[Tensor]:
        size = max(1, ROW_BLOCK_ELEMENTS // (call.q.shape[0] * call.q.shape[1] * call.k.shape[2]))
        return iter(columns.split(size, dim=1))

    def _fold(self, fold: RowFold, layer: int, rows: AttentionRows, columns: Tensor) -> None:
        positions = self.frame.positions()[_rows(columns), columns]
        result = fold.step(rows, positions, layer)
        earlier = self._folds[fold.name, layer]
        if fold.join == "sum" and earlier:
            earlier[0] = earlier[0] + result
        else:
            earlier.append(result)

    def force_rows(self, call: KernelCall, z: Tensor) -> Tensor:
        """Apply the layer's `attend` edits to the kernel's output `z` `[batch query head dim]`."""
        for edit in self.plan.edits_at(Site("pattern", call.layer)):
            chosen = select(edit.positions, edit.rows, self.frame)
            self._mark(edit, bool(chosen.any()))
            if not bool(chosen.any()):
                continue
            columns = torch.arange(z.shape[1], device=z.device).expand(len(z), -1)
            for block in self._blocks(columns, call):
                start, stop = int(block[0, 0]), int(block[0, -1]) + 1
                weights, has_target = _forced_weights(edit, call, block, self.frame)
                new = gather_values(weights, call.v)
                new = new.repeat_interleave(call.q.shape[1] // call.v.shape[1], dim=2)
                keep = (chosen[:, start:stop] & has_target)[:, :, None, None]
                heads = torch.arange(z.shape[2], device=z.device)
                if edit.site.head is not None:
                    keep = keep & (heads == edit.site.head)[None, None, :, None]
                z = torch.cat([z[:, :start], torch.where(keep, new, z[:, start:stop]), z[:, stop:]], dim=1)
        return z

    def check(self) -> None:
        """Raise SiteDidNotFire naming every planned read or edit that the pass never reached."""
        silent = [str(site) for site in self.plan.reads if site not in self._kept]
        silent += [str(edit) for edit in self.plan.edits if id(edit) not in self._hit]
        silent += [fold.name for fold in self.plan.folds if not any(name == fold.name for name, _ in self._folds)]
        if silent:
            raise SiteDidNotFire(
                f"the forward pass never reached: {', '.join(silent)}. Either no selected token was computed, or this model "
                "computes that part elsewhere (see Model.doctor())"
            )

    def collected(self, order: Order) -> dict[Site, Any]:
        """Everything read, joined over forward calls, column axes brought into position order by `order`."""
        result: dict[Site, Any] = {}
        for site in sorted(self._kept, key=lambda s: s.order):
            value = _join(self._kept[site], axis=2 if site.name in ("pattern", "attention_stats") else 1)
            if site.name == "pattern":
                value = order(value.movedim(3, 1), 0).movedim(1, 3)
            result[site] = value if self.plan.positions is not None else _in_order(value, site, order)
        return result

    def folded(self) -> dict[str, dict[int, Tensor]]:
        """The result of every fold, by name and layer."""
        result: dict[str, dict[int, Tensor]] = defaultdict(dict)
        joins = {fold.name: fold.join for fold in self.plan.folds}
        for (name, layer), values in sorted(self._folds.items()):
            result[name][layer] = values[0] if joins[name] == "sum" else torch.cat(values, dim=2)
        return dict(result)


def _rows(columns: Tensor) -> Tensor:
    return torch.arange(len(columns), device=columns.device)[:, None]


def _rows_of(call: KernelCall, columns: Tensor, frame: Frame) -> AttentionRows:
    """Attention rows of the queries at `columns` `[batch query]` of this call."""
    columns = columns.to(call.q.device)
    q = call.q.transpose(1, 2)[_rows(columns), columns].transpose(1, 2)
    return attention_rows(
        q,
        call.k,
        _allowed(call, columns, frame),
        scaling=call.scaling,
        softcap=call.softcap,
        sinks=call.sinks,
    )


def _allowed(call: KernelCall, columns: Tensor, frame: Frame) -> Tensor:
    return visible_keys(columns + frame.start, frame.key_mask.to(columns.device), call.sliding_window)


def _forced_weights(edit: Edit, call: KernelCall, columns: Tensor, frame: Frame) -> tuple[Tensor, Tensor]:
    """Even weights over the targets each row can see `[batch 1x kv_head query key]`, and which rows see any `[batch query]`."""
    allowed = _allowed(call, columns, frame)
    target = edit.parameters["to"]
    if target != "uniform":
        allowed = allowed & select(target, None, frame.whole()).to(allowed.device)[:, None]
    total = reduce(allowed.float(), "b t s -> b t 1", "sum")
    weights = (allowed / total.clamp(min=1))[:, None].expand(-1, call.v.shape[1], -1, -1)
    return weights, total[..., 0] > 0


def _join(values: list[Any], axis: int = 2) -> Any:
    if isinstance(values[0], AttentionStats):
        return AttentionStats(*(torch.cat(parts, dim=axis) for parts in zip(*values, strict=True)))
    return values[0] if len(values) == 1 else torch.cat(values, dim=axis)


def _in_order(value: Any, site: Site, order: Order) -> Any:
    def queries(tensor: Tensor) -> Tensor:
        return order(tensor.transpose(1, 2), None).transpose(1, 2)

    if isinstance(value, AttentionStats):
        return AttentionStats(*map(queries, value))
    return queries(value) if site.name == "pattern" else order(value, None)
