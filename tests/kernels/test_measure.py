"""Ratios are taken within a round, the first round is thrown away, and only equal things are compared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from kernels.benchmark import Shape, agree, alternatives, attention, eager, torch_sdpa
from kernels.errors import InvalidRequest
from kernels.measure import Target, compare
from kernels.types import HeadGates


class Machine:
    """A clock that work moves, on a machine that is ten times slower in some rounds."""

    def __init__(self, slow_rounds: set[int]) -> None:
        self.now = 0.0
        self.order: list[str] = []
        self.slow_rounds = slow_rounds

    def work(self, name: str, seconds: float, first: float = 0.0) -> Callable[[], None]:
        def run() -> None:
            done = self.order.count(name)
            self.order.append(name)
            self.now += seconds * (10 if done in self.slow_rounds else 1) + (first if done == 0 else 0)

        return run

    def clock(self) -> float:
        return self.now


def test_a_slow_round_changes_no_ratio_and_the_first_round_does_not_count() -> None:
    machine = Machine(slow_rounds={2, 3})
    works = {
        "base": machine.work("base", 1.0),
        "twice": machine.work("twice", 2.0, first=100.0),
        "half": machine.work("half", 0.5),
    }
    seen: list[tuple[int, int]] = []
    result = compare(
        "subject", "setting", works, rounds=5, clock=machine.clock, progress=lambda *at: seen.append(at),
        targets=(Target("half", 0.6), Target("twice", 1.5)),
    )  # fmt: skip
    assert [(t.ratio, t.least, t.greatest) for t in result.timings] == [
        pytest.approx((ratio,) * 3) for ratio in (1.0, 2.0, 0.5)
    ]
    assert [t.seconds for t in result.timings] == pytest.approx([1.0, 2.0, 0.5])
    assert all(t.wall > 0 for t in result.timings)
    assert machine.order[:9] == ["base", "twice", "half", "twice", "half", "base", "half", "base", "twice"]
    assert (len(machine.order), seen[-1]) == (18, (6, 6))
    assert "target met: half at 0.500 x" in str(result)
    assert "target MISSED: twice at 2.000 x" in str(result)


@pytest.mark.parametrize("queries", [1, 150])
@pytest.mark.parametrize("kv_heads", [2, 4])
def test_alternatives_compute_the_same_on_every_backend(queries: int, kv_heads: int) -> None:
    shape = Shape(queries, 150, 4, kv_heads, 32)
    works, left_out = alternatives(shape, ["sdpa", "reference"])
    assert list(works) == [
        "torch SDPA",
        "transformers eager",
        "transformers eager, statistics",
        "sdpa",
        "sdpa, all statistics",
        "sdpa, half the heads pruned",
        "sdpa, half the heads streaming (4 + 256)",
    ]
    assert set(left_out) == {name.replace("sdpa", "reference") for name in works if name.startswith("sdpa")}
    assert all("allow_dense" in reason for reason in left_out.values())
    assert not works["sdpa, half the heads pruned"]()[0][:, :, :2].any()
    q, k, v = shape.tensors()
    _, *statistics = works["transformers eager, statistics"]()
    _, ours = works["sdpa, all statistics"]()
    for got, wanted in zip((ours.probability, ours.argmax, ours.entropy, ours.mass[..., 0]), statistics, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    halved = HeadGates(gate=torch.full((1, 4), 0.5))
    with pytest.raises(AssertionError, match="halved"):
        agree(
            {"eager": eager(q, k, v), "plain": torch_sdpa(q, k, v), "halved": attention(q, k, v, "sdpa", gates=halved)}
        )


def test_eager_attention_is_left_out_where_its_matrices_are_too_large() -> None:
    works, left_out = alternatives(Shape(1, 2**22, 100, 1, 1), [])
    assert list(works) == ["torch SDPA"]
    assert left_out == {"transformers eager": "1 x 4194304 matrices of 100 heads are too large"}


@pytest.mark.parametrize("wrong", [{"keys": 0}, {"heads": 12, "kv_heads": 5}, {"queries": 3}, {"dim": -1}])
def test_shapes_that_are_none_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="sizes are positive|as many queries as keys"):
        Shape(**{"queries": 8, "keys": 8} | wrong)
