"""`interp heads score`: which heads retrieve, whether the model needs them, and a mask of them on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
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
from interp.errors import BadInput
from interp.runs import Journal, staged

if TYPE_CHECKING:
    from interp.heads.causal import AblationReport
    from interp.heads.mask import HeadMask
    from interp.heads.scores import HeadScores
    from interp.tasks.prompts import PromptSet
    from interp.tracing.model import Model

MASK_FILE = "mask.json"
"""The mask inside a run of scores."""
LONGEST_DEFAULT = 8_192
"""No test is longer than this many tokens unless --lengths says so."""


Method = Literal["retrieval", "qrhead", "headkv-r2", "razor"]
Decoding = Literal["stepwise", "chunk"]
Counting = Literal["code", "paper"]
Task = Literal["needle", "copy"]


@dataclass(frozen=True)
class Tests:
    """The prompts that the options describe, for any seed."""

    task: Task
    lengths: list[int]
    depths: list[float]
    needles: int
    needle_file: Path | None
    haystack: Path | None
    file: Path | None

    def build(self, model: Model, seed: int) -> PromptSet:
        """Needle tests that fit the model, copy stories, or the prompts of the file."""
        from interp.tasks.copying import copy_prompts
        from interp.tasks.needle import needle_prompts, read_needles_jsonl
        from interp.tasks.prompts import PromptSet

        if self.file is not None:
            return PromptSet.from_jsonl(self.file, model.tokenizer)
        if self.task == "copy":
            return copy_prompts(model.tokenizer, self.needles, seed)
        own = read_needles_jsonl(self.needle_file) if self.needle_file else None
        return needle_prompts(
            model.tokenizer,
            self.lengths,
            self.depths,
            own,
            self.haystack,
            n_needles=None if own else self.needles,
            seed=seed,
            context=model.spec.context,
        )

    def parameters(self) -> dict[str, Any]:
        """What a run says about them: the file, or the grid."""
        if self.file is not None:
            return {"file": str(self.file)}
        if self.task == "copy":
            return {"task": "copy", "stories": self.needles}
        grid: dict[str, Any] = {"lengths": self.lengths, "depths": self.depths, "needles": self.needles}
        if self.needle_file is not None:
            grid |= {"needles": str(self.needle_file)}
        return grid | ({} if self.haystack is None else {"haystack": str(self.haystack)})

    def named_in(self, scores: HeadScores) -> HeadScores:
        """The same scores, saying which tests they were taken on."""
        return replace(scores, parameters={**scores.parameters, **self.parameters()})


def score(
    model: ModelName,
    method: Annotated[Method, typer.Option(help="The published score to compute.")] = "retrieval",
    decoding: Annotated[
        Decoding, typer.Option(help="Retrieval: decode step by step as published, or read the true answer in one pass.")
    ] = "stepwise",
    counting: Annotated[
        Counting, typer.Option(help="Retrieval: count copies as the authors' code does, or as their formula does.")
    ] = "code",
    task: Annotated[
        Task, typer.Option(help="Hide needles in long text, or let short stories repeat a word (for story models).")
    ] = "needle",
    lengths: Annotated[
        str,
        typer.Option(help="Prompt lengths in tokens, such as 256,512.", show_default="1/4, 1/2, 3/4 of the context"),
    ] = "",
    depths: Annotated[str, typer.Option(help="Depths of the needle, percent of the haystack.")] = "0,25,50,75,100",
    needles: Annotated[
        int, typer.Option(help="Needles to hide, each at every length and depth; or stories.", min=1)
    ] = 10,
    needle_file: Annotated[
        Path | None,
        typer.Option(help="Needles in the form of the authors' needles.jsonl.", show_default=False, exists=True),
    ] = None,
    haystack: Annotated[
        Path | None,
        typer.Option(
            help="A .txt file, or a folder of them, to hide needles in.", show_default="bundled filler", exists=True
        ),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="A prompt file (JSONL) to use instead of needle tests.", show_default=False, exists=True),
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Select the heads that score at least this.", show_default="0.1 for retrieval")
    ] = None,
    top: Annotated[int | None, typer.Option(help="Select this many heads.", min=1, show_default=False)] = None,
    causal: Annotated[
        bool, typer.Option("--causal/--no-causal", help="Ablate the selected heads, and random ones, on fresh needles.")
    ] = False,
    to: Annotated[Path | None, out_option("runs/MODEL-METHOD")] = None,
    resume: Resume = False,
    device: Device = None,
    dtype: DType = None,
    attention: Attention = None,
    revision: Revision = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Score every head of a model, select the best, and write a run with a head mask in it."""
    if threshold is not None and top is not None:
        raise BadInput("--threshold and --top are two ways to select heads; give one")
    if causal and method != "retrieval" and threshold is None and top is None:
        raise BadInput(f"--causal needs heads to ablate; say how many of the {method} heads with --top")
    if resume and method != "retrieval":
        raise BadInput(f"only the retrieval score can be resumed; start {method} again without --resume")
    grid = (numbers("--lengths", lengths, int), numbers("--depths", depths, float), needles)
    tests = Tests(task, *grid, needle_file, haystack, prompts)
    run = new_run(to, model, method)

    from interp.heads.formats import write_mask

    started = datetime.now(timezone.utc)
    loaded = load_model(model, device=device, dtype=dtype, attention=attention, revision=revision)
    if not tests.lengths:
        tests = replace(tests, lengths=default_lengths(loaded.spec.context))
    if top is not None and top > loaded.spec.layers * loaded.spec.heads:
        raise BadInput(
            f"--top {top} is more heads than {model} has: {loaded.spec.layers} layers of {loaded.spec.heads}"
        )
    if method == "retrieval":
        scores, journal = retrieval(loaded, tests, decoding, counting, seed, run, resume)
    else:
        with interruptible(None), progress("scoring") as report:
            scores, journal = OTHER_METHODS[method](loaded, tests, seed, report), None
    mask = select(scores, method, threshold, top) if len(scores.samples) else None
    scores.save(run, started, **({} if mask is None else {MASK_FILE: lambda file: write_mask(mask, file)}))
    if journal is not None:
        journal.discard()
    if mask is None:
        say(f"What the model answered is in {run}.")
        scores.require_samples()
        return
    ablations = None
    try:
        ablations = check_causally(loaded, tests, mask, seed, run) if causal else None
    finally:  # the scores are worth showing whatever became of the check
        if json:
            emit(document(scores, mask, ablations, run))
        else:
            show(scores, mask, ablations, run)


