"""`interp project`: hidden states of labelled texts along principal components and the directions that runs found."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp.cli.console import emit, show_frame, show_written
from interp.cli.models import load_model
from interp.cli.options import CONCEPTS, Attention, Device, DType, Json, ModelName, Revision, Seed, new_run, out_option
from interp.errors import BadInput

if TYPE_CHECKING:
    from interp.directions import Direction
    from interp.tasks.labelled import LabelledTexts

SHOWN = ("axis", "accuracy", "accuracy_low", "accuracy_high", "shuffled", "random", "n")


def project(
    model: ModelName,
    data: Annotated[
        str, typer.Option(help=f"One of {CONCEPTS}; or a file of texts and labels (.jsonl, .csv).")
    ] = "sentiment",
    n: Annotated[int, typer.Option("--n", "-n", help="Texts of a generated concept, at most.", min=6)] = 160,
    difficulty: Annotated[int, typer.Option(help="Difficulty of a generated concept.", min=1, max=3)] = 1,
    site: Annotated[str, typer.Option(help="Where to read.", show_default="resid_post of the last layer")] = "",
    position: Annotated[int, typer.Option(help="Which token, negative ones from the end.")] = -1,
    components: Annotated[int, typer.Option(help="Principal components.", min=0)] = 2,
    mean_difference: Annotated[
        bool, typer.Option("--mean-difference", help="Also the difference of two labels' means, of half of the texts.")
    ] = False,
    directions: Annotated[
        list[Path] | None,
        typer.Option("--directions-of", help="A run of a knob, probes or projection at this site; may be repeated."),
    ] = None,
    to: Annotated[Path | None, out_option("runs/MODEL-projection")] = None,
    seed: Seed = 0,
    device: Device = None,
    dtype: DType = None,
    attention: Attention = None,
    revision: Revision = None,
    json: Json = False,
) -> None:
    """Project hidden states of labelled texts on a few directions: can labels be told there, and by chance?"""
    run, started = new_run(to, model, "projection"), datetime.now(timezone.utc)
    texts = _labelled(data, n, difficulty, seed)
    along = _directions(directions or ())
    from interp.projection import project as measure

    loaded = load_model(model, device=device, dtype=dtype, attention=attention, revision=revision)
    site = site or f"resid_post.{loaded.spec.layers - 1}"
    result = measure(
        loaded,
        texts.texts,
        texts.labels,
        site,
        position=position,
        directions=_at(site, along),
        components=components,
        mean_difference=mean_difference,
        groups=texts.groups,
        seed=seed,
    )
    result.save(run, started)
    if json:
        emit({"run": str(run), "parameters": result.parameters, "separation": result.separation.to_dict("records")})
    else:
        show_frame(f"{result!r}", result.separation, SHOWN)
        show_written(run=run)


def _labelled(data: str, n: int, difficulty: int, seed: int) -> LabelledTexts:
    from interp.tasks.concepts import concept
    from interp.tasks.labelled import LabelledTexts

    if Path(data).suffix in (".jsonl", ".csv"):
        return LabelledTexts.from_file(data)
    made = concept(data)
    return made.texts(made.at_most(n, difficulty), difficulty, seed)


def _directions(paths: Sequence[Path]) -> dict[str, Direction]:
    """Those of all runs. Raises BadInput where two are called the same."""
    from interp.directions import directions_of

    found: dict[str, Direction] = {}
    for path in paths:
        of_run = directions_of(path)
        if both := found.keys() & of_run.keys():
            raise BadInput(f"two of the runs have a direction called {min(both)!r}; project on one of them at a time")
        found |= of_run
    return found


def _at(site: str, found: dict[str, Direction]) -> dict[str, Any]:
    """The vectors at this site. Raises BadInput naming where there are some, if there are any."""
    here = {name: direction.vector for name, direction in found.items() if direction.site == site}
    if found and not here:
        sites = ", ".join(sorted({direction.site for direction in found.values()}))
        raise BadInput(f"the runs of --directions-of have none at {site}; they have some at {sites}")
    return here
