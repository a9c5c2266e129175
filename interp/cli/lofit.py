"""`interp skill lofit`: teach a skill by offsets of a few heads, beside random heads, all heads, ITI and LoRA."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from interp.cli.console import emit, progress, say, show_frame, show_written
from interp.cli.models import load_model
from interp.cli.options import Device, DType, Json, ModelName, Seed, new_run, numbers, out_option
from interp.cli.task_options import TaskOptions
from interp.errors import BadInput, choose
from interp.runs import require_free, require_writable

if TYPE_CHECKING:
    from interp.skills.lofit import Lofit
    from interp.skills.lofit_skill import Skill
    from interp.skills.lofit_training import Recipe
    from interp.tracing.model import Model

MEMORY = "memory"
POCKET = "pocket"
TASK_HELP = "memory (pocket only), sentiment, entailment, topic, another domain of one (topic:scenes), or a JSONL file."


def lofit(
    model: ModelName,
    task: Annotated[str, typer.Option(help=TASK_HELP)] = MEMORY,
    other: Annotated[str, typer.Option(help="Another task, whose heads are a control.", show_default=False)] = "",
    recipe: Annotated[
        str,
        typer.Option(
            help="Settings: pocket, or those of a published model and task, such as gemma-7b/mquake.",
            show_default="pocket for pocket, else llama-2-7b/truthfulqa",
        ),
    ] = "",
    loss: Annotated[
        Literal["completion", "dpo"] | None, typer.Option(help="What training lowers.", show_default="the recipe's")
    ] = None,
    heads: Annotated[str, typer.Option(help="Numbers of heads to try: 1,3,8.", show_default="the recipe's")] = "",
    learning_rate: Annotated[
        float | None, typer.Option(help="Learning rate of the offsets.", show_default="the recipe's")
    ] = None,
    selection_rate: Annotated[
        float | None, typer.Option(help="Learning rate of the scales that select heads.", show_default="the recipe's")
    ] = None,
    l1: Annotated[
        float | None, typer.Option(help="Weight of the L1 norm of the scales.", show_default="the recipe's")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs of every fit.", show_default="the recipe's")] = None,
    seeds: Annotated[str, typer.Option(help="Seeds; everything is fitted once with each.")] = "0,1,2",
    baselines: Annotated[
        str,
        typer.Option(
            help="What to compare with, of random,other,all,iti,lora.", show_default="all that the task allows"
        ),
    ] = "",
    top_heads: Annotated[
        Path | None, typer.Option(help="Also write the best heads as the authors' .npy.", show_default=False)
    ] = None,
    save: Annotated[
        Path | None, typer.Option(help="Also write the model with the offsets in its biases.", show_default=False)
    ] = None,
    template: Annotated[str, typer.Option(help="Prompt of a JSONL task, with {text} and {pair}.")] = "",
    words: Annotated[str, typer.Option(help="Words of a JSONL task's labels: positive=great,negative=terrible.")] = "",
    sizes: Annotated[str, typer.Option(help="Examples of a task, such as train=512,test=256.")] = "",
    to: Annotated[Path | None, out_option("runs/MODEL-lofit")] = None,
    device: Device = None,
    dtype: DType = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Select heads, fit their offsets, and compare with what needs no selection; all into a new run."""
    run = new_run(to, model, "lofit")
    if save is not None:
        require_free(save)
    if top_heads is not None:
        require_writable(top_heads)
    counts, draws = numbers("--heads", heads, int), numbers("--seeds", seeds, int)
    from interp.skills import lofit as study
    from interp.skills.lofit_heads import write_top_heads

    changed: dict[str, Any] = {"loss": loss, "learning_rate": learning_rate, "l1": l1, "epochs": epochs}
    changed |= {"selection_learning_rate": selection_rate, "heads": counts[0] if counts else None}
    settings = replace(_recipe(recipe, model), **{name: value for name, value in changed.items() if value is not None})
    started = datetime.now(timezone.utc)
    loaded = load_model(model, device=device, dtype=dtype)

    def skill(name: str) -> Skill:
        return _skill(loaded, model, name, template, words, sizes, seed)

    names: Any = tuple(name.strip() for name in baselines.split(",") if name.strip()) or None
    with progress("fitting") as report:
        result = study.lofit(
            loaded,
            skill(task),
            settings,
            counts=counts,
            seeds=draws,
            baselines=names,
            other=skill(other) if other else None,
            seed=seed,
            progress=report,
        )
    result.save(run, started)
    if top_heads is not None:
        write_top_heads(result.selections[draws[0]], top_heads)
    try:
        saved = None if save is None else _save(loaded, result, save)
    except BadInput:
        say(f"The run is in {run}; the folded model was not written.")
        raise
    _show(result, run, saved, json)


def _recipe(name: str, model: str) -> Recipe:
    from interp.skills import lofit_training as training

    name = name or (POCKET if model == POCKET else "llama-2-7b/truthfulqa")
    recipes = {POCKET: training.POCKET, **training.PUBLISHED}
    if name not in recipes:
        raise BadInput(f"there is no recipe {name!r}; {choose(name, recipes)}")
    return recipes[name]


def _skill(model: Model, name: str, task: str, template: str, words: str, sizes: str, seed: int) -> Skill:
    from interp.skills.lofit_skill import Skill, memory_skill

    if task != MEMORY:
        return Skill.of(TaskOptions(task, template, words, None, sizes).build_one(model, seed))
    if name != POCKET:
        raise BadInput("the task memory is made of what pocket knows; name another --task for another model")
    counts = {key: int(value) for key, _, value in (part.partition("=") for part in sizes.split(",") if part)}
    return memory_skill(model.tokenizer, counts.get("train", 128), counts.get("test", 200), seed)


def _save(model: Model, result: Lofit, folder: Path) -> dict[str, Any]:
    from interp.skills.lofit_folding import save_folded

    count, offsets = next(iter(result.offsets.items()))
    return {"folder": str(folder), "heads": count, "relative_difference": save_folded(model, offsets, folder)}


def _show(result: Lofit, run: Path, saved: dict[str, Any] | None, json: bool) -> None:
    comparison = result.comparison()
    if json:
        document = {"run": str(run), "model": result.model, "parameters": result.parameters, "saved": saved}
        rows = {"conditions": result.frame.to_dict("records"), "comparison": comparison.to_dict("records")}
        emit(document | rows)
        return
    columns = ["condition", "heads", "seed", "which", "parameters", "accuracy", "low", "high", "n"]
    show_frame(f"{result.parameters['skill']} by {result.model['name']}", result.frame, columns)
    show_frame("accuracy of LoFiT less that of", comparison)
    written = {"run": str(run)}
    if saved is not None:
        written["model"] = (
            f"{saved['folder']} (offsets of {saved['heads']} heads in its biases, logits within "
            f"{saved['relative_difference']:.1e} of the edited model's)"
        )
    show_written(**written)
