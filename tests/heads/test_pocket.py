"""Retrieval scores of the bundled model: the two ways of decoding agree, and an untrained model recalls nothing."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

import interp
from interp.errors import NoTestPassed
from interp.heads.causal import ablate, recall_under
from interp.heads.retrieval import retrieval_scores
from interp.heads.scores import agreement
from interp.tasks.needle import needle_prompts


@pytest.fixture(scope="module")
def pocket():
    return interp.load("pocket")


@pytest.fixture(scope="module")
def needles(pocket):
    return needle_prompts(pocket.tokenizer, [256], [0, 50, 100], n_needles=4)


def test_stepwise_decoding_and_one_chunk_agree_on_tests_that_pass(pocket, needles):
    stepwise, chunk = (retrieval_scores(pocket, needles, method=method) for method in ("stepwise", "chunk"))
    assert len(stepwise.samples) >= len(needles) / 3
    assert stepwise.tests.passed.tolist() == chunk.tests.passed.tolist()
    assert agreement(stepwise, chunk)["max_difference"] < 0.05


def test_without_a_whole_layer_of_copying_heads_nothing_is_recalled(pocket, needles):
    baseline = recall_under(pocket, needles).exact.mean()
    heads = [(2, head) for head in range(pocket.spec.heads)]
    assert baseline > 0.3
    assert recall_under(pocket, needles, ablate(heads, "zero")).exact.mean() <= 0.2 * baseline
    first = [(0, head) for head in range(2)]
    assert recall_under(pocket, needles, ablate(first, "zero")).exact.mean() <= baseline


def test_its_copying_heads_look_at_the_token_after_the_one_they_copy(pocket):
    """Why the published score, which asks for the copied token itself, calls none of them a retrieval head."""
    n = 50
    unit = torch.randint(3, pocket.spec.vocab, (4, n), generator=torch.Generator().manual_seed(0))
    ids = torch.cat([torch.full((4, 1), pocket.tokenizer.bos_token_id), unit, unit], dim=1)
    pattern = pocket.run(ids, read="pattern.2")["pattern.2"]
    queries = torch.arange(n + 2, 2 * n)
    copied, after = (pattern[:, :, queries, queries - n + offset].mean((0, 2)) for offset in (1, 2))
    assert after.min() > 0.7
    assert copied.max() < 0.1


def test_an_untrained_model_of_the_same_shape_passes_no_test(pocket, needles):
    torch.manual_seed(0)
    untrained = interp.wrap(AutoModelForCausalLM.from_config(pocket.hf.config).eval(), pocket.tokenizer)
    nothing = retrieval_scores(untrained, needles[:3], method="chunk")
    with pytest.raises(NoTestPassed):
        nothing.above(0.1)
