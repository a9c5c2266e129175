"""Attention rows equal a dense float64 computation written with explicit loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from kernels.rows import attention_rows, gather_values, row_statistics, visible_keys

BATCH, HEADS, KEYS, DIM = 2, 4, 11, 32


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense(
    q: Tensor, k: Tensor, allowed: Tensor, scaling: float, softcap: float | None, sinks: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Probabilities and log-sum-exp, one query and one key at a time."""
    batch, heads, queries, _ = q.shape
    group = heads // k.shape[1]
    pattern = torch.zeros(batch, heads, queries, k.shape[2], dtype=torch.float64)
    lse = torch.full((batch, heads, queries), -math.inf, dtype=torch.float64)
    for b in range(batch):
        for h in range(heads):
            for t in range(queries):
                scores = {}
                for s in range(k.shape[2]):
                    if allowed[b, t, s]:
                        score = float(q[b, h, t] @ k[b, h // group, s]) * scaling
                        scores[s] = softcap * math.tanh(score / softcap) if softcap else score
                logits = [*scores.values(), *([float(sinks[h])] if sinks is not None else [])]
                if logits:
                    lse[b, h, t] = math.log(sum(math.exp(x) for x in logits))
                for s, score in scores.items():
                    pattern[b, h, t, s] = math.exp(score - float(lse[b, h, t]))
    return pattern, lse


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("with_sinks", [False, True])
def test_rows_equal_the_dense_computation(
    dtype: torch.dtype, kv_heads: int, window: int | None, softcap: float | None, with_sinks: bool
) -> None:
    q, k = random(BATCH, HEADS, 3, DIM, seed=1), random(BATCH, kv_heads, KEYS, DIM, seed=2)
    sinks = random(HEADS, seed=3) if with_sinks else None
    columns = torch.tensor([[2, 7, 10], [0, 5, 10]])
    padding = torch.ones(BATCH, KEYS, dtype=torch.bool)
    padding[0, 9:] = False
    padding[1, :2] = False
    allowed = visible_keys(columns, padding, window)
    for b, row in enumerate(columns.tolist()):
        for t, column in enumerate(row):
            for s in range(KEYS):
                near = window is None or column - s < window
                assert bool(allowed[b, t, s]) == (s <= column and near and bool(padding[b, s]))
    wanted, lse = dense(q, k, allowed, 0.3, softcap, sinks)
    rows = attention_rows(q.to(dtype), k.to(dtype), allowed, scaling=0.3, softcap=softcap, sinks=sinks)
    tolerance = {"rtol": 1e-10, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-6}
    assert rows.pattern.dtype == dtype
    torch.testing.assert_close(rows.pattern.double(), wanted, **tolerance)
    torch.testing.assert_close(rows.log_sum_exp.double(), lse, **tolerance)


def test_half_precision_inputs_are_computed_in_float32() -> None:
    q, k = random(1, 2, 1, DIM, seed=1).bfloat16(), random(1, 2, KEYS, DIM, seed=2).bfloat16()
    allowed = torch.ones(1, 1, KEYS, dtype=torch.bool)
    rows = attention_rows(q, k, allowed, scaling=0.3)
    wanted, _ = dense(q.double(), k.double(), allowed, 0.3, None, None)
    assert rows.pattern.dtype == torch.float32
    torch.testing.assert_close(rows.pattern.double(), wanted, rtol=1e-5, atol=1e-6)


def test_a_row_that_sees_nothing_has_probability_zero_and_no_nan() -> None:
    q, k = random(1, HEADS, 2, DIM, seed=1), random(1, HEADS, KEYS, DIM, seed=2)
    allowed = torch.zeros(1, 2, KEYS, dtype=torch.bool)
    allowed[0, 1, 4] = True
    rows = attention_rows(q, k, allowed, scaling=1.0)
    assert (rows.pattern[:, :, 0] == 0).all()
    assert (rows.log_sum_exp[:, :, 0] == -math.inf).all()
    torch.testing.assert_close(rows.pattern[:, :, 1, 4], torch.ones(1, HEADS, dtype=torch.float64))
    stats = row_statistics(rows)
    assert (stats.argmax[:, :, 0] == -1).all()
    assert (stats.argmax[:, :, 1] == 4).all()
    assert (stats.probability[:, :, 0] == 0).all()
    assert (stats.entropy[:, :, 0] == 0).all()


def test_statistics_summarise_a_row() -> None:
    q, k = random(BATCH, HEADS, 3, DIM, seed=1), random(BATCH, 2, KEYS, DIM, seed=2)
    rows = attention_rows(q, k, torch.ones(BATCH, 3, KEYS, dtype=torch.bool), scaling=0.3)
    stats = row_statistics(rows)
    for b, h, t in torch.cartesian_prod(*(torch.arange(n) for n in (BATCH, HEADS, 3))).tolist():
        row = rows.pattern[b, h, t].tolist()
        assert stats.argmax[b, h, t] == row.index(max(row))
        assert float(stats.probability[b, h, t]) == max(row)
        assert float(stats.entropy[b, h, t]) == pytest.approx(-sum(p * math.log(p) for p in row))
        assert stats.log_sum_exp[b, h, t] == rows.log_sum_exp[b, h, t]


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_values_are_gathered_by_group(kv_heads: int) -> None:
    weights, v = random(BATCH, HEADS, 3, KEYS, seed=1), random(BATCH, kv_heads, KEYS, DIM, seed=2)
    z = gather_values(weights, v)
    for h in range(HEADS):
        torch.testing.assert_close(z[:, :, h], weights[:, h] @ v[:, h // (HEADS // kv_heads)])
