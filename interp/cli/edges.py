"""`interp circuit edges`: how much each edge between heads, MLPs, input and logits matters, from gradients."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from interp.cli.console import emit, progress, show_facts, show_frame, show_written
from interp.cli.models import load_model
from interp.cli.options import Attention, Device, DType, Json, ModelName, Revision, Seed, new_run, out_option
from interp.cli.patch import TASKS, named_metrics, task_prompts
from interp.errors import BadInput

if TYPE_CHECKING:
    from interp.patching.eap import EdgeScores


def edges(
    model: ModelName,
    task: Annotated[
        str, typer.Option(help="ioi, colored-objects, or prompts with counterfactuals: a .jsonl, or EAP-IG's .csv.")
    ] = "ioi",
    method: Annotated[
        Literal["eap", "eap-ig"], typer.Option(help="One gradient, or several on the way from the counterfactual.")
    ] = "eap-ig",
    steps: Annotated[int, typer.Option(help="Gradients of --method eap-ig.", min=1)] = 5,
    metric: Annotated[str, typer.Option(help="One of logit-difference, log-probability, probability, logit.")] = (
        "logit-difference"
    ),
    n: Annotated[int, typer.Option("--n", "-n", help="Prompts to generate, or to take from the file.", min=1)] = 32,
    style: Annotated[
        str | None,
        typer.Option(
            help="Wording of the task: general or pocket (ioi), title or lower (colored-objects).",
            show_default="pocket and lower for pocket, else general and title",
        ),
    ] = None,
    corruption: Annotated[str, typer.Option(help="Task ioi: what the counterfactual changes, such as ABC.")] = "S2->IO",
    control: Annotated[
        bool, typer.Option(help="Score the edges for the answers of other prompts too, as a control.")
    ] = True,
    rows: Annotated[int, typer.Option(help="Edges to show.", min=1)] = 15,
    to: Annotated[Path | None, out_option("runs/MODEL-edges")] = None,
    seed: Seed = 0,
    device: Device = None,
    dtype: DType = None,
    attention: Attention = None,
    revision: Revision = None,
    json: Json = False,
) -> None:
    """Score every edge by attribution patching (EAP, EAP-IG): what the metric would lose were it corrupted."""
    if task not in TASKS and not Path(task).is_file():
        raise BadInput(f"--task {task} is neither a prompt file nor one of {', '.join(TASKS)}")
    measures = named_metrics(metric)
    if len(measures) != 1:
        raise BadInput(f"--metric {metric}: edges are scored for one metric")
    run = new_run(to, model, "edges")
    from interp.patching.eap import edge_scores
    from interp.patching.eap_control import with_control

    started = datetime.now(timezone.utc)
    loaded = load_model(model, device=device, dtype=dtype, attention=attention, revision=revision)
    pairs = task_prompts(loaded, model, task, n, seed, style, corruption)
    with progress("scoring edges") as report:
        scores = edge_scores(loaded, pairs, measures[0], method=method, steps=steps, progress=report)
    if control:
        with progress("scoring them for other answers") as report:
            scores = with_control(loaded, pairs, measures[0], scores, seed=seed, progress=report)
    scores.save(run, started)
    if json:
        emit({"run": str(run), "task": task, **_document(scores)})
    else:
        _show(scores, task, rows, run)


def _document(scores: EdgeScores) -> dict[str, Any]:
    return {
        "method": scores.method,
        "metric": scores.metric,
        "model": scores.model,
        "parameters": scores.parameters,
        "n": scores.n,
        "change": float(scores.change.mean()),
        "edges": scores.frame.to_dict("records"),
    }


def _show(scores: EdgeScores, task: str, rows: int, run: Path) -> None:
    facts = {"edges": int(scores.shape.edges.sum()), f"{scores.metric}, all corrupted": f"{scores.change.mean():+.3f}"}
    if scores.control is not None:
        facts["largest score for other answers"] = f"{abs(scores.control).max():.3f}"
    show_facts(f"{task} edges of {scores.model['name']}, {scores.method}, n={scores.n}", facts)
    show_frame("the largest scores: estimated change of the metric without an edge", scores.frame.head(rows))
    show_written(run=run)
