"""`interp probe vsa`: which concepts are bound to which in a hidden state."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from interp.cli.console import emit, progress, show_facts, show_frame, show_written
from interp.cli.models import load_model
from interp.cli.options import Attention, Device, DType, Json, ModelName, Revision, Seed, new_run, out_option
from interp.errors import BadInput, choose
from interp.runs import require_free

if TYPE_CHECKING:
    from interp.tasks.prompts import PromptSet
    from interp.tracing.model import Model
    from probes.vsa.causal import CausalCheck
    from probes.vsa.study import HyperdimensionalProbe

app = typer.Typer(help="Hyperdimensional probe: hidden states as bundles of bound concepts.", no_args_is_help=True)

Task = Literal["analogies", "key-value", "syntax"]
Encoding = Literal["pairs", "roles"]
By = Literal["combination", "pair"]


@dataclass(frozen=True)
class Prompts:
    """The prompts that the options describe."""

    task: Task
    n: int
    seed: int
    file: Path | None
    analogies: Path | None
    squad: Path | None

    def build(self, model: Model) -> PromptSet:
        from interp.tasks import analogies
        from interp.tasks.prompts import PromptSet
        from interp.tasks.squad import squad_prompts

        tokenizer = model.tokenizer
        if self.file is not None:
            return PromptSet.from_jsonl(self.file, tokenizer)
        if self.squad is not None:
            return squad_prompts(tokenizer, self.squad, self.n, self.seed, context=model.spec.context)
        if self.analogies is not None:
            return analogies.analogy_prompts(
                tokenizer, self.n, self.seed, relations=analogies.read_analogies(self.analogies)
            )
        if self.task == "key-value":
            return analogies.key_value_prompts(tokenizer, self.n, self.seed)
        if self.task == "syntax":
            return analogies.syntax_prompts(tokenizer, self.n, self.seed)
        return analogies.analogy_prompts(tokenizer, self.n, self.seed)


@app.command(epilog="Example: interp probe vsa fit pocket --task key-value")
def fit(
    model: ModelName,
    task: Annotated[Task, typer.Option(help="Generated prompts to fit and test on.")] = "analogies",
    n: Annotated[int, typer.Option("--n", "-n", help="How many prompts.", min=30)] = 1200,
    prompts: Annotated[
        Path | None,
        typer.Option(help="A prompt file (JSONL) with bindings, key and target as metadata.", show_default=False),
    ] = None,
    analogies: Annotated[
        Path | None, typer.Option(help="Analogies in the form of questions-words.txt.", show_default=False)
    ] = None,
    squad: Annotated[Path | None, typer.Option(help="Questions in the form of SQuAD.", show_default=False)] = None,
    encoding: Annotated[
        Encoding | None,
        typer.Option(help="Bind concepts in pairs, or to roles.", show_default="roles; of analogies and files pairs"),
    ] = None,
    by: Annotated[
        By | None,
        typer.Option(
            "--split",
            help="Hold out pairs, or combinations of pairs.",
            show_default="pair for roles, combination for pairs",
        ),
    ] = None,
    ingestions: Annotated[
        str, typer.Option(help="Vectors to read: clusters, last, mean, concatenation, or sites such as resid_post.2.")
    ] = "clusters",
    moments: Annotated[
        str, typer.Option(help="States to read: before or after the model's answer, or before,after.")
    ] = "before",
    algebra: Annotated[
        Literal["MAP", "HRR", "FHRR", "BSC"], typer.Option(help="Vector symbolic architecture.")
    ] = "MAP",
    dimensions: Annotated[int, typer.Option(help="Dimensions of the hypervectors.", min=1)] = 4096,
    network: Annotated[
        bool, typer.Option("--network/--no-network", help="Train the paper's network, beside the linear encoder.")
    ] = True,
    hidden: Annotated[int, typer.Option(help="Width of the network.", min=1)] = 512,
    epochs: Annotated[int, typer.Option(help="Epochs of the network, at most.", min=1)] = 200,
    accepted: Annotated[float, typer.Option(help="Cosine from which a cleanup is accepted.")] = 0.1,
    causal: Annotated[
        str, typer.Option(help="Sites to move states at, such as resid_post.2,resid_post.3.", show_default=False)
    ] = "",
    keep: Annotated[
        str,
        typer.Option(
            help="Encoders that the run keeps, such as linear/before/last, or none.", show_default="all of them"
        ),
    ] = "",
    half: Annotated[
        bool, typer.Option("--half", help="Keep their weights in half precision: half the size on disk.")
    ] = False,
    to: Annotated[Path | None, out_option("runs/MODEL-vsa-TASK")] = None,
    device: Device = None,
    dtype: DType = None,
    attention: Attention = None,
    revision: Revision = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Fit encoders to hypervectors, decode held-out prompts, and set the baselines beside them."""
    given = {"--prompts": prompts, "--analogies": analogies, "--squad": squad}
    if len(sources := [name for name, path in given.items() if path is not None]) > 1:
        raise BadInput(f"{' and '.join(sources)} are two sources of prompts; give one")
    single = bool(sources) or task == "analogies"
    encoding = encoding or ("pairs" if single else "roles")
    by = by or ("combination" if encoding == "pairs" else "pair")
    moved = [site.strip() for site in causal.split(",") if site.strip()]
    named = [name.strip() for name in ingestions.split(",") if name.strip()]
    named += [site for site in moved if site not in named]
    source = next((path.stem for path in given.values() if path is not None), "")
    label = source or task
    what = "prompts" if prompts else "questions" if squad else "analogies" if analogies else task
    about = {"task": what, "source": source or "generated"}
    run = new_run(to, model, f"vsa-{label}")
    for site in moved:
        require_free(_causal_run(run, site))

    from probes.vsa.algebra import Algebra
    from probes.vsa.encoder import Training
    from probes.vsa.study import hyperdimensional_probe

    kept = _kept(keep, network, [name.strip() for name in moments.split(",") if name.strip()], named)
    training = Training(hidden=hidden, epochs=epochs, seed=seed) if network else None
    started = datetime.now(timezone.utc)
    loaded = load_model(model, device=device, dtype=dtype, attention=attention, revision=revision)
    asked = Prompts(task, n, seed, prompts, analogies, squad).build(loaded)
    with progress("probing") as report:
        result = hyperdimensional_probe(
            loaded,
            asked,
            encoding=encoding,
            by=by,
            ingestions=named,
            moments=[name.strip() for name in moments.split(",") if name.strip()],
            algebra=Algebra(algebra),
            dimensions=dimensions,
            training=training,
            accepted=accepted,
            about=about,
            seed=seed,
            progress=report,
        )
    checks = {site: _check(loaded, asked, result, site) for site in moved}
    result.keeping(kept).save(run, started, half=half)
    for site, check in checks.items():
        check.save(_causal_run(run, site))
    if json:
        emit(
            {
                "run": str(run),
                "model": result.model,
                "parameters": result.parameters,
                "chance_cosine": result.chance,
                "methods": result.frame.to_dict("records"),
                "causal": {site: check.frame.to_dict("records") for site, check in checks.items()},
            }
        )
        return
    _show(result, checks, run)


