"""A study reads syntax in a model with its controls beside, says what they amount to, and survives the disk."""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
import pandas as pd
import pytest

import interp
from interp.errors import BadInput, UnreadableFile
from interp.plots.syntax import alike, by_layer_and_rank, trees
from interp.pocket.skills.code import function
from probes.ast.corpus import Split, sample_functions, split_by_file
from probes.ast.decode import recovered
from probes.ast.leaves import leaf_states
from probes.ast.metrics import membership
from probes.ast.result import AstStudy, bootstrap_over_files
from probes.ast.study import ast_study
from probes.ast.training import Settings

QUICK = Settings(rank=16, epochs=16, batch=4, learning_rate=5e-3, plateau=3)


def written(folder: Path, files: int, each: int) -> Path:
    """A folder of files of functions like those pocket was trained on."""
    for i in range(files):
        rng = Random(f"file {i}")
        (folder / f"{i}.py").write_text("\n\n".join(function(rng) for _ in range(each)))
    return folder


@pytest.fixture(scope="module")
def pocket() -> interp.Model:
    return interp.load("pocket")


@pytest.fixture(scope="module")
def split(pocket: interp.Model, tmp_path_factory: pytest.TempPathFactory) -> Split:
    folder = written(tmp_path_factory.mktemp("code"), 40, 7)
    return split_by_file(sample_functions(280, [pocket.tokenizer], folder=folder), source="generated")


@pytest.fixture(scope="module")
def study(pocket: interp.Model, split: Split) -> AstStudy:
    return ast_study(pocket, split, settings=QUICK, ranks=(4, 16))


def test_pocket_holds_more_syntax_than_its_embedding_an_untrained_model_and_shifted_leaves(study: AstStudy) -> None:
    against = study.comparisons().set_index("control")
    assert against.loc["embedding", "beyond"]
    for control in ("untrained", "shifted", "right-branching", "balanced"):
        assert against.loc[control, "low"] > 0, control
    assert study.best != "embed"


def test_every_number_is_there_with_its_interval(study: AstStudy, pocket: interp.Model) -> None:
    sites = ["embed", *(f"resid_post.{i}" for i in range(pocket.spec.layers))]
    for series in ("probe", "untrained", "shifted", "following token", "right-branching", "balanced"):
        assert list(study.curve(series).site) == sites
    test = study.frame[study.frame.split == "test"]
    assert ((test.low <= test.value) & (test.value <= test.high)).all()
    assert set(test.metric) == {"f1", "multiset f1", "unlabelled f1"}
    assert list(study.by_rank()["rank"]) == [4, 16]
    assert study.saturation_rank in (4, 16)
    assert study.parameters["files"] == {"train": 24, "valid": 6, "test": 10}
    kinds = study.types.set_index("label")
    assert kinds.loc["module", "f1"] == 1


def test_the_table_is_what_the_probes_say(study: AstStudy, pocket: interp.Model, split: Split) -> None:
    states = leaf_states(pocket, split.test)
    probe = study.probe(study.best)
    said = probe.predict(states.of(study.best), states.lengths)
    f1 = [membership(recovered(p), s.constituents).f1 for p, s in zip(said, split.test, strict=True)]
    row = study.curve("probe").set_index("site").loc[study.best]
    assert row.value == pytest.approx(np.mean(f1))
    assert row.functions == len(split.test)
    figure = trees(split.test[0], said[0])
    marks = [trace for trace in figure.data if trace.mode == "markers"]
    assert [len(trace.x) for trace in marks] == [len(split.test[0].constituents), len(recovered(said[0]))]


def test_a_study_comes_back_from_disk_and_draws_itself(study: AstStudy, tmp_path: Path) -> None:
    study.save(tmp_path / "run")
    again = AstStudy.load(tmp_path / "run")
    pd.testing.assert_frame_equal(again.frame, study.frame)
    pd.testing.assert_frame_equal(again.comparisons(), study.comparisons())
    assert (again.best, again.saturation_rank) == (study.best, study.saturation_rank)
    assert again.probe("embed").labels == study.probe("embed").labels
    figure = by_layer_and_rank(again)
    names = {trace.name for trace in figure.data}
    assert {"probe", "untrained", "shifted", "following token", "balanced"} <= names
    (line,) = [trace for trace in figure.data if trace.name == "probe"]
    assert list(line.y) == list(study.curve("probe").value)
    table = again.similarities()
    assert len(alike(table).data[0].z) == len(again.probes)
    assert table[table.row == table.column].similarity.to_numpy() == pytest.approx(1)
    with pytest.raises(UnreadableFile, match="is not a run"):
        AstStudy.load(tmp_path)


def test_the_same_seed_is_the_same_study(pocket: interp.Model, split: Split) -> None:
    quick = Settings(rank=4, epochs=1)
    first, second = (ast_study(pocket, split, settings=quick, controls=False) for _ in range(2))
    pd.testing.assert_frame_equal(first.frame, second.frame)
    assert set(first.frame.series) == {"probe"}


def test_functions_of_one_file_are_drawn_together() -> None:
    values = np.array([0.0] * 50 + [1.0] * 50)
    apart = bootstrap_over_files(values, [str(i) for i in range(100)])
    together = bootstrap_over_files(values, [str(i // 50) for i in range(100)])
    assert apart[0] > 0.35
    assert together == (0.0, 1.0)
    assert all(np.isnan(bootstrap_over_files(values, ["one"] * 100)))


def test_a_rank_above_the_width_costs_no_pass(pocket: interp.Model, split: Split) -> None:
    with pytest.raises(BadInput, match="at most rank 256, not 300"):
        ast_study(pocket, split, settings=QUICK, ranks=(300,))


def test_a_third_party_model_is_studied_too(shared: Path) -> None:
    model = interp.load(shared / "models" / "stories260k")
    split = split_by_file(sample_functions(80, [model.tokenizer], max_tokens=300))
    found = ast_study(model, split, settings=Settings(rank=16, epochs=4, batch=4, learning_rate=5e-3))
    assert len(found.curve("probe")) == 6
    assert set(found.comparisons().control) >= {"embedding", "untrained", "shifted", "following token"}
