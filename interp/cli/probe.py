"""`interp probe`: where in a model a concept can be read."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from interp.cli import syntax, verify, vsa
from interp.cli.console import emit, progress, say, show_frame, show_written
from interp.cli.models import load_model
from interp.cli.options import (
    CONCEPTS,
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

if TYPE_CHECKING:
    from interp.tasks.labelled import LabelledTexts
    from probes.depth import ConceptDepth
    from probes.linear import ProbeSpec
    from probes.linear_probes import LinearProbes

app = typer.Typer(
    help="Probe hidden states: concepts by depth, right answers, bound symbols, syntax trees.", no_args_is_help=True
)
app.add_typer(verify.app, name="verify")
app.add_typer(vsa.app, name="vsa")
app.add_typer(syntax.app, name="ast")

Models = Annotated[list[str], typer.Argument(help="pocket, local folders or hub ids.", show_default=False)]
Classifier = Annotated[Literal["logistic", "ridge", "forest"], typer.Option(help="What is fitted to the activations.")]
Strengths = Annotated[
    str, typer.Option(help="C of scikit-learn; of several, each training fold chooses one within itself.")
]
FoldCount = Annotated[int, typer.Option("--folds", help="Folds of the cross-validation.", min=2)]
Balanced = Annotated[bool, typer.Option("--balanced", help="Weigh classes by their inverse frequency.")]
Place = Annotated[
    Literal["last", "mean"], typer.Option("--at", help="Read the last token, or the mean over all tokens.")
]
Chunk = Annotated[int, typer.Option(help="Texts in one forward pass.", min=1)]


@app.command(epilog="Example: interp probe depth pocket --data country,sentiment")
def depth(
    models: Models,
    data: Annotated[
        str, typer.Option(help=f"Concepts of {CONCEPTS}; files (.jsonl, .csv); or published data sets in --folder.")
    ] = "country,truth,sentiment,comparison,residence",
    n: Annotated[int, typer.Option("--n", "-n", help="Texts of a generated concept, at most.", min=10)] = 400,
    difficulty: Annotated[int, typer.Option(help="Difficulty of generated concepts.", min=1, max=3)] = 1,
    folder: Annotated[
        Path | None, typer.Option(help="Where the published data sets are.", show_default=False, exists=True)
    ] = None,
    overwritten_prompt: Annotated[
        bool, typer.Option("--overwritten-prompt", help="Repeat the prompt bug of the published code.")
    ] = False,
    sites: Annotated[
        str, typer.Option(help="Sites to read at every layer: mlp_in, resid_post, attn_out, z.")
    ] = "mlp_in",
    perturb: Annotated[
        str,
        typer.Option(
            help="Noise and weights of fewer bits, such as prefix,characters:0.1,tokens:0.1,bf16,rtn-int4.",
            show_default=False,
        ),
    ] = "",
    controls: Annotated[
        bool, typer.Option("--controls/--no-controls", help="Random labels, an untrained model and the bag of tokens.")
    ] = True,
    jump: Annotated[float, typer.Option(help="Accuracy, relative to the layer before, that counts as a jump.")] = 1.1,
    flat: Annotated[float, typer.Option(help="Relative change below which a curve is flat.")] = 0.03,
    at: Place = "last",
    classifier: Classifier = "logistic",
    strengths: Strengths = "0.001,0.01,0.1,1",
    folds: FoldCount = 5,
    balanced: Balanced = False,
    chunk: Chunk = 32,
    to: Annotated[Path | None, out_option("runs/MODEL-depth")] = None,
    resume: Resume = False,
    device: Device = None,
    dtype: DType = None,
    attention: Attention = None,
    revision: Revision = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """At which depth can concepts be read? Curves with controls, jump and converging points, perturbations."""
    run = new_run(to, models[0], "depth")

    from probes.depth import concept_depth
    from probes.perturbations import Perturbation

    noises = [Perturbation.parse(name) for name in _names(perturb)]
    spec = _spec(classifier, strengths, folds, balanced, seed)
    sets = [_data_set(name, n, difficulty, seed, folder, overwritten_prompt) for name in _names(data)]
    started = datetime.now(timezone.utc)
    work = _work_folder(run, resume)
    loaded = [load_model(m, device=device, dtype=dtype, attention=attention, revision=revision) for m in models]
    with _interruptible(work), progress("probing") as report:
        result = concept_depth(
            loaded,
            sets,
            sites=_names(sites),
            at=at,
            spec=spec,
            perturbations=noises,
            controls=controls,
            work=work,
            resume=resume,
            chunk=chunk,
            progress=report,
        )
    result.save(run, started)
    shutil.rmtree(work, ignore_errors=True)
    points = result.points(jump, flat)
    if json:
        emit({"run": str(run), **_tables(result), "points": points.to_dict("records")})
        return
    _show_depth(result, points)
    show_written(run=run)


@app.command(epilog="Example: interp probe linear pocket --data texts.csv --sites resid_post,z")
def linear(
    model: ModelName,
    data: Annotated[Path, typer.Option(help="Texts and labels, .jsonl or .csv.", show_default=False, exists=True)],
    sites: Annotated[str, typer.Option(help="Sites to read, such as resid_post,z.2-5,mlp_in.3.")] = "resid_post",
    control: Annotated[
        bool, typer.Option("--control/--no-control", help="Also fit labels drawn at random once a key (or text).")
    ] = True,
    at: Place = "last",
    classifier: Classifier = "logistic",
    strengths: Strengths = "0.001,0.01,0.1,1",
    folds: FoldCount = 5,
    balanced: Balanced = False,
    chunk: Chunk = 32,
    to: Annotated[Path | None, out_option("runs/MODEL-DATA-probes")] = None,
    resume: Resume = False,
    device: Device = None,
    dtype: DType = None,
    attention: Attention = None,
    revision: Revision = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Cross-validate probes of any sites on your own labels, and keep the probes' directions."""
    run = new_run(to, model, f"{data.stem}-probes")

    from interp.tasks.labelled import LabelledTexts
    from probes.activations import collect
    from probes.linear_probes import label_sets, linear_probes

    spec = _spec(classifier, strengths, folds, balanced, seed)
    labelled = LabelledTexts.from_file(data)
    label_sets(labelled, spec, control)  # whatever is refused is refused before the model runs
    started = datetime.now(timezone.utc)
    work = _work_folder(run, resume)
    loaded = load_model(model, device=device, dtype=dtype, attention=attention, revision=revision)
    with _interruptible(work):
        with progress("reading") as report:
            found = collect(
                loaded,
                labelled.texts,
                _names(sites),
                at=at,
                path=work / "activations",
                chunk=chunk,
                resume=resume,
                progress=report,
            )
        with progress("probing") as report:
            result = linear_probes(found, labelled, spec, control=control, progress=report)
    result.save(run, started)
    del found
    shutil.rmtree(work, ignore_errors=True)
    if json:
        unsolved = result.parameters["unsolved"]
        emit({"run": str(run), "unsolved": unsolved, "sites": result.frame.to_dict("records")})
        return
    _show_linear(result)
    show_written(run=run)


