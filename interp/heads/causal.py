"""Do the heads matter? A measurement without them, beside the same without random heads of the same layers.

A study is a list of conditions (an ablation and the heads it acts on) and a measure (recall of answers, perplexity of
text). Every row of its frame names the ablation, the attention implementation, the seed of the random heads, the number
of samples and an interval: Wilson's for recall, a paired bootstrap for perplexity.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pandas as pd

from interp.errors import BadInput
from interp.heads.ablation import ABLATIONS, Ablation, FittedAblation, Head, check_heads, fit
from interp.heads.answers import Answering
from interp.heads.fed import Fed
from interp.heads.perplexity import Reading, Windows, perplexity_record
from interp.heads.scores import model_record
from interp.runs import Journal, Run, load_run, save_run
from interp.stats import wilson_mean
from interp.tables import in_notebook
from interp.tasks.prompts import PromptSet
from interp.tracing.model import Model

if TYPE_CHECKING:
    import plotly.graph_objects as go

Progress = Callable[[int, int], None]
SEEDS = (0, 1, 2, 3, 4)


@dataclass(frozen=True)
class Condition:
    """Which heads are ablated and how: `kind` is "none", "chosen" or "random", `draw` the seed of random ones."""

    kind: str
    heads: tuple[Head, ...]
    ablation: Ablation | None = None
    draw: int = -1

    @property
    def which(self) -> str:
        return " ".join(f"{layer}-{head}" for layer, head in self.heads)

    @property
    def key(self) -> str:
        """Its name in a journal."""
        return f"{self.ablation or 'none'} | {self.kind} {self.draw} | {self.which}"


BASELINE = Condition("none", ())


class Measure(Protocol):
    """What is measured under every condition."""

    @property
    def name(self) -> str: ...
    @property
    def fed(self) -> Fed: ...

    def samples(self, ablation: FittedAblation | None, heads: Sequence[Head]) -> np.ndarray:
        """One row an independent sample, `[n k]`."""
        ...

    def row(self, samples: np.ndarray, baseline: np.ndarray, seed: int) -> dict[str, Any]:
        """The measurement with its interval, and its ratio to the baseline's with its interval."""
        ...


