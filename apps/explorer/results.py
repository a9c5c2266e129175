"""From a run on disk back to the result that wrote it, whose figures the explorer shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from interp.errors import UnreadableFile, WorkbenchError
from interp.runs import Run

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from interp.heads.causal import AblationReport


def result_of(run: Run) -> Any:
    """The result a run was saved from, or None for kinds that can only be shown as tables. Raises UnreadableFile."""
    reader = READERS.get(run.record.kind)
    return None if reader is None else read(run, reader)


def figures_of(run: Run) -> dict[str, go.Figure]:
    """The figures of a run's result, by what they show. Raises UnreadableFile."""
    result = result_of(run)
    if result is None:
        return {}
    return read(run, lambda _run: {"result": result.plot(), **_further(run, result)})


def read(run: Run, reader: Callable[[Run], Any]) -> Any:
    """Apply a reader, turning whatever damaged data makes it raise into a sentence."""
    try:
        return reader(run)
    except WorkbenchError:
        raise
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        raise UnreadableFile(
            f"{run.path.name} does not hold what a run of kind {run.record.kind} does ({what})"
        ) from error


def shaped(run: Run, name: str, *shape: int | None) -> np.ndarray:
    """An array of a run, if it has this shape (None: any length). Raises UnreadableFile."""
    array = run.arrays.get(name)
    if array is None:
        raise UnreadableFile(f"{run.path.name} has no array {name!r}; it has {', '.join(run.arrays) or 'none'}")
    if len(array.shape) != len(shape) or any(w not in (None, n) for n, w in zip(array.shape, shape, strict=True)):
        wanted = " ".join("n" if w is None else str(w) for w in shape)
        raise UnreadableFile(f"{run.path.name}: the array {name!r} has shape {array.shape}, not [{wanted}]")
    return array


def heads_of(run: Run) -> tuple[int, int]:
    """Layers and heads of the model that a run is about. Raises UnreadableFile where the run does not say."""
    layers, heads = (run.record.model.get(name) for name in ("layers", "heads"))
    if not (isinstance(layers, int) and isinstance(heads, int) and layers > 0 and heads > 0):
        raise UnreadableFile(f"{run.path.name} does not say how many layers and heads its model has")
    return layers, heads


def _scores(run: Run) -> Any:
    from interp.heads.scores import HeadScores

    shaped(run, "samples", None, *heads_of(run))
    return HeadScores.load(run.path)


def _roles(run: Run) -> Any:
    from interp.heads.roles import ROLES, HeadRoles

    samples = shaped(run, "samples", None, len(ROLES), *heads_of(run))
    return HeadRoles(samples, run.record.model, run.record.parameters, run.record.seed)


def _effects(run: Run) -> Any:
    from interp.heads.effects import HeadEffects

    parameters = dict(run.record.parameters)
    metric, ablation = (parameters.pop(name) for name in ("metric", "ablation"))
    samples = shaped(run, "samples", None, *heads_of(run))
    return HeadEffects(
        samples, shaped(run, "baseline", len(samples)), metric, ablation, run.record.model, parameters, run.record.seed
    )


def _importance(run: Run) -> Any:
    from interp.heads.importance import GateGradients, HeadImportance

    exact = _effects(run)
    shape = exact.samples.shape
    return HeadImportance(
        GateGradients(shaped(run, "gradients", *shape), shaped(run, "gradients_tokens", *shape)), exact
    )


def _ablation(run: Run) -> AblationReport:
    from interp.heads.causal import AblationReport

    parameters = dict(run.record.parameters)
    measure = parameters.pop("measure")
    tests = pd.read_parquet(run.path / "tests.parquet")
    frame = run.frame
    samples = shaped(run, "samples", len(frame), None, None)
    most = frame[frame["heads"] == "chosen"].sort_values("removed").which
    heads = tuple(_head(name) for name in most.iloc[-1].split()) if len(most) else ()
    return AblationReport(frame, heads, run.record.model, parameters, samples, tests, measure)


def _pruning(run: Run) -> Any:
    from interp.heads.pruning import Pruning

    order = tuple((int(layer), int(head)) for layer, head in shaped(run, "order", None, 2))
    return Pruning(run.frame, order, run.record.model, run.record.parameters)


def _cache(run: Run) -> Any:
    from interp.heads.cache import CacheStudy

    return CacheStudy.load(run.path)


def _patching(run: Run) -> Any:
    from interp.patching.activation import PatchingResult

    units, metrics = (len(run.record.parameters[name]) for name in ("units", "metrics"))
    n = shaped(run, "values", units, metrics, None).shape[2]
    for side in ("clean", "corrupted"):
        shaped(run, side, metrics, n)
    return PatchingResult.load(run.path)


def _path(run: Run) -> Any:
    from interp.patching.path import PathPatchingResult

    parameters = dict(run.record.parameters)
    receivers, metrics = (tuple(parameters.pop(name)) for name in ("receivers", "metrics"))
    senders = tuple((int(layer), int(head)) for layer, head in shaped(run, "senders", None, 2))
    values = shaped(run, "values", len(senders), len(metrics), None)
    clean, corrupted = (shaped(run, side, len(metrics), values.shape[2]) for side in ("clean", "corrupted"))
    seed = run.record.seed
    return PathPatchingResult(senders, receivers, metrics, values, clean, corrupted, run.record.model, parameters, seed)


def _lens(run: Run) -> Any:
    from interp.logit_lens import LogitLens

    sites, tokens = (len(run.record.parameters[name]) for name in ("sites", "tokens"))
    for name in ("entropy", "kl", "following"):
        shaped(run, name, sites, tokens)
    return LogitLens.load(run.path)


def _further(run: Run, result: Any) -> dict[str, go.Figure]:
    """Figures beside the one that a result plots itself."""
    if run.record.kind == "head-ablation" and has_map(result):
        return {"length and depth": length_and_depth(result)}
    return {}


def has_map(report: AblationReport) -> bool:
    """Whether a study can be shown by length and depth."""
    return {"length", "depth"} <= set(report.tests)


def length_and_depth(report: AblationReport) -> go.Figure:
    """Recall by length and depth of every condition of a study."""
    from interp.plots.ablation import length_depth_maps

    return length_depth_maps(report.by_length_and_depth(), str(report.model["name"]))


def _head(name: str) -> tuple[int, int]:
    layer, head = name.split("-")
    return int(layer), int(head)


READERS: Mapping[str, Callable[[Run], Any]] = {
    "head-scores": _scores,
    "head-roles": _roles,
    "head-effects": _effects,
    "head-importance": _importance,
    "head-ablation": _ablation,
    "head-pruning": _pruning,
    "cache-study": _cache,
    "patching": _patching,
    "path-patching": _path,
    "logit-lens": _lens,
}
"""By kind of run."""
