"""The places of a transformer that can be read or edited, by the field's names.

B batch, T tokens, H query heads, K key/value heads, D model width, Dh head width, M MLP width, V vocabulary.
The table is in the order of the forward pass; everything else (docs, parsing, planning) derives from it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from interp.errors import UnknownSite, choose


@dataclass(frozen=True)
class SiteSpec:
    """One row of the vocabulary: where it applies, its shape and what it means."""

    name: str
    shape: str
    meaning: str
    scope: Literal["model", "layer"] = "layer"
    heads: Literal["query", "kv"] | None = None
    editable: bool = True


SITES: dict[str, SiteSpec] = {
    spec.name: spec
    for spec in (
        SiteSpec("embed", "B T D", "token (+ position) embedding entering block 0", scope="model"),
        SiteSpec("resid_pre", "B T D", "residual stream entering the block"),
        SiteSpec("attn_in", "B T D", "input of attention: normalised, unless the norms follow the sums"),
        SiteSpec("q", "B T H Dh", "query projection, before normalisation and rotary embedding", heads="query"),
        SiteSpec("k", "B T K Dh", "key projection, before normalisation and rotary embedding", heads="kv"),
        SiteSpec("v", "B T K Dh", "value projection", heads="kv"),
        SiteSpec("q_rot", "B T H Dh", "query as the kernel receives it, after rotary embedding", heads="query"),
        SiteSpec("k_rot", "B T K Dh", "key as the kernel receives it, after rotary embedding", heads="kv"),
        SiteSpec(
            "pattern",
            "B H T T",
            "attention probabilities; edited with attend()",
            heads="query",
            editable=False,
        ),
        SiteSpec(
            "attention_stats",
            "B H T",
            "argmax key, its probability, entropy and log-sum-exp of each attention row",
            heads="query",
            editable=False,
        ),
        SiteSpec("z", "B T H Dh", "a head's output before W_O", heads="query"),
        SiteSpec("head_out", "B T H D", "z through its slice of W_O: what the head writes", heads="query"),
        SiteSpec("attn_out", "B T D", "what attention adds to the residual stream"),
        SiteSpec("resid_mid", "B T D", "residual stream between attention and MLP"),
        SiteSpec("mlp_in", "B T D", "input of the MLP: normalised, unless the norms follow the sums"),
        SiteSpec("mlp_post", "B T M", "neuron activations"),
        SiteSpec("mlp_out", "B T D", "what the MLP adds to the residual stream"),
        SiteSpec("resid_post", "B T D", "residual stream after the block"),
        SiteSpec("final_norm", "B T D", "normalised residual stream that is unembedded", scope="model"),
        SiteSpec("logits", "B T V", "next-token logits as the model returns them", scope="model"),
    )
}
ORDER = {name: rank for rank, name in enumerate(SITES)}


@dataclass(frozen=True)
class Site:
    """A place in the forward pass: `resid_post.3`, `z.5.7` (head 7 of layer 5), `embed`, or `z` (every layer)."""

    name: str
    layer: int | None = None
    head: int | None = None

    def __post_init__(self) -> None:
        spec = SITES.get(self.name)
        if spec is None:
            raise UnknownSite(f"there is no site {self.name!r}; {choose(self.name, SITES)}")
        if spec.scope == "model" and self.layer is not None:
            raise UnknownSite(f"{self}: {self.name} exists once a model and takes no layer")
        if self.head is not None and (spec.heads is None or self.layer is None):
            takes = [s.name for s in SITES.values() if s.heads]
            raise UnknownSite(f"{self}: a head needs a layer and one of the sites {', '.join(takes)}")

    def __str__(self) -> str:
        return ".".join(str(part) for part in (self.name, self.layer, self.head) if part is not None)

    @property
    def spec(self) -> SiteSpec:
        return SITES[self.name]

    @property
    def whole(self) -> Site:
        """The same site without the head: what a forward pass actually produces."""
        return Site(self.name, self.layer)

    @property
    def order(self) -> tuple[int, int]:
        """Sort key: the order in which a forward pass reaches the sites."""
        layer = {"embed": -1, "final_norm": 1_000_000, "logits": 1_000_001}.get(self.name, self.layer or 0)
        return (layer, ORDER[self.name])

    @classmethod
    def parse(cls, text: str | Site) -> Site:
        """Read `"z.5.7"`; raises UnknownSite naming what is wrong."""
        if isinstance(text, Site):
            return text
        name, *numbers = text.split(".")
        if len(numbers) > 2 or not all(n.isdecimal() for n in numbers):
            raise UnknownSite(f"cannot read the site {text!r}; write name, name.LAYER or name.LAYER.HEAD")
        return cls(name, *(int(n) for n in numbers))


def expand(selectors: str | Site | Iterable[str | Site], layers: int) -> tuple[Site, ...]:
    """Sites named by `"resid_post"` (all layers), `"z.2-5"` (a range), `"z.5.7"`, or several, without repeats."""
    if isinstance(selectors, (str, Site)):
        selectors = (selectors,)
    sites: dict[Site, None] = {}
    for selector in selectors:
        for site in _expand_one(selector, layers):
            sites[site] = None
    return tuple(sites)


def _expand_one(selector: str | Site, layers: int) -> list[Site]:
    if isinstance(selector, str) and (match := re.fullmatch(r"(\w+)\.(\d+)-(\d+)", selector)):
        name, first, last = match[1], int(match[2]), int(match[3])
        if first > last:
            raise UnknownSite(f"{selector!r} is an empty range of layers")
        return [Site(name, layer) for layer in range(first, last + 1)]
    site = Site.parse(selector)
    if site.spec.scope == "layer" and site.layer is None:
        return [Site(site.name, layer) for layer in range(layers)]
    return [site]
