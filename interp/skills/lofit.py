"""LoFiT: a skill as offsets of a few heads (Yin, Ye and Durrett 2024, "LoFiT: Localized Fine-tuning on LLM
Representations"), beside everything that could explain it away.

    skill = Skill.of(bundled_task("topic", model.tokenizer))     # or Skill(name, train, test) of any prompts
    study = lofit(model, skill, PUBLISHED["llama-2-7b/truthfulqa"])
    study.offsets[32].edits(model)                              # or fold(model, offsets): no hooks needed

Offsets of the selected heads are compared with offsets of random heads, of heads selected for another skill and of all
heads, with inference-time intervention, and with LoRA at no fewer parameters. Every condition that is fitted is fitted
once a seed, which draws its first values, the order of its prompts and its random heads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pandas as pd

from interp.errors import BadInput, choose
from interp.heads.formats import read_mask, write_mask
from interp.heads.mask import Head, HeadMask
from interp.heads.scores import model_record
from interp.runs import Run, load_run, save_run
from interp.skills.lofit_baselines import fit_lora, iti_offsets, require_peft
from interp.skills.lofit_heads import all_heads, check_count, fit_offsets, random_heads, select_heads
from interp.skills.lofit_offsets import HeadOffsets
from interp.skills.lofit_skill import Skill
from interp.skills.lofit_training import Recipe, check_prompts
from interp.stats import wilson_interval
from interp.tables import in_notebook
from interp.tracing.model import Model

if TYPE_CHECKING:
    import plotly.graph_objects as go

Baseline = Literal["random", "other", "all", "iti", "lora"]
BASELINES: tuple[Baseline, ...] = get_args(Baseline)
SEEDS = (0, 1, 2)
RESAMPLES = 2_000
Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False, repr=False)
class Lofit:
    """A study. `frame` has a row a condition, number of heads and seed; the untouched model comes first.

    Columns: condition ("none", "lofit" or a baseline), heads (how many), seed, which heads, parameters (trained), loss,
    accuracy on the test prompts with Wilson's interval, n. `right` `[row prompt]` says which answers were right.
    `selections` are the scores of all heads by seed, `offsets` those of the selected heads by their number, at the
    first seed.
    """

    frame: pd.DataFrame
    right: np.ndarray
    selections: Mapping[int, HeadMask]
    offsets: Mapping[int, HeadOffsets]
    model: Mapping[str, Any]
    parameters: Mapping[str, Any]

    def comparison(self) -> pd.DataFrame:
        """Accuracy of LoFiT less that of each other condition, a row a number of heads and condition.

        Intervals (95 %) resample seeds and test prompts at once (Owen 2007, "The pigeonhole bootstrap"); what has no
        seed is the same in all of them. All heads and the untouched model are compared with every number of heads.
        """
        rows = []
        for count in self.parameters["counts"]:
            own = self._right("lofit", count)
            for condition in self.frame.condition.drop_duplicates():
                if condition != "lofit":
                    common = condition in ("none", "all")
                    other = self._right(condition, None if common else count)
                    low, high = two_way_interval(own - other, int(self.parameters["seed"]))
                    row = {"heads": count, "condition": condition, "difference": (own - other).mean()}
                    rows.append(row | {"low": low, "high": high, "seeds": len(own), "n": own.shape[1]})
        return pd.DataFrame(rows)

    def _right(self, condition: str, count: int | None) -> np.ndarray:
        """`[seed prompt]`, or `[1 prompt]` where a condition has no seed."""
        chosen = self.frame.condition == condition
        return self.right[chosen if count is None else chosen & (self.frame.heads == count)]

    @property
    def by_head(self) -> pd.DataFrame:
        """One row a head, the strongest first: how much it pays to change it.

        `strength` is the norm of the head's scale A: mean, low and high are mean, lowest and highest of the seeds, n
        their number. `selected` is the share of seeds in which the head was among the most heads that were tried.
        """
        scores = np.stack([mask.scores for mask in self.selections.values()])
        most = max(self.parameters["counts"])
        chosen = np.zeros(scores.shape)
        for number, mask in enumerate(self.selections.values()):
            chosen[(number, *np.transpose(mask.ranking[:most]))] = 1
        layer, head = np.divmod(np.arange(scores[0].size), scores.shape[2])
        columns = {"layer": layer, "head": head, "strength": scores.mean(0).ravel(), "low": scores.min(0).ravel()}
        columns |= {"high": scores.max(0).ravel(), "selected": chosen.mean(0).ravel()}
        frame = pd.DataFrame(columns).assign(n=len(scores))
        return frame.sort_values(["strength", "layer", "head"], ascending=[False, True, True], ignore_index=True)

    def plot(self, what: Literal["accuracy", "heads"] = "accuracy") -> go.Figure:
        """Accuracy against the number of heads, beside the controls; or a map of which heads were selected."""
        from interp.plots.lofit import accuracy_by_heads, strength_map

        title = f"{self.parameters['skill']}, {self.model['name']}"
        return accuracy_by_heads(self.frame, title) if what == "accuracy" else strength_map(self.by_head, title)

    def save(self, path: str | Path, started: datetime | None = None) -> Run:
        """Write a run folder, with offsets, every seed's selection and `by_head` beside it. Raises UnwritableOutput."""
        files: dict[str, Callable[[Path], object]] = {
            f"offsets-{count}.safetensors": offsets.save for count, offsets in self.offsets.items()
        }
        for s, mask in self.selections.items():
            files[_heads_file(s)] = partial(write_mask, mask)
        files["heads.parquet"] = self.by_head.to_parquet
        return save_run(
            path,
            kind="lofit",
            parameters=self.parameters,
            model=self.model,
            seed=int(self.parameters["seed"]),
            frame=self.frame,
            arrays={"right": self.right.astype(np.uint8)},
            files=files,
            started=started,
        )

    @classmethod
    def load(cls, path: str | Path) -> Lofit:
        """Read what `save` wrote. Raises UnreadableFile, BadInput for a run of another kind."""
        run = load_run(path, "lofit")
        about = run.record.parameters
        layers, heads = run.heads
        selections = {int(s): read_mask(run.path / _heads_file(s), layers=layers, heads=heads) for s in about["seeds"]}
        offsets = {int(count): HeadOffsets.load(run.path / f"offsets-{count}.safetensors") for count in about["counts"]}
        right = run.array("right", len(run.frame), None).astype(float)
        return cls(run.frame, right, selections, offsets, run.record.model, about)

    def __repr__(self) -> str:
        counts, seeds = ", ".join(map(str, self.parameters["counts"])), len(self.selections)
        return f"Lofit({self.parameters['skill']} on {self.model['name']}: {counts} heads, {seeds} seeds)"

    def _repr_html_(self) -> str:
        return in_notebook(self, self.frame)


