"""From what a user asks to what a run must do: which sites are read, which edits act where, where the pass may stop.

Everything that can be refused is refused here, before the model runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from torch import Tensor

from interp.errors import BadInput, MemoryBudgetExceeded, SiteUnavailable, UnknownSite
from interp.tracing.edits import Edit
from interp.tracing.frame import Positions, positions_of
from interp.tracing.interventions import check_shapes
from interp.tracing.sites import SITES, Site, expand
from interp.tracing.spec import ModelSpec
from kernels.rows import AttentionRows

DENSE_PATTERN_LIMIT = 2**24
"""Elements of one layer's `pattern` above which reading all rows must be asked for with `materialize=True`."""


@dataclass(frozen=True)
class RowFold:
    """A running reduction over attention rows, so that a T x T matrix never has to exist.

    `step(rows, positions, layer)` receives the probabilities of a block of query rows (`rows.pattern` `[batch head
    query key]`, keys by position) and the positions of these queries `[batch query]`, -1 on padding. Its results are
    summed, or concatenated along the axis `query` (2), which leaves padding in the columns it has. The trace holds them
    as `trace.folds[name]`, one entry a layer.
    """

    name: str
    step: Callable[[AttentionRows, Tensor, int], Tensor]
    join: Literal["sum", "cat"] = "sum"


Read = str | Site | RowFold
Logits = Literal["auto", "last", "all"] | Positions


@dataclass(frozen=True)
class Plan:
    """What one run does. `reads` are whole sites; `edits` keep the order they were given in."""

    reads: tuple[Site, ...]
    folds: tuple[RowFold, ...]
    edits: tuple[Edit, ...]
    positions: Positions
    logits: Logits
    grad: bool
    layers: int
    stop_after: Site | None

    @cached_property
    def _touched(self) -> frozenset[tuple[str, int | None]]:
        sites = [*self.reads, *(edit.site for edit in self.edits)]
        return frozenset((site.name, site.layer) for site in sites)

    def touches(self, name: str, layer: int | None) -> bool:
        """Whether this site is read or edited."""
        return (name, layer) in self._touched

    def edits_at(self, site: Site) -> list[Edit]:
        return [edit for edit in self.edits if edit.site.whole == site]

    def uses_kernel(self, layer: int) -> bool:
        """Whether queries and keys of this layer must be seen at the attention kernel."""
        names = ("q_rot", "k_rot", "pattern", "attention_stats")
        return bool(self.folds) or any(self.touches(name, layer) for name in names)


def make_plan(
    spec: ModelSpec,
    refusals: Mapping[str, str],
    read: Read | Sequence[Read] = (),
    edits: Sequence[Edit] = (),
    positions: Positions = None,
    *,
    logits: Logits = "last",
    batch: int = 1,
    grad: bool = False,
) -> Plan:
    """Check every read and edit against the model; raises UnknownSite, SiteUnavailable or BadInput."""
    wanted = [read] if isinstance(read, (str, Site, RowFold)) else list(read)
    logits = positions_of(logits)
    if logits == "auto":
        logits = None if wanted else "last"
    folds = tuple(item for item in wanted if isinstance(item, RowFold))
    if len({fold.name for fold in folds}) < len(folds):
        raise BadInput("two RowFolds have the same name; a trace keeps them by name")
    sites = expand([item for item in wanted if not isinstance(item, RowFold)], spec.layers)
    for site in sites:
        check_site(site, spec, refusals)
    for edit in edits:
        check_site(edit.site, spec, refusals)
        if edit.kind != "attend":
            check_shapes(edit, features(edit.site, spec), batch)
    reads = tuple(dict.fromkeys(site.whole for site in sites))
    stop = None
    if logits is None and not any(site.name == "logits" for site in reads):
        stop = _last_read(reads, folds, spec)
        for edit in edits:
            if stop is not None and edit.site.order > stop.order:
                raise BadInput(
                    f"{edit} comes after {stop}, the last thing this run reads, so it could have no effect; "
                    "ask for logits or read a later site"
                )
    return Plan(reads, folds, tuple(edits), positions_of(positions), logits, grad, spec.layers, stop)


def _last_read(reads: Sequence[Site], folds: Sequence[RowFold], spec: ModelSpec) -> Site | None:
    candidates = [*reads, *([Site("pattern", spec.layers - 1)] if folds else [])]
    return max(candidates, key=lambda site: site.order, default=None)


def check_site(site: Site, spec: ModelSpec, refusals: Mapping[str, str]) -> None:
    """Raise UnknownSite for a layer or head the model does not have, SiteUnavailable for a refused site."""
    if site.layer is not None and site.layer >= spec.layers:
        raise UnknownSite(f"{site}: the model has layers 0 to {spec.layers - 1}")
    if site.head is not None:
        heads = spec.heads if site.spec.heads == "query" else spec.kv_heads
        if site.head >= heads:
            kind = "query" if site.spec.heads == "query" else "key/value"
            raise UnknownSite(f"{site}: the model has {kind} heads 0 to {heads - 1} in each layer")
    if site.name in refusals:
        raise SiteUnavailable(site, refusals[site.name])


def features(site: Site, spec: ModelSpec) -> tuple[int, ...]:
    """Shape of a site without batch and tokens."""
    sizes = {
        "D": spec.width,
        "M": spec.mlp_width,
        "V": spec.vocab,
        "H": spec.heads,
        "K": spec.kv_heads,
        "Dh": spec.head_dim,
    }
    return tuple(sizes[axis] for axis in SITES[site.name].shape.split()[2:])


def estimate_bytes(
    plan: Plan, spec: ModelSpec, batch: int, tokens: int, kept: int, kept_logits: int, itemsize: int
) -> int:
    """Bytes the run will hold for `batch` prompts of `tokens` tokens, of which `kept` positions are read."""
    total = batch * kept_logits * spec.vocab * itemsize
    for site in plan.reads:
        if site.name == "pattern":
            total += batch * spec.heads * kept * tokens * 4
        elif site.name == "attention_stats":
            total += batch * spec.heads * kept * 20
        else:
            size = itemsize
            for width in features(site, spec):
                size *= width
            total += batch * kept * size
    return total


def check_memory(
    plan: Plan,
    spec: ModelSpec,
    batch: int,
    tokens: int,
    kept: int,
    kept_logits: int,
    itemsize: int,
    budget: int,
    materialize: bool,
) -> None:
    """Refuse a plan that would not fit, before it runs."""
    dense = batch * spec.heads * kept * tokens
    if any(site.name == "pattern" for site in plan.reads) and dense > DENSE_PATTERN_LIMIT and not materialize:
        raise MemoryBudgetExceeded(
            f"pattern of {batch} x {spec.heads} heads x {kept} x {tokens} tokens is {dense:,} numbers a layer; read "
            "attention_stats, keep fewer rows with positions=…, or pass materialize=True"
        )
    estimate = estimate_bytes(plan, spec, batch, tokens, kept, kept_logits, itemsize)
    if estimate > budget:
        raise MemoryBudgetExceeded(
            f"this run would keep {estimate / 2**20:,.3f} MiB of activations and logits, the budget is "
            f"{budget / 2**20:,.3f} MiB; read fewer sites or positions, split the prompts, or raise memory_budget"
        )
