"""`interp knob`: find the direction that decides between context and prior knowledge, measure it, turn it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from interp.cli.console import emit, out, progress, say, show_frame
from interp.cli.models import load_model
from interp.cli.options import Attention, Device, DType, Json, ModelName, Revision, Seed, numbers
from interp.errors import BadInput
from interp.runs import require_free

if TYPE_CHECKING:
    import pandas as pd

    from interp.knob import Behaviour, Knob, KnobResult, SideEffects
    from interp.tasks.context_prior import ContextItems, PromptForm
    from interp.tasks.prompts import PromptSet
    from interp.tracing.model import Model

app = typer.Typer(help="The direction that decides between context and prior knowledge.", no_args_is_help=True)

SETTINGS = "PRI,CTX,CP,PC"
NEEDLE_LENGTH, DEPTHS = 256, (0, 25, 50, 75, 100)
"""Tokens of needle tests of side effects, and where the needle is, in percent."""

Task = Annotated[
    str, typer.Option(help="facts, arithmetic, or a CSV with the columns of the authors' files.", show_default=True)
]
Count = Annotated[int, typer.Option(help="Items to generate, or to take from the file.", min=1)]
Form = Annotated[Literal["instruction", "weight"], typer.Option(help="How a prompt says what to follow.")]
Wording = Annotated[
    str | None,
    typer.Option(help="Whose words: paper or pocket.", show_default="that of the bundled model for pocket"),
]
Shots = Annotated[int, typer.Option(help="Items shown before the question, with their answers.", min=0)]
Chat = Annotated[
    bool | None,
    typer.Option("--chat/--no-chat", help="Use the chat template.", show_default="where there is one"),
]
Layer = Annotated[int | None, typer.Option(help="Layer of a knob whose file does not say it.", show_default=False)]
KnobFile = Annotated[
    Path, typer.Option("--knob", help="A run of interp knob fit, or a safetensors file.", show_default=False)
]
ContextValue = Annotated[
    float | None, typer.Option("--context", help="Value that means context.", show_default="the knob's")
]
PriorValue = Annotated[float | None, typer.Option("--prior", help="Value that means prior.", show_default="the knob's")]
Where = Annotated[Path | None, typer.Option("--out", help="Folder of the new run.", show_default="runs/MODEL-knob…")]


@app.command("search")
def search(
    model: ModelName,
    task: Task = "facts",
    n: Count = 200,
    settings: Annotated[str, typer.Option(help="Of PRI, CTX, CP, PC: what is patched into what.")] = SETTINGS,
    exhaustive: Annotated[bool, typer.Option("--exhaustive", help="Patch every range of layers instead.")] = False,
    threshold: Annotated[float, typer.Option(help="Probability of the answer that counts as found.")] = 0.88,
    form: Form = "instruction",
    wording: Wording = None,
    shots: Shots = 0,
    chat: Chat = None,
    to: Where = None,
    seed: Seed = 0,
    device: Device = None,
    dtype: DType = None,
    attention: Attention = None,
    revision: Revision = None,
    json: Json = False,
) -> None:
    """Which layers' attention decides: two binary searches and a refinement for each setting."""
    run, started = _run(to, model, "knob-search")
    items, said = _material(model, task, n, shots, form, wording, chat, seed)
    from interp.knob import search_exhaustively, search_layers

    loaded = load_model(model, device=device, dtype=dtype, attention=attention, revision=revision)
    wanted: Any = [name.strip() for name in settings.split(",") if name.strip()]
    if exhaustive:
        ranges = search_exhaustively(loaded, items, wanted, form=said, seed=seed)
        ranges.save(run, started)
        single = {setting: ranges.single(setting) for setting in wanted}
        found, title = ranges.frame, f"every range of layers of {loaded.spec.name}; alone, best first: {single}"
        about: dict[str, Any] = {"single": single}
    else:
        with progress("searching") as report:
            result = search_layers(loaded, items, wanted, form=said, threshold=threshold, seed=seed, progress=report)
        result.save(run, started)
        found, title = result.summary, f"{result!r}"
        about = {"layers": {name: list(each.layers) for name, each in result.found.items()}}
        about["evaluations"] = result.evaluations
    if json:
        emit({"run": str(run), **about, "settings": found.to_dict("records")})
    else:
        show_frame(title, found)
        _say_where(run)


