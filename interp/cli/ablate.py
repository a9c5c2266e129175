"""`interp heads ablate`: what a model cannot do without some of its heads, or without each of them alone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from interp.cli.console import emit, progress, say, show_frame, show_written
from interp.cli.models import load_model
from interp.cli.options import (
    Attention,
    Device,
    DType,
    Json,
    ModelName,
    Resume,
    Revision,
    Seed,
    new_run,
    numbers,
    out_option,
)
from interp.cli.score import LONGEST_DEFAULT, Tests, interruptible
from interp.errors import BadInput, UnreadableFile
from interp.runs import Journal
from kernels.errors import InvalidRequest

if TYPE_CHECKING:
    import pandas as pd

    from interp.heads.ablation import Head
    from interp.heads.causal import AblationReport
    from interp.heads.effects import HeadEffects
    from interp.heads.importance import HeadImportance
    from interp.heads.perplexity import Windows
    from interp.tracing.model import Model

MASK_OR_RUN = "A run of `heads score`, or a mask file of any format."
Task = Literal["needle", "copy", "text"]
MetricName = Literal["recall", "log-probability", "logit-difference"]

Lengths = Annotated[
    str, typer.Option(help="Prompt lengths in tokens, such as 256,512.", show_default="1/8 and 1/4 of the context")
]
Depths = Annotated[str, typer.Option(help="Depths of the needle, percent of the haystack.")]
Needles = Annotated[int, typer.Option(help="Needles to hide, each at every length and depth; or stories.", min=1)]
NeedleFile = Annotated[
    Path | None,
    typer.Option(help="Needles in the form of the authors' needles.jsonl.", show_default=False, exists=True),
]
HaystackPath = Annotated[
    Path | None,
    typer.Option(
        help="A .txt file, or a folder of them, to hide needles in.", show_default="bundled filler", exists=True
    ),
]
PromptFile = Annotated[
    Path | None,
    typer.Option(help="A prompt file (JSONL) with answers to use instead.", show_default=False, exists=True),
]
Controls = Annotated[int, typer.Option(help="Draws of random heads to compare with, each a seed.", min=0)]


def ablate(
    model: ModelName,
    mask: Annotated[
        Path | None, typer.Option(help=f"{MASK_OR_RUN} Its selected heads go.", show_default="scored here", exists=True)
    ] = None,
    top: Annotated[
        int | None, typer.Option(help="Ablate this many of the mask's best heads instead.", min=1, show_default=False)
    ] = None,
    heads: Annotated[str, typer.Option(help="Ablate these heads, such as 2.0,2.1.", show_default=False)] = "",
    counts: Annotated[
        str, typer.Option(help="Ablate so many of the best heads, one after the other: 0,1,2,4.", show_default=False)
    ] = "",
    every: Annotated[
        bool, typer.Option("--all", help="Ablate every head of the model alone, one a batch row, for a heat map.")
    ] = False,
    gradients: Annotated[
        bool, typer.Option("--gradients", help="With --all: gradient importance beside it, with rank correlations.")
    ] = False,
    ablations: Annotated[
        str,
        typer.Option(
            help="Ways to ablate: zero, mean, mean-positional, mean-template:KEY, resample:SEED, uniform, "
            "uniform-at-decode, scale:FACTOR.",
            show_default="mean,zero,uniform-at-decode; with --all zero",
        ),
    ] = "",
    metric: Annotated[
        MetricName, typer.Option(help="With --all: the metric whose loss is measured.")
    ] = "log-probability",
    task: Annotated[
        Task, typer.Option(help="Needles in long text, stories that repeat a word, or perplexity of text.")
    ] = "needle",
    text: Annotated[
        Path | None,
        typer.Option(help="Task text: the file to read.", show_default="bundled filler", exists=True, dir_okay=False),
    ] = None,
    window: Annotated[int, typer.Option(help="Task text: tokens of a window.", show_default="512", min=0)] = 0,
    stride: Annotated[
        int, typer.Option(help="Task text: tokens from one window to the next.", show_default="half", min=0)
    ] = 0,
    lengths: Lengths = "",
    depths: Depths = "0,25,50,75,100",
    needles: Needles = 4,
    needle_file: NeedleFile = None,
    haystack: HaystackPath = None,
    prompts: PromptFile = None,
    controls: Controls = 5,
    to: Annotated[Path | None, out_option("runs/MODEL-ablation")] = None,
    resume: Resume = False,
    device: Device = None,
    dtype: DType = None,
    attention: Attention = None,
    revision: Revision = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Ablate heads and measure what is lost, beside as many random heads of the same layers; or each alone (--all).

    The needles are others than those of `heads score` with the same seed.
    """
    from interp.heads.ablation import ABLATIONS, Ablation

    if every and (mask or top or heads or counts or task == "text"):
        raise BadInput("--all ablates every head alone, on answers: leave out --mask, --top, --heads, --counts, text")
    if sum(map(bool, (top, heads, counts))) > 1:
        raise BadInput("--top, --heads and --counts are ways to choose heads; give one")
    if gradients and not every:
        raise BadInput("--gradients sets importance beside the exact effects of all heads: add --all")
    if task == "text" and prompts is not None:
        raise BadInput("--prompts have answers and --task text has none; give one")
    kinds = [Ablation.parse(name) for name in ablations.split(",") if name.strip()]
    if every and len(kinds) > 1:
        raise BadInput("--all takes one ablation at a time")
    grid = (numbers("--lengths", lengths, int), numbers("--depths", depths, float), needles)
    tests = Tests("copy" if task == "copy" else "needle", *grid, needle_file, haystack, prompts)
    wanted, named = numbers("--counts", counts, int), parse_heads(heads)
    run = new_run(to, model, "ablation")

    started = datetime.now(timezone.utc)
    loaded = load_model(model, device=device, dtype=dtype, attention=attention, revision=revision)
    tests = short(tests, loaded)
    material = read_text(loaded, text, window, stride) if task == "text" else tests.build(loaded, seed + 1)
    about: dict[str, Any] = {"task": task, "text": str(text or "bundled")} if task == "text" else tests.parameters()
    seeds = list(range(seed, seed + controls))
    if every:
        name = kinds[0] if kinds else Ablation("zero")
        result = alone(loaded, material, name, metric, gradients, seed, about, run, resume)
        result.save(run, started)
        finish(run)
        show_alone(result, run, json)
        return
    ranking = named or rank(loaded, mask, top, bool(wanted), tests, seed)
    settings: dict[str, Any] = {"ablations": [*map(str, kinds)] or list(ABLATIONS), "seeds": seeds, "seed": seed}
    identity = {"model": loaded.fingerprint, "attention": loaded.attention, "heads": ranking, "counts": wanted}
    with journaled(run, {**about, **settings, **identity}, resume) as journal, progress("ablating") as report:
        from interp.heads.causal import removal_study

        sizes = wanted or [len(ranking)]
        study = removal_study(loaded, material, ranking, sizes, **settings, journal=journal, progress=report)
    cells = maps(study)
    study.save(run, started, **({} if cells is None else {"map.parquet": cells.to_parquet}))
    finish(run)
    show_study(study, cells, run, json)


