"""`interp circuit reuse`: what the circuits of two tasks share, and repairing one with heads of the other."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp.cli.circuit_options import Attend, ColorStyle, Copy, Effect, IOIStyle, discovered, is_bundled
from interp.cli.console import emit, progress, say, show_facts, show_frame, show_written
from interp.cli.models import load_model
from interp.cli.options import Attention, Device, DType, Json, ModelName, Revision, Seed, new_run, out_option
from interp.errors import BadInput

if TYPE_CHECKING:
    from interp.circuits.discovery import Discovery
    from interp.circuits.repair import Repair
    from interp.circuits.reuse import CircuitReuse
    from interp.tasks.prompts import PromptSet
    from interp.tracing.model import Model


def reuse(
    model: ModelName,
    n: Annotated[int, typer.Option("--n", "-n", help="Prompts of each task.", min=2)] = 100,
    test: Annotated[int, typer.Option("--test", help="Prompts to repair; 0 leaves that out.", min=0)] = 100,
    force: Annotated[
        str | None,
        typer.Option(help="Heads to force onto the wrong colors, as 12.3,13.4.", show_default="IOI's own"),
    ] = None,
    controls: Annotated[int, typer.Option(help="Random sets of heads to force instead.", min=0)] = 10,
    ioi_style: IOIStyle = None,
    color_style: ColorStyle = None,
    effect: Effect = 0.02,
    attention_at_least: Attend = 0.3,
    copy: Copy = 0.5,
    to: Annotated[Path | None, out_option("runs/MODEL-circuit-reuse")] = None,
    seed: Seed = 0,
    device: Device = None,
    dtype: DType = None,
    attention: Attention = None,
    revision: Revision = None,
    json: Json = False,
) -> None:
    """Compare the circuits of IOI and coloured objects, and repair the second with heads of the first."""
    run = new_run(to, model, "circuit-reuse")
    forced = None if force is None else parse_heads(force)
    from interp.circuits.colored_objects import colored_objects_circuit
    from interp.circuits.discovery import Thresholds
    from interp.circuits.ioi import ioi_circuit
    from interp.circuits.reuse import circuit_reuse
    from interp.tasks.colored_objects import colored_object_prompts
    from interp.tasks.ioi import ioi_prompts

    started = datetime.now(timezone.utc)
    loaded = load_model(model, device=device, dtype=dtype, attention=attention, revision=revision)
    names = ioi_style or ("pocket" if is_bundled(loaded) else "general")
    colors = color_style or ("lower" if is_bundled(loaded) else "title")
    thresholds = Thresholds(effect, attention_at_least, copy)
    people = ioi_prompts(loaded.tokenizer, n, seed, style=names, corruption="ABC")
    scenes = colored_object_prompts(loaded.tokenizer, n, seed, style=colors)
    a = discovered(ioi_circuit, loaded, people, thresholds, seed)
    b = discovered(colored_objects_circuit, loaded, scenes, thresholds, seed)
    shared = circuit_reuse(a, b, seed=seed)
    if test:
        fresh = colored_object_prompts(loaded.tokenizer, test, seed + 1, style=colors)
        shared = replace(shared, repair=_repaired(loaded, a, forced, fresh, controls, seed))
    shared.save(run, started)
    if json:
        emit(_reuse_document(shared, run))
    else:
        _show_reuse(shared, run)


def parse_heads(text: str) -> list[tuple[int, int]]:
    """`"12.3,13.4"` as heads. Raises BadInput."""
    try:
        pairs = [tuple(map(int, part.split("."))) for part in text.split(",")]
        return [(layer, head) for layer, head in pairs]
    except ValueError:
        raise BadInput(f"--force {text} is not a list of heads such as 12.3,13.4") from None


def _repaired(
    model: Model,
    found: Discovery,
    forced: list[tuple[int, int]] | None,
    prompts: PromptSet,
    controls: int,
    seed: int,
) -> Repair | None:
    from interp.circuits.repair import repair, repairing_components

    components: dict[str, Any] = {"chosen": forced} if forced else dict(repairing_components(found))
    if not components:
        say("No head of IOI inhibits or writes against what it attends to, so none is forced; name some with --force")
        return None
    with progress("repairing") as report:
        return repair(model, prompts, components, controls=controls, seed=seed, progress=report)


def _reuse_document(shared: CircuitReuse, run: Path) -> dict[str, Any]:
    return {
        "run": str(run),
        "model": shared.a.model,
        "parameters": shared.parameters,
        "seed": shared.seed,
        "accuracy": {each.task: each.accuracy for each in (shared.a, shared.b)},
        "contrast": {each.task: vars(each.contrast) for each in (shared.a, shared.b)},
        "overlap": shared.frame.to_dict("records"),
        "roles": shared.agreement.to_dict("records"),
        "repair": None if shared.repair is None else shared.repair.frame.to_dict("records"),
    }


def _show_reuse(shared: CircuitReuse, run: Path) -> None:
    facts = {f"accuracy, {each.task}": f"{each.accuracy:.3f}" for each in (shared.a, shared.b)}
    show_facts(f"circuit reuse in {shared.a.model['name']}", facts)
    bounds = ("overlap", "overlap_low", "overlap_high", "overlap_chance")
    columns = ("share", "per_stage", *bounds, "jaccard", "shared", "union", "which")
    show_frame("heads shared by the top of each stage", shared.frame, columns)
    show_frame("heads with the same role", shared.agreement)
    if shared.repair is not None:
        show_frame("attention at the end forced onto the wrong colors", shared.repair.frame)
    show_written(run=run)