@app.command("fit")
def fit(
    model: ModelName,
    task: Task = "facts",
    n: Count = 400,
    layers: Annotated[str, typer.Option(help="Layers to fit after, such as 14,15,16.", show_default="all")] = "",
    rank: Annotated[int, typer.Option(help="Dimensions of the subspace.", min=1)] = 1,
    steps: Annotated[int, typer.Option(help="At most so many steps of training.", min=1)] = 600,
    form: Form = "instruction",
    wording: Wording = None,
    shots: Shots = 0,
    chat: Chat = None,
    to: Where = None,
    seed: Seed = 0,
    device: Device = None,
    dtype: DType = None,
    attention: Attention = None,
    revision: Revision = None,
    json: Json = False,
) -> None:
    """Fit a knob after every layer, beside its baselines, and write a run with the best one in it."""
    run, started = _run(to, model, "knob")
    items, said = _material(model, task, n, shots, form, wording, chat, seed)
    chosen = numbers("--layers", layers, int)
    from interp.knob import Training, fit_knob

    loaded = load_model(model, device=device, dtype=dtype, attention=attention, revision=revision)
    with progress("fitting") as report:
        result = fit_knob(
            loaded,
            items,
            chosen or None,
            rank,
            form=said,
            training=Training(steps=steps),
            seed=seed,
            progress=report,
        )
    result.save(run, started)
    if json:
        emit(fit_document(result, run))
    else:
        show_fit(result, run)


@app.command("eval")
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
    to: Where = None,
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
    run, started = _run(to, model, "knob-eval")
    tried = numbers("--values", values, float)
    turned = read_knob(knob, layer, context, prior)
    items, said = _material(model, task, n, shots, form, wording, chat, seed)
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


@app.command("side-effects")
def side_effects(
    model: ModelName,
    knob: KnobFile,
    tasks: Annotated[
        str, typer.Option(help="Tasks that have nothing to do with it: ioi, needle; for pocket any of its skills.")
    ] = "ioi,needle",
    n: Annotated[int, typer.Option(help="Prompts of each task.", min=1)] = 40,
    context: ContextValue = None,
    prior: PriorValue = None,
    layer: Layer = None,
    to: Where = None,
    seed: Seed = 0,
    device: Device = None,
    dtype: DType = None,
    attention: Attention = None,
    revision: Revision = None,
    json: Json = False,
) -> None:
    """What setting the knob costs tasks that have nothing to do with it."""
    run, started = _run(to, model, "knob-side-effects")
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


