"""The centroids of CLUE: mean deltas of right and of wrong traces, streamed, saved, and tied to their model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from interp.errors import BadInput, UnreadableFile
from interp.runs import staged
from interp.tables import in_notebook
from interp.tracing.model import Model
from probes.reasoning import Missing
from probes.traces import Experience

SCHEMA = "interp-clue/1"
CENTROIDS_FILE = "clue_centroids.safetensors"
SITE = "resid_post"
"""Hidden states are the outputs of the blocks."""
BASELINES = ("tokens", "log_probability", "self_certainty")
"""What a trace shows without its hidden states: how long the response is, and how sure the model was."""


@dataclass(frozen=True, eq=False, repr=False)
class Centroids:
    """Mean deltas of right and wrong traces, and all that is needed to use them on others.

    `success` and `failure` `[layer width]`; `spread` `[2 layer]` root mean square distance of the traces of each class
    from their mean; `counts` traces of each class; `baselines` means of each class of what else a trace shows;
    `questions` digests of those learned from; `delimiters` and `missing` say where a delta begins and ends.
    """

    success: np.ndarray
    failure: np.ndarray
    spread: np.ndarray
    counts: tuple[int, int]
    baselines: Mapping[str, tuple[float, float]]
    questions: frozenset[str]
    delimiters: tuple[str, str] | None
    missing: Missing
    model: Mapping[str, Any]
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        right, wrong = self.counts
        return f"Centroids({self.model['name']}, {len(self.success)} layers, {right} right and {wrong} wrong traces)"

    def _repr_html_(self) -> str:
        import pandas as pd

        columns = {"gap": self.gap, "spread of right": self.spread[0], "spread of wrong": self.spread[1]}
        return in_notebook(self, pd.DataFrame(columns).rename_axis("layer").reset_index())

    @property
    def gap(self) -> np.ndarray:
        """Distance between the centroids at each layer, `[layer]`."""
        return np.linalg.norm(self.success - self.failure, axis=1)

    def distances(self, deltas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Euclidean distance of deltas `[trace layer width]` to each centroid at each layer, two `[trace layer]`."""
        success, failure = (np.linalg.norm(deltas - centre, axis=2) for centre in (self.success, self.failure))
        return success, failure

    def require(self, model: Model, experience: Experience) -> None:
        """Raise BadInput unless these centroids are of this model, of such traces, and learned from other questions."""
        if self.model["fingerprint"] != model.fingerprint:
            raise BadInput(
                f"these centroids are of {self.model['name']} ({self.model['fingerprint']}), not of {model.spec.name} "
                f"({model.fingerprint}): fit them again on traces of this model"
            )
        require_author(model, experience)
        if self.delimiters != experience.delimiters:
            raise BadInput(
                f"these centroids are of reasoning between {self.delimiters}, "
                f"the traces of reasoning between {experience.delimiters}"
            )
        if seen := [question for question in experience.questions if digest(question) in self.questions]:
            raise BadInput(
                f"the centroids were learned from {len(seen)} of these {len(experience.questions)} questions, "
                f"{seen[0]!r} among them; only others test them (Centroids.unseen)"
            )

    def unseen(self, experience: Experience) -> Experience:
        """The traces of questions that these centroids were not learned from. Raises BadInput where there are none."""
        others = [question for question in experience.questions if digest(question) not in self.questions]
        if not others:
            raise BadInput("the centroids were learned from all of these questions; only others test them")
        return experience.of(others)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file. Raises UnwritableOutput."""
        about = {
            "schema": SCHEMA,
            "site": SITE,
            "counts": self.counts,
            "baselines": dict(self.baselines),
            "questions": sorted(self.questions),
            "delimiters": self.delimiters,
            "missing": self.missing,
            "model": dict(self.model),
            "parameters": dict(self.parameters),
        }
        tensors = {"success": self.success, "failure": self.failure, "spread": self.spread}
        content = save(
            {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, {"clue": json.dumps(about)}
        )
        with staged(path) as partial:
            partial.write_bytes(content)

    @classmethod
    def load(cls, path: str | Path) -> Centroids:
        """Read what `save` wrote, from the file or from the run that holds it. Raises UnreadableFile."""
        path = Path(path)
        path = path / CENTROIDS_FILE if path.is_dir() else path
        try:
            with safe_open(path, framework="numpy") as file:
                about = json.loads((file.metadata() or {})["clue"])
                success, failure, spread = (file.get_tensor(name) for name in ("success", "failure", "spread"))
            if about["schema"] != SCHEMA:
                raise UnreadableFile(f"{path} has schema {about['schema']!r}; this version reads {SCHEMA!r}")
            if success.ndim != 2 or failure.shape != success.shape or spread.shape != (2, len(success)):
                raise UnreadableFile(f"{path} holds centroids of shapes {success.shape} and {failure.shape}")
            return cls(
                success,
                failure,
                spread,
                tuple(about["counts"]),
                {name: tuple(means) for name, means in about["baselines"].items()},
                frozenset(about["questions"]),
                None if about["delimiters"] is None else tuple(about["delimiters"]),
                about["missing"],
                about["model"],
                about["parameters"],
            )
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, UnreadableFile):
                raise
            raise UnreadableFile(f"{path} does not hold centroids: {error}") from error


class RunningMeans:
    """Means of right and wrong deltas, and their spread, from deltas that come a chunk at a time (in float64)."""

    def __init__(self) -> None:
        self.counts = np.zeros(2, dtype=int)
        self.sums: Any = 0.0
        self.squares: Any = 0.0

    def add(self, deltas: np.ndarray, correct: Sequence[bool]) -> None:
        """Take in deltas `[trace layer width]`."""
        chosen = np.stack([np.asarray(correct, dtype=bool), ~np.asarray(correct, dtype=bool)]).astype(float)
        values = deltas.astype(np.float64)
        self.counts = self.counts + chosen.sum(1).astype(int)
        self.sums = self.sums + np.einsum("kn,nld->kld", chosen, values)
        self.squares = self.squares + np.einsum("kn,nl->kl", chosen, (values**2).sum(2))

    def means(self) -> np.ndarray:
        """`[2 layer width]`: of right and of wrong traces. Raises BadInput where one of them is missing."""
        if not self.counts.all():
            raise BadInput(
                f"there are {self.counts[0]} right and {self.counts[1]} wrong traces; centroids need some of both"
            )
        return self.sums / self.counts[:, None, None]

    def spread(self) -> np.ndarray:
        """Root mean square distance from the class mean, `[2 layer]`."""
        around = self.squares / self.counts[:, None] - (self.means() ** 2).sum(2)
        return np.sqrt(np.maximum(around, 0))


def digest(question: str) -> str:
    """Sixteen hex digits that identify a question."""
    return hashlib.sha256(question.encode()).hexdigest()[:16]


def require_author(model: Model, experience: Experience) -> None:
    """Raise BadInput for traces that another model is known to have written."""
    author = experience.model
    if author and author["fingerprint"] != model.fingerprint:
        raise BadInput(
            f"these traces were written by {author['name']} ({author['fingerprint']}), not by {model.spec.name} "
            f"({model.fingerprint}), whose states and probabilities would be of another's text"
        )