@dataclass(frozen=True, eq=False, repr=False)
class AblationReport:
    """A study: `frame` has a row a condition, the baseline first; `samples` `[condition test …]` what it was taken of.

    `tests` has a row a test with what the prompts say of themselves.
    """

    frame: pd.DataFrame
    heads: tuple[Head, ...]
    model: Mapping[str, Any]
    parameters: Mapping[str, Any]
    samples: np.ndarray
    tests: pd.DataFrame = field(default_factory=pd.DataFrame)
    measure: str = "recall"

    def summary(self) -> pd.DataFrame:
        """A row an ablation and number of heads: what is kept of the baseline without them and without random ones."""
        rows = []
        ablated = self.frame[self.frame.ablation != "none"]
        for (ablation, removed), part in ablated.groupby(["ablation", "removed"], sort=False):
            chosen, random = part[part["heads"] == "chosen"].iloc[0], part[part["heads"] == "random"]
            rows.append(
                {
                    "ablation": ablation,
                    "removed": removed,
                    "kept": chosen.relative,
                    "low": chosen.relative_low,
                    "high": chosen.relative_high,
                    "random": random.relative.mean(),
                    "random_low": random.relative.min(),
                    "random_high": random.relative.max(),
                    "seeds": len(random),
                    "n": chosen.n,
                }
            )
        frame = pd.DataFrame(rows)
        if len(frame) and frame.removed.nunique() == 1:
            frame = frame.drop(columns="removed")
        return frame.rename(columns={"kept": "times_baseline"} if self.measure == "perplexity" else {})

    def by_length_and_depth(self) -> pd.DataFrame:
        """Recall of every condition at each length and depth of needle tests, with Wilson's intervals over the n tests.

        Of several draws of random heads a test counts once, with the mean of its draws: they are no further tests.
        Raises BadInput for prompts whose metadata has no length and depth.
        """
        if missing := {"length", "depth"} - set(self.tests):
            raise BadInput(f"these prompts do not say their {' and '.join(sorted(missing))}: no map of them")
        rows = []
        cells = self.tests.groupby(["length", "depth"]).indices
        for (ablation, kind, removed), part in self.frame.groupby(["ablation", "heads", "removed"], sort=False):
            for (length, depth), tests in cells.items():
                right = self.samples[part.index][:, tests, 0].mean(0)
                interval = wilson_mean(right)
                row = {"ablation": ablation, "heads": kind, "removed": removed, "length": length, "depth": depth}
                row |= {"recall": interval.estimate, "low": interval.low, "high": interval.high, "n": interval.n}
                row["draws"] = len(part)
                rows.append(row)
        return pd.DataFrame(rows)

    def plot(self) -> go.Figure:
        """Recall (or perplexity) against the number of heads removed, random heads with their band."""
        from interp.plots.ablation import removal_curves

        title = f"{self.model['name']}: {self.measure} without heads, n = {self.frame.n.iloc[0]}"
        return removal_curves(self.frame, self.measure, title=title)

    def save(self, path: str | Path, started: datetime | None = None, **files: Any) -> Run:
        """Write a run folder: the table of conditions, all samples, the table of tests. Raises UnwritableOutput."""
        return save_run(
            path,
            kind="head-ablation",
            parameters={**self.parameters, "measure": self.measure},
            model=self.model,
            seed=int(self.parameters["seed"]),
            frame=self.frame,
            arrays={"samples": self.samples},
            files={"tests.parquet": self.tests.to_parquet, **files},
            started=started,
        )

    @classmethod
    def load(cls, path: str | Path) -> AblationReport:
        """Read what `save` wrote. Raises UnreadableFile, BadInput for a run of another kind."""
        run = load_run(path, "head-ablation")
        parameters = dict(run.record.parameters)
        measure = parameters.pop("measure")
        most = run.frame[run.frame["heads"] == "chosen"].sort_values("removed").which
        heads = tuple(_head(name) for name in most.iloc[-1].split()) if len(most) else ()
        samples = run.array("samples", len(run.frame), None, None)
        return cls(run.frame, heads, run.record.model, parameters, samples, run.table("tests"), measure)

    def __repr__(self) -> str:
        tests = f"{len(self.frame)} conditions x {self.samples.shape[1]} samples"
        return f"AblationReport({self.measure} of {self.model['name']} without up to {len(self.heads)} heads: {tests})"

    def _repr_html_(self) -> str:
        return in_notebook(self, self.frame)


def _head(name: str) -> Head:
    """A head as `which` names it: `2-1`."""
    layer, head = name.split("-")
    return int(layer), int(head)


def ablation_report(
    model: Model,
    prompts: PromptSet | Windows,
    heads: Sequence[Head],
    *,
    ablations: Sequence[str | Ablation] = ABLATIONS,
    seeds: Sequence[int] = SEEDS,
    batch_size: int = 8,
    seed: int = 0,
    journal: Journal | None = None,
    progress: Progress | None = None,
) -> AblationReport:
    """A measurement with `heads` ablated, against as many random heads of the same layers, once for each of `seeds`.

    Of prompts, recall is the fraction of tests whose whole answer greedy decoding gives; of windows of a text, it is
    perplexity. `journal` keeps finished conditions, and those it
    already holds are not run again.
    Raises BadInput for unknown ablations, heads that are repeated, absent or none, prompts that an ablation cannot do
    without, and layers without enough other heads for the control.
    """
    return _report(model, prompts, heads, [len(heads)], ablations, seeds, batch_size, seed, journal, progress)


def removal_study(
    model: Model,
    prompts: PromptSet | Windows,
    ranking: Sequence[Head],
    counts: Sequence[int],
    *,
    ablations: Sequence[str | Ablation] = ("mean",),
    seeds: Sequence[int] = SEEDS,
    batch_size: int = 8,
    seed: int = 0,
    journal: Journal | None = None,
    progress: Progress | None = None,
) -> AblationReport:
    """`ablation_report` for the first k heads of a ranking, for every k of `counts` (Wu et al. 2024, figure 7).

    Raises BadInput also for a k beyond the ranking.
    """
    if wrong := [k for k in counts if not 0 <= k <= len(ranking)]:
        raise BadInput(f"{wrong[0]} heads cannot be removed: the ranking has {len(ranking)}")
    return _report(model, prompts, ranking, sorted(set(counts)), ablations, seeds, batch_size, seed, journal, progress)


