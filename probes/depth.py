"""Concept depth: at which layer a concept becomes readable, with controls, under perturbations, for any models.

After "Exploring Concept Depth" (Jin et al. 2024), whose code reads the input of each MLP at the last token. Beyond it:
cross-validation instead of one split, standardised features, controls, and intervals on every number.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from interp.errors import BadInput, choose
from interp.heads.scores import model_record
from interp.runs import Run, load_run, save_run
from interp.tables import in_notebook
from interp.tasks.labelled import LabelledTexts
from interp.tracing.model import Model
from interp.tracing.sites import Site, expand
from probes.activations import Activations, At, collect
from probes.controls import bag_of_tokens, control_labels, shuffled_labels, untrained
from probes.cross_validation import CrossValidation, cross_validate, prepared
from probes.directions import Directions, fit_directions, packed, unpacked
from probes.linear import STANDARD, ProbeSpec
from probes.metrics import METRICS, PROBABILISTIC, resamples
from probes.perturbations import Perturbation
from probes.points import FLAT, JUMP, MARGIN, converging_points, jump_points, with_interval
from probes.reading import Reading, examples, of_model, read_text

if TYPE_CHECKING:
    import plotly.graph_objects as go

KIND = "concept-depth"
REFERENCE = "none"
"""The condition without a perturbation."""
CURVE = ["model", "dataset", "condition", "series", "site"]
"""What names a curve; `series` is what was fitted: the probe, or one of its controls."""


@dataclass(frozen=True, eq=False, repr=False)
class ConceptDepth:
    """Curves over depth.

    `frame` has a row for every curve, layer and metric: `layer` counts from 0, `depth` is layer / layers; a site that
    exists once a model, and the bag of tokens, have layer -1. `correct` holds for every curve, in the order of
    `curves`, which examples were classified rightly, `[layer example]` (for drawn controls their mean over draws).
    `directions` are the probes and the first draw of control probes fitted to all unperturbed examples.
    """

    frame: pd.DataFrame
    correct: tuple[np.ndarray, ...]
    models: Mapping[str, Mapping[str, Any]]
    parameters: Mapping[str, Any]
    seed: int = 0
    directions: tuple[Directions, ...] = ()

    def __repr__(self) -> str:
        names = ", ".join(f"{self.frame[name].nunique()} {name}s" for name in ("model", "dataset", "condition"))
        return f"ConceptDepth({names})"

    def _repr_html_(self) -> str:
        return in_notebook(self, self.summary)

    @cached_property
    def curves(self) -> pd.DataFrame:
        """One row a curve, with its level."""
        return self.frame[[*CURVE, "level"]].drop_duplicates(CURVE, ignore_index=True)

    def curve(self, series: str = "probe", condition: str = REFERENCE, **which: str) -> np.ndarray:
        """Which examples one curve gets right, `[layer example]`; raises BadInput unless exactly one is meant."""
        wanted = {"series": series, "condition": condition, **which}
        rows = self.curves
        for name, value in wanted.items():
            if value not in set(rows[name]):
                raise BadInput(f"there is no {name} {value!r} here; {choose(value, rows[name].unique())}")
            rows = rows[rows[name] == value]
        if len(rows) != 1:
            open_ = [name for name in CURVE if name not in wanted and self.curves[name].nunique() > 1]
            raise BadInput(f"{len(rows)} curves are {wanted}; say which {' and '.join(open_) or 'one'}")
        return self.correct[rows.index[0]]

    def points(
        self, jump: float = JUMP, flat: float = FLAT, margin: float = MARGIN, condition: str | None = None
    ) -> pd.DataFrame:
        """Jump and converging point of every probe curve, by both rules (`probes.points`), with bootstrap intervals.

        A concept counts as found where its accuracy exceeds the share of the largest class by `margin`.
        """
        rows = []
        for at, curve in self.curves.iterrows():
            if curve.series != "probe" or condition not in (None, curve.condition) or len(self.correct[at]) < 2:
                continue
            right = self.correct[at]
            floor = self._of(curve, "majority") + margin
            drawn = self._resampled(right.shape[1]) @ right.T / right.shape[1]
            row = {name: curve[name] for name in (*CURVE, "level") if name != "series"}
            own = right.mean(1, dtype=float)[None]
            both = np.concatenate([own, drawn])
            for name, points in (
                ("jump", jump_points(both, jump)),
                ("converging", converging_points(both, flat, floor)),
                ("converging_formula", converging_points(both, flat, rule="formula")),
            ):
                point = with_interval(points[0], points[1:])
                row |= {name: point.estimate, f"{name}_low": point.low, f"{name}_high": point.high}
                row |= {f"{name}_defined": point.defined}
            rows.append({**row, "layers": len(right), "n": right.shape[1]})
        return pd.DataFrame(rows)

    @cached_property
    def summary(self) -> pd.DataFrame:
        """One row a model, data set and site: its best layer without perturbation, what controls reach there, points.

        `majority` is the share of the largest class. A control that was not run is absent.
        """
        rows = self.frame[(self.frame.metric == "accuracy") & (self.frame.condition == REFERENCE)]
        probes = rows[(rows.series == "probe") & (rows.layer >= 0)]
        found = probes.loc[probes.groupby(["model", "dataset", "site"], sort=False).value.idxmax()]
        keys = ["model", "dataset"]
        best = found[[*keys, "site", "layer", "value", "low", "high", "n", "majority"]]
        for series in dict.fromkeys(rows.series[rows.series != "probe"]):
            control = rows[rows.series == series].rename(columns={"value": series})
            on = [*keys, "site", "layer"] if (control.layer >= 0).all() else keys
            best = best.merge(control[[*on, series]], how="left", on=on)
        points = self._points
        points = points[points.condition == REFERENCE] if len(points) else points
        wanted = [name for name in points if name.startswith(("jump", "converging")) and not name.endswith("_defined")]
        wanted = [name for name in wanted if "formula" not in name]
        best = best.merge(points[[*keys, "site", *wanted]], how="left", on=[*keys, "site"]) if len(points) else best
        return best.rename(columns={"layer": "best_layer", "value": "accuracy"})

    def selectivity(self) -> pd.DataFrame:
        """Accuracy of each probe minus that on control labels (Hewitt & Liang 2019), paired over examples."""
        return self._selectivity

    @cached_property
    def _selectivity(self) -> pd.DataFrame:
        return self._differences("series", "probe", ["control"], "selectivity")

    def shifts(self) -> pd.DataFrame:
        """Accuracy under each perturbation minus that without, paired over examples."""
        return self._shifts

    @cached_property
    def _shifts(self) -> pd.DataFrame:
        return self._differences("condition", None, [REFERENCE], "shift", probes=True)

    @cached_property
    def _points(self) -> pd.DataFrame:
        return self.points()

    def _resampled(self, n: int) -> np.ndarray:
        """The same bootstrap samples for every curve of n examples."""
        if n not in self._drawn:
            self._drawn[n] = resamples(n, seed=self.seed)
        return self._drawn[n]

    @cached_property
    def _drawn(self) -> dict[int, np.ndarray]:
        return {}

    @property
    def plots(self) -> tuple[str, ...]:
        """What `plot` can draw of this study; the curves first."""
        curves = self.curves
        there = {"selectivity": "control" in set(curves.series), "shift": curves.condition.nunique() > 1}
        return ("curves", *(name for name, known in there.items() if known))

    def plot(self, what: str = "curves", **which: Any) -> go.Figure:
        """Accuracy by relative depth, with intervals, controls, perturbations and converging points.

        `metric`, `site`, `datasets`, `conditions` and `controls` say which curves (`interp.plots.probes.depth_curves`).
        `"selectivity"` and `"shift"` draw differences of accuracy instead, at `site`. Raises BadInput.
        """
        from interp.plots.probes import depth_curves, depth_differences

        if what == "curves":
            return depth_curves(self.frame, self._points, **which)
        if what not in self.plots:
            raise BadInput(f"there is nothing to plot as {what!r}; {choose(what, self.plots)}")
        return depth_differences(self.selectivity() if what == "selectivity" else self.shifts(), what, **which)

    def read(self, model: Model, text: str, dataset: str) -> Reading:
        """What the probes of a data set say of a text at every layer, beside its control probes.

        Raises BadInput for another model than theirs, and where the run keeps no probes.
        """
        chosen = of_model(model, self.directions, dataset, self.models)
        return read_text(model, text, chosen, self.parameters["at"], self.parameters["probe"])

    def save(self, path: str | Path, started: datetime | None = None) -> Run:
        """Write a run folder: the table of curves, the tables of points and differences, all examples' outcomes."""
        derived = {"points": self._points, "selectivity": self.selectivity(), "shifts": self.shifts()}
        first = next(iter(self.models.values()))
        records, weights = packed(self.directions)
        return save_run(
            path,
            kind=KIND,
            parameters={**self.parameters, "models": dict(self.models), "directions": records},
            model=first,
            seed=self.seed,
            frame=self.frame,
            arrays={**{f"correct.{i}": _outcomes(right) for i, right in enumerate(self.correct)}, **weights},
            files={f"{name}.parquet": table.to_parquet for name, table in derived.items()},
            started=started,
        )

    @classmethod
    def load(cls, path: str | Path) -> ConceptDepth:
        """Read what `save` wrote. Raises UnreadableFile, BadInput for a run of another kind."""
        run = load_run(path, KIND)
        parameters = dict(run.record.parameters)
        models = parameters.pop("models", {})
        parameters.pop("directions", None)
        one = run.frame[run.frame.metric == "accuracy"].groupby(CURVE, sort=False).agg({"layer": "size", "n": "max"})
        shapes = enumerate(zip(one.layer, one.n, strict=True))
        correct = tuple(run.array(f"correct.{i}", *map(int, shape)).astype(np.float32) for i, shape in shapes)
        return cls(run.frame, correct, models, parameters, run.record.seed, unpacked(run))

    def _of(self, curve: pd.Series, column: str) -> float:
        same = (self.frame[CURVE] == curve[CURVE]).all(axis=1)
        return float(self.frame.loc[same, column].iloc[0])

    def _differences(
        self, along: str, of: str | None, against: Sequence[str], name: str, probes: bool = False
    ) -> pd.DataFrame:
        """Curves that differ only in `along`: one minus the other, layer by layer, with paired intervals."""
        keyed = {tuple(curve[CURVE]): at for at, curve in self.curves.iterrows()}
        place = CURVE.index(along)
        depths = self.frame.drop_duplicates([*CURVE, "layer"]).set_index([*CURVE, "layer"]).depth
        rows = []
        for key, at in keyed.items():
            base = keyed.get((*key[:place], against[0], *key[place + 1 :]))
            if base is None or key[place] in against or (of or key[place]) != key[place]:
                continue
            if probes and key[CURVE.index("series")] != "probe":
                continue
            difference = (self.correct[at] - self.correct[base]).T
            drawn = self._resampled(len(difference)) @ difference / len(difference)
            low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
            for layer, (value, below, above) in enumerate(zip(difference.mean(0), low, high, strict=True)):
                about = dict(zip(CURVE, key, strict=True)) | {"layer": layer, "depth": depths.get((*key, layer))}
                rows.append({**about, name: value, "low": below, "high": above, "n": len(difference)})
        return pd.DataFrame(rows, columns=[*CURVE, "layer", "depth", name, "low", "high", "n"])


