"""States before and after the answer, and whether the answer was right."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from interp.errors import BadInput, choose
from interp.tasks.prompts import PromptSet
from interp.tracing.model import Model
from probes.activations import collect
from probes.vsa.ingestion import ingest, upper_half

MOMENTS = ("before", "after")
"""The last token of the prompt, and the last token of the model's own greedy answer."""


@dataclass(frozen=True, eq=False)
class States:
    """Ingested states `[example feature]` by moment and ingestion, and which answers were `right` `[example]`.

    An answer is right where the greedy continuation begins with the answer's tokens.
    """

    vectors: Mapping[tuple[str, str], np.ndarray]
    right: np.ndarray
    answers: tuple[str, ...]


def answer_states(
    model: Model,
    prompts: PromptSet,
    ingestions: tuple[str, ...] = ("clusters",),
    moments: tuple[str, ...] = ("before",),
    *,
    seed: int = 0,
    chunk: int = 32,
    progress: Callable[[int, int], None] | None = None,
) -> States:
    """Let the model answer every prompt, in as many tokens as the right answer has, and ingest its states.

    Raises BadInput for prompts without answers and unknown moments and ingestions, before any forward pass.
    """
    if not prompts.answers:
        raise BadInput("whether the model is right cannot be said of prompts without answers")
    for moment in moments:
        if moment not in MOMENTS:
            raise BadInput(f"there is no moment {moment!r}; {choose(moment, MOMENTS)}")
    sites = upper_half(model.spec)
    ingest({site: np.zeros((1, 1)) for site in sites}, ingestions)  # names are checked before the work
    rows = [list(row) for row in prompts.tokens]
    said: list[tuple[int, ...]] = []
    before: dict[str, list[np.ndarray]] = {site: [] for site in sites}
    for start in range(0, len(rows), chunk):
        wanted = prompts.answer_tokens[start : start + chunk]
        longest = max(map(len, wanted))
        found = model.generate(rows[start : start + chunk], max_new_tokens=longest, read=sites, positions=-1)
        said += [own[: len(answer)] for own, answer in zip(found.tokens, wanted, strict=True)]
        assert found.trace is not None
        for site, parts in before.items():
            parts.append(found.trace[site][:, 0].float().cpu().numpy())
        if progress:
            progress(min(start + chunk, len(rows)), len(rows))
    states: dict[str, Mapping[str, np.ndarray]] = {}
    if "before" in moments:
        states["before"] = {site: np.concatenate(parts) for site, parts in before.items()}
    if "after" in moments:
        states["after"] = collect(model, [row + list(new) for row, new in zip(rows, said, strict=True)], sites)
    vectors = {
        (moment, name): value for moment in moments for name, value in ingest(states[moment], ingestions, seed).items()
    }
    right = np.array([own == tuple(answer) for own, answer in zip(said, prompts.answer_tokens, strict=True)])
    return States(vectors, right, tuple(model.tokenizer.decode(list(own)) for own in said))