def retrieval(
    model: Model, tests: Tests, decoding: Decoding, counting: Counting, seed: int, run: Path, resume: bool
) -> tuple[HeadScores, Journal]:
    """The scores, and the journal of their tests, to be discarded once the run is safe."""
    from interp.heads.retrieval import retrieval_scores

    prompts = tests.build(model, seed)
    settings = {"decoding": decoding, "counting": counting, "seed": seed, **tests.parameters()}
    identity = {"model": model.fingerprint, "prompts": prompts.hash}
    journal = Journal(Journal.beside(run), {**settings, **identity}, resume)
    with interruptible(journal), progress("scoring") as report:
        scores = retrieval_scores(
            model, prompts, method=decoding, dedup=counting, seed=seed, journal=journal, progress=report
        )
    return tests.named_in(scores), journal


def qrhead(model: Model, tests: Tests, seed: int, report: Callable[[int, int], None]) -> HeadScores:
    from interp.heads.qrhead import bundled_instances, qrhead_scores

    return qrhead_scores(model, bundled_instances(tests.needles, seed=seed), seed=seed, progress=report)


def headkv(model: Model, tests: Tests, seed: int, report: Callable[[int, int], None]) -> HeadScores:
    from interp.heads.headkv import headkv_scores

    return tests.named_in(headkv_scores(model, tests.build(model, seed), seed=seed, progress=report))


def razor(model: Model, tests: Tests, seed: int, report: Callable[[int, int], None]) -> HeadScores:
    from interp.heads.razor import razor_scores

    return razor_scores(model, seed=seed)


OTHER_METHODS = {"qrhead": qrhead, "headkv-r2": headkv, "razor": razor}


def select(scores: HeadScores, method: Method, threshold: float | None, top: int | None) -> HeadMask:
    """The mask of the heads that were asked for, else of those the method's paper takes."""
    from interp.heads.razor import razor_mask
    from interp.heads.scores import RETRIEVAL_HEAD

    if top is not None:
        return scores.mask().top(top)
    if method == "razor" and threshold is None:
        return razor_mask(scores)
    if method == "retrieval" or threshold is not None:
        return scores.mask().threshold(RETRIEVAL_HEAD if threshold is None else threshold)
    return scores.mask()


def check_causally(model: Model, tests: Tests, mask: HeadMask, seed: int, run: Path) -> AblationReport | None:
    """Recall without the selected heads and without random ones, on needles that did not choose them."""
    from interp.heads.causal import ablation_report

    if not mask.heads:
        say(f"No head was selected ({mask.rule}), so there is nothing to ablate.")
        return None
    with interruptible(None, f"The scores are in {run}."), progress("ablating") as report:
        ablations = ablation_report(model, tests.build(model, seed + 1), mask.heads, seed=seed, progress=report)
    with staged(run / "causal.parquet") as file:
        ablations.frame.to_parquet(file)
    return ablations


@contextmanager
def interruptible(journal: Journal | None, otherwise: str = "Nothing was written.") -> Iterator[None]:
    """On Ctrl-C, say what is kept and how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        kept = "" if journal is None else f"{len(journal.done)} tests are kept; the same command with --resume goes on."
        say(f"Interrupted. {kept or otherwise}")
        raise


def document(scores: HeadScores, mask: HeadMask, ablations: AblationReport | None, run: Path) -> dict[str, Any]:
    """What `--json` prints."""
    return {
        "run": str(run),
        "mask": str(run / MASK_FILE),
        "method": scores.method,
        "model": scores.model,
        "parameters": scores.parameters,
        "tests": len(scores.tests),
        "passed": len(scores.samples),
        "selected": mask.heads,
        "heads": scores.frame.to_dict("records"),
        "causal": None if ablations is None else ablations.frame.to_dict("records"),
    }


def show(scores: HeadScores, mask: HeadMask, ablations: AblationReport | None, run: Path, rows: int = 10) -> None:
    title = (
        f"{scores.method} heads of {scores.model['name']}: {len(scores.samples)} of {len(scores.tests)} tests passed, "
        f"{len(mask.heads)} of {mask.scores.size} {mask.kind} heads selected ({mask.rule or 'say how with --top'})"
    )
    frame = scores.frame.head(rows)
    if mask.kind == "query" and mask.selected is not None:
        chosen = [mask.selected[head] for head in zip(frame["layer"], frame["head"], strict=True)]
        frame = frame.assign(selected=["yes" if one else "" for one in chosen])
    show_frame(title, frame)
    if ablations is not None:
        show_frame("recall kept without the selected heads, and without random ones", ablations.summary())
    show_written(run=run, mask=run / MASK_FILE)


def default_lengths(context: int | None) -> list[int]:
    longest = min(context or LONGEST_DEFAULT, LONGEST_DEFAULT)
    return [longest // 4, longest // 2, 3 * longest // 4]
