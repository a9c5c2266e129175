"""The hidden state of every leaf of a syntax tree: the mean over its tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from interp.errors import BadInput, choose
from interp.tasks.encoding import Span, encode
from interp.tracing.batch import Encoded, check_length
from interp.tracing.model import Model
from interp.tracing.sites import Site
from probes.ast.corpus import Snippet
from probes.ast.probe import boundaries

Alignment = Literal["offsets", "one-by-one"]
"""`"offsets"`: the code as it is, each leaf the tokens that touch its characters. `"one-by-one"`, as the published
code: every leaf tokenised alone after a space, so that the model sees neither line breaks nor indentation."""

EMBEDDING = "embed"


@dataclass(frozen=True, eq=False)
class LeafStates:
    """States of all leaves of some functions, one after the other.

    Attributes:
        sites: the embedding, then the residual stream after every block.
        values: `[site leaf width]`, float32.
        lengths: leaves of each function.
    """

    sites: tuple[str, ...]
    values: Tensor
    lengths: tuple[int, ...]

    def shifted(self) -> LeafStates:
        """Each leaf with the state of the leaf half its function away: what the right words say in wrong places."""
        starts = np.cumsum([0, *self.lengths[:-1]])
        moved = [start + np.roll(np.arange(n), n // 2) for start, n in zip(starts, self.lengths, strict=True)]
        return LeafStates(self.sites, self.values[:, np.concatenate(moved)], self.lengths)

    @property
    def tied(self) -> float:
        """Share of neighbouring leaves of one state, as they share their token: no probe can part these two."""
        within = boundaries(self.lengths)
        last = self.values[-1]
        return float((last[within] == last[within + 1]).all(-1).float().mean())

    def at(self, sites: Sequence[str] | None) -> LeafStates:
        """Only some sites; all for None. Raises BadInput as `of`."""
        if sites is None:
            return self
        return LeafStates(tuple(sites), torch.stack([self.of(site) for site in sites]), self.lengths)

    def of(self, site: str) -> Tensor:
        """`[leaf width]` of one site. Raises BadInput naming those there are."""
        if site not in self.sites:
            raise BadInput(f"there are no leaf states of {site!r}; {choose(site, self.sites)}")
        return self.values[self.sites.index(site)]


def leaf_states(
    model: Model,
    snippets: Sequence[Snippet],
    *,
    alignment: Alignment = "offsets",
    following: bool = False,
    batch: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> LeafStates:
    """The states of every leaf at the embedding and after every block, from one pass over the code.

    `following` adds the token after a leaf to its mean: in a causal model that token has seen the leaf's right context.
    A token that belongs to two leaves counts for both. Raises PromptTooLong for a function with more tokens than the
    model has positions, and BadInput without a fast tokenizer; both before the first pass.
    """
    if alignment not in get_args(Alignment):
        raise BadInput(f"there is no alignment {alignment!r}; {choose(alignment, get_args(Alignment))}")
    aligned = [_aligned(model.tokenizer, snippet, alignment) for snippet in snippets]
    check_length(Encoded(tuple(ids for ids, _ in aligned)), model.spec.context, 0)
    lengths = tuple(len(spans) for _, spans in aligned)
    starts = np.cumsum([0, *lengths])
    layers = [str(Site("resid_post", layer)) for layer in range(model.spec.layers)]
    values = torch.empty(1 + len(layers), int(starts[-1]), model.spec.width)
    order = np.argsort([len(ids) for ids, _ in aligned], kind="stable")
    for done in range(0, len(order), batch):
        chosen = order[done : done + batch]
        trace = model.run([list(aligned[i][0]) for i in chosen], read=[EMBEDDING, "resid_post"])
        states = torch.stack([trace[site].float() for site in (EMBEDDING, *layers)]).cpu()
        pooled = _pooled(states, [_reach(aligned[i], following) for i in chosen])
        rows = np.concatenate([np.arange(starts[i], starts[i + 1]) for i in chosen])
        values[:, rows] = pooled
        if progress:
            progress(min(done + batch, len(order)), len(order))
    return LeafStates((EMBEDDING, *layers), values, lengths)


def _aligned(tokenizer: Any, snippet: Snippet, alignment: Alignment) -> tuple[tuple[int, ...], list[Span]]:
    """The tokens of a function and the half-open span of them that each leaf has."""
    if tokenizer is None:
        raise BadInput("leaves are found in the text of a function: the model needs its tokenizer")
    if alignment == "offsets":
        encoded = encode(tokenizer, snippet.code)
        spans = [encoded.token_span(leaf.span, leaf.label) for leaf in snippet.leaves]
        return tuple(tokenizer(snippet.code, verbose=False)["input_ids"]), spans
    texts = [" " + snippet.code[slice(*leaf.span)] for leaf in snippet.leaves]
    words = [encode(tokenizer, text, special_tokens=False).ids for text in texts]
    around = tokenizer(texts[0])["input_ids"]  # special tokens before and after
    before = len(encode(tokenizer, texts[0]).ids) - len(words[0])
    ends = (before + np.cumsum([len(word) for word in words])).tolist()
    ids = (*around[:before], *(i for word in words for i in word), *around[before + len(words[0]) :])
    return ids, list(pairwise([before, *ends]))


def _reach(aligned: tuple[tuple[int, ...], list[Span]], following: bool) -> list[Span]:
    ids, spans = aligned
    return [(first, min(end + 1, len(ids))) for first, end in spans] if following else spans


def _pooled(states: Tensor, spans: Sequence[Sequence[Span]]) -> Tensor:
    """Means over spans of tokens: `[site batch tokens width]` -> `[site leaf width]`."""
    width = states.shape[2]
    flat = [(row * width + first, row * width + end) for row, each in enumerate(spans) for first, end in each]
    counts = torch.tensor([end - first for first, end in flat])
    tokens = torch.cat([torch.arange(first, end) for first, end in flat])
    leaf = torch.repeat_interleave(torch.arange(len(flat)), counts)
    summed = torch.zeros(states.shape[0], len(flat), states.shape[3])
    return summed.index_add_(1, leaf, states.flatten(1, 2)[:, tokens]) / counts[:, None]