def _heads_file(seed: int) -> str:
    """Of a run: the scores of all heads and the selected ones, as a mask file."""
    return f"heads-{seed}.json"


def lofit(
    model: Model,
    skill: Skill,
    recipe: Recipe | None = None,
    *,
    counts: Sequence[int] = (),
    seeds: Sequence[int] = SEEDS,
    baselines: Sequence[Baseline] | None = None,
    other: Skill | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Lofit:
    """Teach a model a skill by offsets of its best heads, and measure it beside the baselines.

    Args:
        counts: numbers of heads to try; that of the recipe by default.
        baselines: `"random"` and `"other"` heads (selected for the skill `other`), `"all"` heads, `"iti"`, `"lora"`.
            By default all that the skill allows: `"other"` where there is another skill, `"iti"` with distractors.
        seed: of the intervals.

    Raises before anything is trained: BadInput for numbers of heads that the model does not have, unknown baselines,
    baselines that lack what they need; and as `Objective`.
    """
    recipe = recipe or Recipe()
    counts = tuple(dict.fromkeys(counts)) or (recipe.heads,)
    chosen = _default_baselines(skill, other) if baselines is None else tuple(dict.fromkeys(baselines))
    _check(model, skill, recipe, counts, seeds, chosen, other)
    work = _Work(model, skill, recipe, progress, total=_units(counts, seeds, chosen))
    work.measure("none", 0, -1, None)
    selections = {s: work.done(select_heads(model, skill.train, recipe, seed=s)) for s in seeds}
    offsets: dict[int, HeadOffsets] = {}
    for count in counts:
        for s in seeds:
            fitted = work.fit("lofit", selections[s].ranking[:count], s)
            offsets.setdefault(count, fitted)
            if "random" in chosen:
                work.fit("random", random_heads(model, count, s), s)
            if "lora" in chosen:
                work.lora(count, s)
        if "iti" in chosen:
            work.measure("iti", count, -1, iti_offsets(model, skill, count))
    if "other" in chosen:
        assert other is not None
        for s in seeds:
            elsewhere = work.done(select_heads(model, other.train, recipe, seed=s))
            for count in counts:
                work.fit("other", elsewhere.ranking[:count], s)
    if "all" in chosen:
        for s in seeds:
            work.fit("all", all_heads(model), s)
    parameters: dict[str, Any] = {"skill": skill.name, "recipe": asdict(recipe), "counts": list(counts)}
    parameters |= {"seeds": list(seeds), "baselines": list(chosen), "other": None if other is None else other.name}
    parameters |= {"train": skill.train.hash, "test": skill.test.hash, "n_train": len(skill.train), "seed": seed}
    parameters["choices"] = list(skill.choices)
    return Lofit(pd.DataFrame(work.rows), np.stack(work.right), selections, offsets, model_record(model), parameters)


def two_way_interval(differences: np.ndarray, seed: int = 0, level: float = 0.95) -> tuple[float, float]:
    """Bounds of the mean of `differences` `[seed prompt]` when both seeds and prompts are drawn anew."""
    rng = np.random.default_rng(seed)
    rows, columns = differences.shape
    means = [
        differences[rng.integers(rows, size=rows)][:, rng.integers(columns, size=columns)].mean()
        for _ in range(RESAMPLES)
    ]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _default_baselines(skill: Skill, other: Skill | None) -> tuple[Baseline, ...]:
    lacking = ({"other"} if other is None else set()) | (set() if skill.train.distractors else {"iti"})
    return tuple(baseline for baseline in BASELINES if baseline not in lacking)


def _check(
    model: Model,
    skill: Skill,
    recipe: Recipe,
    counts: Sequence[int],
    seeds: Sequence[int],
    baselines: Sequence[str],
    other: Skill | None,
) -> None:
    for count in counts:
        check_count(count, model)
    if not seeds or len(set(seeds)) < len(seeds):
        raise BadInput(f"seeds {list(seeds)} are none, or not different ones")
    for baseline in baselines:
        if baseline not in BASELINES:
            raise BadInput(f"there is no baseline {baseline!r}; {choose(baseline, BASELINES)}")
    if "other" in baselines and other is None:
        raise BadInput("the baseline 'other' takes the heads of another skill: say which")
    if "iti" in baselines and not skill.train.distractors:
        raise BadInput(f"{skill.name} has no distractors, so ITI has no mean difference to move along")
    if "lora" in baselines:
        require_peft()
    for each in (skill, *([other] if other is not None else ())):
        check_prompts(each.train, recipe)


def _units(counts: Sequence[int], seeds: Sequence[int], baselines: Sequence[str]) -> int:
    """What the progress bar counts: selections, fits and measurements."""
    a_count = len(seeds) * (1 + sum(each in baselines for each in ("random", "lora", "other"))) + ("iti" in baselines)
    alone = len(seeds) * (1 + ("other" in baselines) + ("all" in baselines))
    return 1 + alone + len(counts) * a_count


class _Work:
    """Fits and measures one condition after the other, and keeps their rows."""

    def __init__(self, model: Model, skill: Skill, recipe: Recipe, progress: Progress | None, total: int) -> None:
        self.model, self.skill, self.recipe = model, skill, recipe
        self.progress, self.total, self.finished = progress, total, 0
        self.rows: list[dict[str, Any]] = []
        self.right: list[np.ndarray] = []

    def done(self, result: Any) -> Any:
        """One unit of work is finished; hands its result on."""
        self.finished += 1
        if self.progress:
            self.progress(self.finished, self.total)
        return result

    def fit(self, condition: str, heads: Sequence[Head], seed: int) -> HeadOffsets:
        fitted = fit_offsets(self.model, self.skill.train, heads, self.recipe, seed=seed)
        self.measure(condition, len(heads), seed, fitted)
        return fitted

    def lora(self, count: int, seed: int) -> None:
        budget = count * self.model.spec.head_dim
        adapted, adapters = fit_lora(self.model, self.skill.train, budget, self.recipe, seed=seed)
        which = f"rank {adapters.rank}: {' '.join(adapters.modules)}"
        self._keep("lora", count, seed, which, adapters.parameters, self.skill.right(adapted))

    def measure(self, condition: str, count: int, seed: int, offsets: HeadOffsets | None) -> None:
        edits = [] if offsets is None else offsets.edits(self.model)
        which = "" if offsets is None else " ".join(f"{layer}-{head}" for layer, head in sorted(offsets.heads))
        trained = 0 if offsets is None else offsets.vectors.numel()
        self._keep(condition, count, seed, which, trained, self.skill.right(self.model, edits=edits))

    def _keep(self, condition: str, count: int, seed: int, which: str, trained: int, right: np.ndarray) -> None:
        accuracy = wilson_interval(int(right.sum()), len(right))
        row: dict[str, Any] = {"condition": condition, "heads": count, "seed": seed, "which": which}
        row |= {"parameters": trained, "loss": self.recipe.loss, "accuracy": accuracy.estimate}
        self.rows.append(row | {"low": accuracy.low, "high": accuracy.high, "n": len(right)})
        self.right.append(right)
        self.done(None)
