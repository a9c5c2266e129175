"""`interp probe verify`: sample traces, learn what tells right from wrong ones, and pick answers by it (CLUE)."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from interp.cli.console import emit, progress, say, show_facts, show_frame, show_written
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
from interp.runs import Journal

if TYPE_CHECKING:
    import pandas as pd

    from interp.tasks.problems import Problems
    from interp.tracing.model import Model
    from probes.traces import Experience

POCKET_TEMPERATURE = 1.4
"""Where the bundled model gets about a quarter of sums wrong and still writes nearly all of them to the end."""

app = typer.Typer(help="Tell right from wrong reasoning by hidden-state clusters (CLUE).", no_args_is_help=True)

Traces = Annotated[
    Path,
    typer.Argument(help="A run of `collect`, or a .jsonl of question, response and correct.", show_default=False),
]
Open = Annotated[str | None, typer.Option("--open", help="Text that opens the reasoning.", show_default="the task's")]
Close = Annotated[
    str | None, typer.Option("--close", help="Text that closes the reasoning.", show_default="the task's")
]
MissingPolicy = Annotated[
    Literal["drop", "ends", "refuse"],
    typer.Option(
        help="Traces that lack a delimiter: leave out (and count), take the ends of prompt and trace, or refuse."
    ),
]
Batch = Annotated[int, typer.Option("--batch", help="Traces in one forward pass.", min=1)]
Certainty = Annotated[
    bool, typer.Option("--certainty/--no-certainty", help="Self-certainty, which needs the logits of every token.")
]


@app.command(epilog="Example: interp probe verify collect pocket")
def collect(
    model: ModelName,
    task: Annotated[
        str, typer.Option(help="addition, or a .jsonl of question and answer.", show_default="addition")
    ] = "addition",
    n: Annotated[int, typer.Option("--n", "-n", help="Questions to make up; of a file all are asked.", min=1)] = 100,
    digits: Annotated[str, typer.Option(help="Fewest and most digits of the summands.")] = "2,4",
    template: Annotated[str, typer.Option(help="Prompt of a question of your own file.")] = "{question}",
    pattern: Annotated[
        str | None,
        typer.Option(help="Regular expression of the answer; the last match counts.", show_default="last number"),
    ] = None,
    compare: Annotated[Literal["numeric", "exact"], typer.Option(help="When two answers are the same.")] = "numeric",
    opening: Open = None,
    closing: Close = None,
    samples: Annotated[int, typer.Option(help="Responses to each question.", min=1)] = 16,
    temperature: Annotated[
        float | None,
        typer.Option(
            help="Temperature of the sampling: the higher, the more responses are wrong.",
            show_default=f"1, for pocket {POCKET_TEMPERATURE}",
        ),
    ] = None,
    top_p: Annotated[float, typer.Option(help="Sample from the smallest set of tokens with this share.")] = 1.0,
    top_k: Annotated[int | None, typer.Option(help="Sample from this many tokens.", show_default="all")] = None,
    most: Annotated[int, typer.Option("--max-new-tokens", help="Longest response.", min=1)] = 256,
    batch: Annotated[int, typer.Option("--batch", help="Samples of a question generated at once.", min=1)] = 32,
    to: Annotated[Path | None, out_option("runs/MODEL-traces")] = None,
    resume: Resume = False,
    device: Device = None,
    dtype: DType = None,
    attention: Attention = None,
    revision: Revision = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Sample responses to problems with known answers, and check them."""
    run = new_run(to, model, "traces")

    from probes import sampling

    if temperature is None:
        temperature = POCKET_TEMPERATURE if model == "pocket" else 1.0
    problems = _problems(task, n, digits, template, pattern, compare, _delimiters(opening, closing), seed)
    loaded = load_model(model, device=device, dtype=dtype, attention=attention, revision=revision)
    try:
        with progress("sampling") as report:
            found = sampling.collect(
                loaded,
                problems,
                samples,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                max_new_tokens=most,
                batch_size=batch,
                seed=seed,
                path=run,
                resume=resume,
                progress=report,
            )
    except KeyboardInterrupt:
        say(f"Interrupted. What is finished is in {Journal.beside(run)}; the same command with --resume goes on.")
        raise
    if json:
        emit({"run": str(run), **_facts(found)})
        return
    _show_facts(f"Traces of {loaded.spec.name}", found)
    show_written(run=run)


