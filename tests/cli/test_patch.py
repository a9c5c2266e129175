"""`interp patch`: runs with every metric side by side, resumed, estimated, and refused in a sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from interp.patching.activation import PatchingResult
from interp.runs import load_run

Interp = Callable[..., Any]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """Prompts of one byte a token, with a role and a counterfactual."""
    path = tmp_path / "prompts.jsonl"
    record = {
        "text": "abcdef",
        "answer": "g",
        "distractor": "h",
        "spans": {"third": [2, 3]},
        "counterfactual": {"text": "abxdef"},
    }
    other = {**record, "text": "bbcdef", "counterfactual": {"text": "bbydef"}}
    path.write_text("".join(json.dumps(each) + "\n" for each in (record, other)))
    return path


def test_the_bundled_model_uses_few_heads_to_tell_names_apart(interp: Interp, tmp_path: Path) -> None:
    done = interp("patch", "pocket", "--task", "ioi", "--n", 8, "--out", tmp_path / "run", "--json", "--seed", 3)
    assert done.code == 0
    document = done.json
    assert (document["n"], document["site"], document["by"], document["seed"]) == (8, "z", "head", 3)
    assert document["clean"]["logit_difference"] > 5 > -5 > document["corrupted"]["logit_difference"]
    effects = np.sort([patch["normalised_ratio_of_means"] for patch in document["patches"]])
    assert effects[-1] > 0.2
    assert np.median(effects) < 0.1
    assert load_run(tmp_path / "run").record.kind == "patching"
    assert not list(tmp_path.glob("*.journal.jsonl"))


def test_a_prompt_file_is_patched_at_its_roles(
    interp: Interp, random_llama: Path, prompts: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    arguments = ("--task", prompts, "--site", "resid_pre", "--by", "position", "--positions", "third,-1")
    done = interp("patch", random_llama, *arguments, "--metric", "logit-difference,kl", "--out", run)
    assert done.code == 0
    assert "n=2" in done.out
    assert str(run) in done.out
    frame = pd.read_parquet(run / "table.parquet")
    assert frame.position.tolist() == ["third", "-1"] * 2
    assert {"logit_difference", "kl", "kl_low", "normalised_mean_of_ratios_high"} <= set(frame)
    assert "accuracy" not in frame
    np.testing.assert_allclose(frame.normalised_ratio_of_means[:2], [1, 0], atol=1e-3)  # only this token differs


def test_prompts_of_several_lengths_are_patched_at_their_roles_by_default(interp: Interp, tmp_path: Path) -> None:
    arguments = ("--n", 4, "--site", "resid_pre.0", "--by", "position", "--metric", "logit-difference")
    done = interp("patch", "pocket", *arguments, "--out", tmp_path / "run", "--json")
    assert done.code == 0
    effects = {patch["position"]: patch["normalised_ratio_of_means"] for patch in done.json["patches"]}
    assert set(effects) == {"IO", "S1", "S1+1", "S2", "end"}
    assert effects.pop("S2") == pytest.approx(1, abs=1e-3)  # the twin has another name there and nowhere else
    assert max(map(abs, effects.values())) < 1e-3


def test_a_csv_of_eap_ig_is_a_task(interp: Interp, random_llama: Path, tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text("clean,corrupted,correct_idx,incorrect_idx\nabc,axc,5,6\n")
    done = interp("patch", random_llama, "--task", path, "--out", tmp_path / "run", "--json")
    assert done.code == 0
    assert done.json["n"] == 1


@pytest.mark.parametrize("method", ["attribution", "ig"])
def test_estimates_say_that_they_are(
    interp: Interp, random_llama: Path, prompts: Path, tmp_path: Path, method: str
) -> None:
    done = interp("patch", random_llama, "--task", prompts, "--method", method, "--out", tmp_path / "run", "--json")
    assert done.code == 0
    assert done.json["method"] == method
    assert len(done.json["patches"]) == 8
    assert PatchingResult.load(tmp_path / "run").method == method


def test_an_interrupted_job_goes_on(
    interp: Interp, random_llama: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from interp.runs import Journal

    whole = interp("patch", random_llama, "--task", prompts, "--out", tmp_path / "whole", "--json")
    kept = Journal.append

    def interrupted(self: Journal, key: str, value: Any) -> None:
        kept(self, key, value)
        raise KeyboardInterrupt

    run = ("patch", random_llama, "--task", prompts, "--out", tmp_path / "run", "--json")
    with monkeypatch.context() as patched:
        patched.setattr(Journal, "append", interrupted)
        assert interp(*run).code != 0
    assert not (tmp_path / "run").exists()
    assert "--resume" in interp(*run).err
    done = interp(*run, "--resume")
    assert done.code == 0
    assert done.json["patches"] == whole.json["patches"]
    assert not list(tmp_path.glob("*.journal.jsonl"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--task", "ioy"), "neither a prompt file nor one of ioi, colored-objects"),
        (("--metric", "logit-diference"), "did you mean 'logit_difference'"),
        (("--site", "z.9"), "layers 0 to 1"),
        (("--site", "resid_pre"), "not split by head"),
        (("--positions", "S2"), "no token position is called 'S2'"),
        (("--positions", "17"), "outside a prompt of 6 tokens"),
        (("--method", "ig", "--resume"), "keeps no journal"),
        (("--method", "attribution", "--metric", "accuracy"), "without a gradient"),
    ],
)
def test_a_wrong_request_is_a_sentence_and_leaves_nothing(
    interp: Interp, random_llama: Path, prompts: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    done = interp("patch", random_llama, "--task", prompts, "--out", tmp_path / "run", *arguments)
    assert done.code == 2
    assert message in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["prompts.jsonl"]


def test_an_output_that_is_taken_is_refused_first(interp: Interp, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    done = interp("patch", "no-such-model", "--out", tmp_path)
    assert done.code == 2
    assert "already holds a run" in done.err