@app.command(epilog="Example: interp probe vsa decode runs/pocket-vsa-key-value pocket 'a text'")
def decode(
    run: Annotated[Path, typer.Argument(help="A run of `interp probe vsa fit`.", show_default=False)],
    model: ModelName,
    text: Annotated[str, typer.Argument(help="A prompt like those the encoder was fitted to.", show_default=False)],
    encoder: Annotated[
        str, typer.Option(help="Encoder by kind, moment and ingestion.", show_default="the first of the run")
    ] = "",
    query: Annotated[
        str,
        typer.Option(help="Concepts to unbind, such as France,role:d.", show_default="the roles, or those of the text"),
    ] = "",
    top: Annotated[int, typer.Option(help="Concepts to show a query.", min=1)] = 3,
    figure: Annotated[Path | None, typer.Option(help="Also draw them, as HTML.", show_default=False)] = None,
    device: Device = None,
    dtype: DType = None,
    attention: Attention = None,
    revision: Revision = None,
    json: Json = False,
) -> None:
    """Which concepts are bound in the hidden state of a text, by a fitted probe."""
    from probes.vsa.reading import read_text
    from probes.vsa.study import HyperdimensionalProbe

    result = HyperdimensionalProbe.load(run)
    if not result.encoders:
        raise BadInput(f"{run} keeps no encoder: fit one with --keep")
    name = encoder or next(iter(result.encoders))
    result.encoder(name)
    queries = [part.strip() for part in query.split(",") if part.strip()]
    for each in queries:
        result.codebook.index(each)
    loaded = load_model(model, device=device, dtype=dtype, attention=attention, revision=revision)
    found = read_text(loaded, result, text, name, queries, top)
    if figure is not None:
        found.plot().write_html(figure)
    said = found.said.frame
    if json:
        about = {"run": str(run), "encoder": name, "chance_cosine": result.chance}
        emit({**about, "found": found.frame.to_dict("records"), "next_token": said.to_dict("records")})
        return
    show_frame(f"concepts bound in the state, by {name} (a cosine up to {result.chance:.2f} is chance)", found.frame)
    show_frame("what the model says next", said.drop(columns="id"))


