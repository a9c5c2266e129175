"""`interp probe ast`: a fit leaves a run, `parse` prints recovered trees beside true ones, and bad code is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from interp.pocket.skills.code import function
from interp.runs import load_run
from probes.ast.result import AstStudy

Interp = Callable[..., Any]
QUICK = ("--rank", 8, "--ranks", "4", "--epochs", 2)


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small functions."""
    folder = tmp_path_factory.mktemp("code")
    rng = Random(0)
    for i in range(6):
        (folder / f"{i}.py").write_text("\n\n".join(function(rng) for _ in range(4)))
    return folder


@pytest.fixture(scope="module")
def fitted(code: Path, random_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from interp.cli.main import main

    run = tmp_path_factory.mktemp("runs") / "run"
    arguments = ["probe", "ast", "fit", random_llama, "--folder", code, *QUICK, "--no-controls", "--out", run, "--json"]
    with pytest.raises(SystemExit) as done:
        main([str(each) for each in arguments])
    assert not done.value.code
    return run


def test_a_fit_is_a_run(interp: Interp, random_llama: Path, code: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = interp("probe", "ast", "fit", random_llama, "--folder", code, *QUICK, "--out", run, "--seed", 3)
    assert done.code == 0
    for said in ("held-out functions", "by rank", "beyond its controls", "commonest node types", f"Run: {run}"):
        assert said in done.out
    assert "such functions of at most 256 tokens" in done.err
    saved = load_run(run)
    assert (saved.record.kind, saved.record.seed) == ("ast-probe", 3)
    assert set(saved.frame.series) == {
        "probe", "untrained", "shifted", "following token", "right-branching", "balanced"
    }  # fmt: skip
    again = interp("probe", "ast", "fit", random_llama, "--folder", code, *QUICK, "--out", run)
    assert again.code == 2
    assert "already holds a run" in again.err


def test_the_recovered_tree_is_printed_beside_the_true_one(
    interp: Interp, random_llama: Path, fitted: Path, tmp_path: Path
) -> None:
    file = tmp_path / "file.py"
    file.write_text("import os\n\n\nclass A:\n    def f(self):\n        return os.sep\n\n\ndef g(x):\n    return x\n")
    command = ("probe", "ast", "parse", random_llama, file, "--probe", fitted)
    done = interp(*command, "--figure", tmp_path / "trees.html")
    assert done.code == 0
    assert "def f(self):  F1" in done.out
    assert "def g(x):  F1" in done.out
    header = next(line for line in done.out.split("\n") if "true" in line)
    assert header.index("true") < header.index("recovered")
    assert "function_definition" in done.out
    assert (tmp_path / "trees.html").stat().st_size > 1000
    document = interp(*command, "--function", "def g", "--site", "embed", "--json").json
    assert document["site"] == "embed"
    (only,) = document["functions"]
    assert only["leaves"] == ["def", "g", "(", "x", ")", ":", "return", "x"]
    assert ["module", 0, 7] in only["true"]
    said = {tuple(each) for each in only["recovered"]}
    true = {tuple(each) for each in only["true"]}
    precision, recall = len(said & true) / len(said), len(said & true) / len(true)
    assert only["f1"] == pytest.approx(2 * precision * recall / (precision + recall) if said & true else 0, abs=0.05)


def test_controls_read_beside_the_probe_unless_they_are_left_out(
    interp: Interp, random_llama: Path, code: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert interp("probe", "ast", "fit", random_llama, "--folder", code, *QUICK, "--out", run).code == 0
    command = ("probe", "ast", "parse", random_llama, code / "0.py", "--probe", run)
    (first, *_) = interp(*command, "--json").json["functions"]
    readers = {each["reader"] for each in first["controls"]}
    assert readers == {"embedding", "untrained", "shifted", "following token", "right-branching", "balanced"} - {
        "embedding" if load_run(run).record.parameters["best"] == "embed" else ""
    }
    assert "Controls: " in interp(*command).err
    assert "Controls: " not in interp(*command, "--no-controls").err


def test_subspaces_are_compared_between_layers_and_between_studies(
    interp: Interp, random_llama: Path, fitted: Path, code: Path, tmp_path: Path
) -> None:
    rows = interp("probe", "ast", "similarity", fitted, "--json").json["similarities"]
    sites = ["embed", "resid_post.0", "resid_post.1"]
    assert [row["row"] for row in rows[::3]] == sites
    own = {(row["row"], row["column"]): row["similarity"] for row in rows}
    for a in sites:
        assert own[a, a] == pytest.approx(1)
        for b in sites:
            assert own[a, b] == pytest.approx(own[b, a])
    other = tmp_path / "other"
    options = ("--folder", code, *QUICK, "--no-controls", "--seed", 5, "--out", other)
    assert interp("probe", "ast", "fit", random_llama, *options).code == 0
    across = interp("probe", "ast", "similarity", fitted, other, "--figure", tmp_path / "map.html", "--json").json
    assert all(row["similarity"] < 0.999 for row in across["similarities"])
    assert (tmp_path / "map.html").stat().st_size > 1000
    assert "at random 0.125" in interp("probe", "ast", "similarity", fitted).out


def test_functions_like_the_bundled_models_need_no_folder(interp: Interp, random_llama: Path, tmp_path: Path) -> None:
    command = ("probe", "ast", "fit", random_llama, "--generated", "-n", 28, *QUICK, "--no-controls")
    done = interp(*command, "--out", tmp_path / "run", "--json")
    assert done.json["functions"] == {"train": 14, "valid": 7, "test": 7}
    refused = interp(*command, "--folder", tmp_path, "--out", tmp_path / "another")
    assert refused.code == 2
    assert "leave --folder" in " ".join(refused.err.split())


@pytest.mark.parametrize(
    ("source", "options", "said"),
    [
        ("def f(:\n", (), "no python that parses: line 1"),
        ("x = " + "(" * 400 + "1" + ")" * 400, (), "more than 300 levels deep"),
        ("# nothing\n", (), "there is no code"),
        ("def f():\n    return 1\n", ("--function", "def h"), "no function whose first line holds 'def h'"),
        ("def f():\n    return 1\n", ("--site", "resid_post.9"), "no probe of 'resid_post.9'"),
        ("def f():\n    return '" + "x" * 600 + "'\n", (), "512"),
    ],
)
def test_code_that_cannot_be_parsed_is_refused(
    interp: Interp, random_llama: Path, fitted: Path, tmp_path: Path, source: str, options: tuple[str, ...], said: str
) -> None:
    file = tmp_path / "file.py"
    file.write_text(source)
    done = interp("probe", "ast", "parse", random_llama, file, "--probe", fitted, *options)
    assert done.code == 2
    assert said in " ".join(done.err.split())


def test_a_probe_of_another_model_is_refused(interp: Interp, fitted: Path, code: Path) -> None:
    done = interp("probe", "ast", "parse", "pocket", code / "0.py", "--probe", fitted)
    assert done.code == 2
    assert "probes of this study read random-llama" in " ".join(done.err.split())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--language", "pyton"), "did you mean 'python'"),
        (("--language", "javascript"), "holds no javascript function"),
        (("--rank", 65), "at most rank 64, not 65"),
        (("--ranks", "a"), "--ranks a is not a list of numbers"),
        (("--max-tokens", 5), "at most 5 tokens"),
        (("-n", 3), "cannot be split by file"),
    ],
)
def test_a_fit_that_cannot_be_served_leaves_nothing(
    interp: Interp, random_llama: Path, code: Path, tmp_path: Path, options: tuple[object, ...], said: str
) -> None:
    run = tmp_path / "run"
    done = interp("probe", "ast", "fit", random_llama, "--folder", code, "--epochs", 1, *options, "--out", run)
    assert done.code == 2
    assert said in " ".join(done.err.split())
    assert not run.exists()


def test_probes_are_kept_with_what_they_may_say(fitted: Path) -> None:
    study = AstStudy.load(fitted)
    held = json.loads((fitted / "labels.json").read_text())
    assert [list(chain) for chain in study.probe("embed").labels.c] == held["c"]
    assert study.probe("embed").projection.shape == (64, 8)
