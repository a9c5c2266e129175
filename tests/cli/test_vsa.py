"""`interp probe vsa`: a fit leaves a run that decodes other texts, and bad requests cost nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from interp import load
from interp.runs import load_run
from probes.vsa.study import HyperdimensionalProbe

Interp = Callable[..., Any]
QUICK = ("--dimensions", 256, "--no-network", "-n", 200)


def test_a_fit_is_a_run_that_decodes(interp: Interp, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = interp("probe", "vsa", "fit", "pocket", *QUICK, "--causal", "resid_post.2", "--out", run, "--json")
    assert done.code == 0
    document = done.json
    saved = load_run(run)
    assert saved.record.kind == "hyperdimensional-probe"
    assert len(document["methods"]) == len(saved.frame)
    assert {"linear/before/clusters", "linear/before/resid_post.2"} == set(saved.record.parameters["encoders"])
    check = load_run(tmp_path / "run-causal-resid_post.2")
    assert set(check.frame.direction) == {"encoder", "pattern", "random"}
    assert document["causal"]["resid_post.2"] == check.frame.to_dict("records")
    decoded = interp(
        "probe", "vsa", "decode", run, "pocket", "Analogy: Cusco : Peru = Phuket :", "--query", "Cusco", "--json"
    )
    assert decoded.code == 0
    assert [row["query"] for row in decoded.json["found"]] == ["Cusco"] * 3
    found = HyperdimensionalProbe.load(run).decode(
        load("pocket"), "Analogy: Cusco : Peru = Phuket :", "linear/before/clusters", ["Cusco"]
    )
    assert decoded.json["found"] == found.to_dict("records")
    unknown = interp("probe", "vsa", "decode", run, "pocket", "a text", "--query", "Atlantis")
    assert unknown.code == 2
    assert "the concept 'Atlantis' is not in the codebook" in unknown.err


def test_a_fit_is_shown_as_a_table(interp: Interp, tmp_path: Path) -> None:
    done = interp("probe", "vsa", "fit", "pocket", *QUICK, "--task", "syntax", "--out", tmp_path / "run")
    assert done.code == 0
    for said in ("linear probe", "next token", "DLA", "role", "oracle", f"Run: {tmp_path / 'run'}"):
        assert said in done.out
    assert load_run(tmp_path / "run").record.parameters["encoding"] == "roles"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--ingestions", "cluster"), "did you mean 'clusters'"),
        (("--moments", "during"), "no moment 'during'"),
        (("--algebra", "VTB"), "MAP"),
        (("--prompts", "a.jsonl", "--squad", "b.json"), "two sources of prompts"),
        (("--prompts", "nowhere.jsonl"), "cannot be read"),
        (("--analogies", "nowhere.txt"), "cannot be read"),
        (("--squad", "nowhere.json"), "does not hold questions"),
    ],
)
def test_a_request_that_cannot_be_served_costs_nothing(
    interp: Interp, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    done = interp("probe", "vsa", "fit", "pocket", *arguments, "--out", tmp_path / "run")
    assert done.code == 2
    assert said in " ".join(done.err.split())
    assert list(tmp_path.iterdir()) == []
