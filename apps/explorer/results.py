"""From a run on disk back to the result that wrote it, whose figures the explorer shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from interp.errors import UnreadableFile, WorkbenchError
from interp.runs import Run

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from interp.heads.causal import AblationReport

RESULTS: Mapping[str, str] = {
    "head-scores": "interp.heads.scores:HeadScores",
    "head-roles": "interp.heads.roles:HeadRoles",
    "head-effects": "interp.heads.effects:HeadEffects",
    "head-importance": "interp.heads.importance:HeadImportance",
    "head-ablation": "interp.heads.causal:AblationReport",
    "head-pruning": "interp.heads.pruning:Pruning",
    "cache-study": "interp.heads.cache:CacheStudy",
    "patching": "interp.patching.activation:PatchingResult",
    "path-patching": "interp.patching.path:PathPatchingResult",
    "ast-probe": "probes.ast.result:AstStudy",
    "logit-lens": "interp.logit_lens:LogitLens",
    "concept-depth": "probes.depth:ConceptDepth",
}
"""By kind of run, the class whose `load` reads it."""


def result_of(run: Run) -> Any:
    """The result a run was saved from, or None for kinds that can only be shown as tables. Raises UnreadableFile."""
    where = RESULTS.get(run.record.kind)
    if where is None:
        return None
    module, name = where.split(":")
    return read(run, getattr(import_module(module), name).load)


def figures_of(run: Run) -> dict[str, go.Figure]:
    """The figures of a run's result, by what they show. Raises UnreadableFile."""
    result = result_of(run)
    if result is None:
        return {}
    return read(run, lambda _path: {"result": result.plot(), **_further(run, result)})


def read(run: Run, reader: Callable[[Any], Any]) -> Any:
    """What a reader makes of a run's folder; whatever damaged data makes it raise becomes a sentence."""
    try:
        return reader(run.path)
    except WorkbenchError:
        raise
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        raise UnreadableFile(
            f"{run.path.name} does not hold what a run of kind {run.record.kind} does ({what})"
        ) from error


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
