"""What a run read: activations by site, position-aligned, with the tokens and logits they belong to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from interp.errors import BadInput, UnknownSite, choose
from interp.tracing.sites import Site


@dataclass(frozen=True, eq=False, repr=False)
class Trace(Mapping[Site, Any]):
    """Activations of one run.

    `tokens` `[batch tokens]` right-padded, `lengths` `[batch]`; `trace["resid_post.3"]` is `[batch tokens width]` (or only
    the positions that were asked for, in the order of the text); index p of an unpadded axis is position p. A value is what
    the model went on to use, after any edit of that site. `logits` is `[batch vocab]` for `logits="last"`, else
    `[batch positions vocab]`. After a prefix, reads begin at position `start`. `folds[name][layer]` holds RowFold results.
    """

    tokens: Tensor
    lengths: Tensor
    activations: Mapping[Site, Any]
    kept_logits: Tensor | None = None
    folds: Mapping[str, Mapping[int, Tensor]] = field(default_factory=dict)
    positions: Any = None
    stopped_after: Site | None = None
    start: int = 0
    leaves: Mapping[Site, Tensor] = field(default_factory=dict)

    def __getitem__(self, site: str | Site) -> Any:
        site = Site.parse(site)
        if site in self.activations:
            return self.activations[site]
        if site.whole in self.activations and isinstance(self.activations[site.whole], Tensor):
            value = self.activations[site.whole]
            return value[:, site.head] if site.name == "pattern" else value[:, :, site.head]
        read = choose(site, self.activations) if self.activations else "it read nothing"
        raise UnknownSite(f"this run did not read {site}; {read}")

    def __iter__(self) -> Iterator[Site]:
        return iter(self.activations)

    def __len__(self) -> int:
        return len(self.activations)

    def __repr__(self) -> str:
        batch, width = self.tokens.shape
        return f"Trace({batch} x {width} tokens, {len(self)} sites{'' if self.kept_logits is None else ', logits'})"

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
        if self.positions is not None or self.start:
            kept = f"from {self.start}" if self.positions is None else self.positions
            raise BadInput(f"{site}: this run kept only the positions {kept}; a donor needs all of them")
        return self[site]

    def mean(self, site: str | Site) -> Tensor:
        """Mean over all prompts and real tokens, in the site's shape without batch and tokens."""
        value = self[site]
        if self.positions is not None:
            return value.float().mean((0, 1))
        real = (
            self.start + torch.arange(value.shape[1], device=value.device)[None]
            < self.lengths.to(value.device)[:, None]
        )
        return value[real].float().mean(0)

    def grad(self, site: str | Site) -> Tensor:
        """Gradient at a site after `backward()` on something computed from a run with `grad=True`."""
        site = Site.parse(site)
        leaf = self.leaves.get(site.whole)
        if leaf is None or leaf.grad is None:
            raise BadInput(f"no gradient at {site}: run with grad=True, read the site, then call backward()")
        return leaf.grad if site.head is None else leaf.grad[:, :, site.head]
