"""`interp heads cache`: how few keys and values a model can keep and still recall."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from interp.cli.console import emit, progress, say, show_frame, show_written
from interp.cli.models import load_model
from interp.cli.options import Device, DType, Json, ModelName, Resume, Revision, Seed, new_run, numbers, out_option
from interp.cli.score import LONGEST_DEFAULT, MASK_FILE, interruptible
from interp.errors import BadInput
from interp.runs import Journal
from kernels.errors import InvalidRequest

if TYPE_CHECKING:
    import pandas as pd

    from interp.heads.cache import CacheStudy
    from interp.heads.mask import HeadMask
    from interp.tasks.prompts import PromptSet
    from interp.tracing.model import Model

ROOM_FOR_ANSWER = 48
"""Tokens of the context that the default length leaves free."""
SHARES = (16, 8, 4)
"""By default one of so many key/value heads keeps every key."""


def cache(
    model: ModelName,
    mask: Annotated[
        Path | None,
        typer.Option(
            help="A run of `heads score`, or a mask file of any format.", show_default="scored here", exists=True
        ),
    ] = None,
    heads: Annotated[
        str,
        typer.Option(
            help="Numbers of key/value heads that keep every key, such as 1,2,4.", show_default="1/16, 1/8, 1/4 of all"
        ),
    ] = "",
    sinks: Annotated[int, typer.Option(help="First keys that the other heads keep.", min=0)] = 64,
    window: Annotated[int, typer.Option(help="Latest keys that the other heads keep.", min=1)] = 256,
    compensation: Annotated[
        bool, typer.Option("--compensation", help="RazorAttention's token: the mean of what the other heads dropped.")
    ] = False,
    kv: Annotated[
        Literal["max", "mean"], typer.Option(help="Score key/value heads by the max or mean of their query heads.")
    ] = "max",
    lengths: Annotated[
        str, typer.Option(help="Prompt lengths in tokens.", show_default="the longest that fits, at most 8192")
    ] = "",
    depths: Annotated[str, typer.Option(help="Depths of the needle, percent of the haystack.")] = "20,40,60,80",
    needles: Annotated[int, typer.Option(help="Needles to hide, each at every length and depth.", min=1)] = 5,
    seeds: Annotated[int, typer.Option(help="Draws of random heads kept instead.", min=0)] = 5,
    chunk: Annotated[int, typer.Option(help="Tokens of a prompt that run at once.", min=1)] = 512,
    to: Annotated[Path | None, out_option("runs/MODEL-cache")] = None,
    resume: Resume = False,
    device: Device = None,
    dtype: DType = None,
    revision: Revision = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Recall and bytes of a key/value cache in which only the best heads keep every key, beside random heads.

    The needles are others than those of `heads score` with the same seed.
    """
    counts, at = numbers("--heads", heads, int), numbers("--depths", depths, float)
    wanted = numbers("--lengths", lengths, int)
    run = new_run(to, model, "cache")

    from interp.heads.formats import write_mask
    from interp.tasks.needle import needle_prompts

    started = datetime.now(timezone.utc)
    loaded = load_model(model, device=device, dtype=dtype, revision=revision)
    spec = loaded.spec
    wanted = wanted or [min(spec.context or LONGEST_DEFAULT, LONGEST_DEFAULT) - ROOM_FOR_ANSWER]
    there = spec.layers * spec.kv_heads
    counts = counts or sorted({max(1, there // share) for share in SHARES})
    if not all(0 <= count <= there for count in counts):
        raise BadInput(f"--heads {heads}: {spec.name} has {there} key/value heads, so give numbers from 0 to {there}")
    grid: dict[str, Any] = {"lengths": wanted, "depths": at, "needles": needles}
    prompts = needle_prompts(loaded.tokenizer, wanted, at, n_needles=needles, seed=seed + 1, context=spec.context)
    scores = _mask(loaded, mask, min(wanted), seed)
    settings: dict[str, Any] = {"reduction": kv, "sinks": sinks, "window": window, "compensation": compensation}
    settings |= {"chunk": chunk, "seeds": list(range(seeds)), "seed": seed}
    identity = {"model": loaded.fingerprint, "prompts": prompts.hash, "scores": scores.scores.tolist()}
    journal = Journal(Journal.beside(run), {**grid, **settings, **identity, "heads": counts}, resume)
    study = _decode(loaded, prompts, scores, counts, settings, journal)
    study.save(run, started, **{MASK_FILE: lambda file: write_mask(scores, file)})
    journal.discard()
    _report(study, run, json)


def _mask(model: Model, source: Path | None, shortest: int, seed: int) -> HeadMask:
    """The mask that was given, or the retrieval scores on short needle tests of other needles."""
    from interp.cli.heads import read
    from interp.heads.retrieval import retrieval_scores
    from interp.tasks.needle import needle_prompts

    if source is not None:
        return read(source)
    short = needle_prompts(
        model.tokenizer, [max(shortest // 4, min(shortest, 256))], [0, 50, 100], n_needles=5, seed=seed,
        context=model.spec.context,
    )  # fmt: skip
    with interruptible(None), progress("scoring") as report:
        return retrieval_scores(model, short, method="chunk", seed=seed, progress=report).mask()


def _decode(
    model: Model, prompts: PromptSet, mask: HeadMask, heads: list[int], settings: dict[str, Any], journal: Journal
) -> CacheStudy:
    """The study; its journal stays behind when it is interrupted, and not when it is refused."""
    from interp.heads.cache import cache_study

    try:
        with interruptible(journal), progress("decoding") as report:
            return cache_study(model, prompts, mask, heads, **settings, journal=journal, progress=report)
    except (BadInput, InvalidRequest):
        if not journal.done:
            journal.discard()
        raise


def _report(study: CacheStudy, run: Path, json: bool) -> None:
    summary = study.summary()
    if json:
        emit(
            {
                "run": str(run),
                "mask": str(run / MASK_FILE),
                "model": study.model,
                "parameters": study.parameters,
                "frame": study.frame.to_dict("records"),
                "summary": summary.to_dict("records"),
            }
        )
        return
    whole = study.frame[study.frame.kept == "all"]
    for row in whole.itertuples():
        interval = f"{row.recall:.3f} [{row.recall_low:.3f}, {row.recall_high:.3f}]"
        title = (
            f"{row.length} tokens: the full cache takes {row.kv_bytes / 2**20:.2f} MiB, recalls {interval} of {row.n}"
        )
        show_frame(title, _readable(summary[summary.length == row.length]))
    whole = study.tests[study.tests.kept == "all"]
    if seen := int((~whole.hidden.astype(bool)).sum()):
        say(f"{seen} of {len(whole)} values lie within sinks and window, where every head sees them.")
    show_written(run=run, mask=run / MASK_FILE)


def _readable(summary: pd.DataFrame) -> pd.DataFrame:
    """The summary of one length with each interval beside its estimate."""
    import pandas as pd

    def differences(name: str) -> list[str]:
        ends = zip(summary[name], summary[f"{name}_low"], summary[f"{name}_high"], strict=True)
        return [f"{estimate:+.3f} [{low:+.3f}, {high:+.3f}]" for estimate, low, high in ends]

    columns = {name: summary[name] for name in ("heads", "saved", "recall")} | {"to full": differences("difference")}
    if "random" in summary:
        ranges = zip(summary.random, summary.least, summary.most, strict=True)
        columns["random heads"] = [f"{mean:.3f} ({least:.3f} to {most:.3f})" for mean, least, most in ranges]
        columns["random to full"] = differences("random_difference")
    return pd.DataFrame({**columns, "draws": summary.draws, "n": summary.n})
