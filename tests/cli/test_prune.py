"""`interp heads prune`: an order of heads with the metric at each step, and the smaller model as a folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM

import interp as workbench
from interp.cli import prune
from interp.errors import ModelNotLoadable
from interp.heads.pruning import Pruning, save_pruned
from interp.runs import load_run
from kernels.compaction import load_compacted

Interp = Callable[..., Any]

GRID = ("--lengths", "200", "--depths", "0,100", "--needles", "1", "--controls", "1")


@pytest.mark.parametrize("strategy", ["greedy", "one-shot", "random"])
def test_every_strategy_leaves_an_order_with_the_metric_at_each_step(
    interp: Interp, random_llama: Path, tmp_path: Path, strategy: str
) -> None:
    run = tmp_path / "run"
    done = interp("heads", "prune", random_llama, "--budget", 3, "--strategy", strategy, *GRID, "--out", run, "--json")
    assert done.code == 0, done.err
    assert len(set(done.json["order"])) == 3
    steps = done.json["steps"]
    assert [row["removed"] for row in steps] == [0, 1, 2, 3, 1, 2, 3]
    assert [row["heads"] for row in steps] == ["none", *["chosen"] * 3, *["random"] * 3]
    assert {row["ablation"] for row in steps} == {"zero"}
    assert {row["n"] for row in steps} == {2}
    assert load_run(run).record.kind == "head-pruning"
    assert not (tmp_path / "run.journal.jsonl").exists()


def test_the_table_ends_with_the_order(interp: Interp, random_llama: Path, tmp_path: Path) -> None:
    done = interp("heads", "prune", random_llama, "--budget", 2, *GRID, "--out", tmp_path / "run")
    assert done.code == 0, done.err
    assert "Order: " in done.out
    assert "greedy, zero ablation" in done.out


def test_the_saved_model_is_smaller_and_says_what_the_pruned_one_says(
    interp: Interp, random_llama: Path, tmp_path: Path
) -> None:
    small = tmp_path / "small"
    command = ("heads", "prune", random_llama, "--unit", "kv-group", *GRID, "--plan-file", "--save", small)
    done = interp(*command, "--budget", 4, "--out", tmp_path / "run", "--json")
    assert done.code == 0, done.err
    saved = done.json["saved"]
    assert saved["parameters"] < saved["parameters_before"]
    assert saved["max_difference"] < 1e-4
    ordinary = not (small / "compaction.json").exists()
    model = AutoModelForCausalLM.from_pretrained(small) if ordinary else load_compacted(small)
    whole = AutoModelForCausalLM.from_pretrained(random_llama)
    ids = torch.arange(20)[None]
    assert sum(p.numel() for p in model.parameters()) == saved["parameters"]
    assert (model(ids).logits - whole(ids).logits).abs().max() > 1e-5
    assert (small / "tokenizer.json").is_file()


def test_a_saved_model_with_as_many_heads_in_every_layer_is_loaded_as_any_other(
    random_llama: Path, tmp_path: Path
) -> None:
    model, ids = workbench.load(random_llama), torch.arange(20)[None]
    order = ((0, 0), (0, 1), (1, 2), (1, 3))
    edits = [workbench.zero(f"z.{layer}.{head}") for layer, head in order]
    gated = model.run(ids, edits=edits, logits="all").logits
    save_pruned(model, Pruning(pd.DataFrame(), order, {}, {}), tmp_path / "small")
    small = workbench.load(tmp_path / "small")
    assert (small.spec.heads, small.spec.kv_heads) == (2, 1)
    torch.testing.assert_close(small.run(ids, logits="all").logits, gated, rtol=1e-4, atol=1e-5)


def test_one_with_other_heads_in_every_layer_says_what_reads_it(random_llama: Path, tmp_path: Path) -> None:
    model = workbench.load(random_llama)
    save_pruned(model, Pruning(pd.DataFrame(), ((0, 0), (0, 1)), {}, {}), tmp_path / "small", allow_plan_file=True)
    with pytest.raises(ModelNotLoadable, match="load_compacted reads it"):
        workbench.load(tmp_path / "small")


def test_an_interrupted_pruning_goes_on_where_it_stopped(
    interp: Interp, random_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from contextlib import contextmanager

    @contextmanager
    def stopping(_task: str) -> Any:
        def report(done: int, total: int) -> None:
            if done == 3:
                raise KeyboardInterrupt

        yield report

    run = tmp_path / "run"
    command = ("heads", "prune", random_llama, "--budget", 3, *GRID, "--out", run)
    with monkeypatch.context() as patched:
        patched.setattr(prune, "progress", stopping)
        stopped = interp(*command)
    assert stopped.code == 130
    assert "--resume" in stopped.err
    journal = tmp_path / "run.journal.jsonl"
    kept = journal.read_text().splitlines()
    assert interp(*command).code == 2
    assert "budget was 3 and is 2" in interp(*(2 if part == 3 else part for part in command), "--resume").err
    assert journal.read_text().splitlines() == kept
    assert interp(*command, "--resume").code == 0
    assert not journal.exists()
    whole = tmp_path / "whole"
    interp(*command[:-1], whole)
    assert load_run(run).frame.equals(load_run(whole).frame)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--budget", "9"), "9 heads cannot be removed"),
        (("--budget", "0"), "0 heads cannot be removed"),
        (("--budget", "3", "--unit", "kv-group"), "multiple of 2"),
        (("--budget", "2", "--by", "mask", "--strategy", "one-shot"), "needs a mask"),
        (("--budget", "2", "--metric", "recall"), "no gradient"),
        (("--budget", "2", "--plan-file"), "add --save"),
        (("--budget", "2", "--save", "small"), "whole groups"),
        (("--budget", "2", "--needles", "9999"), "9999 needles"),
        ((), "--budget"),
    ],
)
def test_a_request_that_cannot_be_served_costs_nothing(
    interp: Interp,
    random_llama: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    done = interp("heads", "prune", random_llama, *GRID, *arguments, "--out", tmp_path / "run")
    assert done.code == 2
    assert said in " ".join(done.err.replace("│", " ").split())
    assert list(tmp_path.iterdir()) == []