@app.command("steer")
def steer(
    model: ModelName,
    knob: KnobFile,
    prompts: Annotated[
        list[str] | None, typer.Option("--prompt", help="A prompt; may be repeated.", show_default="generated items")
    ] = None,
    at: Annotated[str, typer.Option(help="Settings side by side: none, context, prior or values.")] = (
        "none,context,prior"
    ),
    n: Annotated[int, typer.Option(help="Items to generate where no prompt is given.", min=1)] = 3,
    new_tokens: Annotated[int, typer.Option(help="Tokens to generate.", min=1)] = 10,
    layer: Layer = None,
    wording: Wording = None,
    seed: Seed = 0,
    device: Device = None,
    dtype: DType = None,
    attention: Attention = None,
    revision: Revision = None,
    json: Json = False,
) -> None:
    """Generate with the knob at several settings, side by side."""
    turned = read_knob(knob, layer)
    settings = [_setting(part.strip()) for part in at.split(",") if part.strip()]
    edits = [[] if setting == "none" else [turned.edit(setting)] for setting in settings]
    if not edits:
        raise BadInput(f"--at {at!r} names no setting; give some of none, context, prior and numbers")
    loaded = load_model(model, device=device, dtype=dtype, attention=attention, revision=revision)
    turned.check(loaded)
    asked: Any = prompts
    if not asked:
        from interp.tasks.context_prior import context_prompts

        items, said = _material(model, "facts", n, 0, "instruction", wording, None, seed)
        asked = context_prompts(loaded.tokenizer, items, said.silent, ("context",))
    texts = [loaded.generate(asked, max_new_tokens=new_tokens, edits=edit).texts for edit in edits]
    shown = list(prompts) if prompts else list(asked.texts)
    rows = [
        {"prompt": prompt, **{str(setting): text[i] for setting, text in zip(settings, texts, strict=True)}}
        for i, prompt in enumerate(shown)
    ]
    if json:
        emit({"knob": repr(turned), "generations": rows})
    else:
        show_frame(f"{turned!r} on {loaded.spec.name}", _frame(rows))


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


def _run(to: Path | None, model: str, kind: str) -> tuple[Path, datetime]:
    """Where the run goes, checked before the work, and when that began."""
    run = to or Path("runs") / f"{Path(model).resolve().name}-{kind}"
    require_free(run)
    return run, datetime.now(timezone.utc)


def _material(
    model: str, task: str, n: int, shots: int, form: Any, wording: str | None, chat: bool | None, seed: int
) -> tuple[ContextItems, PromptForm]:
    """The items that the options describe and the form of their prompts. Raises BadInput, UnreadableFile."""
    from interp.tasks.context_prior import PromptForm, arithmetic_items, fact_items, read_context_csv

    if task == "facts":
        items = fact_items(n + shots, seed)
    elif task == "arithmetic":
        items = arithmetic_items(n + shots, seed)
    elif Path(task).is_file():
        items = read_context_csv(task, drop=True)
        items = items.take(range(min(n + shots, len(items))))
    else:
        raise BadInput(f"--task {task} is neither facts nor arithmetic nor a file")
    if len(items) <= shots:
        raise BadInput(f"--shots {shots} of {len(items)} items leave none to ask")
    said = PromptForm(form, wording or ("pocket" if model == "pocket" else "paper"), items.items[:shots], chat)
    return items.take(range(shots, len(items))), said


def fit_document(result: KnobResult, run: Path) -> dict[str, Any]:
    """What `--json` prints."""
    return {
        "run": str(run),
        "layer": result.layer,
        "values": dict(result.knob.values),
        "model": result.model,
        "parameters": result.parameters,
        "seed": result.seed,
        "layers": result.frame.to_dict("records"),
        "behaviour": None if result.behaviour is None else result.behaviour.frame.to_dict("records"),
    }


def show_fit(result: KnobResult, run: Path) -> None:
    frame = result.frame[["layer", "method", "accuracy", "accuracy_low", "accuracy_high", "separation", "n"]]
    show_frame(f"interchange at the last token of {result.model['name']}; {result.knob!r}", frame)
    if result.behaviour is not None:
        show_frame(f"{result.behaviour!r}", _rates(result.behaviour))
    _say_where(run)


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
    show_frame(f"{result!r}, {knob!r}", _rates(result))
    if result.settings:
        show_frame("answers along the coordinate", result.curve[["value", "context", "prior", "other", "n"]])
    _say_where(run)


def show_side_effects(result: SideEffects, knob: Knob, run: Path) -> None:
    show_frame(f"{result!r}, {knob!r}", result.frame)
    _say_where(run)


def _rates(behaviour: Behaviour) -> pd.DataFrame:
    return behaviour.frame[["setting", "intent", "context", "prior", "other", "right", "pair_accuracy", "n"]]


def _frame(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(rows)


def _say_where(run: Path) -> None:
    out.print(f"Run: {run}", markup=False, highlight=False, soft_wrap=True)
