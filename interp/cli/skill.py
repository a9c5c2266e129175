"""`interp skill`: fine-tune, find the few parameters that hold the skill, graft and compare them."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timezone
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from interp.cli import lofit
from interp.cli.console import emit, progress, show_frame, show_written
from interp.cli.models import load_model
from interp.cli.options import Device, DType, Json, ModelName, Seed, new_run, numbers, out_option
from interp.cli.task_options import Ood, Sizes, TaskName, TaskOptions, Template, Words
from interp.errors import BadInput

if TYPE_CHECKING:
    from interp.skills.mask import GraftMask
    from interp.tracing.model import Model

app = typer.Typer(help="Where fine-tuning put a skill, and moving it alone.", no_args_is_help=True)

Tuned = Annotated[str, typer.Argument(help="A model fine-tuned from it, or its run.", show_default=False)]
OptimizerName = Annotated[
    Literal["sgd", "adamw", "adamw-l1"], typer.Option(help="How it is trained; adamw-l1 pays for what it moves.")
]
Everything = Annotated[bool, typer.Option("--everything", help="Train embeddings, last norm and head too.")]
Batch = Annotated[int, typer.Option(help="Examples in a step.", min=1)]
Masks = Annotated[list[Path], typer.Option("--mask", help="A mask file or its run; may be repeated.", exists=True)]


@app.command(epilog="Example: interp skill finetune pocket --task topic --out runs/tuned")
def finetune(
    model: ModelName,
    task: TaskName,
    optimizer: OptimizerName = "sgd",
    learning_rate: Annotated[
        float | None, typer.Option(help="Learning rate of the optimizer.", show_default="by optimizer")
    ] = None,
    steps: Annotated[int, typer.Option(help="Steps of training.", min=1)] = 200,
    batch: Batch = 32,
    penalty: Annotated[float, typer.Option(help="adamw-l1: weight of the L1 norm of the movement.", min=0)] = 1e-3,
    everything: Everything = False,
    checkpoint_every: Annotated[
        int, typer.Option(help="Steps between checkpoints, which go beside the run; 0 for none.", min=0)
    ] = 0,
    template: Template = "",
    words: Words = "",
    ood: Ood = None,
    sizes: Sizes = "",
    to: Annotated[Path | None, out_option("runs/MODEL-TASK-tuned")] = None,
    device: Device = None,
    dtype: DType = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Fine-tune a model on one task, or on several (topic+sentiment), and write it into a new run."""
    options = TaskOptions(task, template, words, ood, sizes)
    run = new_run(to, model, f"{options.label}-tuned")

    from interp.skills import finetune as tuning

    started = datetime.now(timezone.utc)
    loaded = load_model(model, device=device, dtype=dtype)
    tasks = options.build(loaded, seed)
    with progress("fine-tuning") as report:
        result = tuning.finetune(
            loaded,
            tasks,
            optimizer=optimizer,
            learning_rate=learning_rate,
            steps=steps,
            batch=batch,
            penalty=penalty,
            everything=everything,
            seed=seed,
            checkpoints=run.with_name(f"{run.name}.checkpoints") if checkpoint_every else None,
            checkpoint_every=checkpoint_every,
            progress=report,
        )
    result = replace(result, scores=tuning.accuracies(loaded, result.model, tasks))
    result.save(run, started)
    written = {"run": str(run), "model": str(run / tuning.MODEL_FOLDER)}
    _show("accuracy before and after fine-tuning", result.scores.to_dict("records"), written, json)


