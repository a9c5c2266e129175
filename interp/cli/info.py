"""`interp info`: the shape of a model and what can be read and edited in it."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from interp.cli.console import emit, out, show_facts, show_frame, show_table
from interp.cli.models import load_model
from interp.cli.options import Attention, Device, DType, Json, ModelName, Revision


def info(
    model: ModelName,
    doctor: Annotated[
        bool,
        typer.Option("--doctor", help="Also check the model against itself; a failed check exits with 1."),
    ] = False,
    device: Device = None,
    dtype: DType = None,
    attention: Attention = None,
    revision: Revision = None,
    json: Json = False,
) -> None:
    """Show a model's shape, fingerprint and sites."""
    loaded = load_model(model, device=device, dtype=dtype, attention=attention, revision=revision)
    description = loaded.describe()
    spec = {
        **loaded.spec.as_dict(),
        "fingerprint": loaded.fingerprint,
        "backend": description.backend,
        "attention": description.attention,
    }
    diagnosis = loaded.doctor() if doctor else None
    if json:
        checks = {} if diagnosis is None else {"doctor": diagnosis.frame.to_dict("records")}
        emit({"model": spec, "sites": description.frame.to_dict("records"), **checks})
    else:
        show_facts(str(model), {name.replace("_", " "): value for name, value in spec.items()})
        sites = Table("site", "shape", "where", "what it is")
        for row in description.frame.to_dict("records"):
            where = row["where"] if row["available"] else f"not available: {row['reason']}"
            sites.add_row(*(Text(str(cell)) for cell in (row["site"], row["shape"], where, row["meaning"])))
        show_table("sites", sites)
        out.print(
            "[dim]B batch, T tokens, H query heads, K key/value heads, "
            "D width, Dh head width, M MLP width, V vocabulary"
        )
        if diagnosis is not None:
            show_frame("doctor", diagnosis.frame)
    if diagnosis is not None and not diagnosis.ok:
        raise typer.Exit(1)
