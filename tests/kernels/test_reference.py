"""The reference, which every backend is compared with, equals attention written out by hand and eager transformers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from kernels.patterns import full
from kernels.types import CaptureSpec
from tests.kernels.cases import CASES, EVERYTHING, Case, reference
from tests.kernels.oracle import by_hand


def _each(value: Tensor | None, case: Case, otherwise: float) -> Tensor:
    """A gate of every batch row, head and query."""
    shape = (case.batch, case.heads, case.queries)
    if value is None:
        return torch.full(shape, otherwise, dtype=torch.float64)
    return (value if value.ndim == 3 else value[..., None]).double().expand(shape)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_reference_is_attention_written_out(case: Case) -> None:
    request = case.request(capture=EVERYTHING)
    gate, scale = torch.ones(()), None
    add: Tensor = torch.zeros(())
    if case.gates is not None:
        there = torch.ones(1, case.queries, dtype=torch.bool) if case.gates.positions is None else case.gates.positions
        gate = _each(case.gates.gate, case, 1.0).where(there[:, None], 1.0).transpose(1, 2)[..., None]
        scale = _each(case.gates.logit_scale, case, 1.0).where(there[:, None], 1.0)
        if case.gates.add is not None:
            add = case.gates.add if case.gates.add.ndim == 4 else case.gates.add[:, :, None]
            add = add.transpose(1, 2) * there[..., None, None]
    patterns = [[full()] * case.heads] if case.plan is None else case.plan.patterns
    z, probability, lse = by_hand(*case.tensors(), case.mask, patterns, case.plan, scale)
    out, stats, _ = reference(request)
    torch.testing.assert_close(out, gate * z + add, rtol=1e-10, atol=1e-12)
    assert stats is not None
    torch.testing.assert_close(stats.log_sum_exp, lse, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(stats.column_sums, probability.sum(2), rtol=1e-10, atol=1e-12)
    first = case.mask.kv_offset
    assert stats.mass is not None
    for i, (begin, end) in enumerate([(0, 5), (5, 9), (9, 400)]):
        inside = probability[..., max(0, begin - first) : max(0, end - first)].sum(-1)
        torch.testing.assert_close(stats.mass[..., i], inside, rtol=1e-10, atol=1e-12)
    assert stats.argmax is not None
    assert stats.probability is not None
    assert stats.entropy is not None
    for b, h, t in torch.cartesian_prod(*map(torch.arange, lse.shape)).tolist():
        row = probability[b, h, t].tolist()
        best = max(row)
        assert stats.argmax[b, h, t] == (row.index(best) + first if best > 0 else -1)
        assert float(stats.probability[b, h, t]) == pytest.approx(best, abs=1e-12)
        entropy = -sum(p * math.log(p) for p in row if p > 0)
        assert float(stats.entropy[b, h, t]) == pytest.approx(entropy, abs=1e-10)


def test_top_keys_are_in_order_and_end_with_the_visible_ones() -> None:
    case = Case("top", queries=4, keys=4)
    _, probability, _ = by_hand(*case.tensors(), case.mask, [[full()] * 4])
    _, stats, _ = reference(case.request(capture=CaptureSpec(rows=torch.tensor([3, 1]), topk=6)))
    assert stats is not None
    assert stats.topk is not None
    assert stats.topk_probability is not None
    for b in range(2):
        for h in range(4):
            for r, row in enumerate((3, 1)):
                order = sorted(range(row + 1), key=lambda s: -float(probability[b, h, row, s]))
                missing = 6 - len(order)
                assert stats.topk[b, h, r].tolist() == order + [-1] * missing
                wanted = [float(probability[b, h, row, s]) for s in order] + [0.0] * missing
                assert stats.topk_probability[b, h, r].tolist() == pytest.approx(wanted)