def concept_depth(
    models: Model | Sequence[Model],
    data: LabelledTexts | Sequence[LabelledTexts],
    *,
    sites: Sequence[str] = ("mlp_in", "resid_post"),
    at: At = "last",
    spec: ProbeSpec = STANDARD,
    perturbations: Sequence[Perturbation | str] = (),
    controls: bool = True,
    draws: int = 3,
    work: str | Path | None = None,
    resume: bool = False,
    chunk: int = 32,
    progress: Callable[[int, int], None] | None = None,
) -> ConceptDepth:
    """Probe every data set at every layer of every model.

    Args:
        sites: names of sites, probed at every layer: `mlp_in` is what the paper's code reads.
        at: the last token, or the mean over tokens.
        perturbations: further conditions (`probes.perturbations`); labels, folds and examples stay the same, so that
            the difference is paired.
        controls: also probe control labels and shuffled labels (`draws` of the former), an untrained model of the same
            shape, and the bag of tokens.
        work: a folder for the activations, memory-mapped there and kept for `resume`; in memory without.

    Raises BadInput for models or data sets of one name, and as `collect` and `cross_validate` do.
    """
    models = [models] if isinstance(models, Model) else list(models)
    data = [data] if isinstance(data, LabelledTexts) else list(data)
    noises = [Perturbation.parse(p) if isinstance(p, str) else p for p in perturbations]
    _require_names("models", [model.spec.name for model in models])
    _require_names("data sets", [each.name for each in data])
    _require_names("perturbations", list(map(str, noises)))
    for model in models:
        for site in expand(sites, model.spec.layers):
            if site.spec.scope == "layer" and str(site) in sites:
                raise BadInput(f"a depth curve is of every layer: write {site.name}, not {site}")
    for each in data:
        prepared({each.name: each.labels}, spec, each.groups or None)
    study = _Study(tuple(sites), at, spec, chunk, None if work is None else Path(work), resume)
    units = len(models) * (1 + len(noises) + 2 * controls) * len(data)
    done = 0
    frames: list[pd.DataFrame] = []
    directions: list[Directions] = []
    correct: list[np.ndarray] = []

    def add(found: Iterator[tuple[pd.DataFrame, np.ndarray]]) -> None:
        nonlocal done
        for frame, right in found:
            frames.append(frame)
            correct.append(right)
        done += 1
        if progress:
            progress(done, units)

    for model in models:
        for each in data:
            add(study.reference(model, each, draws if controls else 0, directions))
        if controls:
            fresh = untrained(model, spec.seed)
            for each in data:
                add(study.curves(model, each, study.activations(fresh, each, each.texts), REFERENCE, "untrained"))
                add(study.bag(model, each))
        for noise in noises:
            changed = noise.model(model)
            for each in data:
                rows = each.texts if noise.of_weights else noise.rows(model, each.texts, spec.seed)
                found = study.activations(changed, each, rows, "" if noise.of_weights else str(noise))
                add(study.curves(model, each, found, str(noise), "probe"))
    if study.work is not None and not any(study.work.iterdir()):
        shutil.rmtree(study.work)
    parameters = {
        "sites": list(sites),
        "at": at,
        "probe": spec.as_dict(),
        "perturbations": list(map(str, noises)),
        "controls": controls,
        "draws": draws,
        "data": {each.name: dict(each.parameters) for each in data},
        "examples": {each.name: examples(each) for each in data},
    }
    records = {model.spec.name: model_record(model) for model in models}
    whole = pd.concat(frames, ignore_index=True)
    return ConceptDepth(whole, tuple(correct), records, parameters, spec.seed, tuple(directions))