def _spec(classifier: str, strengths: str, folds: int, balanced: bool, seed: int) -> ProbeSpec:
    from probes.linear import ProbeSpec

    estimator = None
    if classifier == "forest":
        from sklearn.ensemble import RandomForestClassifier

        estimator = RandomForestClassifier(random_state=seed, class_weight="balanced" if balanced else None)
    return ProbeSpec(
        kind="ridge" if classifier == "ridge" else "logistic",
        strengths=tuple(numbers("--strengths", strengths, float)),
        folds=folds,
        class_weight="balanced" if balanced else None,
        estimator=estimator,
        seed=seed,
    )


def _data_set(
    name: str, n: int, difficulty: int, seed: int, folder: Path | None, overwritten_prompt: bool
) -> LabelledTexts:
    """A file, a published data set of the folder, or a generated concept, in this order."""
    from interp.tasks.concepts import concept
    from interp.tasks.labelled import LabelledTexts
    from probes.published import read_published

    if Path(name).suffix in (".jsonl", ".csv"):
        return LabelledTexts.from_file(name)
    if folder is not None:
        return read_published(folder, name, overwritten_prompt=overwritten_prompt)
    if overwritten_prompt:
        raise BadInput("--overwritten-prompt is a bug of the published data sets' prompts; give their --folder")
    made = concept(name)
    return made.texts(made.at_most(n, difficulty), difficulty, seed)


def _names(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _work_folder(run: Path, resume: bool) -> Path:
    """Where the activations lie until the run is written. Raises BadInput on those of an interrupted job."""
    work = run.with_name(f"{run.name}.work")
    if work.exists() and not resume:
        raise BadInput(f"{work} holds activations of an interrupted job: resume it (--resume), or delete that folder")
    return work


@contextmanager
def _interruptible(work: Path) -> Iterator[None]:
    """On Ctrl-C, say what is kept and how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        say(f"Interrupted. The activations so far are in {work}; the same command with --resume goes on.")
        raise


def _tables(result: ConceptDepth) -> dict[str, Any]:
    tables = {"curves": result.frame, "selectivity": result.selectivity(), "shifts": result.shifts()}
    return {name: table.to_dict("records") for name, table in tables.items()}


def _show_depth(result: ConceptDepth, points: Any) -> None:
    rows = result.frame[result.frame.metric == "accuracy"]
    names = ["model", "dataset", "site", "condition", "series"]
    wide = rows.pivot_table(index=names, columns="layer", values="value", sort=False)
    wide.columns = ["tokens" if layer < 0 else f"layer {layer}" for layer in wide.columns]
    show_frame("accuracy by layer (the table of the run has intervals and other metrics)", wide.reset_index())
    shown = points[["model", "dataset", "site", "condition"]].copy()
    for name in ("jump", "converging"):
        shown[name] = [_depth(*row) for row in points[[name, f"{name}_low", f"{name}_high"]].itertuples(index=False)]
    show_frame("jump and converging points, as shares of the depth", shown)


def _depth(value: float, low: float, high: float) -> str:
    return f"{value:.2f} [{low:.2f}, {high:.2f}]" if value == value else "none"


def _show_linear(result: LinearProbes) -> None:
    rows = result.frame[result.frame.metric.isin(["accuracy", "auc"])]
    show_frame("out-of-fold accuracy and AUC, with bootstrap intervals", rows)
    if unsolved := result.parameters["unsolved"]:
        say(f"{unsolved} probes did not reach the tolerance; their numbers are of where they stopped.")
