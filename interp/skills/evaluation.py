"""How much of a skill a mask carries: gain recovered, agreement, calibration, another domain, baselines."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from interp.errors import BadInput, choose
from interp.runs import Run, load_run, save_run
from interp.skills.baselines import baseline_mask, same_matrices
from interp.skills.calibration import confidences, expected_calibration_error, reliability
from interp.skills.mask import GraftMask
from interp.skills.pairs import check_pair, refuse_encoder
from interp.stats import wilson_interval
from interp.tables import in_notebook
from interp.tasks.classification import Classification
from interp.tracing.model import Model

if TYPE_CHECKING:
    import plotly.graph_objects as go

BASELINES = ("random", "same matrices", "magnitude", "movement", "bias", "lottery ticket")
"""Of the same budget: see `baseline_mask` and `same_matrices`; a lottery ticket has zeros outside the mask."""
PRE, FT = "pre-trained", "fine-tuned"
ADAPTIVE_BINS = 15
MODELS = ["method", "budget", "seed", "parameters"]
"""What is said of every model."""


@dataclass(frozen=True)
class Candidate:
    """A model to evaluate: `ft` where the mask is, `pre` (or zero) elsewhere. `budget` is the share asked for."""

    method: str
    mask: GraftMask
    budget: float
    seed: int = 0
    outside: str = "pre"

    @contextmanager
    def model(self, pre: Model, ft: Model, transfer: bool) -> Iterator[Model]:
        if self.outside == "pre":
            with self.mask.check(pre, ft, transfer).applied(pre, ft) as grafted:
                yield grafted
        else:
            yield self.mask.apply(pre, ft, outside=self.outside, transfer=transfer)


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation:
    """What every model answered: `logits[split]` `[model example label]`, `targets[split]` `[example]`.

    `models` has one row a model, the first two the pre-trained and the fine-tuned: method, budget, seed, parameters
    (how many are grafted).
    """

    models: pd.DataFrame
    logits: Mapping[str, np.ndarray]
    targets: Mapping[str, np.ndarray]
    model: Mapping[str, Any]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0

    def __repr__(self) -> str:
        sizes = ", ".join(f"{len(targets)} {split}" for split, targets in self.targets.items())
        return f"Evaluation({self.parameters.get('task')}: {len(self.models)} models on {sizes})"

    def correct(self, split: str = "test") -> np.ndarray:
        """Whether each model answers each example rightly, `[model example]` bool. Raises BadInput."""
        if split not in self.logits:
            raise BadInput(f"nothing was evaluated on {split!r}; {choose(split, self.logits)}")
        return np.asarray(self.logits[split].argmax(-1) == self.targets[split])

    def recovered(self, split: str = "test", level: float = 0.95, resamples: int = 2_000) -> np.ndarray:
        """The share of the fine-tuned model's gain in accuracy that each model has, `[model 3]`: estimate, low, high.

        Bounds are percentiles of a bootstrap over examples, the same ones of all models. Resamples in which
        fine-tuning gained nothing have nothing to share and are left out; where they are more than a tail of the
        interval (2.5 %), the gain itself is uncertain and there are no bounds: NaN. NaN, too, where nothing was gained.
        """
        right = self.correct(split).astype(float)
        n = right.shape[1]
        counts = np.random.default_rng(self.seed).multinomial(n, np.full(n, 1 / n), size=resamples)
        tail = (1 - level) / 2
        resampled = counts @ right.T / n
        gained = resampled[resampled[:, 1] > resampled[:, 0]]
        low, high = np.full((2, len(right)), np.nan)
        if len(gained) >= (1 - tail) * resamples:
            low, high = np.quantile(_share_of_gain(gained), [tail, 1 - tail], axis=0)
        return np.stack([_share_of_gain(right.mean(1)[None])[0], low, high], axis=1)

    def reliability(self, row: int, split: str = "test", bins: int = 10) -> pd.DataFrame:
        """The reliability table of one model."""
        return reliability(confidences(self.logits[split][row]), self.correct(split)[row], bins)

    @cached_property
    def frame(self) -> pd.DataFrame:
        """One row a model and split: accuracy and recovered gain with intervals, agreement with the fine-tuned, ECE."""
        rows = []
        for split, logits in self.logits.items():
            right, answers, gains = self.correct(split), logits.argmax(-1), self.recovered(split)
            for number, about in enumerate(self.models.to_dict("records")):
                sure = confidences(logits[number])
                accuracy = wilson_interval(int(right[number].sum()), len(sure))
                rows.append(
                    {
                        **about,
                        "split": split,
                        "accuracy": accuracy.estimate,
                        "accuracy_low": accuracy.low,
                        "accuracy_high": accuracy.high,
                        "recovered": gains[number, 0],
                        "recovered_low": gains[number, 1],
                        "recovered_high": gains[number, 2],
                        "agreement": float((answers[number] == answers[1]).mean()),
                        "ece_10": expected_calibration_error(sure, right[number], 10),
                        "ece_15": expected_calibration_error(sure, right[number], 15),
                        "ece_adaptive": expected_calibration_error(sure, right[number], ADAPTIVE_BINS, "mass"),
                        "n": len(sure),
                    }
                )
        return pd.DataFrame(rows)

    def save(self, path: str | Path, started: datetime | None = None) -> Run:
        """Write a run. Raises UnwritableOutput."""
        arrays = {f"logits_{split}": logits for split, logits in self.logits.items()}
        arrays |= {f"targets_{split}": targets for split, targets in self.targets.items()}
        return save_run(
            path,
            kind="skill-evaluation",
            parameters=self.parameters,
            model=self.model,
            seed=self.seed,
            frame=self.frame,
            arrays=arrays,
            started=started,
        )

    @classmethod
    def load(cls, path: str | Path) -> Evaluation:
        """Read what `save` wrote. Raises UnreadableFile, BadInput for a run of another kind."""
        run = load_run(path, "skill-evaluation")
        splits = list(run.frame.split.unique())
        models = run.frame.loc[run.frame.split == splits[0], MODELS].reset_index(drop=True)
        logits = {split: run.array(f"logits_{split}", len(models), None, None) for split in splits}
        targets = {split: run.array(f"targets_{split}", logits[split].shape[1]) for split in splits}
        return cls(models, logits, targets, run.record.model, run.record.parameters, run.record.seed)

    def plot(self, what: Literal["accuracy", "gain", "reliability"] = "accuracy", split: str = "test") -> go.Figure:
        """Accuracy, or the share of the gain, against budget, a line a method; or confidence against accuracy.

        Raises BadInput for a split that nothing was evaluated on.
        """
        from interp.plots.skills import budget_curves, reliability_diagram

        return reliability_diagram(self, split) if what == "reliability" else budget_curves(self, what, split)

    def _repr_html_(self) -> str:
        return in_notebook(self, self.frame)


def evaluate(
    pre: Model,
    ft: Model,
    task: Classification,
    candidates: Sequence[Candidate],
    *,
    splits: Sequence[str] | None = None,
    transfer: bool = False,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Answers of the pre-trained, the fine-tuned and every grafted model to the test and out-of-domain examples.

    With `transfer` masks made of other fine-tuned models are grafted from this one, such as one tuned by AdamW. Raises
    BadInput, and MaskMismatch for masks of other models.
    """
    refuse_encoder(pre)
    check_pair(pre, ft, everything=True)
    for candidate in candidates:
        candidate.mask.check(pre, ft, transfer)
    splits = [split for split in ("test", "ood") if split in task.splits] if splits is None else list(splits)
    examples = {split: task[split] for split in splits}

    def answers(model: Model) -> dict[str, np.ndarray]:
        return {split: task.label_logits(model, of_split).numpy() for split, of_split in examples.items()}

    collected = [answers(pre), answers(ft)]
    for done, candidate in enumerate(candidates, 1):
        with candidate.model(pre, ft, transfer) as grafted:
            collected.append(answers(grafted))
        progress(done, len(candidates))
    rows = [(PRE, 0.0, 0, 0), (FT, 1.0, 0, max((c.mask.size for c in candidates), default=0))]
    rows += [(c.method, c.budget, c.seed, len(c.mask)) for c in candidates]
    return Evaluation(
        models=pd.DataFrame(rows, columns=MODELS),
        logits={split: np.stack([each[split] for each in collected]) for split in splits},
        targets={split: np.array(of_split.targets) for split, of_split in examples.items()},
        model={**pre.spec.as_dict(), "fingerprint": pre.fingerprint},
        parameters={
            "task": task.name,
            "task_parameters": dict(task.parameters),
            "fine_tuned": ft.spec.name,
            "fine_tuned_fingerprint": ft.fingerprint,
            "transfer": transfer,
        },
        seed=seed,
    )