@app.command(epilog="Example: interp probe verify fit pocket runs/pocket-traces")
def fit(
    model: ModelName,
    traces: Traces,
    test: Annotated[float, typer.Option(help="Share of questions kept to verify on.")] = 0.5,
    missing: MissingPolicy = "drop",
    opening: Open = None,
    closing: Close = None,
    certainty: Certainty = True,
    batch: Batch = 16,
    to: Annotated[Path | None, out_option("runs/MODEL-clue")] = None,
    device: Device = None,
    dtype: DType = None,
    attention: Attention = None,
    revision: Revision = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Learn the centroids on some questions, and verify the traces of the others."""
    run = new_run(to, model, "clue")

    from probes.clue import fit as learn
    from probes.clue import score
    from probes.verification import verify

    started = datetime.now(timezone.utc)
    loaded = load_model(model, device=device, dtype=dtype, attention=attention, revision=revision)
    experience = _experience(traces, loaded, opening, closing)
    learned, held_out = experience.split(test, seed)
    _require_both(learned, "to learn from")
    _require_both(held_out, "to verify")
    with progress("learning") as report:
        centroids = learn(loaded, learned, missing=missing, certainty=certainty, batch_size=batch, progress=report)
    with progress("verifying") as report:
        scored = score(loaded, held_out, centroids, certainty=certainty, batch_size=batch, progress=report)
    result = verify(scored, seed=seed)
    about = {**result.parameters, "traces": _beside(traces, run), "test": test}
    replace(result, parameters=about).save(run, started)
    if json:
        tables = {"scores": result.frame.to_dict("records"), "layers": result.layers.to_dict("records")}
        emit(
            {
                "run": str(run),
                "learned": _facts(learned),
                "held_out": _facts(held_out),
                "found": scored.places,
                **tables,
            }
        )
        return
    _show_facts("Held-out questions", held_out, {"delimiters found": _counts(scored.places)})
    show_frame("verification, with intervals over questions", result.frame)
    show_frame("layers", result.layers)
    show_written(run=run)


@app.command(epilog="Example: interp probe verify rank pocket runs/pocket-traces --centroids runs/pocket-clue")
def rank(
    model: ModelName,
    traces: Traces,
    centroids: Annotated[Path, typer.Option(help="A run of `fit`, or its file.", show_default=False)],
    ks: Annotated[str, typer.Option("--k", help="Let so many of the best responses vote; several numbers.")] = "1,4,8",
    greedy: Annotated[
        Path | None,
        typer.Option(help="A run of `collect --samples 1 --temperature 0` on the same questions.", show_default=False),
    ] = None,
    opening: Open = None,
    closing: Close = None,
    certainty: Certainty = True,
    batch: Batch = 16,
    to: Annotated[Path | None, out_option("runs/MODEL-clue-ranking")] = None,
    device: Device = None,
    dtype: DType = None,
    attention: Attention = None,
    revision: Revision = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Pick the answer of each question that the centroids were not learned from."""
    run = new_run(to, model, "clue-ranking")

    from probes.centroids import Centroids
    from probes.clue import score
    from probes.reranking import greedily_right, possible
    from probes.reranking import rank as rerank

    started = datetime.now(timezone.utc)
    wanted = numbers("--k", ks, int)
    learned = Centroids.load(centroids)
    loaded = load_model(model, device=device, dtype=dtype, attention=attention, revision=revision)
    every = _experience(traces, loaded, opening, closing)
    experience = learned.unseen(every)
    if left := len(every.questions) - len(experience.questions):
        say(f"{left} of {len(every.questions)} questions are those the centroids were learned from, and are left out.")
    places = experience.reasoning(loaded.tokenizer, learned.missing)
    kept = [response.question for response, place in zip(experience, places, strict=True) if place is not None]
    possible(wanted, Counter(kept).values())  # before the model runs, and of those that are not left out
    answered = None
    if greedy is not None:
        answered = greedily_right(_experience(greedy, loaded, opening, closing), experience)
    with progress("scoring") as report:
        scored = score(loaded, experience, learned, certainty=certainty, batch_size=batch, progress=report)
    ranking = rerank(scored, wanted, greedy=answered, seed=seed)
    about = {**ranking.parameters, "traces": _beside(traces, run), "centroids": _beside(centroids, run)}
    replace(ranking, parameters=about).save(run, started)
    if json:
        judged = _records(ranking.frame) if ranking.checked else None
        emit({"run": str(run), "left_out": left, "ranking": judged, "picks": _records(ranking.picks)})
        return
    if ranking.checked:
        title = "accuracy of what is picked, and its gain over the majority of all samples"
        show_frame(title, _readable(ranking.frame))
    else:
        show_frame("picked answers", ranking.picks)
        say("Not all traces are known to be right or wrong, so nothing says how good the picks are.")
    show_written(run=run)


def _problems(
    task: str,
    n: int,
    digits: str,
    template: str,
    pattern: str | None,
    compare: str,
    delimiters: tuple[str, str] | None,
    seed: int,
) -> Problems:
    from interp.pocket.documents import is_held_out
    from interp.tasks.addition import addition_problems
    from interp.tasks.problems import LAST_NUMBER, Problems

    if task == "addition":
        between = numbers("--digits", digits, int)
        if len(between) != 2:
            raise BadInput(f"--digits {digits} is not a fewest and a most, such as 2,4")
        made = addition_problems(n, seed, (between[0], between[1]), is_held_out)
        return replace(made, delimiters=delimiters or made.delimiters)
    if Path(task).suffix != ".jsonl":
        raise BadInput(f"there is no task {task!r}: give addition, or a .jsonl file of question and answer")
    return Problems.from_jsonl(
        task, template=template, pattern=pattern or LAST_NUMBER, compare=compare, delimiters=delimiters
    )


def _delimiters(opening: str | None, closing: str | None) -> tuple[str, str] | None:
    if (opening is None) != (closing is None):
        raise BadInput("--open and --close go together")
    return None if opening is None or closing is None else (opening, closing)


def _experience(traces: Path, model: Model, opening: str | None, closing: str | None) -> Experience:
    from probes.traces import Experience

    delimiters = _delimiters(opening, closing)
    if traces.is_dir():
        found = Experience.load(traces)
        return found if delimiters is None else replace(found, delimiters=delimiters)
    return Experience.from_jsonl(traces, model.tokenizer, delimiters)


def _require_both(traces: Experience, purpose: str) -> None:
    """Raise BadInput, before the model runs, where traces are not checked, or all are right or all wrong."""
    kinds = {response.correct for response in traces}
    if kinds in ({True}, {False}):
        kind, remedy = ("right", "at a higher") if kinds == {True} else ("wrong", "at a lower")
        raise BadInput(
            f"all {len(traces)} traces {purpose} are {kind}, and what tells right from wrong needs both: ask more "
            f"questions (--n), or sample {remedy} --temperature, with interp probe verify collect"
        )
    traces.labels()


def _facts(experience: Experience) -> dict[str, Any]:
    checked = [response.correct for response in experience if response.correct is not None]
    return {
        "traces": len(experience),
        "questions": len(experience.questions),
        "right": sum(checked) / len(checked) if checked else float("nan"),
        "without an answer": sum(response.answer is None for response in experience),
    }


def _show_facts(title: str, experience: Experience, more: Mapping[str, str] | None = None) -> None:
    facts = _facts(experience)
    show_facts(title, {**facts, "right": f"{facts['right']:.3f}", **(more or {})})


def _counts(places: Any) -> str:
    return ", ".join(f"{kind}: {count}" for kind, count in places.items() if count)


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return frame.astype(object).where(frame.notna(), None).to_dict("records")


def _readable(frame: pd.DataFrame) -> pd.DataFrame:
    """A way of picking in one word: top-maj@4, majority@n."""
    sizes = ["n" if whole else k for k, whole in zip(frame.k, frame.k.isna(), strict=True)]
    names = [pick if pick == "greedy" else f"{pick}@{k}" for pick, k in zip(frame["pick"], sizes, strict=True)]
    return frame.drop(columns="k").assign(pick=names)


def _beside(path: Path, run: Path) -> str:
    """Where something lies, seen from the run's own folder, or its mere name where it lies elsewhere."""
    seen = Path(os.path.relpath(path, run.parent))
    return path.name if ".." in seen.parts else seen.as_posix()
