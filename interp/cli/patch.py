"""`interp patch`: which layers, positions, heads or neurons carry what differs between prompts and their twins."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from interp.cli.console import emit, progress, say, show_frame, show_written
from interp.cli.models import load_model
from interp.cli.options import Attention, Device, DType, Json, ModelName, Resume, Revision, Seed, new_run, out_option
from interp.errors import BadInput
from interp.runs import Journal

if TYPE_CHECKING:
    import pandas as pd

    from interp.metrics import Metric
    from interp.patching.activation import PatchingResult
    from interp.tasks.prompts import PromptSet
    from interp.tracing.model import Model

By = Literal["layer", "position", "head", "head_position", "neuron"]
Direction = Literal["denoise", "noise"]
Method = Literal["exact", "attribution", "ig"]
TASKS = ("ioi", "colored-objects")


def patch(
    model: ModelName,
    task: Annotated[
        str,
        typer.Option(help="ioi, colored-objects, or prompts with counterfactuals: a .jsonl, or EAP-IG's .csv."),
    ] = "ioi",
    site: Annotated[str, typer.Option(help="What is patched: z, resid_pre, mlp_out, or one layer of it, z.5.")] = "z",
    by: Annotated[By, typer.Option(help="The units that are patched, each on its own.")] = "head",
    direction: Annotated[
        Direction, typer.Option(help="Put clean activations into corrupted prompts (denoise), or the other way round.")
    ] = "denoise",
    method: Annotated[
        Method, typer.Option(help="Run every patch, or estimate them from one gradient or from several.")
    ] = "exact",
    metric: Annotated[
        str,
        typer.Option(
            help="Of logit-difference, log-probability, probability, logit, kl, accuracy; the first is normalised.",
            show_default="logit-difference,log-probability,kl,accuracy",
        ),
    ] = "",
    positions: Annotated[
        str,
        typer.Option(
            help="Positions or roles to patch at, such as S1,S2,-1.",
            show_default="all; with --by position the task's roles, where prompts differ in length",
        ),
    ] = "",
    n: Annotated[int, typer.Option("--n", "-n", help="Prompts to generate, or to take from the file.", min=1)] = 32,
    style: Annotated[
        str | None,
        typer.Option(
            help="Wording of the task: general or pocket (ioi), title or lower (colored-objects).",
            show_default="pocket and lower for pocket, else general and title",
        ),
    ] = None,
    corruption: Annotated[str, typer.Option(help="Task ioi: what the counterfactual changes, such as ABC.")] = "S2->IO",
    steps: Annotated[int, typer.Option(help="Gradients a layer of --method ig.", min=1)] = 10,
    rows: Annotated[int, typer.Option(help="Patches to show.", min=1)] = 15,
    to: Annotated[Path | None, out_option("runs/MODEL-patch-SITE-BY")] = None,
    resume: Resume = False,
    seed: Seed = 0,
    device: Device = None,
    dtype: DType = None,
    attention: Attention = None,
    revision: Revision = None,
    json: Json = False,
) -> None:
    """Patch every unit of a site on its own, and write a run with every metric side by side."""
    file = None if task in TASKS else Path(task)
    if file is not None and not file.is_file():
        raise BadInput(f"--task {task} is neither a prompt file nor one of {', '.join(TASKS)}")
    if resume and method != "exact":
        raise BadInput(f"--method {method} takes seconds and keeps no journal; start it again without --resume")
    run = new_run(to, model, f"patch-{site}-{by}")
    from interp.patching.activation import activation_patching
    from interp.patching.attribution import attribution_patching

    started = datetime.now(timezone.utc)
    metrics = named_metrics(metric)
    loaded = load_model(model, device=device, dtype=dtype, attention=attention, revision=revision)
    pairs = task_prompts(loaded, model, task, n, seed, style, corruption)
    chosen = named_positions(positions) or roles_to_patch(pairs, by)
    request: dict[str, Any] = {"metrics": metrics, "positions": chosen, "seed": seed}
    journal = None
    with progress("patching") as report:
        if method != "exact":
            result = attribution_patching(
                loaded, pairs, site, by, direction, method=method, steps=steps, progress=report, **request
            )
        else:
            identity = {"model": loaded.fingerprint, "prompts": pairs.hash, "metric": metric, "positions": positions}
            journal = Journal(Journal.beside(run), {**identity, "site": site, "by": by, "direction": direction}, resume)
            try:
                result = activation_patching(
                    loaded, pairs, site, by, direction, journal=journal, progress=report, **request
                )
            except KeyboardInterrupt:
                say("Interrupted. What is finished is kept; the same command with --resume goes on.")
                raise
            except BadInput:
                if not journal.done:
                    journal.discard()
                raise
    result.save(run, started)
    if journal is not None:
        journal.discard()
    if json:
        emit(document(result, task, run))
    else:
        show(result, rows, run)


def task_prompts(
    model: Model, name: str, task: str, n: int, seed: int, style: str | None, corruption: str
) -> PromptSet:
    """The prompts that the options describe. Raises BadInput, UnreadableFile."""
    bundled = name == "pocket"
    if task == "ioi":
        from interp.tasks.ioi import ioi_prompts

        style = style or ("pocket" if bundled else "general")
        return ioi_prompts(model.tokenizer, n, seed, style=style, corruption=corruption)  # type: ignore[arg-type]
    if task == "colored-objects":
        from interp.tasks.colored_objects import colored_object_prompts

        style = style or ("lower" if bundled else "title")
        return colored_object_prompts(model.tokenizer, n, seed, style=style)  # type: ignore[arg-type]
    if task.endswith(".csv"):
        from interp.patching.eap_csv import read_csv_pairs

        return read_csv_pairs(task, model.tokenizer)[:n]
    from interp.tasks.prompts import PromptSet

    return PromptSet.from_jsonl(task, model.tokenizer)[:n]


def named_metrics(text: str) -> tuple[Metric, ...]:
    """`"logit-difference,kl"` as metrics. Raises BadInput."""
    from interp.metrics import Metric

    return tuple(Metric(name.strip().replace("-", "_")) for name in text.split(",") if name.strip())


def named_positions(text: str) -> tuple[int | str, ...]:
    """`"S1,S2,-1"` as roles and numbers."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    return tuple(int(name) if name.removeprefix("-").isdecimal() else name for name in names)