def short(tests: Tests, model: Model) -> Tests:
    """Short prompts unless the options say otherwise: a study runs them dozens of times."""
    longest = min(model.spec.context or LONGEST_DEFAULT, LONGEST_DEFAULT)
    return replace(tests, lengths=tests.lengths or [max(128, longest // 8), max(256, longest // 4)])


def read_text(model: Model, file: Path | None, window: int, stride: int) -> Windows:
    from interp.heads.perplexity import sliding_windows

    try:
        text = None if file is None else file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UnreadableFile(f"{file} cannot be read: {error}") from error
    return sliding_windows(model, text, window=window, stride=stride)


def parse_heads(text: str) -> list[Head]:
    """`"2.0,2.1"` (or `2-0`) as layers and heads. Raises BadInput."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    found = [re.fullmatch(r"(\d+)[.-](\d+)", part) for part in parts]
    if not all(found):
        raise BadInput(f"--heads {text} is not a list of LAYER.HEAD such as 2.0,2.1")
    return [(int(match[1]), int(match[2])) for match in found if match]


def rank(model: Model, source: Path | None, top: int | None, whole: bool, tests: Tests, seed: int) -> list[Head]:
    """The heads to ablate, best first: of the mask that was given, or of retrieval scores on needles of their own."""
    from interp.cli.heads import read

    if source is not None:
        mask = read(source).check(model.spec, model.fingerprint)
        if mask.kind != "query":
            raise BadInput(f"{source} scores key/value heads; ablation needs a mask of query heads")
    else:
        from interp.heads.retrieval import retrieval_scores

        with interruptible(None), progress("scoring") as report:
            scores = retrieval_scores(model, tests.build(model, seed), method="chunk", seed=seed, progress=report)
        mask = scores.require_samples().mask().threshold(0.1)
    if top is not None:
        mask = mask.top(top)
    if whole:
        return mask.ranking
    if not mask.heads:
        raise BadInput(f"the mask selects no head ({mask.rule or 'nothing was selected'}); say how many with --top")
    return mask.heads


@contextmanager
def journaled(run: Path, parameters: dict[str, Any], resume: bool) -> Iterator[Journal]:
    """A journal that stays behind when the work is interrupted, and not when it is refused before any was done."""
    journal = Journal(Journal.beside(run), parameters, resume)
    try:
        yield journal
        journal.close()
    except KeyboardInterrupt:
        say(f"Interrupted. {len(journal.done)} measurements are kept; the same command with --resume goes on.")
        raise
    except (BadInput, InvalidRequest):
        if not journal.done:
            journal.discard()
        raise


def finish(run: Path) -> None:
    """Drop the journal of a run that is safe."""
    Journal.beside(run).unlink(missing_ok=True)


def alone(
    model: Model,
    prompts: Any,
    ablation: Any,
    metric: MetricName,
    gradients: bool,
    seed: int,
    about: dict[str, Any],
    run: Path,
    resume: bool,
) -> HeadEffects | HeadImportance:
    """The effect of every head, and with `gradients` its importance."""
    from interp.heads.effects import ablation_effects
    from interp.heads.importance import HeadImportance, gate_gradients

    slopes = gate_gradients(model, prompts, metric=metric) if gradients else None
    identity = {"model": model.fingerprint, "attention": model.attention, "prompts": prompts.hash}
    settings = {"ablation": str(ablation), "metric": metric, "seed": seed, "all": True}
    with journaled(run, {**about, **settings, **identity}, resume) as journal, progress("ablating") as report:
        exact = ablation_effects(
            model, prompts, ablation=ablation, metric=metric, seed=seed, journal=journal, progress=report
        )
    return exact if slopes is None else HeadImportance(slopes, exact)


def maps(study: AblationReport) -> pd.DataFrame | None:
    """Recall by length and depth, of needle tests."""
    return study.by_length_and_depth() if {"length", "depth"} <= set(study.tests) else None


def show_alone(result: HeadEffects | HeadImportance, run: Path, json: bool) -> None:
    from interp.heads.importance import HeadImportance

    exact, agreement = (result.exact, result.agreement) if isinstance(result, HeadImportance) else (result, None)
    if json:
        emit(
            {
                "run": str(run),
                "model": exact.model,
                "parameters": {**exact.parameters, "metric": exact.metric, "ablation": exact.ablation},
                "heads": result.frame.to_dict("records"),
                "agreement": None if agreement is None else agreement.to_dict("records"),
            }
        )
        return
    title = (
        f"{exact.model['name']}: {exact.metric} lost without each head alone ({exact.ablation} ablation, "
        f"{exact.model['attention']} attention, {len(exact.samples)} tests)"
    )
    columns = ["layer", "head", "effect", "low", "high"]
    columns += [] if agreement is None else ["signed", "abs_of_mean", "mean_of_abs", "tokens"]
    show_frame(title, result.frame.head(12), columns)
    if agreement is not None:
        columns = ["order", "by_layer", "spearman", "spearman_low", "spearman_high"]
        columns += ["kendall", "kendall_low", "kendall_high", "n"]
        show_frame("rank correlation of gradient importance with the exact effects", agreement, columns)
    show_written(run=run)


def show_study(study: AblationReport, cells: pd.DataFrame | None, run: Path, json: bool) -> None:
    if json:
        emit(
            {
                "run": str(run),
                "model": study.model,
                "parameters": study.parameters,
                "measure": study.measure,
                "heads": study.heads,
                "frame": study.frame.to_dict("records"),
                "summary": study.summary().to_dict("records"),
                "map": None if cells is None else cells.to_dict("records"),
            }
        )
        return
    whole = study.frame.iloc[0]
    interval = f"{whole[study.measure]:.3g} [{whole.low:.3g}, {whole.high:.3g}]"
    removed = int(study.frame.removed.max())
    shown = " ".join(f"{layer}.{head}" for layer, head in study.heads[:removed][:12])
    title = (
        f"{study.model['name']}, {study.model['attention']} attention: {study.measure} {interval} with all heads "
        f"(n={whole.n}); {removed} ablated: {shown}{' …' if removed > 12 else ''}"
    )
    columns = ["ablation", "heads", "removed", "seed", study.measure, "low", "high", "relative"]
    columns += ["log_probability"] if study.measure == "recall" else ["tokens"]
    show_frame(title, study.frame[study.frame["heads"] != "random"], columns)
    show_frame("relative to all heads, and without random heads of the same layers", study.summary())
    show_written(run=run)
