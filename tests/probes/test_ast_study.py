"""A study reads syntax in a model with its controls beside, says what they amount to, and survives the disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import save as save_arrays

import interp
from interp.errors import BadInput, UnreadableFile
from interp.plots.syntax import alike, by_layer_and_rank, trees
from interp.pocket.skills.code import function
from probes.ast.corpus import Snippet, Split, sample_functions, split_by_file
from probes.ast.decode import recovered
from probes.ast.leaves import leaf_states
from probes.ast.metrics import membership
from probes.ast.reading import fresh_model, read_code
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


def test_trees_stand_beside_each_other_and_say_what_they_share(split: Split) -> None:
    true = split.test[0].constituents
    whole = split.test[0].vectors
    said = replace(whole, c=tuple(chain if len(chain) == 2 else () for chain in whole.c))  # only module and function
    found = recovered(said)
    assert 0 < len(found) < len(true)
    nodes = [trace for trace in trees(split.test[0], said).data if "text" in str(trace.mode)]
    shown = {(trace.xaxis, trace.name): len(trace.x) for trace in nodes}
    assert shown["x", "in both trees"] == shown["x2", "in both trees"] == len(found)
    assert shown["x", "only in the true tree"] == len(true) - len(found)
    assert shown["x2", "only in the recovered tree"] == 0
    lines = {axis: next(t.y for t in nodes if (t.xaxis, t.name) == (axis, "in both trees")) for axis in ("x", "x2")}
    assert lines["x"] == lines["x2"]  # what both have is on one line
    edges = [trace for trace in trees(split.test[0], said).data if trace.mode == "lines"]
    assert sum(len(trace.x) // 4 for trace in edges) == len(true) - 1 + len(found) - 1  # one to every node but the root


def test_words_that_are_markup_are_letters_in_a_tree(pocket: interp.Model) -> None:
    code = "x = '<b>bold</b><a href=\"http://evil.test\">y</a>'\n"
    snippet = Snippet.of(code)
    drawn = trees(snippet, snippet.vectors).to_json()
    assert "<a href" not in drawn
    assert "<b>bold" not in drawn
    assert "&lt;a" in drawn or "\\u0026lt;a" in drawn


def test_a_study_comes_back_from_disk_and_draws_itself(study: AstStudy, tmp_path: Path) -> None:
    study.save(tmp_path / "run")
    again = AstStudy.load(tmp_path / "run")
    pd.testing.assert_frame_equal(again.frame, study.frame)
    pd.testing.assert_frame_equal(again.comparisons(), study.comparisons())
    assert (again.best, again.saturation_rank) == (study.best, study.saturation_rank)
    assert again.probe("embed").labels == study.probe("embed").labels
    assert again.plot().to_json() == study.plot().to_json()
    assert again.controls.keys() == {"untrained", "shifted", "following token"}
    for name, control in study.controls.items():
        assert torch.equal(again.controls[name].projection, control.projection)
        assert again.controls[name].site == control.site
    other = study.similarities(again)
    pd.testing.assert_frame_equal(other, study.similarities())
    figure = by_layer_and_rank(again)
    names = {trace.name for trace in figure.data}
    assert {"probe", "untrained", "shifted", "following token", "balanced"} <= names
    line, ranks = [trace for trace in figure.data if trace.name == "probe"]
    assert list(ranks.y) == list(study.by_rank().value)
    assert list(line.y) == list(study.curve("probe").value)
    own = study.frame["rank"] == study.parameters["settings"]["rank"]
    single = by_layer_and_rank(replace(study, frame=study.frame[own]))  # one rank is no curve
    assert [trace.name for trace in single.data] == [t.name for t in figure.data if t.xaxis == "x"]
    assert "xaxis2" not in single.layout.to_plotly_json()
    table = again.similarities()
    assert len(alike(table, "one", "the same").data[0].z) == len(again.probes)
    assert table[table.row == table.column].similarity.to_numpy() == pytest.approx(1)
    with pytest.raises(UnreadableFile, match="is not a run"):
        AstStudy.load(tmp_path)


def test_what_controls_read_of_a_snippet_is_what_the_study_counted(
    study: AstStudy, pocket: interp.Model, split: Split, tmp_path: Path
) -> None:
    study.save(tmp_path / "run")
    again = AstStudy.load(tmp_path / "run")
    fresh = fresh_model(pocket, again)
    read = read_code(pocket, again, split.test, fresh=fresh)
    assert [each.snippet for each in read] == list(split.test)
    numbers = pd.concat(each.frame for each in read).groupby("reader", sort=False)
    assert list(numbers.groups) == [
        "probe", "embedding", "untrained", "shifted", "following token", "right-branching", "balanced"
    ]  # fmt: skip
    assert set(study.comparisons().control) == {*numbers.groups} - {"probe"}  # one name a control everywhere
    for reader, rows in numbers:
        series = "probe" if reader == "embedding" else reader
        counted = study.curve(series).set_index("site").loc[rows.site.iloc[0]]
        for metric in ("precision", "recall"):
            assert rows[metric].mean() == pytest.approx(counted[metric]), reader
        assert rows.f1.mean() == pytest.approx(counted.value), reader
    without = read_code(pocket, again, split.test[:1], site="embed")[0]
    assert "untrained" not in without.predicted
    assert "embedding" not in without.predicted
    assert without.sites["probe"] == "embed"
    with pytest.raises(BadInput, match="'nobody' read nothing here"):
        read[0].plot("nobody")
    with pytest.raises(BadInput, match="read pocket"):
        read_code(fresh, again, split.test[:1])


def test_an_untrained_model_that_cannot_be_made_again_is_not_read(study: AstStudy, pocket: interp.Model) -> None:
    other = replace(study, parameters={**study.parameters, "untrained": "another"})
    assert fresh_model(pocket, other) is None
    assert fresh_model(pocket, replace(study, controls={})) is None


@pytest.mark.parametrize("damage", ["projection.embed", "u.control.shifted", "f1"])
def test_arrays_of_the_wrong_shape_are_refused(study: AstStudy, tmp_path: Path, damage: str) -> None:
    run = study.save(tmp_path / "run")
    arrays = {**run.arrays, damage: np.zeros((2, 3, 4), dtype=np.float32)}
    (run.path / "arrays.safetensors").write_bytes(save_arrays(arrays))
    with pytest.raises(UnreadableFile, match="has shape"):
        AstStudy.load(run.path)


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