def roles_to_patch(pairs: PromptSet, by: By) -> tuple[str, ...]:
    """The roles of the task where positions are patched one by one and prompts of several lengths share no others."""
    one_by_one = by in ("position", "head_position")
    return tuple(pairs.spans) if one_by_one and len({len(row) for row in pairs.tokens}) > 1 else ()


def document(result: PatchingResult, task: str, run: Path) -> dict[str, Any]:
    """What `--json` prints."""
    return {
        "run": str(run),
        "task": task,
        "method": result.method,
        "site": result.site,
        "by": result.by,
        "direction": result.direction,
        "model": result.model,
        "parameters": result.parameters,
        "seed": result.seed,
        "n": result.n,
        "clean": dict(zip(result.metrics, result.clean.mean(1).tolist(), strict=True)),
        "corrupted": dict(zip(result.metrics, result.corrupted.mean(1).tolist(), strict=True)),
        "patches": result.frame.to_dict("records"),
    }


def strongest(result: PatchingResult, rows: int) -> pd.DataFrame:
    """The patches that move the first metric furthest from the run that was patched, with the columns worth a look."""
    frame = result.frame
    shift = (frame[result.metrics[0]] - result.base[0].mean()).abs()
    places = [name for name in ("layer", "head", "position", "neuron") if name in frame]
    ratio = "normalised_ratio_of_means"
    columns = [*places, ratio, f"{ratio}_low", f"{ratio}_high", "normalised_mean_of_ratios", *result.metrics]
    return frame.loc[shift.sort_values(ascending=False).index, columns].head(rows)


def show(result: PatchingResult, rows: int, run: Path) -> None:
    first = result.metrics[0]
    title = (
        f"{result.site} by {result.by} of {result.model['name']}, {result.direction}, {result.method}, n={result.n}; "
        f"{first} {result.clean[0].mean():.3g} clean, {result.corrupted[0].mean():.3g} corrupted"
    )
    frame = strongest(result, rows)
    show_frame(title, frame.rename(columns=lambda name: name.replace("normalised_", "").replace("_", " ")))
    show_written(run=run)