@app.command(epilog="Example: interp skill localize pocket runs/tuned --task topic")
def localize(
    model: ModelName,
    fine_tuned: Tuned,
    task: TaskName,
    sparsity: Annotated[float, typer.Option(help="Share of the trainable parameters in the mask.")] = 1e-4,
    steps: Annotated[int, typer.Option(help="Steps of the optimisation; 0 takes what moved most.", min=0)] = 100,
    learning_rate: Annotated[float, typer.Option(help="Learning rate of the mask.")] = 1e7,
    sigmoid_bias: Annotated[
        float, typer.Option(help="The smaller, the sooner parameters enter and leave the mask.")
    ] = 10.0,
    batch: Batch = 32,
    accumulate: Annotated[int, typer.Option(help="Batches to add up before a step.", min=1)] = 1,
    measure_every: Annotated[
        int, typer.Option(help="Steps after which the mask is tried again; the best is kept.", min=1)
    ] = 10,
    everything: Everything = False,
    template: Template = "",
    words: Words = "",
    ood: Ood = None,
    sizes: Sizes = "",
    to: Annotated[Path | None, out_option("runs/FINE_TUNED-mask")] = None,
    device: Device = None,
    dtype: DType = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Find the few parameters that carry a task from the fine-tuned model to the pre-trained one."""
    options = TaskOptions(task, template, words, ood, sizes)
    run = new_run(to, fine_tuned, "mask")

    from interp.skills import localize as localization
    from interp.skills.selection import check_share

    check_share(sparsity)  # before models are loaded
    started = datetime.now(timezone.utc)
    pre, ft = _load_pair(model, fine_tuned, device, dtype)
    with progress("localizing") as report:
        result = localization.localize(
            pre,
            ft,
            options.build_one(pre, seed),
            sparsity=sparsity,
            steps=steps,
            learning_rate=learning_rate,
            sigmoid_bias=sigmoid_bias,
            batch=batch,
            accumulate=accumulate,
            measure_every=measure_every,
            everything=everything,
            seed=seed,
            progress=report,
        )
    result.save(run, started)
    title = f"{result.mask!r}; the mask of step {result.mask.metadata['step']} is kept"
    written = {"run": str(run), "mask": str(run / localization.MASK_FILE)}
    _show(title, result.history.to_dict("records"), written, json)


@app.command(epilog="Example: interp skill graft pocket runs/tuned --mask runs/tuned-mask")
def graft(
    model: ModelName,
    fine_tuned: Tuned,
    mask: Masks,
    transfer: Annotated[bool, typer.Option("--transfer", help="The mask may be of another fine-tuned model.")] = False,
    to: Annotated[Path | None, out_option("runs/FINE_TUNED-grafted")] = None,
    device: Device = None,
    dtype: DType = None,
    json: Json = False,
) -> None:
    """Write the pre-trained model with the masks' parameters (their union) taken from the fine-tuned one."""
    run = new_run(to, fine_tuned, "grafted")
    from interp.runs import staged
    from interp.skills.mask import union
    from interp.skills.pairs import write_model

    united = union([_read(each) for each in mask])
    pre, ft = _load_pair(model, fine_tuned, device, dtype)
    grafted = united.apply(pre, ft, transfer=transfer)
    with staged(run) as folder:
        write_model(grafted, folder)
    row = {"parameters": len(united), "of": united.size, "share": united.sparsity, "fingerprint": grafted.fingerprint}
    _show(f"grafted {ft.spec.name} onto {pre.spec.name}", [row], {"model": str(run)}, json)


@app.command(epilog="Example: interp skill evaluate pocket runs/tuned --task topic --mask runs/tuned-mask")
def evaluate(
    model: ModelName,
    fine_tuned: Tuned,
    task: TaskName,
    mask: Masks,
    baselines: Annotated[
        str, typer.Option(help="Masks of the same size to compare with.")
    ] = "random,magnitude,movement,bias,lottery ticket",
    seeds: Annotated[str, typer.Option(help="Seeds of the random masks.")] = "0,1,2",
    transfer: Annotated[bool, typer.Option("--transfer", help="Masks may be of another fine-tuned model.")] = False,
    template: Template = "",
    words: Words = "",
    ood: Ood = None,
    sizes: Sizes = "",
    to: Annotated[Path | None, out_option("runs/FINE_TUNED-evaluation")] = None,
    device: Device = None,
    dtype: DType = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Compare grafts with both models and with baselines: gain recovered, agreement, calibration, another domain."""
    options = TaskOptions(task, template, words, ood, sizes)
    run = new_run(to, fine_tuned, "evaluation")
    draws = numbers("--seeds", seeds, int)

    from interp.skills import evaluation

    started = datetime.now(timezone.utc)
    masks = [_read(each) for each in mask]
    pre, ft = _load_pair(model, fine_tuned, device, dtype)
    built = options.build_one(pre, seed)
    for each in masks:
        each.check(pre, ft, transfer)
    names = [name.strip() for name in baselines.split(",") if name.strip()]
    candidates = evaluation.with_baselines(pre, ft, masks, baselines=names, seeds=draws)
    with progress("evaluating") as report:
        result = evaluation.evaluate(pre, ft, built, candidates, transfer=transfer, seed=seed, progress=report)
    result.save(run, started)
    frame = result.frame
    if json:
        emit({"run": str(run), "parameters": result.parameters, "models": frame.to_dict("records")})
        return
    columns = ["method", "parameters", "split", "accuracy", "recovered", "recovered_low", "recovered_high"]
    show_frame(
        f"{built.name}: {ft.spec.name} grafted onto {pre.spec.name}", frame, [*columns, "agreement", "ece_10", "n"]
    )
    show_written(run=run)


@app.command(epilog="Example: interp skill overlap --mask runs/a-mask --mask runs/b-mask")
def overlap(
    mask: Masks,
    to: Annotated[Path | None, out_option("runs/mask-overlap")] = None,
    json: Json = False,
) -> None:
    """How many entries masks share, and which share of each lies in each other."""
    run = new_run(to, "mask", "overlap")
    from interp.skills import multitask

    masks = {_label(each, mask): _read(each) for each in mask}
    if len(masks) < len(mask):
        raise BadInput(f"--mask names the same mask twice: {', '.join(map(str, mask))}")
    result = multitask.overlap(masks)
    result.save(run)
    if json:
        pairs = {f"{a} & {b}": len(masks[a] & masks[b]) for a, b in combinations(masks, 2)}
        emit(
            {
                "run": str(run),
                "masks": list(masks),
                "matrix": result.matrix,
                "shared": pairs,
                "pairs": result.frame.to_dict("records"),
            }
        )
        return
    frame = result.frame
    show_frame("shared entries of each pair of masks", frame[frame["mask"] != frame["other"]])
    show_written(run=run)


@app.command(epilog="Example: interp skill continual pocket --task topic+sentiment")
def continual(
    model: ModelName,
    task: TaskName,
    sparsity: Annotated[float, typer.Option(help="Share of the trainable parameters kept of each task.")] = 1e-2,
    steps: Annotated[int, typer.Option(help="Steps of every fine-tuning.", min=1)] = 200,
    batch: Batch = 32,
    mask_steps: Annotated[int, typer.Option(help="Steps of every localization; 0 takes what moved most.", min=0)] = 20,
    optimizer: OptimizerName = "sgd",
    template: Template = "",
    words: Words = "",
    ood: Ood = None,
    sizes: Sizes = "",
    to: Annotated[Path | None, out_option("runs/MODEL-continual")] = None,
    device: Device = None,
    dtype: DType = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Learn tasks one after the other (topic+sentiment): whole, and keeping of each only a localized region."""
    options = TaskOptions(task, template, words, ood, sizes)
    run = new_run(to, model, "continual")

    from interp.skills import multitask
    from interp.skills.selection import check_share

    check_share(sparsity)
    started = datetime.now(timezone.utc)
    loaded = load_model(model, device=device, dtype=dtype)
    with progress("learning") as report:
        result = multitask.continual(
            loaded,
            options.build(loaded, seed),
            tuning={"optimizer": optimizer, "steps": steps, "batch": batch},
            localizing={"sparsity": sparsity, "steps": mask_steps},
            seed=seed,
            progress=report,
        )
    result.save(run, started)
    if json:
        forgotten = result.forgetting.to_dict("records")
        emit({"run": str(run), "rows": result.frame.to_dict("records"), "forgetting": forgotten})
        return
    show_frame(f"{loaded.spec.name}: accuracy after each task", result.frame)
    show_frame("how far accuracy fell from when the task had just been learned", result.forgetting)
    show_written(run=run)


app.command("lofit", epilog="Example: interp skill lofit pocket")(lofit.lofit)


def _label(path: Path, every: list[Path]) -> str:
    """The shortest end of a path that tells it from the others."""
    parts = path.resolve().parts
    for n in range(1, len(parts)):
        short = parts[-n:]
        if sum(other.resolve().parts[-n:] == short for other in every) == 1:
            return "/".join(short)
    return str(path)


def _read(path: Path) -> GraftMask:
    from interp.skills.localize import MASK_FILE
    from interp.skills.mask import GraftMask

    return GraftMask.load(path / MASK_FILE if path.is_dir() else path)


def _load_pair(model: str, tuned: str, device: str | None, dtype: str | None) -> tuple[Model, Model]:
    """Both models; a run of `finetune` stands for the model in it."""
    from interp.skills.finetune import MODEL_FOLDER
    from interp.tracing.loading import wrap

    inside = Path(tuned) / MODEL_FOLDER
    pre = load_model(model, device=device, dtype=dtype)
    if not inside.is_dir():
        return pre, load_model(tuned, device=device, dtype=dtype)
    ft = load_model(str(inside), device=device, dtype=dtype)
    return pre, wrap(ft.hf, tokenizer=ft.tokenizer, name=Path(tuned).name)  # every run calls its model "model"


def _show(title: str, rows: list[dict[str, Any]], written: dict[str, str], json: bool) -> None:
    import pandas as pd

    if json:
        emit({**written, "rows": rows})
        return
    show_frame(title, pd.DataFrame(rows))
    show_written(**written)