def _kept(keep: str, network: bool, moments: list[str], ingestions: list[str]) -> list[str]:
    """The encoders to keep, of those that will be fitted. Raises BadInput naming them."""
    kinds = ("linear", "network") if network else ("linear",)
    fitted = [f"{kind}/{moment}/{name}" for kind in kinds for moment in moments for name in ingestions]
    wanted = [] if keep == "none" else [name.strip() for name in keep.split(",") if name.strip()] or fitted
    for name in wanted:
        if name not in fitted:
            raise BadInput(f"--keep {name}: no such encoder will be fitted; {choose(name, (*fitted, 'none'))}")
    return wanted


def _check(loaded: Model, asked: PromptSet, result: HyperdimensionalProbe, site: str) -> CausalCheck:
    from interp.tasks.analogies import structures
    from probes.vsa.causal import causal_check

    said = structures(asked)
    rows = result.split.test.tolist()
    coded = [said[i].by_roles if result.parameters["encoding"] == "roles" else said[i] for i in rows]
    moment = result.parameters["moments"][0]
    encoder = result.encoder(f"linear/{moment}/{site}")
    with progress(f"moving {site}") as report:
        return causal_check(
            loaded, asked.select(rows), coded, encoder, result.codebook, site, seed=result.seed, progress=report
        )


def _causal_run(run: Path, site: str) -> Path:
    return run.with_name(f"{run.name}-causal-{site}")


def _show(result: HyperdimensionalProbe, checks: dict[str, CausalCheck], run: Path) -> None:
    about: dict[str, Any] = {
        "prompts": f"{len(result.split.train)} training, {len(result.split.test)} test",
        "the model is right": f"{result.parameters['model_right']:.3f} of the test prompts",
        "targets seen in training": f"{result.parameters['targets_seen']:.3f}",
        "cosine of chance": f"{result.chance:.3f} (99 % of the best hits in random codebooks)",
    }
    show_facts(repr(result), about)
    table = result.summary().astype(object)
    table = table.where(table.notna(), "")
    how = [" ".join(filter(None, row)) for row in table[["encoder", "decoder", "moment", "ingestion"]].to_numpy()]
    table = table.drop(columns=["n", "encoder", "decoder", "moment", "ingestion"])
    table.insert(1, "how", how)
    show_frame("held-out prompts (the run has intervals, and right and wrong answers apart)", table)
    for site, check in checks.items():
        show_frame(f"moving {site} towards another concept, and at random", check.frame)
        show_frame("how much more often the answer follows than at random", check.beyond_random())
    show_written(run=run)
