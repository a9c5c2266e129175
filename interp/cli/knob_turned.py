"""`interp knob eval|side-effects|steer`: what a knob that was found does when it is turned."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp.cli.console import emit, progress, say, show_frame, show_written
from interp.cli.knob_options import (
    Chat,
    Count,
    Form,
    Shots,
    Task,
    Wording,
    material,
    rates,
)
from interp.cli.models import load_model
from interp.cli.options import Attention, Device, DType, Json, ModelName, Revision, Seed, new_run, numbers, out_option
from interp.errors import BadInput

if TYPE_CHECKING:
    import pandas as pd

    from interp.knob import Behaviour, Knob, SideEffects
    from interp.tasks.context_prior import ContextItems
    from interp.tasks.prompts import PromptSet
    from interp.tracing.model import Model

NEEDLE_LENGTH, DEPTHS = 256, (0, 25, 50, 75, 100)
"""Tokens of needle tests of side effects, and where the needle is, in percent."""

Layer = Annotated[int | None, typer.Option(help="Layer of a knob whose file does not say it.", show_default=False)]
KnobFile = Annotated[
    Path, typer.Option("--knob", help="A run of interp knob fit, or a safetensors file.", show_default=False)
]
ContextValue = Annotated[
    float | None, typer.Option("--context", help="Value that means context.", show_default="the knob's")
]
PriorValue = Annotated[float | None, typer.Option("--prior", help="Value that means prior.", show_default="the knob's")]


def evaluate(
    model: ModelName,
    knob: KnobFile,
    task: Task = "facts",
    n: Count = 100,
    values: Annotated[
        str, typer.Option(help="Also set the coordinate to each of these, such as -6,0,6.", show_default=False)
    ] = "",
    context: ContextValue = None,
    prior: PriorValue = None,
    layer: Layer = None,
    form: Form = "instruction",
    wording: Wording = None,
    shots: Shots = 0,
    chat: Chat = None,
    to: Annotated[Path | None, out_option("runs/MODEL-knob-eval")] = None,
    seed: Seed = 1,
    device: Device = None,
    dtype: DType = None,
    attention: Attention = None,
    revision: Revision = None,
    json: Json = False,
) -> None:
    """What a model answers as instructed, without instruction, and steered by a knob of its own or of another model.

    Items that the knob was fitted on are left out, which is said.
    """
    run, started = new_run(to, model, "knob-eval"), datetime.now(timezone.utc)
    tried = numbers("--values", values, float)
    turned = read_knob(knob, layer, context, prior)
    items, said = material(model, task, n, shots, form, wording, chat, seed)
    items = _unseen(knob, items)
    from interp.knob import evaluate as measure

    loaded = load_model(model, device=device, dtype=dtype, attention=attention, revision=revision)
    with progress("answering") as report:
        result = measure(loaded, items, turned, form=said, values=tried, progress=report)
    result.save(run, started)
    if json:
        emit(eval_document(result, turned, run))
    else:
        show_eval(result, turned, run)


def side_effects(
    model: ModelName,
    knob: KnobFile,
    tasks: Annotated[
        str, typer.Option(help="Tasks that have nothing to do with it: ioi, needle; for pocket any of its skills.")
    ] = "ioi,needle",
    n: Annotated[int, typer.Option("--n", "-n", help="Prompts of each task.", min=1)] = 40,
    context: ContextValue = None,
    prior: PriorValue = None,
    layer: Layer = None,
    to: Annotated[Path | None, out_option("runs/MODEL-knob-side-effects")] = None,
    seed: Seed = 0,
    device: Device = None,
    dtype: DType = None,
    attention: Attention = None,
    revision: Revision = None,
    json: Json = False,
) -> None:
    """What setting the knob costs tasks that have nothing to do with it."""
    run, started = new_run(to, model, "knob-side-effects"), datetime.now(timezone.utc)
    turned = read_knob(knob, layer, context, prior)
    loaded = load_model(model, device=device, dtype=dtype, attention=attention, revision=revision)
    prompts = {name.strip(): _unrelated(loaded, model, name.strip(), n, seed) for name in tasks.split(",")}
    from interp.knob import side_effects as measure

    result = measure(loaded, turned, prompts, seed=seed)
    result.save(run, started)
    if json:
        emit({"run": str(run), "knob": repr(turned), "model": result.model, "tasks": result.frame.to_dict("records")})
    else:
        show_side_effects(result, turned, run)


def steer(
    model: ModelName,
    knob: KnobFile,
    prompts: Annotated[
        list[str] | None, typer.Option("--prompt", help="A prompt; may be repeated.", show_default="generated items")
    ] = None,
    at: Annotated[str, typer.Option(help="Settings, one a line: none, context, prior or values.")] = (
        "none,context,prior"
    ),
    n: Annotated[int, typer.Option("--n", "-n", help="Items to generate where no prompt is given.", min=1)] = 3,
    new_tokens: Annotated[int, typer.Option(help="Tokens to generate.", min=1)] = 10,
    controls: Annotated[int, typer.Option(help="Random directions beside each setting.", min=1)] = 2,
    layer: Layer = None,
    wording: Wording = None,
    seed: Seed = 0,
    device: Device = None,
    dtype: DType = None,
    attention: Attention = None,
    revision: Revision = None,
    json: Json = False,
) -> None:
    """Continue prompts with the knob at several settings, each beside random directions that move the state as far."""
    turned = read_knob(knob, layer)
    settings = [_setting(part.strip()) for part in at.split(",") if part.strip()]
    if not any(setting != "none" for setting in settings):
        raise BadInput(f"--at {at!r} names no setting of the knob; give some of context, prior and numbers")
    for setting in settings:
        if setting != "none":
            turned.value(setting)  # an unknown one is refused before the model is loaded
    loaded = load_model(model, device=device, dtype=dtype, attention=attention, revision=revision)
    turned.check(loaded)
    rows = [
        row
        for prompt in prompts or _generated(loaded, model, n, wording, seed)
        for row in _continued(loaded, turned, prompt, settings, new_tokens, controls, seed)
    ]
    if json:
        emit({"knob": repr(turned), "generations": rows})
        return
    say(f"{turned!r} on {loaded.spec.name}; random directions move the hidden state as far as the knob does.")
    for prompt, table in _frame(rows).groupby("prompt", sort=False):
        random = [f"random {number + 1}" for number in range(controls)]
        spread = _frame(dict(zip(random, texts, strict=False)) for texts in table["random"])
        shown = table[["at", "moved", "text"]].reset_index(drop=True).join(spread.reindex(columns=random))
        show_frame(str(prompt), shown.fillna(""))


def _generated(loaded: Model, model: str, n: int, wording: str | None, seed: int) -> list[PromptSet]:
    """One prompt an item: a context without an instruction."""
    from interp.tasks.context_prior import context_prompts

    items, said = material(model, "facts", n, 0, "instruction", wording, None, seed)
    asked = context_prompts(loaded.tokenizer, items, said.silent, ("context",))
    return [asked.select([i]) for i in range(len(asked))]


def _continued(
    loaded: Model,
    knob: Knob,
    prompt: str | PromptSet,
    settings: Sequence[str | float],
    new_tokens: int,
    controls: int,
    seed: int,
) -> list[dict[str, Any]]:
    """A row a setting: how far the state was moved, the text, and those under the random directions."""
    from interp.knob import steer as measure

    found = {
        setting: measure(loaded, knob, prompt, setting, new_tokens=new_tokens, controls=controls, seed=seed)
        for setting in settings
        if setting != "none"
    }
    rows = []
    for setting in settings:
        without, turned, *random = (found.get(setting) or next(iter(found.values()))).frame.to_dict("records")
        own, others = (without, []) if setting == "none" else (turned, random)
        about = {"prompt": prompt if isinstance(prompt, str) else prompt.texts[0], "at": setting}
        rows.append({**about, "moved": own["moved"], "text": own["text"], "random": [each["text"] for each in others]})
    return rows


def read_knob(path: Path, layer: int | None = None, context: float | None = None, prior: float | None = None) -> Knob:
    """The knob of a run or file, with values that were given in place of its own. Raises UnreadableFile, BadInput."""
    from interp.knob import Knob
    from interp.knob.result import KNOB_FILE

    knob = Knob.load(path / KNOB_FILE if path.is_dir() else path, layer)
    given = {name: value for name, value in (("context", context), ("prior", prior)) if value is not None}
    return knob.with_values(**{**knob.values, **given})


def _unseen(knob: Path, items: ContextItems) -> ContextItems:
    """The items that the knob of a run was not fitted on; says how many it was, or that a file alone does not say."""
    from interp.knob import KnobResult

    if not knob.is_dir():
        say(f"{knob} does not say what it was fitted on, so some of these items may be among it.")
        return items
    kept = KnobResult.load(knob).unseen(items)
    if len(kept) < len(items):
        say(f"{len(items) - len(kept)} of {len(items)} items are left out: the knob was fitted on them.")
    return kept


def _unrelated(loaded: Model, model: str, task: str, n: int, seed: int) -> PromptSet:
    """About `n` prompts of a task with answers: the bundled model's held-out items, for others IOI and needles."""
    from interp.tasks.ioi import ioi_prompts
    from interp.tasks.needle import needle_prompts

    if model == "pocket":
        from interp.pocket.prompts import skill_prompts

        return skill_prompts(loaded.tokenizer, task, n, seed)
    if task == "ioi":
        return ioi_prompts(loaded.tokenizer, n, seed)
    if task == "needle":
        each, length = -(-n // len(DEPTHS)), [min(NEEDLE_LENGTH, loaded.spec.context or NEEDLE_LENGTH)]
        return needle_prompts(loaded.tokenizer, length, DEPTHS, n_needles=each, seed=seed, context=loaded.spec.context)[
            :n
        ]
    raise BadInput(f"--tasks {task} is neither ioi nor needle; only pocket has further ones")


def _setting(text: str) -> str | float:
    if text in ("none", "context", "prior"):
        return text
    try:
        return float(text)
    except ValueError:
        raise BadInput(f"--at {text!r} is neither none, context or prior nor a number") from None


def eval_document(result: Behaviour, knob: Knob, run: Path) -> dict[str, Any]:
    """What `--json` prints."""
    return {
        "run": str(run),
        "knob": repr(knob),
        "model": result.model,
        "parameters": result.parameters,
        "settings": result.frame.to_dict("records"),
        "values": result.curve.to_dict("records"),
    }


def show_eval(result: Behaviour, knob: Knob, run: Path) -> None:
    show_frame(f"{result!r}, {knob!r}", rates(result))
    if result.settings:
        show_frame("answers along the coordinate", result.curve[["value", "context", "prior", "other", "n"]])
    show_written(run=run)


def show_side_effects(result: SideEffects, knob: Knob, run: Path) -> None:
    show_frame(f"{result!r}, {knob!r}", result.frame)
    show_written(run=run)


def _frame(rows: Iterable[dict[str, Any]]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(rows)
