"""`interp probe verify`: from samples to picked answers, on the bundled model and on your own files."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from interp.runs import load_run
from probes.centroids import CENTROIDS_FILE, Centroids
from probes.reranking import Ranking
from probes.traces import Experience
from probes.verification import Verification

Interp = Callable[..., Any]


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six sums of two digits, six samples each, at a temperature where the bundled model errs."""
    import interp
    from interp.pocket.documents import is_held_out
    from interp.tasks.addition import addition_problems
    from probes.sampling import collect

    run = tmp_path_factory.mktemp("verify") / "traces"
    task = addition_problems(6, 0, (2, 2), is_held_out)
    collect(interp.load("pocket"), task, 6, temperature=1.9, max_new_tokens=40, path=run)
    return run


def test_samples_are_collected_and_counted(interp: Interp, tmp_path: Path) -> None:
    run = tmp_path / "traces"
    command = ("probe", "verify", "collect", "pocket", "-n", 2, "--digits", "2,2", "--samples", 3, "--out", run)
    done = interp(*command, "--temperature", 1.5, "--max-new-tokens", 30, "--json")
    assert done.code == 0, done.err
    assert (done.json["traces"], done.json["questions"]) == (6, 2)
    experience = Experience.load(run)
    assert experience.parameters["temperature"] == 1.5
    assert experience.delimiters == ("Steps:", "Answer:")
    right = sum(bool(response.correct) for response in experience)
    assert done.json["right"] == pytest.approx(right / 6)
    again = interp(*command, "--temperature", 1.5)
    assert again.code == 2
    assert "already holds a run" in again.err


