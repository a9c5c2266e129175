"""The moving part of a run: backends call `visit` wherever the forward pass reaches a planned site.

A session applies the edits of a site in order, keeps what is read, stops the pass after the last thing needed, and
knows afterwards whether everything planned has happened.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from interp.errors import SiteDidNotFire
from interp.tracing.attention import KernelCall, attend_rows, attended, forced_rows, row_blocks
from interp.tracing.batch import keys_by_position, position_columns
from interp.tracing.compiled_edits import by_position, kernel_work
from interp.tracing.edits import Edit
from interp.tracing.frame import Frame, gather_columns, selected_columns
from interp.tracing.interventions import apply_edit
from interp.tracing.plan import Plan, RowFold
from interp.tracing.sites import Site
from interp.tracing.trace import Leaf
from kernels.integration import LayerPlan
from kernels.rows import AttentionRows, row_statistics
from kernels.types import AttentionStats

Order = Callable[[Tensor], Tensor]
"""Brings dimension 1 from the columns of the run to the positions of its prompts."""


class StopForward(Exception):
    """Raised inside a forward pass once everything planned has been read."""


class Session:
    """State of one `Model.run` or `Model.generate`; `begin` comes before every forward call."""

    def __init__(self, plan: Plan, acted: Iterable[Edit] = ()) -> None:
        """`acted` edits need not act again: they did where a shared prefix was computed."""
        self.plan = plan
        self.frame: Frame
        self._columns: Tensor | None
        self._logit_columns: Tensor | None
        self._kept: dict[Site, list[Any]] = defaultdict(list)
        self._folds: dict[tuple[str, int], list[Tensor]] = defaultdict(list)
        self._leaves: dict[Site, Tensor] = {}
        self._positions: list[Tensor] = []
        self._hit = {id(edit) for edit in acted}
        self.kernel_sites: frozenset[Site] = frozenset()
        """Sites that the attention kernel can take over (`compiled_edits`), as a backend finds; none otherwise."""
        self._made_by_kernel: dict[Site, int] = {}

    def begin(self, frame: Frame) -> None:
        """Set the columns that the next forward call computes; raises BadInput for selections that do not fit them."""
        self.frame = frame
        self._made_by_kernel.clear()
        if self.plan.positions is None:
            self._columns = torch.arange(frame.width, device=frame.offsets.device).expand(frame.batch, -1)
        else:
            self._columns = selected_columns(self.plan.positions, frame)
        if self._columns is not None:
            self._positions.append(gather_columns(frame.positions, self._columns))
        if self.plan.logits in (None, "last"):
            self._logit_columns = frame.last_columns
        else:
            self._logit_columns = None if self.plan.logits == "all" else selected_columns(self.plan.logits, frame)

    def visit(self, name: str, layer: int | None, value: Tensor, frame: Frame | None = None) -> Tensor:
        """The value the model should go on with; the same object when nothing changes it.

        `frame` differs from the call's own only where a value covers other columns (cached keys).
        """
        site = Site(name, layer)
        frame = (frame or self.frame).to(value.device)
        for edit in self._edits_left(site):
            value, hit = apply_edit(edit, value, frame)
            self._mark(edit, hit)
        if site in self.plan.reads:
            if self.plan.grad and value.requires_grad:
                value = value.view_as(value)
                value.retain_grad()
                self._leaves[site] = value
            self._keep(site, self._pick(value))
        self._arrived(site)
        return value

    def _edits_left(self, site: Site) -> list[Edit]:
        """The edits of a site that the kernel has not made."""
        return self.plan.edits_at(site)[self._made_by_kernel.get(site, 0) :]

    def _arrived(self, site: Site) -> None:
        if site == self.plan.stop_after:
            raise StopForward

    def _mark(self, edit: Edit, hit: bool) -> None:
        if hit:
            self._hit.add(id(edit))

    def _keep(self, site: Site, value: Any) -> None:
        if value is not None:
            self._kept[site].append(value)

    def _pick(self, value: Tensor) -> Tensor | None:
        """The positions to keep, `[batch kept ...]`; None when this call computes none of them."""
        value = value[:, value.shape[1] - self.frame.width :]
        if self.plan.positions is None:
            return value
        return None if self._columns is None else gather_columns(value, self._columns)

    @property
    def columns(self) -> Tensor | None:
        """The columns of this call that reads keep, `[batch kept]`; None when it computes none of them."""
        return self._columns

    @property
    def logit_columns(self) -> Tensor | None:
        """The columns of this call whose logits are computed, `[batch kept]`; None for all of them."""
        return None if self.plan.touches("logits", None) else self._logit_columns

    def received(self, values: Mapping[Site, Tensor], acted: Iterable[Edit]) -> None:
        """What a pass computed elsewhere: values at `columns` of the sites read there, and the edits that acted."""
        for site, value in values.items():
            self._keep(site, value)
        self._hit.update(map(id, acted))

    def narrow(self, hidden: Tensor) -> Tensor:
        """Of what is about to be unembedded, only the columns whose logits are kept, `[batch kept width]`."""
        columns = self.logit_columns
        return hidden if columns is None else gather_columns(hidden, columns)

    def kept_logits(self, logits: Tensor, order: Order) -> Tensor | None:
        """`[batch vocab]` for `"last"`, else `[batch positions vocab]`."""
        if self.plan.logits is None:
            return None
        if self._logit_columns is None:
            return order(logits)
        if self.plan.touches("logits", None):
            logits = gather_columns(logits, self._logit_columns)
        return logits[:, 0] if self.plan.logits == "last" else logits

    def hand_over(self, call: KernelCall) -> LayerPlan | None:
        """What the kernel itself is to do in this call, if anything; the edits it makes count as made."""
        work = kernel_work(self.plan, call, self.frame, self._columns, self.kernel_sites)
        self._made_by_kernel.update(work.made)
        self._hit.update(map(id, work.acting))
        return work.plan

    def measured(self, layer: int, stats: AttentionStats) -> None:
        """Keep the `attention_stats` that the kernel measured."""
        self._keep(Site("attention_stats", layer), by_position(stats, self.frame))
        self._arrived(Site("attention_stats", layer))

    def read_rows(self, call: KernelCall, measured: bool = False) -> None:
        """Compute the attention rows that are read, block by block: `pattern`, folds, `attention_stats` unless the
        kernel has `measured` it.
        """
        frame, layer = self.frame.to(call.q.device), call.layer
        names = ("pattern",) if measured else ("pattern", "attention_stats")
        wanted = [name for name in names if Site(name, layer) in self.plan.reads]
        if self._columns is not None and (wanted or self.plan.folds):
            kept: dict[str, list[Any]] = defaultdict(list)
            for columns in row_blocks(self._columns.to(call.q.device), call):
                rows = attended(call, columns, frame)
                for edit in self.plan.edits_at(Site("pattern", layer)):
                    weights, keep = forced_rows(edit, call, columns, frame)
                    rows = rows._replace(pattern=torch.where(keep[..., None], weights, rows.pattern))
                    self._mark(edit, bool(keep.any()))
                rows = rows._replace(pattern=keys_by_position(rows.pattern, frame))
                if "pattern" in wanted:
                    kept["pattern"].append(rows.pattern)
                if "attention_stats" in wanted:
                    kept["attention_stats"].append(row_statistics(rows))
                for fold in self.plan.folds:
                    self._fold(fold, layer, rows, gather_columns(frame.positions, columns))
            for name in wanted:
                self._keep(Site(name, layer), _join(kept[name], axis=2))
        for name in names:
            self._arrived(Site(name, layer))

    def _fold(self, fold: RowFold, layer: int, rows: AttentionRows, positions: Tensor) -> None:
        result = fold.step(rows, positions, layer)
        earlier = self._folds[fold.name, layer]
        if fold.join == "sum" and earlier:
            earlier[0] = earlier[0] + result
        else:
            earlier.append(result)

    def force_rows(self, call: KernelCall, z: Tensor) -> Tensor:
        """Apply the layer's `attend` edits to the kernel's output `z` `[batch query head dim]`."""
        frame = self.frame.to(z.device)
        for edit in self._edits_left(Site("pattern", call.layer)):
            z, hit = attend_rows(edit, call, frame, z)
            self._mark(edit, hit)
        return z

    def check(self) -> None:
        """Raise SiteDidNotFire naming every planned read or edit that the pass never reached."""
        silent = [str(site) for site in self.plan.reads if site not in self._kept]
        silent += [str(edit) for edit in self.plan.edits if id(edit) not in self._hit]
        layers = range(self.plan.layers)
        silent += [
            f"{fold.name} at layer {n}" for fold in self.plan.folds for n in layers if (fold.name, n) not in self._folds
        ]
        if silent:
            raise SiteDidNotFire(
                f"the forward pass never reached: {', '.join(silent)}. Either no selected token was computed, or this "
                "model computes that part elsewhere (see Model.doctor())"
            )

    def collected(self, order: Order) -> dict[Site, Any]:
        """Everything read, joined over forward calls, in position order."""
        result: dict[Site, Any] = {}
        for site in sorted(self._kept, key=lambda s: s.order):
            rows = site.name in ("pattern", "attention_stats")
            value = _join(self._kept[site], axis=2 if rows else 1)
            if self.plan.positions is None:
                value = _rows_in_order(value, order) if rows else order(value)
            result[site] = value
        return result

    def positions(self) -> Tensor:
        """The position of every kept token where only some are, `[batch kept]`."""
        return torch.cat(self._positions, dim=1).cpu() if self._positions else torch.empty(self.frame.batch, 0)

    def leaves(self) -> dict[Site, Leaf]:
        """Where the gradients of a run with `grad=True` will be."""
        columns = position_columns(self.frame) if self.plan.positions is None else self._columns
        if columns is None:
            return {}
        return {site: Leaf(value, columns + value.shape[1] - self.frame.width) for site, value in self._leaves.items()}

    def folded(self) -> dict[str, dict[int, Tensor]]:
        """The result of every fold, by name and layer."""
        result: dict[str, dict[int, Tensor]] = defaultdict(dict)
        joins = {fold.name: fold.join for fold in self.plan.folds}
        for (name, layer), values in sorted(self._folds.items()):
            result[name][layer] = values[0] if joins[name] == "sum" else torch.cat(values, dim=2)
        return dict(result)


def _join(values: list[Any], axis: int) -> Any:
    if isinstance(values[0], AttentionStats):
        return AttentionStats.cat(values)
    return values[0] if len(values) == 1 else torch.cat(values, dim=axis)


def _rows_in_order(value: Any, order: Order) -> Any:
    if isinstance(value, AttentionStats):
        return value.by_row(lambda part: _rows_in_order(part, order))
    return order(value.transpose(1, 2)).transpose(1, 2)
