"""`interp info` describes any model folder and refuses, in a sentence, what is none."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Interp = Callable[..., Any]


def test_a_folder_is_described(interp: Interp, random_llama: Path) -> None:
    shown = interp("info", random_llama)
    assert shown.code == 0
    assert all(word in shown.out for word in ("random-llama", "kv heads", "resid_post.L", "B T D", "fingerprint"))


def test_the_description_as_json(interp: Interp, random_llama: Path) -> None:
    document = interp("info", random_llama, "--json").json
    spec = document["model"]
    assert (spec["family"], spec["layers"], spec["heads"], spec["kv_heads"]) == ("llama", 2, 4, 2)
    assert len(spec["fingerprint"]) == 16
    sites = {site["site"]: site for site in document["sites"]}
    assert sites["z.L"]["shape"] == "B T H Dh"
    assert all(site["available"] for site in sites.values())


def test_the_doctor_checks_the_model_against_itself(interp: Interp, random_llama: Path) -> None:
    done = interp("info", random_llama, "--doctor", "--json")
    assert done.code == 0
    checks = done.json["doctor"]
    assert len(checks) > 10
    assert {check["result"] for check in checks} == {"pass"}


def test_a_number_type_is_kept_apart_in_the_fingerprint(interp: Interp, random_llama: Path) -> None:
    stored = interp("info", random_llama, "--json").json["model"]
    half = interp("info", random_llama, "--dtype", "bfloat16", "--json").json["model"]
    assert (stored["dtype"], half["dtype"]) == ("float32", "bfloat16")
    assert stored["fingerprint"] != half["fingerprint"]


def test_a_missing_folder_is_bad_input(interp: Interp, tmp_path: Path) -> None:
    done = interp("info", tmp_path / "none")
    assert done.code == 2
    assert done.err.startswith("Error: ")
    assert "there is no folder" in done.err
    assert done.out == ""


@pytest.mark.parametrize(
    ("missing", "said"),
    [("config.json", "config.json"), ("tokenizer*", "no tokenizer"), ("model.safetensors", "no weights")],
)
def test_an_incomplete_folder_says_what_is_missing(
    interp: Interp, random_llama: Path, tmp_path: Path, missing: str, said: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(random_llama, folder)
    for file in folder.glob(missing):
        file.unlink()
    done = interp("info", folder)
    assert done.code == 2
    assert said in done.err


def test_corrupt_weights_are_bad_input(interp: Interp, random_llama: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(random_llama, folder)
    (folder / "model.safetensors").write_bytes(b"\x00" * 64)
    done = interp("info", folder)
    assert done.code == 2
    assert "cannot be loaded" in done.err
