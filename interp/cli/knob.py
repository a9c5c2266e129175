"""`interp knob`: find the direction that decides between context and prior knowledge, measure it, turn it."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp.cli import knob_turned
from interp.cli.console import emit, progress, show_frame, show_written
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

if TYPE_CHECKING:
    from interp.knob import KnobResult

app = typer.Typer(help="The direction that decides between context and prior knowledge.", no_args_is_help=True)

SETTINGS = "PRI,CTX,CP,PC"


@app.command("search", epilog="Example: interp knob search pocket")
def search(
    model: ModelName,
    task: Task = "facts",
    n: Count = 200,
    settings: Annotated[str, typer.Option(help="Of PRI, CTX, CP, PC: which prompt is patched into which.")] = SETTINGS,
    exhaustive: Annotated[bool, typer.Option("--exhaustive", help="Patch every range of layers instead.")] = False,
    threshold: Annotated[float, typer.Option(help="Probability of the answer that counts as found.")] = 0.88,
    form: Form = "instruction",
    wording: Wording = None,
    shots: Shots = 0,
    chat: Chat = None,
    to: Annotated[Path | None, out_option("runs/MODEL-knob-search")] = None,
    seed: Seed = 0,
    device: Device = None,
    dtype: DType = None,
    attention: Attention = None,
    revision: Revision = None,
    json: Json = False,
) -> None:
    """Which layers' attention decides: two binary searches and a refinement for each setting."""
    run, started = new_run(to, model, "knob-search"), datetime.now(timezone.utc)
    items, said = material(model, task, n, shots, form, wording, chat, seed)
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
        show_written(run=run)


@app.command("fit", epilog="Example: interp knob fit pocket")
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
    to: Annotated[Path | None, out_option("runs/MODEL-knob")] = None,
    seed: Seed = 0,
    device: Device = None,
    dtype: DType = None,
    attention: Attention = None,
    revision: Revision = None,
    json: Json = False,
) -> None:
    """Fit a knob after every layer, beside its baselines, and write a run with the best one in it."""
    run, started = new_run(to, model, "knob"), datetime.now(timezone.utc)
    items, said = material(model, task, n, shots, form, wording, chat, seed)
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


app.command("eval", epilog="Example: interp knob eval pocket --knob runs/pocket-knob --values=-20,0,20,40")(
    knob_turned.evaluate
)
app.command("side-effects", epilog="Example: interp knob side-effects pocket --knob runs/pocket-knob")(
    knob_turned.side_effects
)
app.command("steer", epilog="Example: interp knob steer pocket --knob runs/pocket-knob")(knob_turned.steer)


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
        show_frame(f"{result.behaviour!r}", rates(result.behaviour))
    show_written(run=run)
