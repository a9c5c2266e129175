"""Conventions of every command: help, exit codes, errors as one sentence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from apps.explorer.samples import BEFORE, COMMANDS
from interp import __version__
from interp.cli import runs
from interp.cli.main import app
from interp.errors import BadInput, NoTestPassed
from kernels.errors import InvalidRequest

Interp = Callable[..., Any]


def commands(command: Any = None, *path: str) -> Iterator[tuple[str, Any]]:
    """Every command by the words that call it."""
    command = command or get_command(app)
    below = getattr(command, "commands", {})
    if not below:
        yield " ".join(path), command
    for name, each in below.items():
        yield from commands(each, *path, name)


def test_the_version_is_the_packages(interp: Interp) -> None:
    assert interp("--version").out.strip() == __version__


def test_no_command_shows_what_there_is(interp: Interp) -> None:
    shown = interp().out
    assert all(name in shown for name in ("info", "heads", "runs"))
    assert shown.index("Models") < shown.index("Analyses") < shown.index("Results")


def test_a_mistyped_command_is_bad_input_with_a_suggestion(interp: Interp) -> None:
    done = interp("inof")
    assert done.code == 2
    assert "info" in done.err


@pytest.mark.parametrize(
    ("error", "code"), [(BadInput("no such thing"), 2), (NoTestPassed("none did"), 1), (InvalidRequest("window=0"), 2)]
)
def test_an_error_is_one_sentence_and_its_exit_code(
    interp: Interp, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int
) -> None:
    def fail(folder: object) -> None:
        raise error

    monkeypatch.setattr(runs, "run_folders", fail)
    done = interp("runs", "list")
    assert (done.code, done.out, done.err) == (code, "", f"Error: {error}\n")
    with pytest.raises(type(error)):
        interp("--debug", "runs", "list")


def test_an_interrupt_ends_with_130(interp: Interp, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(folder: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "run_folders", interrupt)
    assert interp("runs", "list").code == 130


def test_a_defect_is_not_dressed_up_as_bad_input(interp: Interp, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(folder: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(runs, "run_folders", fail)
    with pytest.raises(ZeroDivisionError):
        interp("runs", "list")


def test_every_option_and_argument_is_explained() -> None:
    parameters = [(name, parameter) for name, command in commands() for parameter in command.params]
    assert len(parameters) > 300
    assert [f"{name}: {parameter.name}" for name, parameter in parameters if not parameter.help] == []


def test_arguments_are_shown_by_their_names() -> None:
    assert [name for name, command in commands() for parameter in command.params
            if parameter.param_type_name == "argument" and parameter.metavar] == []  # fmt: skip


def test_how_many_items_is_the_same_option_everywhere() -> None:
    counts = {(*option.opts, *option.secondary_opts) for _, command in commands() for option in command.params
              if option.name == "n" or "-n" in option.opts}  # fmt: skip
    assert counts == {("--n", "-n")}
    known = {option for _, command in commands() for parameter in command.params for option in parameter.opts}
    assert not known & {"--texts", "--functions", "--questions", "--sequences", "--prompts-count", "-q"}


def known_options(line: str) -> bool:
    """Whether the options in a command line are those of its command."""
    (command,) = (command for name, command in commands() if f"{line} ".startswith(f"{name} "))
    known = {option for parameter in command.params for option in parameter.opts}
    return {word.split("=")[0] for word in line.split() if word.startswith("-")} <= known


def test_every_command_shows_an_example_that_it_takes() -> None:
    for name, command in commands():
        called, line = f"{command.epilog}".split(": interp ", 1)
        assert called == "Example"
        assert f"{line} ".startswith(f"{name} ")
        assert known_options(line), line


@pytest.mark.parametrize("line", {**COMMANDS, **BEFORE}.values())
def test_the_commands_of_the_samples_exist(line: str) -> None:
    assert known_options(line)


PLACES = {
    "heads score m": "m-retrieval",
    "heads score m --method razor": "m-razor",
    "heads roles m": "m-roles",
    "heads cache m": "m-cache",
    "heads ablate m": "m-ablation",
    "heads prune m --budget 1": "m-pruning",
    "heads export m/mask.json --format duo": "mask-duo",
    "heads export m/mask.json --format headkv": "mask_retrieval_heads.json",
    "heads export m/mask.json --format qrhead": "mask-qrhead.json",
    "heads import m/mask.json --model m": "m-mask.json",
    "patch m": "m-patch-z-head",
    "project m": "m-projection",
    "circuit ioi m": "m-ioi-circuit",
    "circuit colored-objects m": "m-objects-circuit",
    "circuit reuse m": "m-circuit-reuse",
    "circuit edges m": "m-edges",
    "knob search m": "m-knob-search",
    "knob fit m": "m-knob",
    "knob eval m --knob m": "m-knob-eval",
    "knob side-effects m --knob m": "m-knob-side-effects",
    "probe depth m": "m-depth",
    "probe linear m --data m/texts.csv": "m-texts-probes",
    "probe verify collect m": "m-traces",
    "probe verify fit m m": "m-clue",
    "probe verify rank m m --centroids m": "m-clue-ranking",
    "probe vsa fit m": "m-vsa-analogies",
    "probe ast fit m": "m-ast",
    "skill finetune m --task topic:scenes+m/texts.csv": "m-topic-scenes+texts-tuned",
    "skill localize m runs/tuned --task topic": "tuned-mask",
    "skill graft m runs/tuned --mask m": "tuned-grafted",
    "skill evaluate m runs/tuned --task topic --mask m": "tuned-evaluation",
    "skill overlap --mask m --mask m": "mask-overlap",
    "skill continual m --task topic+sentiment": "m-continual",
    "skill lofit m": "m-lofit",
}
"""By command line, the folder or file in runs/ where its result goes unless --out says otherwise."""


@pytest.mark.parametrize(("line", "place"), PLACES.items())
def test_a_taken_place_is_refused_before_any_work(
    interp: Interp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, place: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m").mkdir()  # neither model, mask, traces nor knob: to load it would be another error
    for name in ("mask.json", "texts.csv"):
        (tmp_path / "m" / name).touch()
    (tmp_path / "runs" / place).mkdir(parents=True)
    (tmp_path / "runs" / place / "kept").touch()
    done = interp(*line.split())
    assert (done.code, done.err.startswith(f"Error: runs/{place} already holds something")) == (2, True), done.err


def test_every_result_has_a_place_that_the_help_names() -> None:
    writing = {}
    for name, command in commands():
        for parameter in command.params:
            if "--out" in parameter.opts:
                assert not parameter.required, name
                writing[name] = parameter.show_default
    assert all(str(place).startswith("runs/") for place in writing.values()), writing
    assert {name for line in PLACES for name in writing if line.startswith(f"{name} ")} == set(writing)