def with_baselines(
    pre: Model,
    ft: Model,
    masks: Sequence[GraftMask],
    *,
    baselines: Sequence[str] = BASELINES,
    seeds: Sequence[int] = (0, 1, 2),
    method: str = "localized",
) -> list[Candidate]:
    """Candidates for `evaluate`: each mask, and the baselines of its budget (random ones at every seed).

    Raises BadInput for an unknown baseline.
    """
    if unknown := [name for name in baselines if name not in BASELINES]:
        raise BadInput(f"there is no baseline {unknown[0]!r}; {choose(unknown[0], BASELINES)}")
    candidates = []
    for mask in masks:
        share = float(mask.metadata.get("sparsity", mask.sparsity))
        exact = (len(mask) + 0.5) / mask.size
        everything = bool(mask.metadata.get("everything", False))
        candidates.append(Candidate(method, mask, share))
        for name in baselines:
            if name == "lottery ticket":
                candidates.append(Candidate(name, mask, share, outside="zero"))
                continue
            if name == "same matrices":
                candidates += [Candidate(name, same_matrices(mask, seed=seed), share, seed) for seed in seeds]
                continue
            for seed in seeds if name == "random" else [0]:
                other = baseline_mask(pre, ft, name, min(exact, 1.0), seed=seed, everything=everything)  # type: ignore[arg-type]
                candidates.append(Candidate(name, other, share, seed))
    return candidates


def _share_of_gain(accuracy: np.ndarray) -> np.ndarray:
    """Of accuracies `[row model]`, the first model's the pre-trained and the second's the fine-tuned."""
    before, after = accuracy[:, :1], accuracy[:, 1:2]
    return np.asarray((accuracy - before) / np.where(after == before, np.nan, after - before))