@dataclass(frozen=True)
class _Study:
    """The settings that all curves of one study share."""

    sites: tuple[str, ...]
    at: At
    spec: ProbeSpec
    chunk: int
    work: Path | None
    resume: bool

    def activations(self, model: Model, data: LabelledTexts, texts: Any, noise: str = "") -> Activations:
        """Those of an earlier, interrupted study where they are on disk; collected otherwise."""
        path = None
        if self.work is not None:
            name = " ".join(part for part in (model.spec.name, data.name, noise) if part)
            path = self.work / "".join(c if c.isalnum() or c in "-._" else "-" for c in name)
            if self.resume and (path / "run.json").is_file():
                found = Activations.load(path).require(model, texts)
                if found.at == self.at and set(found) == set(map(str, expand(self.sites, model.spec.layers))):
                    return found
                raise BadInput(f"{path} holds other sites or positions: resume with the same ones, or remove it")
        return collect(model, texts, self.sites, at=self.at, path=path, chunk=self.chunk, resume=self.resume)

    def reference(
        self, model: Model, data: LabelledTexts, draws: int, directions: list[Directions]
    ) -> Iterator[tuple[pd.DataFrame, np.ndarray]]:
        """The probe and, from the same solve, its probes of control and shuffled labels; `directions` gains both."""
        found = self.activations(model, data, data.texts)
        labels: dict[str, Any] = {"probe": data.labels}
        for draw in range(draws):
            least = self.spec.folds * max(2, self.spec.inner_folds)
            seed = self.spec.seed + draw
            labels[f"control.{draw}"] = control_labels(data.labels, data.keys or data.texts, seed, least)
        if draws:
            labels["shuffled"] = shuffled_labels(data.labels, self.spec.seed)
        result = cross_validate(found, labels, self.spec, groups=data.groups or None)
        for series, name in {"probe": "probe", "control": "control.0"}.items():
            if name in labels and (fitted := fit_directions(found, labels[name], result, name)):
                directions.append(Directions(model.spec.name, data.name, series, fitted))
        yield from self._curves(model, data, result, REFERENCE, {"probe": ["probe"]})
        if draws:
            drawn = [f"control.{draw}" for draw in range(draws)]
            yield from self._curves(model, data, result, REFERENCE, {"control": drawn, "shuffled": ["shuffled"]})

    def curves(
        self, model: Model, data: LabelledTexts, found: Mapping[str, np.ndarray], condition: str, series: str
    ) -> Iterator[tuple[pd.DataFrame, np.ndarray]]:
        result = cross_validate(found, {series: data.labels}, self.spec, groups=data.groups or None)
        return self._curves(model, data, result, condition, {series: [series]})

    def bag(self, model: Model, data: LabelledTexts) -> Iterator[tuple[pd.DataFrame, np.ndarray]]:
        """What the tokens alone tell, whatever their order."""
        rows = [list(model.tokenizer(text)["input_ids"]) for text in data.texts]
        return self.curves(model, data, {"tokens": bag_of_tokens(rows)}, REFERENCE, "bag of tokens")

    def _curves(
        self,
        model: Model,
        data: LabelledTexts,
        result: CrossValidation,
        condition: str,
        series: Mapping[str, Sequence[str]],
    ) -> Iterator[tuple[pd.DataFrame, np.ndarray]]:
        by_name: dict[str, list[str]] = {}
        for site in result.sites:
            by_name.setdefault(site.partition(".")[0], []).append(site)
        metrics = [name for name in METRICS if result.probabilistic or name not in PROBABILISTIC]
        majority = np.bincount(next(iter(result.labels.values()))).max() / len(result.fold)
        for name, sites in by_name.items():
            for kind, sets in series.items():
                right = np.stack([np.mean([result.correct(s, site) for s in sets], axis=0) for site in sites])
                rows = []
                for i, site in enumerate(sites):
                    layer = Site.parse(site).layer if name != "tokens" else None
                    about = {
                        "model": model.spec.name,
                        "dataset": data.name,
                        "level": data.level,
                        "condition": condition,
                        "series": kind,
                        "site": name,
                        "layer": -1 if layer is None else layer,
                        "depth": np.nan if layer is None else layer / model.spec.layers,
                        "majority": majority,
                    }
                    if len(sets) > 1:  # drawn controls: the mean over draws has an accuracy and no other metric
                        drawn = result.counts @ right[i] / right.shape[1]
                        low, high = np.quantile(drawn, [0.025, 0.975])
                        values = {"value": right[i].mean(), "low": low, "high": high, "n": right.shape[1]}
                        rows.append({**about, "metric": "accuracy", **values})
                        continue
                    for metric in metrics:
                        value = result.metric(metric, sets[0], site)
                        interval = {"value": value.estimate, "low": value.low, "high": value.high, "n": value.n}
                        rows.append({**about, "metric": metric, **interval})
                yield pd.DataFrame(rows), right.astype(np.float32)


def _outcomes(right: np.ndarray) -> np.ndarray:
    """As small as they can be kept: a byte each where all are 0 or 1."""
    return right.astype(np.uint8) if np.isin(right, (0, 1)).all() else right


def _require_names(what: str, names: Sequence[str]) -> None:
    if not names and what != "perturbations":
        raise BadInput(f"there are no {what} to study")
    if twice := sorted({name for name in names if list(names).count(name) > 1}):
        raise BadInput(f"two {what} are called {twice[0]!r}; results are told apart by their names")
