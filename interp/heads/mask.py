"""HeadMask: a score for every attention head, the heads that are selected, and the model they belong to."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from html import escape
from typing import Any, Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt

from interp.errors import BadInput, MaskMismatch, choose
from interp.tables import html_table

Head = tuple[int, int]
"""Layer and head."""

HeadKind = Literal["query", "kv"]
Reduction = Literal["max", "mean"]

SHOWN = 12
"""Heads that a mask shows of itself in a notebook, best first."""
FULL_ATTENTION_SPARSITY = 0.5
"""DuoAttention keeps half of the key/value heads of a grouped-query model (Xiao et al. 2024)."""


class HeadCounts(Protocol):
    """What a mask must agree with; a model's `spec` has it."""

    @property
    def name(self) -> str: ...
    @property
    def family(self) -> str: ...
    @property
    def layers(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def kv_heads(self) -> int: ...


@dataclass(frozen=True, eq=False, repr=False)
class HeadMask:
    """Scores `[layer head]` in float64, of query heads or of key/value heads, and which heads are selected.

    `samples` `[test layer head]` are the scores the means were taken of, padded with NaN at the end where heads have
    fewer. `rule` says how `selected` came about, `reduction` how scores of query heads became scores of key/value
    heads. `metadata` is plain JSON. Raises BadInput where these do not fit together.
    """

    scores: npt.NDArray[np.float64]
    kind: HeadKind = "query"
    method: str = ""
    model: str = ""
    family: str = ""
    fingerprint: str = ""
    kv_heads: int | None = None
    selected: npt.NDArray[np.bool_] | None = None
    rule: str = ""
    samples: npt.NDArray[np.float64] | None = None
    reduction: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, kind in (("scores", np.float64), ("selected", np.bool_), ("samples", np.float64)):
            if (value := getattr(self, name)) is not None:
                frozen = np.array(value, dtype=kind)
                frozen.setflags(write=False)
                object.__setattr__(self, name, frozen)
        object.__setattr__(self, "metadata", _plain(self.metadata))
        _require_consistent(self)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, HeadMask):
            return NotImplemented
        return not differing_fields(self, other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        layers, heads = self.scores.shape
        chosen = f", {len(self.heads)} selected ({self.rule})" if self.selected is not None else ""
        return f"HeadMask({self.method or 'scores'} of {layers} x {heads} {self.kind} heads{chosen})"

    def _repr_html_(self) -> str:
        import pandas as pd

        chosen = set(self.heads)
        rows = [
            {"layer": layer, "head": head, "score": self.scores[layer, head], "selected": (layer, head) in chosen}
            for layer, head in self.ranking
        ]
        frame = pd.DataFrame(rows) if self.selected is not None else pd.DataFrame(rows).drop(columns="selected")
        made_for = f" for {self.model}" if self.model else ""
        return f"<p>{escape(repr(self) + made_for)}</p>{html_table(frame, most=SHOWN)}"

    @classmethod
    def from_samples(cls, samples: npt.NDArray[np.float64], **more: Any) -> HeadMask:
        """A mask whose scores are the means of `samples` `[test layer head]`, NaN left out."""
        return cls(mean_scores(samples), samples=samples, **more)

    @property
    def ranking(self) -> list[Head]:
        """Every head, best first; equal scores in the order of layer and head."""
        order = np.argsort(-self.scores, axis=None, kind="stable")
        return [divmod(int(i), self.scores.shape[1]) for i in order]

    @property
    def heads(self) -> list[Head]:
        """The selected heads, best first; none where nothing has been selected yet."""
        selected = self.selected
        return [] if selected is None else [head for head in self.ranking if selected[head]]

    def select(self, selected: npt.ArrayLike, rule: str) -> HeadMask:
        """The same scores with these heads selected, a boolean a head; `rule` says why these."""
        return replace(self, selected=np.asarray(selected, dtype=bool), rule=rule)

    def threshold(self, least: float) -> HeadMask:
        """Select the heads that score at least `least`."""
        if math.isnan(least):
            raise BadInput("A threshold must be a number.")
        return self.select(self.scores >= least, f"threshold>={least:g}")

    def top(self, k: int) -> HeadMask:
        """Select exactly the `k` best heads; of equal ones those with the smaller layer and head."""
        if not 0 <= k <= self.scores.size:
            raise BadInput(f"The top {k} heads cannot be selected: there are {self.scores.size}.")
        return self.select(self._best(k), f"top-{k}")

    def quantile(self, sparsity: float = FULL_ATTENTION_SPARSITY) -> HeadMask:
        """Select the heads at or above the `sparsity` quantile of all scores, as DuoAttention chooses full heads.

        `sparsity` is the share of heads left out: all are selected at 0, none at 1. DuoAttention breaks ties by random
        noise; here the number of heads is the same and ties go by layer and head.
        """
        if not 0 <= sparsity <= 1:
            raise BadInput(f"Sparsity {sparsity} is not a share of the heads: it goes from 0 to 1.")
        # With n distinct scores the quantile lies at rank (n - 1) * sparsity; heads at and above it remain.
        n = self.scores.size
        below = n if sparsity == 1 else math.ceil(round((n - 1) * sparsity, 9))
        return self.select(self._best(n - below), f"quantile {sparsity:g}")

    def to_kv(self, reduction: Reduction) -> HeadMask:
        """Scores of key/value heads: the maximum (RazorAttention) or mean (kvpress) over the query heads that read one.

        Samples and selection are left behind: a budget of query heads is none of key/value heads. Raises BadInput for a
        mask that is of key/value heads already or does not know how many there are.
        """
        if reduction not in get_args(Reduction):
            raise BadInput(f"There is no reduction {reduction!r}; {choose(reduction, get_args(Reduction))}.")
        if self.kind == "kv":
            raise BadInput("This mask already scores key/value heads.")
        if self.kv_heads is None:
            raise BadInput("This mask does not say how many key/value heads its model has, so its groups are unknown.")
        layers, heads = self.scores.shape
        groups = self.scores.reshape(layers, self.kv_heads, heads // self.kv_heads)
        scores = groups.max(-1) if reduction == "max" else groups.mean(-1)
        return replace(self, scores=scores, kind="kv", samples=None, selected=None, rule="", reduction=reduction)

    def check(self, spec: HeadCounts, fingerprint: str | None = None) -> HeadMask:
        """Itself, if it fits the model: layers, heads and family; with a `fingerprint` also the very weights.

        Leave the fingerprint out to use a mask on a relative of its model. Raises MaskMismatch.
        """
        layers, heads = self.scores.shape
        there = spec.heads if self.kind == "query" else spec.kv_heads
        made_for = self.model or "another model"
        if (layers, heads) != (spec.layers, there):
            raise MaskMismatch(
                f"This mask, made for {made_for}, scores {layers} layers of {heads} {self.kind} heads; "
                f"{spec.name} has {spec.layers} layers of {there}."
            )
        if self.kv_heads not in (None, spec.kv_heads):
            raise MaskMismatch(
                f"This mask, made for {made_for}, expects {self.kv_heads} key/value heads; "
                f"{spec.name} has {spec.kv_heads}."
            )
        if self.family not in ("", spec.family):
            raise MaskMismatch(
                f"This mask was made for a {self.family} model ({made_for}); {spec.name} is {spec.family}."
            )
        if fingerprint is not None and self.fingerprint not in ("", fingerprint):
            raise MaskMismatch(
                f"This mask was made for {made_for} (fingerprint {self.fingerprint}); {spec.name} has the same shape "
                f"and other weights (fingerprint {fingerprint})."
            )
        return self

    def _best(self, k: int) -> npt.NDArray[np.bool_]:
        selected = np.zeros(self.scores.size, dtype=bool)
        selected[np.argsort(-self.scores, axis=None, kind="stable")[:k]] = True
        return selected.reshape(self.scores.shape)


def mean_scores(samples: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Mean over the tests of `[test layer head]`, NaN left out."""
    samples = np.asarray(samples, dtype=np.float64)
    if samples.ndim != 3 or not len(samples) or np.isnan(samples).all(0).any():
        raise BadInput(f"Samples of shape {samples.shape} do not give every head a score: [test layer head] is needed.")
    return np.nanmean(samples, axis=0)


def differing_fields(a: HeadMask, b: HeadMask, tolerance: float = 0.0) -> list[str]:
    """Names of the fields in which two masks differ; arrays may differ by a relative `tolerance`."""
    return [f.name for f in fields(HeadMask) if not _same(getattr(a, f.name), getattr(b, f.name), tolerance)]


def _same(a: object, b: object, tolerance: float) -> bool:
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.shape == b.shape and bool(np.allclose(a, b, rtol=tolerance, atol=0.0, equal_nan=True))
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return False
    return a == b


def _plain(metadata: Mapping[str, Any]) -> dict[str, Any]:
    try:
        plain: dict[str, Any] = json.loads(json.dumps(dict(metadata), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise BadInput(f"A mask's metadata must be plain JSON: {error}.") from error
    return plain


def _require_consistent(mask: HeadMask) -> None:
    shape = mask.scores.shape
    if mask.kind not in get_args(HeadKind):
        raise BadInput(f"There is no kind of head {mask.kind!r}; {choose(mask.kind, get_args(HeadKind))}.")
    if len(shape) != 2 or mask.scores.size == 0:
        raise BadInput(f"Scores of shape {shape} are not one a head: [layer head] is needed.")
    if not np.isfinite(mask.scores).all():
        layer, head = np.argwhere(~np.isfinite(mask.scores))[0]
        raise BadInput(f"The score of head {layer}.{head} is {mask.scores[layer, head]}; scores must be finite.")
    if mask.selected is not None and mask.selected.shape != shape:
        raise BadInput(f"The selection has shape {mask.selected.shape}, the scores {shape}.")
    if mask.samples is not None:
        _require_samples(mask.samples, shape)
    if mask.kv_heads is not None:
        groups_fit = mask.kv_heads > 0 and shape[1] % mask.kv_heads == 0
        if not groups_fit or (mask.kind == "kv" and shape[1] != mask.kv_heads):
            raise BadInput(f"{shape[1]} {mask.kind} heads do not belong to {mask.kv_heads} key/value heads.")


def _require_samples(samples: np.ndarray, shape: tuple[int, ...]) -> None:
    if samples.ndim != 3 or samples.shape[1:] != shape or not len(samples):
        raise BadInput(f"The samples have shape {samples.shape}, the scores {shape}: [test layer head] is needed.")
    padding = np.isnan(samples)
    if np.isinf(samples).any() or padding[0].any() or padding[-1].all() or (padding[:-1] & ~padding[1:]).any():
        raise BadInput("Samples are finite, at least one a head, with NaN only after the last one of a head.")
