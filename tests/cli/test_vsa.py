"""`interp probe vsa`: a fit leaves a run that decodes other texts, and bad requests cost nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from interp import load
from interp.runs import load_run
from interp.tasks.vocabulary import vocabulary
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
    assert decoded.json["next_token"][0]["token"].strip()
    unknown = interp("probe", "vsa", "decode", run, "pocket", "a text", "--query", "Atlantis")
    assert unknown.code == 2
    assert "the concept 'Atlantis' is not in the codebook" in unknown.err


def test_a_fit_is_shown_as_a_table(interp: Interp, tmp_path: Path) -> None:
    done = interp("probe", "vsa", "fit", "pocket", *QUICK, "--task", "syntax", "--out", tmp_path / "run")
    assert done.code == 0
    for said in ("linear probe", "next token", "DLA", "role", "oracle", f"Run: {tmp_path / 'run'}"):
        assert said in done.out
    assert load_run(tmp_path / "run").record.parameters["encoding"] == "roles"


ARTICLE = "The {key} of the {place} is kept by {name}."


def test_questions_are_read_before_and_after_the_answer(interp: Interp, tmp_path: Path) -> None:
    """SQuAD files, and states of both moments, with prompts apart where the model is wrong."""
    names, places, keys = ("Alice", "Bob", "Emma", "Henry"), ("market", "garden", "office"), ("key", "lamp", "map")
    said = [(k, p, n) for k in keys for p in places for n in names]
    paragraphs = [
        {
            "context": ARTICLE.format(key=key, place=place, name=name),
            "qas": [{"question": f"Who keeps the {key} of the {place}?", "answers": [{"text": name}]}],
        }
        for key, place, name in said
    ]
    file = tmp_path / "questions.json"
    file.write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    command = ("probe", "vsa", "fit", "pocket", "--squad", file, "--moments", "before,after", "-n", 36)
    done = interp(*command, "--dimensions", 64, "--no-network", "--out", tmp_path / "run", "--json")
    assert done.code == 0
    saved = HyperdimensionalProbe.load(tmp_path / "run")
    assert set(saved.encoders) == {"linear/before/clusters", "linear/after/clusters"}
    assert {"before", "after"} == set(saved.frame.moment)
    assert (saved.parameters["task"], saved.parameters["source"]) == ("questions", "questions")
    assert set(saved.frame.subset) <= {"all", "right", "wrong"}
    assert len(set(saved.frame.subset)) > 1


def test_analogies_of_a_file_are_fitted_and_encoders_kept_as_asked(interp: Interp, tmp_path: Path) -> None:
    file = tmp_path / "words.txt"
    pairs = vocabulary().city_country[:24]
    lines = [f"{a} {b} {c} {d}" for (a, b), (c, d) in pairwise(pairs)]
    file.write_text("\n".join([": country", *lines]))
    command = ("probe", "vsa", "fit", "pocket", "--analogies", file, "-n", 120, "--dimensions", 64, "--no-network")
    named = "linear/before/last"
    options = ("--ingestions", "clusters,last", "--keep", named, "--half")
    assert interp(*command, *options, "--out", tmp_path / "run").code == 0
    saved = load_run(tmp_path / "run")
    assert list(saved.record.parameters["encoders"]) == [named]
    assert saved.record.parameters["task"] == "analogies"
    assert {"clusters", "last", ""} == set(saved.frame.ingestion)
    assert saved.arrays[f"{named}.weight.0"].dtype == "float16"
    assert interp(*command, "--keep", "none", "--out", tmp_path / "bare").code == 0
    text = saved.record.parameters["example"]["text"]
    refused = interp("probe", "vsa", "decode", tmp_path / "bare", "pocket", text)
    assert refused.code == 2
    assert "keeps no encoder" in refused.err
    shown = interp("probe", "vsa", "decode", tmp_path / "run", "pocket", text, "--figure", tmp_path / "bars.html")
    assert "what the model says next" in shown.out
    assert (tmp_path / "bars.html").stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--ingestions", "cluster"), "did you mean 'clusters'"),
        (("--moments", "during"), "no moment 'during'"),
        (("--keep", "linear/before/last"), "no such encoder will be fitted"),
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
