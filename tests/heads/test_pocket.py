"""Retrieval heads of the bundled model: few, the same ones early and late, and its recall is nothing without them."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

import interp
from interp.errors import NoTestPassed
from interp.heads.causal import ablation_report
from interp.heads.properties import intrinsic
from interp.heads.retrieval import retrieval_scores
from interp.heads.scores import agreement
from interp.tasks.needle import needle_prompts
from kernels.headwise_cache import ATTENTION, FullHeads, HeadwiseCache


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


@pytest.fixture(scope="module")
def scores(pocket, needles):
    return retrieval_scores(pocket, needles)


def test_fewer_than_a_quarter_of_the_heads_are_retrieval_heads(pocket, scores):
    heads = scores.above(0.1)
    assert 0 < len(heads) < pocket.spec.layers * pocket.spec.heads / 4


def test_without_them_recall_collapses_and_without_random_heads_of_their_layers_it_does_not(pocket, needles, scores):
    report = ablation_report(pocket, needles, scores.above(0.1), seeds=(0, 1, 2, 3, 4))
    assert report.frame.recall[0] > 0.8
    summary = report.summary().set_index("ablation")
    assert set(summary.index) == {"mean", "zero", "uniform-at-decode"}
    assert (summary.seeds == 5).all()
    assert (summary.kept <= 0.2).all(), summary
    assert (summary.random >= 0.9).all(), summary


def test_the_earlier_checkpoint_has_the_same_retrieval_heads(needles, scores):
    earlier = retrieval_scores(interp.load("pocket-early"), needles, method="chunk")
    assert intrinsic(earlier, scores)["pearson"] > 0.9


def test_a_cache_that_keeps_only_their_keys_recalls_as_the_whole_one_and_with_other_heads_it_does_not(scores):
    pocket = interp.load("pocket", attention=ATTENTION)
    long = needle_prompts(pocket.tokenizer, [1900], [20, 60], n_needles=3)
    by_score = torch.tensor(scores.scores)
    others = torch.rand(by_score.shape, generator=torch.Generator().manual_seed(0))
    others[by_score >= 0.1] = -1.0

    def recalled(by: torch.Tensor, keep: float) -> tuple[int, int]:
        right = 0
        for prompt, answer in zip(long.tokens, long.answer_tokens, strict=True):
            cache = HeadwiseCache(pocket.hf.config, FullHeads.top(by, kv_heads=4, keep=keep), max_length=2048)
            options = {"max_new_tokens": len(answer), "do_sample": False, "past_key_values": cache}
            text = pocket.hf.generate(torch.tensor([prompt]), **options)
            right += text[0, len(prompt) :].tolist() == list(answer)
        return right, cache.bytes

    whole, whole_bytes = recalled(by_score, 1.0)
    kept, kept_bytes = recalled(by_score, 1 / 16)
    lost, lost_bytes = recalled(others, 1 / 16)
    assert whole >= 5
    assert kept == whole
    assert lost <= 1
    assert kept_bytes == lost_bytes < 0.3 * whole_bytes


def test_an_untrained_model_of_the_same_shape_passes_no_test(pocket, needles):
    torch.manual_seed(0)
    untrained = interp.wrap(AutoModelForCausalLM.from_config(pocket.hf.config).eval(), pocket.tokenizer)
    nothing = retrieval_scores(untrained, needles[:3], method="chunk")
    with pytest.raises(NoTestPassed):
        nothing.above(0.1)
