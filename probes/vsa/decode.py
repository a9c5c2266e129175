"""What a hypervector says: unbinding, with queries from the known structure, from the text alone, or none.

Every decoder gives the cosine of what it found with each concept, `[example concept]`; the concepts of the query itself
are excluded (-inf).

* `by_key`: unbind what the target is known to be bound to. Of roles this is the role, the same for every prompt.
* `oracle`: the paper's: all combinations of up to three known items are tried, and the one that brings the target
  nearest is kept. It needs the target, so it is a bound and no decoder.
* `from_text`: concepts that the text mentions are tried; which is kept, the text and the cosines decide.
* `factorise`: a resonator network (Frady et al. 2020), where no factor is known.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal, get_args

import torch
import torchhd  # type: ignore[import-untyped]
from torch import Tensor

from interp.errors import BadInput, choose
from interp.tasks.analogies import Structure
from probes.vsa.codebook import ACCEPTED, Codebook, ranks

Choose = Literal["last", "new"]
"""Which query of the text is kept: the concept mentioned last, or the one that finds a concept the text lacks."""
COMBINED = 3
"""Most items that the paper combines to one query."""
STEPS = 100
"""Most steps of a resonator network."""


def unbound(x: Tensor, queries: Sequence[str], codebook: Codebook) -> Tensor:
    """Cosines of every concept with a hypervector `[dimensions]` after unbinding all `queries`. Raises BadInput."""
    for query in queries:
        x = codebook.algebra.unbind(x, codebook[query])
    cosines = codebook.cleanup(x[None])[0]
    cosines[[codebook.index(query) for query in queries]] = -torch.inf
    return cosines


def by_key(x: Tensor, structures: Sequence[Structure], codebook: Codebook) -> Tensor:
    """Unbind the key of each target; a target without a key is looked for in the bundle itself."""
    return torch.stack(
        [
            unbound(row, () if each.key is None else (each.key,), codebook)
            for row, each in zip(x, structures, strict=True)
        ]
    )


def oracle(x: Tensor, structures: Sequence[Structure], codebook: Codebook) -> Tensor:
    """The combination of known items (without the target) that ranks the target best; of equals the highest cosine."""
    found = []
    for row, each in zip(x, structures, strict=True):
        known = [name for name in dict.fromkeys(each.concepts) if name != each.target]
        if each.members:
            known = known[:COMBINED]
        queries = [(), *(q for size in range(1, COMBINED + 1) for q in combinations(known, size))]
        tried = torch.stack([unbound(row, query, codebook) for query in queries])
        at = codebook.index(each.target)
        place = ranks(tried, [at] * len(queries))
        found.append(tried[min(range(len(queries)), key=lambda i: (int(place[i]), -float(tried[i, at])))])
    return torch.stack(found)


def from_text(
    x: Tensor, texts: Sequence[str], codebook: Codebook, choice: Choose = "last", accepted: float = ACCEPTED
) -> Tensor:
    """Queries are the concepts that the text mentions, each bound to others in the hypervector (not to roles).

    `last` unbinds the concept mentioned last. `new` tries all and keeps the hit of highest cosine that the text does
    not mention; where none reaches `accepted`, the highest of all. A text without any concept is decoded as it is.
    """
    if choice not in ("last", "new"):
        raise BadInput(
            f"a query of the text is chosen by 'last' or 'new', not {choice!r}; {choose(choice, get_args(Choose))}"
        )
    found = []
    for row, text in zip(x, texts, strict=True):
        queries = mentioned(text, codebook)
        if choice == "last" or not queries:
            found.append(unbound(row, queries[:1], codebook))
            continue
        tried = torch.stack([unbound(row, (query,), codebook) for query in queries])
        elsewhere = tried.clone()
        elsewhere[:, [codebook.index(name) for name in queries]] = -torch.inf
        by_new = bool(elsewhere.max() >= accepted)
        found.append(tried[int((elsewhere if by_new else tried).max(-1).values.argmax())])
    return torch.stack(found)


def mentioned(text: str, codebook: Codebook) -> list[str]:
    """The concepts of the codebook that occur in the text as whole words, the one mentioned last first."""
    last: dict[str, int] = {}
    for match in re.finditer(r"\w[\w'-]*", text):
        for word in (match[0], match[0].lower()):
            if word in codebook:
                last[word] = match.start()
                break
    return sorted(last, key=last.__getitem__, reverse=True)


@dataclass(frozen=True)
class Factors:
    """What a resonator network settled on: one concept a domain, and the cosine of their product with the input."""

    concepts: tuple[str, ...]
    cosine: float
    steps: int
    converged: bool


def factorise(
    x: Tensor, domains: Sequence[Sequence[str]], codebook: Codebook, seed: int = 0, restarts: int = 1
) -> Factors:
    """The concepts, one of each domain, whose product is nearest to the hypervector `[dimensions]`.

    The network starts at the bundles of the domains, then at seeded random ones, and the best end is kept. Raises
    BadInput for another algebra than MAP, fewer than two domains and an empty one.
    """
    if codebook.algebra.name != "MAP":
        raise BadInput(f"the resonator network factorises MAP hypervectors, not {codebook.algebra.name}")
    if len(domains) < 2 or not all(domains):
        raise BadInput("factors need at least two domains, each with a concept")
    generator = torch.Generator().manual_seed(seed)
    rows = [[codebook.index(name) for name in domain] for domain in domains]
    longest = max(map(len, rows))
    padded = torch.zeros(len(rows), longest, codebook.dimensions)
    for i, own in enumerate(rows):
        padded[i, : len(own)] = codebook.vectors[own]
    best: Factors | None = None
    for attempt in range(1 + restarts):
        start = torch.ones(len(rows), longest) if attempt == 0 else torch.randn(len(rows), longest, generator=generator)
        found = _resonate(x, torch.einsum("fc,fcd->fd", start, padded), padded, rows, codebook)
        if best is None or found.cosine > best.cosine:
            best = found
    assert best is not None
    return best


def factorise_bundle(
    x: Tensor, domains: Sequence[Sequence[str]], codebook: Codebook, count: int, seed: int = 0
) -> list[Factors]:
    """`count` products of a bundle, one after another, each explained away before the next is looked for."""
    found = []
    rest = x.clone()
    for _ in range(count):
        factors = factorise(rest, domains, codebook, seed)
        found.append(factors)
        product = codebook[factors.concepts[0]]
        for name in factors.concepts[1:]:
            product = codebook.algebra.bind(product, codebook[name])
        rest = rest - (rest @ product / codebook.dimensions) * product
    return found


def _resonate(x: Tensor, start: Tensor, padded: Tensor, rows: Sequence[Sequence[int]], codebook: Codebook) -> Factors:
    own = torchhd.ensure_vsa_tensor
    estimates = torch.where(start >= 0, 1.0, -1.0)
    converged, steps = False, 0
    while not converged and steps < STEPS:
        new = torchhd.resonator(own(x), own(estimates), own(padded)).as_subclass(Tensor)
        new = torch.where(new == 0, estimates, new)
        converged, estimates, steps = torch.equal(new, estimates), new, steps + 1
    scores = torch.einsum("fd,fcd->fc", estimates, padded)
    at = [own_rows[int(score[: len(own_rows)].abs().argmax())] for own_rows, score in zip(rows, scores, strict=True)]
    product = codebook.vectors[at].prod(0)
    cosine = float(codebook.algebra.similarity(x[None], product[None]))
    return Factors(tuple(codebook.concepts[i] for i in at), cosine, steps, converged)
