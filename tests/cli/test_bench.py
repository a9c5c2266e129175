"""`interp bench kernels`: a table or document of what attention costs here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

Interp = Callable[..., Any]
SMALL = ("bench", "kernels", "--lengths", "64,80", "--decode", "96", "--heads", 4, "--kv-heads", 2, "--rounds", 2)


def test_the_document_holds_every_shape_and_alternative(interp: Interp) -> None:
    done = interp(*SMALL, "--backend", "sdpa,reference", "--json")
    assert done.code == 0
    assert done.json["machine"]["torch"] == torch.__version__
    measured = done.json["measured"]
    sizes = ["64 tokens", "80 tokens", "one query, 96 keys"]
    assert [shape["setting"].startswith(size) for shape, size in zip(measured, sizes, strict=True)] == [True] * 3
    for shape in measured:
        timings = {timing["name"]: timing for timing in shape["timings"]}
        assert {"torch SDPA", "transformers eager", "sdpa", "sdpa, all statistics"} < set(timings)
        assert timings["torch SDPA"]["ratio"] == 1
        assert all(t["least"] <= t["ratio"] <= t["greatest"] and t["wall"] > 0 for t in timings.values())
        assert "allow_dense" in shape["left_out"]["reference"]
        assert shape["rounds"] == 2


def test_the_table_names_ratios_and_wall_times_and_what_was_left_out(interp: Interp) -> None:
    done = interp(*SMALL, "--backend", "sdpa,reference")
    assert done.code == 0
    assert all(word in done.out for word in ("ratios to torch SDPA", "wall ratio", "sdpa, half the heads pruned"))
    assert "Left out: reference" in done.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--backend", "sdpb"), "did you mean 'sdpa'?"),
        (("--dtype", "int8"), "valid: float32"),
        (("--device", "nowhere"), "--device nowhere cannot be used"),
        (("--kv-heads", 5), "share key/value heads evenly"),
        (("--lengths", "", "--decode", ""), "nothing to measure"),
        (("--lengths", "many"), "--lengths many is not a list"),
        (("--lengths", "0"), "sizes are positive"),
        (("--threads", 0), "--threads"),
    ],
)
def test_bad_requests_are_one_sentence(interp: Interp, arguments: tuple[Any, ...], said: str) -> None:
    done = interp("bench", "kernels", *arguments)
    assert (done.code, done.out) == (2, "")
    assert said in done.err
