"""`interp heads prune`: in which order heads can go, what is left, and the smaller model on disk."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from interp.cli.ablate import (
    MASK_OR_RUN,
    Controls,
    Depths,
    HaystackPath,
    Lengths,
    MetricName,
    NeedleFile,
    Needles,
    PromptFile,
    finish,
    journaled,
    short,
)
from interp.cli.console import emit, progress, say, show_frame, show_written
from interp.cli.models import load_model
from interp.cli.options import (
    Attention,
    Device,
    DType,
    Json,
    ModelName,
    Resume,
    Revision,
    Seed,
    new_run,
    numbers,
    out_option,
)
from interp.cli.score import Tests
from interp.errors import BadInput
from interp.runs import require_free

if TYPE_CHECKING:
    from interp.heads.mask import HeadMask
    from interp.heads.pruning import Pruning
    from interp.tracing.model import Model

SHOWN = 12
"""Steps in the table at most; the run has all."""


def prune(
    model: ModelName,
    budget: Annotated[int, typer.Option(help="How many heads to remove.", show_default=False)],
    strategy: Annotated[
        Literal["greedy", "one-shot", "random"],
        typer.Option(help="Rank again while heads go, rank only once, or draw at random."),
    ] = "greedy",
    by: Annotated[
        Literal["importance", "effect", "mask"],
        typer.Option(help="Rank by gradient importance, exact zero ablation, or the scores of --mask."),
    ] = "importance",
    mask: Annotated[Path | None, typer.Option(help=MASK_OR_RUN, show_default=False, exists=True)] = None,
    every: Annotated[int, typer.Option(help="Greedy: rank again after this many heads (or groups).", min=1)] = 1,
    unit: Annotated[
        Literal["head", "kv-group"], typer.Option(help="Remove single heads, or key/value heads with all their heads.")
    ] = "head",
    metric: Annotated[MetricName, typer.Option(help="What is to be kept.")] = "log-probability",
    task: Annotated[
        Literal["needle", "copy"], typer.Option(help="Needles in long text, or stories that repeat a word.")
    ] = "needle",
    lengths: Lengths = "",
    depths: Depths = "0,50,100",
    needles: Needles = 4,
    needle_file: NeedleFile = None,
    haystack: HaystackPath = None,
    prompts: PromptFile = None,
    controls: Controls = 5,
    save: Annotated[
        Path | None, typer.Option(help="Folder to write the model to, without the heads.", show_default=False)
    ] = None,
    plan_file: Annotated[
        bool, typer.Option("--plan-file", help="With --save: also where only a plan beside the weights can say it.")
    ] = False,
    to: Annotated[Path | None, out_option("runs/MODEL-pruning")] = None,
    resume: Resume = False,
    device: Device = None,
    dtype: DType = None,
    attention: Attention = None,
    revision: Revision = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Remove heads, the least needed first, and measure after each; beside as many random ones."""
    grid = (numbers("--lengths", lengths, int), numbers("--depths", depths, float), needles)
    tests = Tests(task, *grid, needle_file, haystack, prompts)
    run = new_run(to, model, "pruning")
    if plan_file and save is None:
        raise BadInput("--plan-file says how to write the model: add --save FOLDER")
    if save is not None:
        require_free(save)
        if save.resolve() == run.resolve():
            raise BadInput(f"--save {save} and --out {run} are the same folder")

    from interp.heads import pruning

    started = datetime.now(timezone.utc)
    loaded = load_model(model, device=device, dtype=dtype, attention=attention, revision=revision)
    tests = short(tests, loaded)
    if save is not None:
        pruning.check_sliceable(loaded, unit)
    material = tests.build(loaded, seed + 1)
    scores = _mask(mask)
    settings: dict[str, Any] = {"strategy": strategy, "by": by, "every": every, "unit": unit, "metric": metric}
    settings |= {"seeds": list(range(seed, seed + controls)), "seed": seed}
    identity: dict[str, Any] = {"model": loaded.fingerprint, "attention": loaded.attention, "budget": budget}
    identity |= {"prompts": material.hash, "mask": None if scores is None else scores.scores.tolist()}
    parameters = {**tests.parameters(), **settings, **identity}
    with journaled(run, parameters, resume) as journal, progress("pruning") as report:
        result = pruning.prune(loaded, material, budget, mask=scores, **settings, journal=journal, progress=report)
    result.save(run, started)
    finish(run)
    try:
        saved = _save(loaded, result, save, plan_file) if save is not None else None
    except Exception:  # whatever stopped the writing (a full disk too), say what is safe; the error goes on as it came
        say(f"The run is in {run}; the smaller model was not written.")
        raise
    _show(result, run, saved, json)


def _mask(source: Path | None) -> HeadMask | None:
    from interp.cli.heads import read

    return None if source is None else read(source)


def _save(model: Model, result: Pruning, folder: Path, plan_file: bool) -> dict[str, Any]:
    from interp.heads.pruning import save_pruned

    before = sum(parameter.numel() for parameter in model.hf.parameters())
    difference = save_pruned(model, result, folder, allow_plan_file=plan_file)
    after = sum(parameter.numel() for parameter in model.hf.parameters())
    return {"folder": str(folder), "parameters": after, "parameters_before": before, "max_difference": difference}


def _show(result: Pruning, run: Path, saved: dict[str, Any] | None, json: bool) -> None:
    order = [f"{layer}.{head}" for layer, head in result.order]
    if json:
        document = {"run": str(run), "model": result.model, "parameters": result.parameters, "order": order}
        emit({**document, "steps": result.frame.to_dict("records"), "saved": saved})
        return
    frame = result.frame[result.frame["heads"] != "random"]
    random = result.frame[result.frame["heads"] == "random"].groupby("removed").value
    frame = frame.assign(
        random=frame.removed.map(random.mean()),
        random_low=frame.removed.map(random.min()),
        random_high=frame.removed.map(random.max()),
    )
    stride = -(-(len(frame) - 1) // SHOWN)
    shown = frame[(frame.removed.rank() - 1) % stride == 0]
    title = (
        f"{result.model['name']}, {result.model['attention']} attention: {result.parameters['metric']} after removing "
        f"heads ({result.parameters['strategy']}, zero ablation), beside random ones"
    )
    columns = ["removed", "which", "value", "low", "high", "random", "random_low", "random_high", "n"]
    show_frame(title, shown.dropna(axis=1, how="all"), [name for name in columns if frame[name].notna().any()])
    written = {"order": " ".join(order), "run": str(run)}
    if saved is not None:
        written["model"] = (
            f"{saved['folder']} ({saved['parameters']:,} of {saved['parameters_before']:,} parameters, logits within "
            f"{saved['max_difference']:.1e} of the gated model's)"
        )
    show_written(**written)
    if saved is not None and (Path(saved["folder"]) / "compaction.json").is_file():
        say("The model's layers have other numbers of heads: kernels.compaction.load_compacted reads it.")
