"""`interp conformance`: everything the workbench does to a model, tried on every backend."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from interp.cli.console import emit, say, show_frame
from interp.cli.models import load_model
from interp.cli.options import Device, Json, ModelName, Revision

if TYPE_CHECKING:
    import pandas as pd

    from interp.tracing.model import Model


def conformance(
    model: ModelName,
    backend: Annotated[
        list[str] | None, typer.Option(help="Backend to try; again for several. All of them by default.")
    ] = None,
    kernel: Annotated[
        list[str] | None,
        typer.Option(help="Attention implementation to try beside the model's own; eager and sdpa by default."),
    ] = None,
    device: Device = None,
    dtype: Annotated[str, typer.Option(help="Number type of the weights; auto as stored.")] = "float32",
    revision: Revision = None,
    json: Json = False,
) -> None:
    """Check on every backend that a model is read and edited rightly; a check that fails exits with 1."""
    from interp.tracing.loading import BACKENDS, check_backend

    for name in backend or ():
        check_backend(name)
    loaded = load_model(model, device=device, dtype=dtype, revision=revision)
    frame = _tried(loaded, backend or list(BACKENDS), kernel or ["eager", "sdpa"])
    if json:
        emit(frame.to_dict("records"))
    else:
        for (name, attention), outcomes in frame.groupby(["backend", "attention"], sort=False):
            shown = outcomes.drop(columns=["backend", "attention"])
            shown["error"] = ["" if error != error else f"{error:.0e}" for error in shown["error"]]
            show_frame(f"{name} backend, {attention} attention", shown)
    if (frame["result"] == "fail").any():
        raise typer.Exit(1)


def _tried(model: Model, backends: list[str], implementations: list[str]) -> pd.DataFrame:
    import pandas as pd

    from interp.conformance import Conformance, conformance
    from interp.conformance.checks import kernels
    from interp.tracing.loading import wrap

    reports = []
    for backend in backends:
        own = backend == model.backend.name
        tried = model if own else wrap(model.hf, tokenizer=model.tokenizer, backend=backend, name=model.spec.name)
        reports.append(conformance(tried, reference=None if own else model))
        say(str(reports[-1]))
    outcomes = tuple(kernels(model, implementations))
    reports.append(Conformance(model.spec.name, model.spec.family, model.backend.name, model.attention, outcomes))
    return pd.concat([report.frame for report in reports], ignore_index=True)
