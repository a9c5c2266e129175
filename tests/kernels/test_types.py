"""What does not fit, or means nothing, is refused before anything is computed, with the value and the choices."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from kernels.attention import head_attention
from kernels.errors import InvalidRequest
from kernels.patterns import (
    HeadKind,
    Pattern,
    block_sparse,
    full,
    pattern,
    pruned,
    streaming,
    strided,
    tokens,
    vertical_slash,
)
from kernels.types import AttentionStats, CaptureSpec, ExtraKeys, HeadGates, HeadPlan, MaskSpec, on_device
from tests.kernels.oracle import random

PLAN = HeadPlan.of([full(), streaming(1, 2)])
LISTS = HeadPlan.of([tokens([1, 5]), tokens([0, 3])])

MEANINGLESS: dict[str, tuple[Callable[[], Any], str]] = {
    "window 0": (lambda: MaskSpec(window=0), "window=0.*at least 1"),
    "streaming window 0": (lambda: streaming(4, 0), "window=0.*>= 1"),
    "window without causal": (lambda: MaskSpec(window=3, causal=False), "without causal"),
    "negative sinks": (lambda: streaming(-1, 4), "sinks=-1.*negative"),
    "negative offset": (lambda: MaskSpec(q_offset=-2), "q_offset=-2"),
    "negative soft-cap": (lambda: MaskSpec(softcap=-1.0), "softcap=-1.0"),
    "soft-cap NaN": (lambda: MaskSpec(softcap=math.nan), "softcap=nan"),
    "key mask of numbers": (lambda: MaskSpec(key_mask=torch.ones(1, 3)), "float32.*bool"),
    "starts of floats": (lambda: MaskSpec(starts=torch.ones(1)), "float32.*integer"),
    "packed lengths": (lambda: MaskSpec.packed([3, 0, 2]), "lengths=.3, 0, 2."),
    "negative lengths": (lambda: MaskSpec.packed([3, -1]), "lengths=.3, -1."),
    "padding of one dimension": (lambda: MaskSpec.padded(torch.ones(3)), "takes .batch, keys."),
    "gate NaN": (lambda: HeadGates(torch.tensor([[1.0, math.nan]])), "gate is not finite at .0, 1.: nan"),
    "add infinite": (lambda: HeadGates(add=torch.full((1, 2, 3), math.inf)), "add is not finite"),
    "logit scale of integers": (lambda: HeadGates(logit_scale=torch.ones(1, 2, dtype=torch.int64)), "int64"),
    "gate of one dimension": (lambda: HeadGates(torch.ones(2)), r"shape \[2\].*2 or 3 dimensions"),
    "phase": (lambda: HeadGates(phase="train"), "phase='train'.*both, prefill, decode"),  # type: ignore[arg-type]
    "head that is not there": (lambda: HeadGates.zero([4], n_heads=4), "no head 4.*0 to 3"),
    "unknown pattern": (lambda: pattern("zigzag"), "unknown pattern 'zigzag'.*full, pruned, streaming"),
    "pattern arguments": (lambda: pattern("streaming", sinks=3), "pattern 'streaming'.*window"),
    "sparse head without keys": (lambda: tokens([], window=0), "say pruned"),
    "full head with keys": (lambda: Pattern(HeadKind.FULL, window=3), "FULL head takes no"),
    "negative token": (lambda: tokens([3, -1]), "negative position"),
    "negative slash": (lambda: vertical_slash([1], [-1], length=9), "slash=.-1."),
    "length 0": (lambda: strided(2, 1, 0, length=0), "length=0"),
    "stride 0": (lambda: strided(0, 1, 0, length=9), "stride=0"),
    "shard": (lambda: strided(2, 1, 2, length=9), "shard=2.*0 to 1"),
    "no heads": (lambda: HeadPlan.of([]), "at least one"),
    "ragged plan": (lambda: HeadPlan.of([[full()], [full(), full()]]), r"\[1, 2\] heads"),
    "two block sizes": (
        lambda: HeadPlan.of([strided(2, 1, 0, length=9, block=4), strided(2, 1, 0, length=9, block=8)]),
        r"block sizes \[4, 8\]",
    ),
    "plan tensors": (lambda: replace(PLAN, sinks=torch.zeros(1, 3)), r"sinks has shape \[1, 3\]"),
    "plan kind": (lambda: replace(PLAN, kind=PLAN.kind + 2), r"kind holds \[3, 4\]"),
    "negative plan window": (lambda: replace(PLAN, window=PLAN.window - 9), "negative"),
    "plan of long integers": (lambda: replace(PLAN, window=PLAN.window.long()), "window is torch.int64.*int32"),
    "sparse head that sees nothing": (lambda: replace(PLAN, sinks=0 * PLAN.sinks, window=0 * PLAN.window), "nothing"),
    "lists that do not ascend": (
        lambda: replace(LISTS, token_indices=LISTS.token_indices.flip(0)),
        "token_indices do not ascend",
    ),
    "lists past their end": (lambda: replace(PLAN, token_offsets=PLAN.token_offsets + 1), "token_offsets do not"),
    "extra keys": (
        lambda: ExtraKeys(torch.ones(1, 2, 1, 4), torch.ones(1, 2, 1, 4), torch.ones(1, 4, 2)),
        "do not fit",
    ),
    "count NaN": (
        lambda: ExtraKeys(torch.ones(1, 2, 1, 4), torch.ones(1, 2, 1, 4), torch.full((1, 4, 1), math.nan)),
        "log_count is NaN",
    ),
    "rows": (lambda: CaptureSpec(rows="first"), "rows='first'.*'all', 'last'"),  # type: ignore[arg-type]
    "rows of floats": (lambda: CaptureSpec(rows=torch.ones(2)), "float32"),
    "negative span": (lambda: CaptureSpec(spans=torch.tensor([[[5, 3]]])), "negative length"),
    "spans of three": (lambda: CaptureSpec(spans=torch.ones(1, 1, 3, dtype=torch.int64)), r"\[1, 1, 3\]"),
    "top of all": (lambda: CaptureSpec(topk=3), "topk=3 of all rows"),
    "negative top": (lambda: CaptureSpec(rows="last", topk=-1), "topk=-1"),
}


@pytest.mark.parametrize("name", MEANINGLESS)
def test_what_means_nothing_is_not_made(name: str) -> None:
    make, message = MEANINGLESS[name]
    with pytest.raises(InvalidRequest, match=message):
        make()


BLOCKS = HeadPlan.of([strided(2, 1, 0, length=8, block=4)] * 4)

MISFITS: dict[str, tuple[dict[str, Any], str]] = {
    "plan of another layer": ({"plan": PLAN}, r"kind has shape \[1, 2\]; this call takes \[2\|1, 4\]"),
    "plan of another batch": ({"plan": HeadPlan.of([[full()] * 4] * 3)}, r"\[3, 4\].*\[2\|1, 4\]"),
    "plan too short": ({"plan": BLOCKS}, "cover 8 positions; this call's queries end at 9"),
    "plan without causal": ({"plan": HeadPlan.of([streaming(1, 2)] * 4), "mask": MaskSpec(causal=False)}, "not causal"),
    "gate of another model": ({"gates": HeadGates(torch.ones(1, 5))}, r"gate has shape \[1, 5\].*\[2\|1, 4\]"),
    "gate of other queries": ({"gates": HeadGates(torch.ones(1, 4, 5))}, r"gate has shape \[1, 4, 5\]"),
    "add of another width": ({"gates": HeadGates(add=torch.ones(1, 4, 3))}, r"add has shape \[1, 4, 3\]"),
    "positions": ({"gates": HeadGates(positions=torch.ones(3, 6).bool())}, r"positions has shape \[3, 6\]"),
    "slopes": ({"mask": MaskSpec(alibi=torch.ones(2))}, "alibi has 2 entries for 4 heads"),
    "sinks": ({"mask": MaskSpec(sinks=torch.ones(3))}, "sinks has 3 entries for 4 heads"),
    "starts": ({"mask": MaskSpec(starts=torch.zeros(5, dtype=torch.int64))}, r"starts has shape \[5\]"),
    "key mask of another call": ({"mask": MaskSpec(key_mask=torch.ones(2, 8).bool())}, r"\[2, 8\].*\[2\|1, 9\]"),
    "spans": ({"capture": CaptureSpec(spans=torch.zeros(3, 1, 2, dtype=torch.int64))}, r"spans has shape \[3, 1, 2\]"),
    "row that is not there": ({"capture": CaptureSpec(rows=torch.tensor([6]))}, "queries 0 to 5"),
    "extra keys": (
        {"plan": replace(BLOCKS, extra=ExtraKeys(torch.ones(1, 4, 1, 8), torch.ones(1, 4, 1, 8), torch.ones(1, 4, 1)))},
        "cover 8|ExtraKeys.k has shape",
    ),
    "plan on another device": ({"plan": on_device(BLOCKS, "meta")}, "HeadPlan.kind is on meta, q on cpu.*on_device"),
    "gates on another device": ({"gates": on_device(HeadGates(torch.ones(1, 4)), "meta")}, "HeadGates.gate is on meta"),
    "backend": ({"backend": "flash"}, "unknown backend 'flash'; there are auto, reference, sdpa"),
}


@pytest.mark.parametrize("name", MISFITS)
def test_what_does_not_fit_the_call_is_refused(name: str) -> None:
    arguments, message = MISFITS[name]
    q, k, v = random(2, 4, 6, 8, seed=1), random(2, 2, 9, 8, seed=2), random(2, 2, 9, 8, seed=3)
    with pytest.raises(InvalidRequest, match=message):
        head_attention(q, k, v, **arguments)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((2, 4, 6, 8), (2, 2, 9, 8), (2, 2, 8, 8)), "do not fit"),
        (((2, 4, 6, 8), (3, 2, 9, 8), (3, 2, 9, 8)), "do not fit"),
        (((2, 4, 6, 8), (2, 2, 9, 7), (2, 2, 9, 7)), "do not fit"),
        (((2, 4, 6, 8), (2, 3, 9, 8), (2, 3, 9, 8)), "4 query heads cannot share 3"),
        (((4, 6, 8), (2, 9, 8), (2, 9, 8)), "batch, head, position, dim"),
        (((2, 4, 0, 8), (2, 2, 9, 8), (2, 2, 9, 8)), "empty"),
        (((2, 4, 9, 8), (2, 2, 6, 8), (2, 2, 6, 8)), "9 queries, 6 keys.*give q_offset"),
    ],
)
def test_tensors_that_do_not_fit_each_other_are_refused(shapes: tuple[tuple[int, ...], ...], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        head_attention(*(torch.zeros(shape) for shape in shapes))  # type: ignore[misc]


def test_mixed_and_whole_numbers_are_refused() -> None:
    q, k = torch.zeros(1, 1, 2, 8), torch.zeros(1, 1, 2, 8)
    with pytest.raises(InvalidRequest, match="float32, torch.float16"):
        head_attention(q, k.half(), k)
    with pytest.raises(InvalidRequest, match="int64"):
        head_attention(q.long(), k.long(), k.long())


def test_all_heads_of_a_layer_may_be_pruned() -> None:
    q, k, v = random(2, 4, 6, 8, seed=1), random(2, 2, 9, 8, seed=2), random(2, 2, 9, 8, seed=3)
    out, stats = head_attention(q, k, v, plan=HeadPlan.of([pruned()] * 4), capture=CaptureSpec(entropy=True))
    assert (out == 0).all()
    assert stats is not None
    assert stats.argmax is not None
    assert stats.log_sum_exp is not None
    assert (stats.argmax == -1).all()
    assert (stats.log_sum_exp == -math.inf).all()


def test_patterns_of_the_literature_list_what_they_say() -> None:
    assert strided(3, 2, 1, length=40, block=8).blocks == ((0,), (0, 1), (1, 2), (1, 2, 3), (1, 3, 4))
    assert block_sparse([[True, False], [False, True]], block=4).blocks == ((0,), (1,))
    slash = vertical_slash([7], [0, 5], length=12, block=4)
    assert slash.blocks == ((0,), (0, 1), (0, 1, 2))
    assert slash.tokens == (7,)
    assert pattern("a_shape", initial=9, local=4) == streaming(9, 4)
    assert tokens([5, 1, 5]).tokens == (1, 5)


def test_every_diagonal_is_inside_the_blocks_of_a_slash() -> None:
    for distance in range(12):
        listed = vertical_slash([], [distance], length=30, block=4).blocks
        for query in range(distance, 30):
            assert (query - distance) // 4 in listed[query // 4]


def test_padding_is_starts_where_it_is_left_and_nothing_where_there_is_none() -> None:
    left = MaskSpec.padded(torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]]))
    assert left.starts is not None
    assert left.starts.tolist() == [2, 0]
    assert left.key_mask is None
    assert MaskSpec.padded(torch.ones(2, 4)).starts is None
    holes = MaskSpec.padded(torch.tensor([[0, 1, 0, 1]]))
    assert holes.key_mask is not None
    assert holes.key_mask.tolist() == [[False, True, False, True]]


def test_specifications_move_with_all_their_tensors() -> None:
    extra = ExtraKeys(torch.ones(1, 2, 1, 4), torch.ones(1, 2, 1, 4), torch.ones(1, 2, 1))
    moved = on_device(replace(PLAN, extra=extra), "meta")
    assert moved.kind.device.type == "meta"
    assert moved.extra is not None
    assert moved.extra.k.device.type == "meta"


def test_statistics_join_and_split() -> None:
    stats = AttentionStats(argmax=torch.arange(12).view(1, 2, 6), column_sums=torch.ones(1, 2, 4))
    longer = AttentionStats(argmax=torch.arange(2).view(1, 2, 1), column_sums=torch.ones(1, 2, 5))
    joined = AttentionStats.cat([stats, longer])
    assert joined.argmax is not None
    assert joined.argmax.tolist() == [[[0, 1, 2, 3, 4, 5, 0], [6, 7, 8, 9, 10, 11, 1]]]
    assert joined.column_sums is not None
    assert joined.column_sums.tolist() == [[[2, 2, 2, 2, 1]] * 2]
    assert joined.head(1).measured["argmax"].tolist() == [[6, 7, 8, 9, 10, 11, 1]]
    flipped = joined.by_row(lambda x: x.flip(2))
    assert flipped.measured["argmax"][0, 0].tolist() == [0, 5, 4, 3, 2, 1, 0]
    assert torch.equal(flipped.measured["column_sums"], joined.column_sums)
    assert set(joined.measured) == {"argmax", "column_sums"}
