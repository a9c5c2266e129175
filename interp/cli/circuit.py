"""`interp circuit`: the circuits behind IOI and coloured objects, and what the two share."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from interp.cli.circuit_options import (
    Attend,
    ColorStyle,
    Copy,
    Effect,
    IOIStyle,
    Prompts,
    RandomCircuits,
    Reference,
    Size,
    Test,
    discovered,
    is_bundled,
)
from interp.cli.console import emit, out, progress, say, show_facts, show_frame, show_written
from interp.cli.edges import edges
from interp.cli.models import load_model
from interp.cli.options import Attention, Device, DType, Json, ModelName, Revision, Seed, new_run, out_option
from interp.cli.reuse import reuse
from interp.errors import BadInput

if TYPE_CHECKING:
    from interp.circuits.curve import FaithfulnessCurve
    from interp.circuits.discovery import Discovery
    from interp.circuits.evaluation import CircuitEvaluation
    from interp.circuits.knockout import Knockout
    from interp.circuits.study import CircuitStudy
    from interp.tasks.prompts import PromptSet

app = typer.Typer(
    help="Find the circuit behind a task, measure how well it explains it, compare two.", no_args_is_help=True
)

SCOPES = ("end", "everywhere")
"""Where heads outside the circuit are knocked out: at the last position, and at every one."""


@app.command(epilog="Example: interp circuit ioi pocket")
def ioi(
    model: ModelName,
    n: Prompts = 100,
    test: Test = 48,
    order: Annotated[Literal["ABBA", "BABA", "mixed"], typer.Option(help="Who is named first.")] = "mixed",
    style: IOIStyle = None,
    size: Size = None,
    random: RandomCircuits = 20,
    reference: Reference = None,
    effect: Effect = 0.02,
    attention_at_least: Attend = 0.3,
    copy: Copy = 0.5,
    to: Annotated[Path | None, out_option("runs/MODEL-ioi-circuit")] = None,
    seed: Seed = 0,
    device: Device = None,
    dtype: DType = None,
    attention: Attention = None,
    revision: Revision = None,
    json: Json = False,
) -> None:
    """Find the circuit of indirect object identification by path patching, stage by stage, and evaluate it."""
    run = new_run(to, model, "ioi-circuit")
    from interp.circuits.discovery import Thresholds
    from interp.circuits.ioi import REFERENCE, ioi_circuit, ioi_knockout
    from interp.tasks.ioi import ioi_prompts

    started = datetime.now(timezone.utc)
    loaded = load_model(model, device=device, dtype=dtype, attention=attention, revision=revision)
    chosen = style or ("pocket" if is_bundled(loaded) else "general")

    def draw(n: int, seed: int) -> PromptSet:
        return ioi_prompts(loaded.tokenizer, n, seed, order=order, style=chosen, corruption="ABC")

    def knockout(at: str | None) -> Knockout:
        return ioi_knockout(
            loaded,
            draw(test, seed + 1),
            reference=reference or REFERENCE,
            style=chosen,
            order=order,
            at=at,
            seed=seed + 2,
        )

    thresholds = Thresholds(effect, attention_at_least, copy)
    found = discovered(ioi_circuit, loaded, draw(n, seed), thresholds, seed)
    _report(found, knockout if test else None, size, random, run, started, json, {"style": chosen, "order": order})


@app.command("colored-objects", epilog="Example: interp circuit colored-objects pocket")
def colored_objects(
    model: ModelName,
    n: Prompts = 100,
    test: Test = 48,
    style: ColorStyle = None,
    size: Size = None,
    random: RandomCircuits = 20,
    reference: Reference = None,
    effect: Effect = 0.02,
    attention_at_least: Attend = 0.3,
    copy: Copy = 0.5,
    to: Annotated[Path | None, out_option("runs/MODEL-objects-circuit")] = None,
    seed: Seed = 0,
    device: Device = None,
    dtype: DType = None,
    attention: Attention = None,
    revision: Revision = None,
    json: Json = False,
) -> None:
    """Find the circuit that answers what colour an object has, by the stages of IOI, and evaluate it."""
    run = new_run(to, model, "objects-circuit")
    from interp.circuits.colored_objects import REFERENCE, colored_objects_circuit, colored_objects_knockout
    from interp.circuits.discovery import Thresholds
    from interp.tasks.colored_objects import colored_object_prompts

    started = datetime.now(timezone.utc)
    loaded = load_model(model, device=device, dtype=dtype, attention=attention, revision=revision)
    chosen = style or ("lower" if is_bundled(loaded) else "title")

    def draw(n: int, seed: int) -> PromptSet:
        return colored_object_prompts(loaded.tokenizer, n, seed, style=chosen)

    def knockout(at: str | None) -> Knockout:
        fresh = draw(test, seed + 1)
        return colored_objects_knockout(
            loaded, fresh, reference=reference or REFERENCE, style=chosen, at=at, seed=seed + 2
        )

    thresholds = Thresholds(effect, attention_at_least, copy)
    found = discovered(colored_objects_circuit, loaded, draw(n, seed), thresholds, seed)
    _report(found, knockout if test else None, size, random, run, started, json, {"style": chosen})


app.command("edges", epilog="Example: interp circuit edges pocket --method eap-ig")(edges)
app.command("reuse", epilog="Example: interp circuit reuse pocket")(reuse)


def _report(
    found: Discovery,
    knockout: Callable[[str | None], Knockout] | None,
    size: int | None,
    random: int,
    run: Path,
    started: datetime,
    json: bool,
    about: dict[str, Any],
) -> None:
    """Evaluate, save and show."""
    from interp.circuits.study import CircuitStudy

    size = size or max(1, found.scores.size // 4)
    evaluations, curves = {}, {}
    for scope in SCOPES:
        if knockout is not None and (made := _evaluated(found, knockout, scope, size, random)) is not None:
            evaluations[scope], curves[scope] = made
    study = CircuitStudy(found, evaluations, curves)
    study.save(run, started)
    if json:
        emit(
            {
                "run": str(run),
                "task": found.task,
                "model": found.model,
                "accuracy": found.accuracy,
                "contrast": vars(found.contrast),
                "parameters": {**found.parameters, **about, "size": size, "seed": found.seed},
                "roles": found.by_role,
                "evaluations": {scope: _document(study, scope) for scope in study.evaluations},
                "heads": found.frame.to_dict("records"),
            }
        )
        return
    _show(study, run)


def _evaluated(
    found: Discovery, knockout: Callable[[str | None], Knockout], scope: str, size: int, random: int
) -> tuple[CircuitEvaluation, FaithfulnessCurve] | None:
    """The circuit of a scope and the curve of all heads, or None where there is no circuit or nothing to explain."""
    from interp.circuits.curve import faithfulness_curve
    from interp.circuits.evaluation import evaluate_circuit

    at = None if scope == "everywhere" else scope
    try:
        circuit = found.circuit(size, at)
    except BadInput as error:
        say(f"Not evaluated {scope}: {error}")
        return None
    outside = knockout(at)
    with progress(f"evaluating {scope}") as report:
        evaluation = evaluate_circuit(outside, circuit, random=random, seed=found.seed, progress=report)
        return evaluation, faithfulness_curve(outside, found.scores, seed=found.seed, progress=report)


def _document(study: CircuitStudy, scope: str) -> dict[str, Any]:
    """What `--json` says of one scope."""
    evaluation, curve = study.evaluations[scope], study.curves[scope]
    tables = {name: table.to_dict("records") for name, table in study.tables(scope).items()}
    areas = {"cpr": curve.cpr, "cmd": curve.cmd}
    return {**evaluation.summary(), **areas, "parameters": evaluation.parameters, **tables}


def _show(study: CircuitStudy, run: Path) -> None:
    found = study.discovery
    roles = {role: " ".join(f"{a}.{b}" for a, b in heads) for role, heads in found.by_role.items()}
    facts = {"accuracy": f"{found.accuracy:.3f}", "contrast": found.contrast}
    show_facts(f"{found.task} circuit of {found.model['name']}", {**facts, **(roles or {"roles": "none found"})})
    for stage, part in found.frame.groupby("stage", sort=False):
        show_frame(f"stage: {stage}", part.dropna(axis=1, how="all").drop(columns="stage").head(8))
    for scope, evaluation in study.evaluations.items():
        curve = study.curves[scope]
        name = f"{len(evaluation.circuit.heads)} heads ({evaluation.circuit})"
        areas = f"CPR {curve.cpr:.3f}, CMD {curve.cmd:.3f}"
        show_frame(f"{name}, others knocked out {scope}; {areas}", evaluation.frame)
        if len(evaluation.random):
            kept = evaluation.random["kept"]
            out.print(f"Random circuits keep {kept.mean():.3f} on average, {kept.max():.3f} at most.", markup=False)
        show_frame("completeness", evaluation.completeness)
        show_frame("minimality", evaluation.minimality)
    show_written(run=run)