def random_heads(model: Model, heads: Sequence[Head], seed: int) -> tuple[Head, ...]:
    """As many heads from the same layers, none of them among `heads`; raises BadInput when a layer has too few."""
    if not heads:
        raise BadInput("the heads to ablate must be at least one; got none")
    heads = check_heads(model, heads)
    rng = np.random.default_rng(seed)
    chosen: list[Head] = []
    for layer in sorted({layer for layer, _ in heads}):
        taken = {head for at, head in heads if at == layer}
        others = [head for head in range(model.spec.heads) if head not in taken]
        if len(others) < len(taken):
            raise BadInput(
                f"layer {layer} has {len(taken)} of {model.spec.heads} heads ablated, so no equal number of others is "
                "left for the random control; ablate fewer heads"
            )
        chosen += [(layer, int(head)) for head in rng.choice(others, len(taken), replace=False)]
    return tuple(chosen)


def _report(
    model: Model,
    prompts: PromptSet | Windows,
    ranking: Sequence[Head],
    counts: Sequence[int],
    ablations: Sequence[str | Ablation],
    seeds: Sequence[int],
    batch_size: int,
    seed: int,
    journal: Journal | None,
    progress: Progress | None,
) -> AblationReport:
    kinds = [Ablation.parse(ablation) for ablation in ablations]
    ranking = check_heads(model, ranking)
    if not ranking or not kinds:
        raise BadInput("an ablation study needs at least one head and at least one ablation")
    top = [ranking[:k] for k in counts if k]
    conditions = [Condition("chosen", heads, kind) for kind in kinds for heads in top]
    conditions += [
        Condition("random", random_heads(model, heads, s), kind, s) for kind in kinds for heads in top for s in seeds
    ]
    measure: Measure = (
        Reading(model, prompts) if isinstance(prompts, Windows) else Answering(model, prompts, batch_size)
    )
    samples = measured(model, measure, [BASELINE, *conditions], journal, progress)
    rows = [
        {
            "ablation": str(condition.ablation or "none"),
            "attention": model.attention,
            "heads": condition.kind,
            "removed": len(condition.heads),
            "seed": condition.draw,
            "which": condition.which,
            **measure.row(values, samples[0], seed),
        }
        for condition, values in zip([BASELINE, *conditions], samples, strict=True)
    ]
    text = isinstance(prompts, Windows)
    parameters: dict[str, Any] = {"ablations": list(map(str, kinds)), "seeds": list(seeds), "seed": seed}
    parameters |= perplexity_record(prompts) if isinstance(prompts, Windows) else {"prompts": prompts.hash}
    return AblationReport(
        frame=pd.DataFrame(rows),
        heads=tuple(ranking),
        model=model_record(model),
        parameters=parameters,
        samples=np.stack(samples),
        tests=pd.DataFrame() if text else pd.DataFrame(list(measure.fed.metadata)),
        measure=measure.name,
    )


def measured(
    model: Model,
    measure: Measure,
    conditions: Sequence[Condition],
    journal: Journal | None = None,
    progress: Progress | None = None,
) -> list[np.ndarray]:
    """The samples of every condition, `[n k]` each; those that the journal holds are not measured again."""
    done = {} if journal is None else {key: np.array(value, dtype=float) for key, value in journal.done.items()}
    fed, fitted = measure.fed, dict[Ablation, FittedAblation]()
    layers = {layer for condition in conditions for layer, _ in condition.heads}
    for kind in {condition.ablation: None for condition in conditions if condition.ablation}:
        if any(c.ablation == kind and c.key not in done for c in conditions):
            fitted[kind] = fit(model, kind, fed, sorted(layers))
    for i, condition in enumerate(conditions):
        if condition.key not in done:
            ablation = None if condition.ablation is None else fitted[condition.ablation]
            done[condition.key] = measure.samples(ablation, condition.heads)
            if journal is not None:
                journal.append(condition.key, _json(done[condition.key]))
        if progress:
            progress(i + 1, len(conditions))
    return [done[condition.key] for condition in conditions]


def _json(samples: np.ndarray) -> list[list[float | None]]:
    """JSON has no NaN; it comes back from null."""
    return [[None if np.isnan(value) else float(value) for value in row] for row in samples]
