"""`interp probe ast`: syntax trees of code in hidden states."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Table
from rich.text import Text

from interp.cli.console import emit, progress, say, show_frame, show_table, show_written
from interp.cli.models import load_model
from interp.cli.options import Attention, Device, DType, Json, ModelName, Revision, Seed, new_run, numbers, out_option
from interp.errors import BadInput, UnreadableFile

if TYPE_CHECKING:
    from interp.tracing.model import Model
    from probes.ast.corpus import Snippet, Split
    from probes.ast.reading import ReadCode
    from probes.ast.result import AstStudy
    from probes.ast.tree import Constituent

app = typer.Typer(help="Recover the syntax tree of a program from hidden states.", no_args_is_help=True)

LanguageName = Annotated[str, typer.Option(help="python, javascript or go; the grammars are an extra.")]


@app.command(epilog="Example: interp probe ast fit pocket --folder src")
def fit(
    model: ModelName,
    folder: Annotated[
        Path | None,
        typer.Option(help="Where the code is.", show_default="the standard library of this Python", exists=True),
    ] = None,
    generated: Annotated[
        bool, typer.Option("--generated", help="Functions like those the bundled model was trained on, instead.")
    ] = False,
    language: LanguageName = "python",
    n: Annotated[int, typer.Option("--n", "-n", help="Functions, at most.", min=3)] = 1_000,
    max_tokens: Annotated[int, typer.Option(help="Tokens of a function, at most.", min=2)] = 256,
    rank: Annotated[int, typer.Option(help="Dimension of the subspace, at every layer.", min=1)] = 128,
    ranks: Annotated[str, typer.Option(help="Further ranks at the best layer.")] = "8,16,32,64",
    alignment: Annotated[
        Literal["offsets", "one-by-one"],
        typer.Option(help="The code as it is, or every leaf tokenised alone after a space, as published."),
    ] = "offsets",
    controls: Annotated[
        bool,
        typer.Option("--controls/--no-controls", help="Untrained model, shifted leaves, fixed shapes, next token."),
    ] = True,
    epochs: Annotated[int, typer.Option(help="Epochs, at most.", min=1)] = 40,
    batch: Annotated[int, typer.Option(help="Functions in a step of training.", min=1)] = 8,
    plateau: Annotated[int, typer.Option(help="Epochs without progress before the learning rate falls.", min=0)] = 2,
    paper: Annotated[
        bool, typer.Option("--paper", help="The paper's 20 epochs, batches of 32 and plateau of 0 instead.")
    ] = False,
    to: Annotated[Path | None, out_option("runs/MODEL-ast")] = None,
    device: Device = None,
    dtype: DType = None,
    attention: Attention = None,
    revision: Revision = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """F1 of recovered trees by layer and rank on held-out files, with every control."""
    run = new_run(to, model, "ast")

    from probes.ast.languages import parser
    from probes.ast.study import ast_study
    from probes.ast.training import Settings

    if generated and (folder or language != "python"):
        raise BadInput("--generated functions are Python of our own: leave --folder and --language out")
    parser(language)
    settings = Settings(rank, seed=seed) if paper else Settings(rank, epochs, batch, plateau=plateau, seed=seed)
    further = numbers("--ranks", ranks, int)
    started = datetime.now(timezone.utc)
    loaded = load_model(model, device=device, dtype=dtype, attention=attention, revision=revision)
    split = _split(loaded, folder, generated, language, n, max_tokens, seed)
    with progress("probing") as report:
        result = ast_study(
            loaded,
            split,
            settings=settings,
            ranks=further,
            alignment=alignment,
            controls=controls,
            seed=seed,
            progress=report,
        )
    result.save(run, started)
    if json:
        emit({"run": str(run), **_document(result)})
        return
    _show(result)
    show_written(run=run)


@app.command(epilog="Example: interp probe ast parse pocket file.py --probe runs/pocket-ast")
def parse(
    model: ModelName,
    file: Annotated[Path, typer.Argument(help="A file of code.", show_default=False)],
    probe: Annotated[Path, typer.Option(help="The run that `fit` wrote.", show_default=False)],
    site: Annotated[
        str | None, typer.Option(help="Where to read, such as resid_post.1.", show_default="the best layer")
    ] = None,
    only: Annotated[
        str | None, typer.Option("--function", help="Only functions whose first line holds this.", show_default=False)
    ] = None,
    controls: Annotated[
        bool, typer.Option("--controls/--no-controls", help="What the study's controls recover of it, beside.")
    ] = True,
    figure: Annotated[
        Path | None, typer.Option(help="Also draw the trees of the first function, as HTML.", show_default=False)
    ] = None,
    device: Device = None,
    dtype: DType = None,
    attention: Attention = None,
    revision: Revision = None,
    json: Json = False,
) -> None:
    """The recovered tree of every function of a file beside the true one."""
    from probes.ast.reading import fresh_model, read_code, require_same
    from probes.ast.result import AstStudy

    study = AstStudy.load(probe)
    snippets = _functions_of(file, study.parameters["language"], only)
    where = study.probe(site or study.best).site
    loaded = load_model(model, device=device, dtype=dtype, attention=attention, revision=revision)
    require_same(loaded, study)
    fresh = fresh_model(loaded, study) if controls else None
    read = read_code(loaded, study, snippets, site=where, fresh=fresh)
    if figure is not None:
        read[0].plot().write_html(figure)
    if json:
        emit({"site": where, "functions": [_row(each) for each in read]})
        return
    for each in read:
        _show_trees(each, controls)


@app.command(epilog="Example: interp probe ast similarity runs/pocket-ast")
def similarity(
    run: Annotated[Path, typer.Argument(help="A run of `fit`.", show_default=False)],
    other: Annotated[
        Path | None,
        typer.Argument(help="Another, such as of another language or seed.", show_default="the layers of the first"),
    ] = None,
    figure: Annotated[Path | None, typer.Option(help="Also draw it, as HTML.", show_default=False)] = None,
    json: Json = False,
) -> None:
    """How alike the syntactic subspaces of layers are: of one study, or of one and another."""
    from probes.ast.result import AstStudy

    study = AstStudy.load(run)
    beside = None if other is None else AstStudy.load(other)
    found = study.similarities(beside)
    if figure is not None:
        from interp.plots.syntax import alike

        alike(found, study.title, (beside or study).title).write_html(figure)
    if json:
        emit({"similarities": found.to_dict("records")})
        return
    wide = found.pivot_table(index="row", columns="column", values="similarity", sort=False).reset_index()
    chance = f"{found.chance.min():.3g}"
    show_frame(f"mean squared cosine of the principal angles (1: one holds the other; at random {chance})", wide)


def _split(
    model: Model, folder: Path | None, generated: bool, language: str, n: int, max_tokens: int, seed: int
) -> Split:
    from probes.ast.corpus import generated_functions, sample_functions, split_by_file

    if model.tokenizer is None:
        raise BadInput(f"{model.spec.name} has no tokenizer, and code is text")
    if generated:
        return split_by_file(generated_functions(n, seed=seed), source="generated", seed=seed)
    longest = min(max_tokens, model.spec.context or max_tokens)
    snippets = sample_functions(n, [model.tokenizer], folder=folder, name=language, max_tokens=longest, seed=seed)
    if len(snippets) < n:
        say(f"{folder or 'The standard library'} holds {len(snippets)} such functions of at most {longest} tokens.")
    return split_by_file(snippets, name=language, source=str(folder or "standard library"), seed=seed)


def _functions_of(file: Path, language: str, only: str | None) -> list[Snippet]:
    """The functions of a file, or all of it where it has none. Raises UnreadableFile, BadInput where none fits."""
    from probes.ast.corpus import Snippet, functions
    from probes.ast.languages import parse as parse_code

    try:
        code = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UnreadableFile(f"{file} cannot be read: {error}") from error
    whole = parse_code(code, language)
    found = [Snippet(each, parse_code(each, language), str(file)) for each in functions(code, language)]
    chosen = [s for s in found or [Snippet(code, whole, str(file))] if only is None or only in s.code.split("\n")[0]]
    if not chosen:
        raise BadInput(f"{file} has no function whose first line holds {only!r}; it has {len(found)} functions")
    return chosen


def _row(read: ReadCode) -> dict[str, Any]:
    own, *others = read.frame.drop(columns=["nodes"]).to_dict("records")
    return {
        "code": read.snippet.code,
        "leaves": read.words,
        "true": read.true,
        "recovered": read.recovered,
        **{name: value for name, value in own.items() if name not in ("reader", "site")},
        "controls": others,
    }


def _document(result: AstStudy) -> dict[str, Any]:
    return {
        "best": result.best,
        "saturation_rank": result.saturation_rank,
        "functions": result.parameters["functions"],
        "curves": result.frame.to_dict("records"),
        "comparisons": result.comparisons().to_dict("records"),
        "types": result.types.to_dict("records"),
    }


def _show(result: AstStudy) -> None:
    f = result.frame
    rows = f[(f.metric == "f1") & (f.split == "test") & (f["rank"] == result.parameters["settings"]["rank"])]
    wide = rows.pivot_table(index="site", columns="series", values="value", sort=False)
    n = result.parameters["functions"]["test"]
    show_frame(f"F1 of the trees of {n} held-out functions (the run's table has intervals)", wide.reset_index())
    show_frame(
        f"{result.best} by rank: {result.saturation_rank} holds all but 0.01 of the best",
        result.by_rank()[["rank", "value", "low", "high"]],
    )
    show_frame(f"{result.best} (best on validation) beyond its controls", result.comparisons())
    show_frame("the commonest node types there", result.types.head(12))
    if tied := result.parameters["tied"]:
        say(
            f"{tied:.0%} of neighbouring leaves share their only token, and so their state: their distance is always 0."
        )


def _show_trees(read: ReadCode, controls: bool) -> None:
    table = Table("true", "recovered")
    sides = (read.true, read.recovered)
    table.add_row(*(_lines(own, read.words, other) for own, other in (sides, sides[::-1])))
    numbers = read.frame.set_index("reader").f1
    name = read.snippet.code.split("\n")[0]
    shape = read.frame.unlabelled_f1.iloc[0]
    show_table(f"{name}  F1 {numbers.iloc[0]:.3f} ({shape:.3f} without labels)", table)
    if controls:
        say(f"Controls: {', '.join(f'{reader} {f1:.3f}' for reader, f1 in numbers.iloc[1:].items())}.")


def _lines(constituents: Sequence[Constituent], leaves: Sequence[str], other: Sequence[Constituent]) -> Text:
    """An indented tree, one line a node with its words; what the other tree lacks is marked and red."""
    text, held = Text(), set(other)
    path: list[int] = []
    for label, first, last in constituents:
        while path and path[-1] < first:
            path.pop()
        there = (label, first, last) in held
        words = " ".join(" ".join(leaves[first : last + 1]).split())
        text.append("  " * len(path) + ("" if there else "✗ "))
        text.append(label, style="" if there else "red")
        text.append(f"  {words if len(words) < 30 else words[:28] + '…'}\n", style="dim")
        path.append(last)
    return text
