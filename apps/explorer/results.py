"""From a run on disk back to the result that wrote it, whose figures the explorer shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.errors import UnreadableFile, WorkbenchError
from interp.runs import Run, load_run

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
    "circuit": "interp.circuits.study:CircuitStudy",
    "circuit-reuse": "interp.circuits.reuse:CircuitReuse",
    "circuit-repair": "interp.circuits.repair:Repair",
    "edge-scores": "interp.patching.eap:EdgeScores",
    "hyperdimensional-probe": "probes.vsa.study:HyperdimensionalProbe",
    "hyperdimensional-causal": "probes.vsa.causal:CausalCheck",
    "ast-probe": "probes.ast.result:AstStudy",
    "skill-fine-tuning": "interp.skills.finetune:FineTuning",
    "skill-localization": "interp.skills.localize:Localization",
    "skill-evaluation": "interp.skills.evaluation:Evaluation",
    "skill-overlap": "interp.skills.multitask:Overlap",
    "skill-continual": "interp.skills.multitask:Continual",
    "lofit": "interp.skills.lofit:Lofit",
    "logit-lens": "interp.logit_lens:LogitLens",
    "concept-depth": "probes.depth:ConceptDepth",
    "linear-probes": "probes.linear_probes:LinearProbes",
    "clue-verification": "probes.verification:Verification",
    "clue-ranking": "probes.reranking:Ranking",
    "knob": "interp.knob.result:KnobResult",
    "knob-behaviour": "interp.knob.behaviour:Behaviour",
    "knob-search": "interp.knob.search_result:LayerSearch",
    "knob-search-exhaustive": "interp.knob.search_result:ExhaustiveSearch",
    "knob-side-effects": "interp.knob.side_effects:SideEffects",
    "knob-steering": "interp.knob.steering:Steering",
    "projection": "interp.projection:Projection",
}
"""By kind of run, the class whose `load` reads it."""

FURTHER: Mapping[str, tuple[str, ...]] = {
    "skill-localization": ("enrichment",),
    "skill-evaluation": ("gain", "reliability"),
    "lofit": ("heads",),
}
"""What else results of a kind can plot."""


def result_of(run: Run) -> Any:
    """The result a run was saved from, or None for kinds that can only be shown as tables. Raises UnreadableFile."""
    return _result(run.path, run.record.kind, _state(run))


def figures_of(run: Run) -> Mapping[str, go.Figure]:
    """The figures of a run's result, by what they show. Raises UnreadableFile."""
    return _figures(run.path, run.record.kind, _state(run))


@lru_cache(maxsize=16)
def _result(path: Path, kind: str, state: object) -> Any:
    where = RESULTS.get(kind)
    if where is None:
        return None
    module, name = where.split(":")
    return read(load_run(path), getattr(import_module(module), name).load)


@lru_cache(maxsize=16)
def _figures(path: Path, kind: str, state: object) -> Mapping[str, go.Figure]:
    run, result = load_run(path), _result(path, kind, state)
    if result is None:
        return {}
    return read(run, lambda _path: {"result": result.plot(), **_further(run, result)})


def _state(run: Run) -> tuple[tuple[str, int, int], ...]:
    """What changes when a file of a run does, and what is kept of it is stale."""
    about = read(run, lambda path: [(file.name, file.lstat()) for file in sorted(path.iterdir())])
    return tuple((name, file.st_mtime_ns, file.st_size) for name, file in about)


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
    if run.record.kind == "knob" and result.knob.rank == 1:
        return {"coordinates": result.plot("coordinates")}
    if run.record.kind in ("circuit", "circuit-reuse", "concept-depth", "clue-verification", "clue-ranking"):
        return {what: result.plot(what) for what in result.plots[1:]}
    return {what: result.plot(what) for what in FURTHER.get(run.record.kind, ())}


def has_map(report: AblationReport) -> bool:
    """Whether a study can be shown by length and depth."""
    return {"length", "depth"} <= set(report.tests)


def length_and_depth(report: AblationReport) -> go.Figure:
    """Recall by length and depth of every condition of a study."""
    from interp.plots.ablation import length_depth_maps

    return length_depth_maps(report.by_length_and_depth(), str(report.model["name"]))
