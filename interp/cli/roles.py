"""`interp heads roles`: previous-token, duplicate-token, induction and echo heads of a model."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated

import typer

from interp.cli.console import emit, show_frame, show_written
from interp.cli.models import load_model
from interp.cli.options import Attention, Device, DType, Json, ModelName, Revision, Seed, new_run, out_option


def roles(
    model: ModelName,
    segment: Annotated[
        int | None, typer.Option(help="Different random tokens that are repeated.", min=2, show_default="48, or fewer")
    ] = None,
    repeats: Annotated[int, typer.Option(help="Times that they come.", min=2)] = 3,
    n: Annotated[int, typer.Option("--n", "-n", help="Sequences to average over.", min=1)] = 16,
    rows: Annotated[int, typer.Option(help="Heads to show for each role.", min=1)] = 5,
    to: Annotated[Path | None, out_option("runs/MODEL-roles")] = None,
    seed: Seed = 0,
    device: Device = None,
    dtype: DType = None,
    attention: Attention = None,
    revision: Revision = None,
    json: Json = False,
) -> None:
    """Score every head by what it looks at in repeated random tokens, in one forward pass."""
    run = new_run(to, model, "roles")
    from interp.heads.roles import head_roles

    started = datetime.now(timezone.utc)
    loaded = load_model(model, device=device, dtype=dtype, attention=attention, revision=revision)
    found = head_roles(loaded, segment=segment, repeats=repeats, sequences=n, seed=seed)
    found.save(run, started)
    frame = found.frame
    if json:
        emit(
            {
                "run": str(run),
                "model": found.model,
                "parameters": found.parameters,
                "seed": seed,
                "heads": frame.to_dict("records"),
            }
        )
        return
    show_frame(f"head roles of {found.model['name']}", frame.groupby("role", sort=False).head(rows))
    show_written(run=run)