def test_sampling_and_fitting_pocket_as_the_help_says_needs_no_further_option(
    interp: Interp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = interp("probe", "verify", "collect", "pocket", "-n", 12, "--samples", 6, "--max-new-tokens", 80, "--json")
    assert done.code == 0, done.err
    assert 0.5 < done.json["right"] < 0.95
    done = interp("probe", "verify", "fit", "pocket", "runs/pocket-traces", "--no-certainty")
    assert done.code == 0, done.err
    assert load_run("runs/pocket-clue").record.parameters["missing"] == "drop"
    rank = ("probe", "verify", "rank", "pocket", "--centroids", "runs/pocket-clue", "--no-certainty", "--k")
    done = interp(*rank, "1,4", "runs/pocket-traces")
    assert done.code == 0, done.err
    assert load_run("runs/pocket-clue-ranking").record.kind == "clue-ranking"

    endings = (" 1 + 2 = 3.\nAnswer: 3", " 2 + 1 = 3.\nAnswer: 3", " 1 + 2 +")
    rows = [{"question": "new", "prompt": "Add 1 and 2.\nSteps:", "response": ending} for ending in endings]
    Path("own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr("probes.clue.score", None)  # whatever needs the model to run fails
    done = interp(*rank, "3", "own.jsonl", "--open", "Steps:", "--close", "Answer:", "--out", "other")
    assert (done.code, "from 1 to 2" in done.err) == (2, True), done.err


def test_centroids_are_fitted_verified_and_used_to_rank_other_questions_only(
    interp: Interp, sampled: Path, tmp_path: Path
) -> None:
    fitted, ranked = tmp_path / "fit", tmp_path / "rank"
    done = interp("probe", "verify", "fit", "pocket", sampled, "--missing", "ends", "--out", fitted, "--json")
    assert done.code == 0, done.err
    assert done.json["learned"]["questions"] == done.json["held_out"]["questions"] == 3
    assert {row["score"] for row in done.json["scores"]} >= {"clue margin", "length", "log-probability"}
    assert [row["layer"] for row in done.json["layers"]] == [0, 1, 2, 3]
    assert sum(done.json["found"].values()) == 18
    run = load_run(fitted)
    assert run.record.kind == "clue-verification"
    assert run.arrays["to_success"].shape == (18, 4)
    assert Centroids.load(fitted).model["fingerprint"] == run.record.model["fingerprint"]

    greedy = tmp_path / "greedy"
    asked = ("-n", 6, "--digits", "2,2", "--samples", 1, "--temperature", 0, "--max-new-tokens", 40)
    assert interp("probe", "verify", "collect", "pocket", *asked, "--out", greedy).code == 0
    done = interp(
        "probe", "verify", "rank", "pocket", sampled, "--centroids", fitted / CENTROIDS_FILE, "--k", "1,6",
        "--greedy", greedy, "--out", ranked,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "3 of 6 questions are those the centroids were learned from" in done.err
    for name in ("majority@n", "top-maj@6", "pass@n"):
        assert name in done.out
    lines = [json.loads(line) for line in (ranked / "picks.jsonl").read_text().splitlines()]
    assert [line["top-maj@6"] for line in lines] == [line["majority"] for line in lines]
    seen = {response.question for response in Experience.load(sampled)} - {line["question"] for line in lines}
    assert len(seen) == 3
    ranking = Ranking.load(ranked)
    assert set(ranking.frame["pick"]) == {"mean", "majority", "greedy", "pass", "top-maj"}
    responses = {response.question: response.correct for response in Experience.load(greedy)}
    shown = ranking.questions.set_index("question")["greedy right"]
    assert shown.to_dict() == {question: float(responses[question]) for question in ranking.picks.question}
    assert ranking.parameters["centroids"] == f"fit/{CENTROIDS_FILE}"
    again = Verification.load(fitted)
    assert len(again.scored) == 18
    assert again.scored.frame.response.str.contains("Answer").any()


def test_unchecked_traces_of_your_own_are_ranked_without_a_verdict(
    interp: Interp, sampled: Path, tmp_path: Path
) -> None:
    fitted, own = tmp_path / "fit", tmp_path / "own.jsonl"
    command = ("probe", "verify", "fit", "pocket", sampled, "--missing", "ends", "--no-certainty", "--out", fitted)
    done = interp(*command)
    assert done.code == 0, done.err
    assert "delimiters found" in done.out
    assert re.search(r"right +│ \d\.\d{3} ", done.out)
    rows = [
        {
            "question": "new",
            "prompt": "Add 21 and 12.\nSteps:",
            "response": f" 1 + 2 + 0 = {n}.\nAnswer: {n}",
            "answer": n,
        }
        for n in (3, 3, 4)
    ]
    own.write_text("".join(json.dumps(row) + "\n" for row in rows))
    rank = ("probe", "verify", "rank", "pocket", own, "--centroids", fitted, "--k", "1,3")
    done = interp(*rank, "--open", "Steps:", "--close", "Answer:", "--out", tmp_path / "rank", "--json")
    assert done.code == 0, done.err
    assert done.json["ranking"] is None
    assert done.json["picks"][0]["majority"] == done.json["picks"][0]["top-maj@3"] == "3"
    done = interp(*rank, "--out", tmp_path / "other")
    assert done.code == 2
    assert "of reasoning between" in done.err


def test_bad_requests_are_sentences_and_leave_nothing(
    interp: Interp, sampled: Path, random_llama: Path, tmp_path: Path
) -> None:
    fitted = tmp_path / "fit"
    verify = ("probe", "verify")
    assert interp(*verify, "fit", "pocket", sampled, "--missing", "ends", "--no-certainty", "--out", fitted).code == 0
    out = ("--out", tmp_path / "run")
    right = {"response": " 1 + 2 = 3.\nAnswer: 3", "correct": True}
    easy = tmp_path / "easy.jsonl"
    easy.write_text("".join(json.dumps({"question": q, "prompt": f"{q}\nSteps:", **right}) + "\n" for q in "abcd"))
    for arguments, message in (
        (("collect", "pocket", "--task", "sums"), "there is no task 'sums'"),
        (("collect", "pocket", "--digits", "3"), "not a fewest and a most"),
        (("collect", "pocket", "--open", "<think>"), "go together"),
        (("collect", "pocket", "--temperature", "0"), "all samples of a question are the same"),
        (("fit", "pocket", sampled, "--test", "1"), "leaves one side of the split empty"),
        (
            ("fit", "pocket", easy),
            "are right, and what tells right from wrong needs both: ask more questions (--n), or "
            "sample at a higher --temperature",
        ),
        (("fit", random_llama, sampled), "these traces were written by"),
        (("fit", "pocket", fitted), "is a run of clue-verification, not of traces"),
        (("rank", "pocket", sampled, "--centroids", sampled), "does not hold centroids"),
        (("rank", random_llama, sampled, "--centroids", fitted, "--k", "1"), "fit them again on traces of this model"),
        (("rank", "pocket", sampled, "--centroids", fitted, "--k", "7"), "from 1 to 6"),
    ):
        done = interp(*verify, *arguments, *out)
        assert done.code == 2, (arguments, done.err)
        assert message in done.err, done.err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["easy.jsonl", "fit"]
