"""CLUE: right and wrong reasoning told apart by where it moves the hidden states ("CLUE: Non-parametric Verification
from Experience via Hidden-State Clustering").

The delta of a trace is its hidden state at the end of the reasoning less that at its beginning, at the output of every
block. Two centroids, the mean deltas of right and of wrong traces, are all that is learned; a new trace is taken for
right when it lies nearer to the first. Distances are Euclidean at each layer, averaged over layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from interp.errors import BadInput, choose
from interp.heads.scores import model_record
from interp.runs import Run
from interp.tables import in_notebook
from interp.tracing.model import Model
from probes.centroids import BASELINES, CENTROIDS_FILE, SITE, Centroids, RunningMeans, digest, require_author
from probes.certainty import confidence
from probes.reasoning import Missing, Reasoning, found
from probes.traces import Experience

Progress = Callable[[int, int], None]

PROJECTED = 1_000
"""At most this many deltas are kept to be drawn."""
SHOWN = 2_000
"""Characters of a response that are kept to be read: its last ones, where the answer is."""
TRACES = "traces"
"""The table of a run that holds `Scored.frame`."""


@dataclass(frozen=True, eq=False, repr=False)
class Scored:
    """Traces with their distances to centroids and with the baselines.

    `frame`: one row a trace, with the end of its response as text where there is a tokenizer. `to_success` and
    `to_failure` `[trace layer]`. `projection` `[trace 2]` (NaN where not kept): along the line from failure to success
    through both centroids, and along the principal component of what is left; the centroids lie at plus and minus half
    their distance on the first axis. `places` counts found delimiters.
    """

    frame: pd.DataFrame
    to_success: np.ndarray
    to_failure: np.ndarray
    projection: np.ndarray
    centroids: Centroids
    places: Mapping[str, int]

    def __len__(self) -> int:
        return len(self.frame)

    def __repr__(self) -> str:
        return f"Scored({len(self)} traces of {self.frame.question.nunique()} questions)"

    def _repr_html_(self) -> str:
        return in_notebook(self, self.frame[["question", "answer", "correct", "to_success", "to_failure"]])

    @property
    def correct(self) -> np.ndarray:
        """Whether each trace is right, `[trace]`. Raises BadInput where nobody checked."""
        if self.frame.correct.isna().any():
            raise BadInput(
                f"{self.frame.correct.isna().sum()} of {len(self)} traces are not known to be right or wrong"
            )
        return self.frame.correct.to_numpy(dtype=bool)

    @property
    def groups(self) -> np.ndarray:
        """The number of each trace's question, `[trace]`."""
        return pd.factorize(self.frame.question)[0]

    def candidates(self, question: str) -> pd.DataFrame:
        """The traces of one question, the one nearest to the success centroid first. Raises BadInput."""
        rows = self.frame[self.frame.question == question]
        if rows.empty:
            raise BadInput(f"there is no question {question!r} here; {choose(question, self.frame.question.unique())}")
        margin = rows.to_failure - rows.to_success
        columns = ["answer", "correct", "to_success", "to_failure", "log_probability", "tokens", "response"]
        return rows[columns].assign(margin=margin).sort_values("to_success", kind="stable", ignore_index=True)

    def plot(self) -> Any:
        """Deltas and centroids, projected."""
        from interp.plots.clue import projections

        return projections(self)

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays of a run that holds these traces; `files` are its further files."""
        return {"to_success": self.to_success, "to_failure": self.to_failure, "projection": self.projection}

    def files(self) -> dict[str, Callable[..., object]]:
        return {f"{TRACES}.parquet": self.frame.to_parquet, CENTROIDS_FILE: self.centroids.save}

    @classmethod
    def of_run(cls, run: Run) -> Scored:
        """The traces that a run holds. Raises UnreadableFile."""
        frame, centroids = run.table(TRACES), Centroids.load(run.path)
        shape = len(frame), len(centroids.success)
        to_success, to_failure = (run.array(name, *shape) for name in ("to_success", "to_failure"))
        places = run.record.parameters.get("found", {})
        return cls(frame, to_success, to_failure, run.array("projection", len(frame), 2), centroids, places)


def fit(
    model: Model,
    experience: Experience,
    *,
    missing: Missing = "refuse",
    certainty: bool = True,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> Centroids:
    """Learn the centroids from traces known to be right or wrong, one pass of the model over each trace.

    `certainty=False` spares a second pass that holds the logits of every response token: self-certainty is then NaN,
    and the log-probability the recorded one. Raises BadInput where
    all traces are alike, where delimiters are missing (see `Experience.reasoning`), on hidden states that are not
    finite, and on traces of another model.
    """
    labels = experience.labels()
    require_author(model, experience)
    places = experience.reasoning(model.tokenizer, missing)
    means = RunningMeans()
    for rows, values in deltas(model, experience, places, batch_size, progress):
        means.add(values, [labels[i] for i in rows])
    success, failure = means.means().astype(np.float32)
    shown = _shown(model, experience, places, certainty)
    right = shown.pop("correct").astype(bool)
    return Centroids(
        success,
        failure,
        means.spread().astype(np.float32),
        (int(means.counts[0]), int(means.counts[1])),
        {name: (float(shown[name][right].mean()), float(shown[name][~right].mean())) for name in BASELINES},
        frozenset(digest(question) for question in experience.questions),
        experience.delimiters,
        missing,
        model_record(model),
        {**experience.parameters, "seed": experience.seed, "found": found(places)},
    )


def score(
    model: Model,
    experience: Experience,
    centroids: Centroids,
    *,
    certainty: bool = True,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> Scored:
    """Distances of traces to the centroids, and the baselines; no trace's label is looked at.

    Raises BadInput for centroids of another model, of other delimiters or learned from these questions.
    """
    centroids.require(model, experience)
    places = experience.reasoning(model.tokenizer, centroids.missing)
    kept = [i for i, place in enumerate(places) if place is not None]
    number = {i: n for n, i in enumerate(kept)}
    shape = (len(kept), len(centroids.success))
    to_success, to_failure = np.zeros((2, *shape), dtype=np.float32)
    drawn = {kept[int(n)] for n in np.linspace(0, len(kept) - 1, min(PROJECTED, len(kept)))}
    samples: dict[int, np.ndarray] = {}
    for rows, values in deltas(model, experience, places, batch_size, progress):
        at = [number[i] for i in rows]
        to_success[at], to_failure[at] = centroids.distances(values)
        samples |= {number[i]: value for i, value in zip(rows, values, strict=True) if i in drawn}
    projection = np.full((len(kept), 2), np.nan)
    projection[list(samples)] = _project(np.stack(list(samples.values())), centroids)
    shown = _shown(model, experience, places, certainty)
    frame = pd.DataFrame(
        {
            "question": [experience[i].question for i in kept],
            "answer": [experience[i].answer for i in kept],
            "correct": shown["correct"],
            **{name: shown[name] for name in BASELINES},
            "to_success": to_success.mean(1, dtype=float),
            "to_failure": to_failure.mean(1, dtype=float),
            "start_found": [places[i].start_found for i in kept],  # type: ignore[union-attr]
            "end_found": [places[i].end_found for i in kept],  # type: ignore[union-attr]
            "response": [_ending(model.tokenizer, experience[i].tokens) for i in kept],
        }
    )
    return Scored(frame, to_success, to_failure, projection, centroids, found(places))


def deltas(
    model: Model,
    experience: Experience,
    places: Sequence[Reasoning | None],
    batch_size: int = 16,
    progress: Progress | None = None,
) -> Iterator[tuple[list[int], np.ndarray]]:
    """Deltas `[trace layer width]` of a few traces at a time, with the numbers of those traces.

    A causal model's state at a token depends on nothing after it, so that each trace is read to the end of its
    reasoning only, and what the traces of a question share before it is read once a batch. Raises BadInput for an
    encoder and on hidden states that are not finite.
    """
    if not model.parts.architecture.causal:
        raise BadInput(f"{model.spec.name} is an encoder: its states at a token depend on what comes after it")
    spans = {i: place for i, place in enumerate(places) if place is not None}
    group = {question: n for n, question in enumerate(experience.questions)}
    order = sorted(spans, key=lambda i: (group[experience[i].question], spans[i].end))
    for first in range(0, len(order), batch_size):
        rows = order[first : first + batch_size]
        openings = [experience[i].trace[: spans[i].start + 1] for i in rows]
        shared = list(dict.fromkeys(openings))
        begin = _last_states(model, shared)[[shared.index(opening) for opening in openings]]
        values = _last_states(model, [experience[i].trace[: spans[i].end + 1] for i in rows]) - begin
        if not np.isfinite(values).all():
            row, layer, _ = np.argwhere(~np.isfinite(values))[0]
            raise BadInput(f"the hidden states of trace {rows[row]} at layer {layer} are not finite")
        yield rows, values
        if progress:
            progress(first + len(rows), len(order))


def _last_states(model: Model, rows: Sequence[Sequence[int]]) -> np.ndarray:
    """Output of every block at the last token of each row, `[row layer width]`."""
    trace = model.run([list(row) for row in rows], read=SITE, positions=-1)
    return trace.stack(SITE)[:, :, 0].transpose(0, 1).float().cpu().numpy()


def _shown(
    model: Model, experience: Experience, places: Sequence[Reasoning | None], certainty: bool
) -> dict[str, np.ndarray]:
    """Labels and baselines of the traces that were not left out, `[trace]` each."""
    kept = [response for response, place in zip(experience, places, strict=True) if place is not None]
    recorded = np.array([response.log_probability for response in kept]), np.full(len(kept), np.nan)
    log_probability, self_certainty = confidence(model, kept) if certainty else recorded
    return {
        "correct": pd.array([response.correct for response in kept], dtype="boolean"),
        "tokens": np.array([len(response.tokens) for response in kept], dtype=float),
        "log_probability": log_probability,
        "self_certainty": self_certainty,
    }


def _ending(tokenizer: Any, tokens: Sequence[int]) -> str | None:
    """The last characters of a response, and three dots for those before."""
    if tokenizer is None:
        return None
    text = str(tokenizer.decode(list(tokens), skip_special_tokens=True))
    return text if len(text) <= SHOWN else f"…{text[-SHOWN:]}"


def _project(values: np.ndarray, centroids: Centroids) -> np.ndarray:
    """Deltas `[trace layer width]` in the plane of `Scored.projection`."""
    line = (centroids.success - centroids.failure).ravel().astype(float)
    line /= max(float(np.linalg.norm(line)), np.finfo(float).tiny)
    middle = (centroids.success + centroids.failure).ravel() / 2
    around = values.reshape(len(values), -1) - middle
    along = around @ line
    rest = around - np.outer(along, line)
    centred = rest - rest.mean(0)
    _, vectors = np.linalg.eigh(centred @ centred.T)
    axis = vectors[:, -1] @ centred
    return np.stack([along, rest @ (axis / max(float(np.linalg.norm(axis)), np.finfo(float).tiny))], axis=1)
