"""What a run read: activations by site, position-aligned, with the tokens and logits they belong to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from html import escape
from typing import Any

import torch
from torch import Tensor

from interp.errors import BadInput, UnknownSite, choose
from interp.tables import html_table
from interp.tracing.frame import gather_columns
from interp.tracing.sites import SITES, Site
from kernels.types import AttentionStats

SHOWN = 16
"""Sites that a trace shows of itself in a notebook."""


@dataclass(frozen=True, eq=False)
class Leaf:
    """A tensor the model used whose gradient is kept, and the columns that were read of it, `[batch kept]`."""

    value: Tensor
    columns: Tensor

    @property
    def grad(self) -> Tensor | None:
        grad = self.value.grad
        return None if grad is None else gather_columns(grad, self.columns)


@dataclass(frozen=True, eq=False, repr=False)
class Trace(Mapping[Site, Any]):
    """Activations of one run.

    `tokens` `[batch tokens]` right-padded, `lengths` `[batch]`. `trace["resid_post.3"]` is `[batch tokens width]`, or
    only the positions that were asked for and computed: `positions` `[batch kept]` says which, in the order of the
    text. Values at a position past a prompt's own length mean nothing. A value is what the model went on to use, after
    any edit of that site. `logits` is `[batch vocab]` for `logits="last"`, else `[batch positions vocab]`.
    `folds[name][layer]` holds RowFold results.
    """

    tokens: Tensor
    lengths: Tensor
    positions: Tensor
    activations: Mapping[Site, Any]
    kept_logits: Tensor | None = None
    folds: Mapping[str, Mapping[int, Tensor]] = field(default_factory=dict)
    stopped_after: Site | None = None
    leaves: Mapping[Site, Leaf] = field(default_factory=dict)

    __eq__ = object.__eq__  # a Mapping would compare tensors
    __hash__ = object.__hash__

    def __getitem__(self, site: str | Site) -> Any:
        site = Site.parse(site)
        if site in self.activations:
            return self.activations[site]
        if site.whole in self.activations:
            return _one_head(self.activations[site.whole], site)
        read = choose(site, self.activations) if self.activations else "it read nothing"
        raise UnknownSite(f"this run did not read {site}; {read}")

    def __contains__(self, site: object) -> bool:
        site = Site.parse(site) if isinstance(site, (str, Site)) else None
        return site is not None and (site in self.activations or site.whole in self.activations)

    def __iter__(self) -> Iterator[Site]:
        return iter(self.activations)

    def __len__(self) -> int:
        return len(self.activations)

    def __repr__(self) -> str:
        batch, width = self.tokens.shape
        return f"Trace({batch} x {width} tokens, {len(self)} sites{'' if self.kept_logits is None else ', logits'})"

    def _repr_html_(self) -> str:
        import pandas as pd

        rows = [(str(site), SITES[site.name].meaning, _shape(value)) for site, value in self.items()]
        rows += [
            (f"{name}.{i}", "folded", _shape(of)) for name, layers in self.folds.items() for i, of in layers.items()
        ]
        if self.kept_logits is not None:
            rows.append(("logits", SITES["logits"].meaning, _shape(self.kept_logits)))
        kept, width = self.positions.shape[1], self.tokens.shape[1]
        positions = "every position" if kept == width else f"{kept} of {width} positions"
        frame = pd.DataFrame(rows, columns=["site", "what it is", "shape"])
        return f"<p>{escape(repr(self))}, {positions}</p>{html_table(frame, most=SHOWN)}"

    @property
    def logits(self) -> Tensor:
        """The logits that were asked for; raises BadInput when none were."""
        if self.kept_logits is None:
            after = f" and stopped after {self.stopped_after}" if self.stopped_after else ""
            raise BadInput(f"this run kept no logits{after}; pass logits='last' or 'all'")
        return self.kept_logits

    def stack(self, name: str) -> Tensor:
        """One site at every layer that was read, `[layers batch tokens ...]`, in layer order."""
        sites = sorted((site for site in self if site.name == name and site.head is None), key=lambda s: s.order)
        if not sites:
            raise UnknownSite(f"this run did not read {name!r}; {choose(name, self)}")
        return torch.stack([self[site] for site in sites])

    def aligned(self, site: str | Site) -> Tensor:
        """An activation with every position, `[batch tokens ...]`; raises BadInput if only some were kept."""
        if self.positions.shape[1] != self.tokens.shape[1]:
            kept = self.positions[0].tolist()
            raise BadInput(f"{site}: this run kept {len(kept)} positions from {kept[0]} on; a donor needs all of them")
        return self[site]

    def mean(self, site: str | Site) -> Tensor:
        """Mean over all prompts and the real tokens that were read, in the site's shape without batch and tokens."""
        site = Site.parse(site)
        if not site.spec.editable:
            raise BadInput(f"{site}: attention rows of different queries have no common mean")
        value = self[site]
        value = value.to(torch.promote_types(value.dtype, torch.float32))
        real = (self.positions >= 0) & (self.positions < self.lengths[:, None])
        return value[real.to(value.device)].mean(0)

    def grad(self, site: str | Site) -> Tensor:
        """Gradient at a site, in the shape of `trace[site]`, after `backward()` on what a `grad=True` run computed."""
        site = Site.parse(site)
        leaf = self.leaves.get(site.whole)
        if leaf is None or leaf.grad is None:
            raise BadInput(f"no gradient at {site}: run with grad=True, read the site, then call backward()")
        return leaf.grad if site.head is None else leaf.grad[:, :, site.head]


def _shape(value: Any) -> str:
    """The shape of an activation, or of everything that was measured of attention rows."""
    if isinstance(value, AttentionStats):
        return ", ".join(f"{name} {_shape(of)}" for name, of in value.measured.items())
    return " x ".join(map(str, value.shape))


def _one_head(value: Any, site: Site) -> Any:
    if isinstance(value, AttentionStats):
        assert site.head is not None
        return value.head(site.head)
    return value[:, site.head] if site.name == "pattern" else value[:, :, site.head]
