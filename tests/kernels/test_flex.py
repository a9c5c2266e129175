"""FlexAttention computes what the reference computes, from lists that leave out only what no query sees."""

from __future__ import annotations

import shutil
import time

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention

from kernels.backends import flex
from kernels.patterns import HeadKind, full, streaming
from kernels.types import HeadPlan, MaskSpec
from kernels.visibility import mask_allows, pattern_allows
from tests.kernels.cases import CASES, EVERYTHING, LONG, LONG_PLAN, Case, left_padding
from tests.kernels.compare import same
from tests.kernels.oracle import random

SUPPORTED = [case for case in CASES if flex.supports(case.request(torch.float32)) is None]
DIVERSE = [
    case
    for case in SUPPORTED
    if case.name in ("grouped", "not causal", "alibi, decode", "holes", "packed, window, alibi", "gates of every query")
    or case.name in ("streams, left padding", "streams, sliding cache", "plan, chunk", "plan, soft-cap", "wide values")
]


WIDE = Case("wide streams", 4, 1, 700, 700, plan=HeadPlan.of([streaming(2, n) for n in (255, 256, 383, 384)]))


@pytest.fixture
def _uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The operation of FlexAttention as PyTorch defines it, without half a minute of compiling for every shape."""
    monkeypatch.setattr(flex, "_compiled", lambda: flex_attention)


def test_only_sinks_and_extra_keys_are_refused() -> None:
    refused = {case.name for case in CASES} - {case.name for case in SUPPORTED}
    assert refused == {case.name for case in CASES if "sinks" in case.name or "compensation" in case.name}


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
@pytest.mark.usefixtures("_uncompiled")
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("case", DIVERSE, ids=lambda case: case.name)
def test_every_kind_of_case_equals_the_reference(case: Case) -> None:
    request = case.request(torch.float32, capture=EVERYTHING)
    got, _ = same("flex", request)
    assert got.flops == flex.predict(request).flops


@pytest.mark.parametrize(
    "case",
    SUPPORTED + [WIDE] + [case for case in LONG if flex.supports(case.request(torch.float32)) is None],
    ids=lambda case: case.name,
)
def test_the_lists_hold_every_block_that_is_seen_and_call_whole_only_what_is(case: Case) -> None:
    """The compiled kernel visits listed blocks alone, and asks nothing of whole ones."""
    request = case.request(torch.float32)
    partial, whole = flex._blocks(request)
    queries, columns = torch.arange(case.queries)[None], torch.arange(case.keys)
    patterns = [[full()] * case.heads] if case.plan is None else case.plan.patterns
    shown = mask_allows(request, queries, columns)
    for b in range(case.batch):
        for h in range(case.heads):
            pattern = patterns[b if len(patterns) > 1 else 0][h]
            seen = (shown & pattern_allows(pattern, request, queries, columns))[b if len(shown) > 1 else 0]
            if not request.computed[b, h]:
                assert not (partial | whole)[b, h].any()
                continue
            for i, rows in enumerate(seen.split(flex.BLOCK)):
                for j, block in enumerate(rows.split(flex.BLOCK, dim=1)):
                    listed = bool(partial[b, h, i, j]) + bool(whole[b, h, i, j])
                    assert listed <= 1
                    assert listed or not block.any()
                    assert not whole[b, h, i, j] or block.all()
    count, order = flex._lists(partial)
    for row, n, listed in zip(partial.flatten(0, 2), count.flatten(), order.flatten(0, 2), strict=True):
        assert listed[:n].tolist() == row.nonzero()[:, 0].tolist()


def test_a_streaming_head_lists_few_blocks() -> None:
    plan = HeadPlan.of([full(), LONG_PLAN.patterns[0][2]])
    partial, whole = flex._blocks(Case("long", 2, 2, 2048, 2048, batch=1, plan=plan).request(torch.float32))
    blocks = (partial | whole)[0].sum((1, 2)).tolist()
    assert plan.kind.tolist() == [[HeadKind.FULL, HeadKind.SPARSE]]
    assert blocks[0] == 16 * 17 // 2
    assert blocks[1] <= 3 * 16
    assert int(partial[0, 0].sum()) == 16


def test_gradients_and_double_precision_are_refused_on_the_cpu() -> None:
    case = Case("refused")
    assert "float64" in str(flex.supports(case.request(torch.float64)))
    request = case.request(torch.float32)
    assert flex.supports(request) is None
    request.q.requires_grad_()
    assert "no backward pass on the CPU" in str(flex.supports(request))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_one_compiled_kernel_serves_every_plan_of_a_shape() -> None:
    def shuffled(seed: int) -> HeadPlan:
        order = torch.randperm(8, generator=torch.Generator().manual_seed(seed)).tolist()
        return HeadPlan.of([[row[i] for i in order] for row in LONG_PLAN.patterns])

    key_mask = random(2, 300, seed=3) > 0
    masks = [left_padding([300, 77], 300), MaskSpec(key_mask=key_mask), MaskSpec(window=33), MaskSpec(causal=False)]
    seconds = []
    for seed, mask in enumerate(masks):
        plan = shuffled(seed) if mask.causal else HeadPlan.of([full()] * 8)
        start = time.monotonic()
        same("flex", Case("compiled", 8, 4, 300, 300, plan=plan, mask=mask).request(torch.float32, capture=EVERYTHING))
        seconds.append(time.monotonic() - start)
    assert max(seconds[1:3]) < 0.5 * seconds[0]
