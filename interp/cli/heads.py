"""`interp heads`: score heads, show what was found, and exchange head masks with other tools."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from interp.cli.ablate import ablate
from interp.cli.cache import cache
from interp.cli.console import emit, out, say, show_frame, show_written
from interp.cli.models import load_model
from interp.cli.options import Json, new_run, out_option
from interp.cli.prune import prune
from interp.cli.roles import roles
from interp.cli.score import MASK_FILE, score
from interp.errors import BadInput, UnreadableFile
from interp.runs import load_run, require_free

if TYPE_CHECKING:
    import pandas as pd

    from interp.heads.formats import Loss
    from interp.heads.mask import HeadMask

app = typer.Typer(help="Score, ablate and prune attention heads; export and import head masks.", no_args_is_help=True)
app.command("score", epilog="Example: interp heads score pocket --causal")(score)
app.command("roles", epilog="Example: interp heads roles pocket")(roles)
app.command("cache", epilog="Example: interp heads cache pocket --heads 1,2")(cache)
app.command("ablate", epilog="Example: interp heads ablate pocket --top 2 --lengths 256")(ablate)
app.command("prune", epilog="Example: interp heads prune pocket --budget 16 --unit kv-group --save small --plan-file")(
    prune
)

Source = Annotated[
    Path, typer.Argument(help="A run of `heads score`, or a mask file of any format.", show_default=False)
]
Format = Annotated[str | None, typer.Option("--format", help="File format.", show_default="recognised from the file")]

ENDINGS = {
    "duo": "-duo",
    "headkv": "_retrieval_heads.json",
    "json": ".json",
    "npy": ".npy",
    "safetensors": ".safetensors",
}
"""By format, how the name of an exported file ends; some formats are told by it."""


@app.command(epilog="Example: interp heads show runs/pocket-retrieval")
def show(
    source: Source,
    rows: Annotated[int, typer.Option(help="Heads to show, best first.", min=1)] = 20,
    format_: Format = None,
    json: Json = False,
) -> None:
    """Show the best heads of a run or mask, and which are selected."""
    mask = read(source, format_)
    frame = mask_frame(mask)
    if json:
        emit({**about(mask), "heads": frame.to_dict("records")})
        return
    chosen = f"{len(mask.heads)} selected ({mask.rule})" if mask.selected is not None else "none selected"
    title = f"{mask.method or 'scores'} of {mask.model or 'an unnamed model'}: {len(frame)} {mask.kind} heads, {chosen}"
    show_frame(title, frame.head(rows))
    if (causal := source / "causal.parquet").is_file():
        import pandas as pd

        columns = ("ablation", "heads", "seed", "recall", "low", "high", "relative", "log_probability", "n")
        show_frame("recall under ablation", pd.read_parquet(causal), columns)


@app.command("export", epilog="Example: interp heads export runs/pocket-retrieval --format duo --kv max --sparsity 0.5")
def export_mask(
    source: Source,
    format_: Annotated[
        str, typer.Option("--format", help="json, safetensors, retrieval-head, qrhead, duo, razor, headkv or npy.")
    ],
    threshold: Annotated[
        float | None, typer.Option(help="Select the heads that score at least this.", show_default=False)
    ] = None,
    top: Annotated[int | None, typer.Option(help="Select this many heads.", min=1, show_default=False)] = None,
    sparsity: Annotated[
        float | None, typer.Option(help="Select all but this share of the heads.", show_default=False)
    ] = None,
    kv: Annotated[
        Literal["max", "mean"] | None,
        typer.Option(help="Score key/value heads by the max or mean of their query heads.", show_default=False),
    ] = None,
    to: Annotated[Path | None, out_option("runs/SOURCE-FORMAT", "The new file, or folder of duo.")] = None,
    json: Json = False,
) -> None:
    """Write a mask in a format that other tools read, such as duo for kvpress."""
    from interp.heads.formats import write_mask

    if sum(option is not None for option in (threshold, top, sparsity)) > 1:
        raise BadInput("--threshold, --top and --sparsity are ways to select heads; give one")
    to = to or Path("runs") / f"{source.resolve().stem}{ENDINGS.get(format_, f'-{format_}.json')}"
    require_free(to)
    mask = read(source)
    if kv is not None:
        mask = mask.to_kv(kv)
    if threshold is not None:
        mask = mask.threshold(threshold)
    elif top is not None:
        mask = mask.top(top)
    elif sparsity is not None:
        mask = mask.quantile(sparsity)
    losses = write_mask(mask, to, format_)
    report(mask, to, losses, json)


@app.command("import", epilog="Example: interp heads import scores.json --model ./llama")
def import_mask(
    file: Annotated[Path, typer.Argument(help="Mask file or folder of another tool.", show_default=False, exists=True)],
    model: Annotated[str, typer.Option(help="The model whose heads it scores.", show_default=False)],
    to: Annotated[Path | None, out_option("runs/MODEL-mask.json", "The new file.")] = None,
    format_: Format = None,
    json: Json = False,
) -> None:
    """Read another tool's mask, check that it fits the model, and write it in our own format."""
    from interp.heads.formats import read_mask, write_mask

    to = new_run(to, model, "mask.json")
    loaded = load_model(model)
    spec = loaded.spec
    mask = read_mask(file, format_, like=spec).check(spec, loaded.fingerprint)
    named = replace(mask, model=spec.name, family=spec.family, fingerprint=loaded.fingerprint, kv_heads=spec.kv_heads)
    report(named, to, write_mask(named, to, "json"), json)


def read(source: Path, format_: str | None = None) -> HeadMask:
    """The mask of a run or of a file."""
    from interp.heads.formats import read_mask

    if (source / "run.json").is_file():
        record = load_run(source).record
        if not (source / MASK_FILE).is_file():
            raise UnreadableFile(f"the run {source} ({record.kind}) holds no head mask")
        return read_mask(source / MASK_FILE, "json")
    return read_mask(source, format_)


def mask_frame(mask: HeadMask) -> pd.DataFrame:
    """One row a head, best first."""
    import pandas as pd

    rows = [{"layer": layer, "head": head, "score": float(mask.scores[layer, head])} for layer, head in mask.ranking]
    frame = pd.DataFrame(rows)
    if mask.selected is not None:
        frame["selected"] = ["yes" if mask.selected[head] else "" for head in mask.ranking]
    return frame


def about(mask: HeadMask) -> dict[str, Any]:
    return {
        "method": mask.method,
        "model": mask.model,
        "fingerprint": mask.fingerprint,
        "kind": mask.kind,
        "rule": mask.rule,
        "selected": mask.heads,
    }


def report(mask: HeadMask, to: Path, losses: Sequence[Loss], json: bool) -> None:
    """Where the mask was written, and what that format does not keep of it."""
    if json:
        emit({"mask": str(to), **about(mask), "lost": {loss.field: loss.why for loss in losses}})
        return
    for why in dict.fromkeys(loss.why for loss in losses):
        say(f"Not kept: {', '.join(loss.field for loss in losses if loss.why == why)} ({why}).")
    out.print(repr(mask), markup=False, highlight=False, soft_wrap=True)
    show_written(mask=to)
