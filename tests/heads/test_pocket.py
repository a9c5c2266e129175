"""Retrieval heads of the bundled model: few, the same ones early and late, and its recall is nothing without them."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

import interp
from interp.errors import NoTestPassed
from interp.heads.causal import ablation_report, removal_study
from interp.heads.perplexity import sliding_windows
from interp.heads.properties import intrinsic
from interp.heads.retrieval import retrieval_scores
from interp.heads.scores import agreement
from interp.tasks.bundled import filler_text
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


REMOVING = ("mean", "zero", "mean-positional", "mean-template:length", "resample:0", "uniform", "uniform-at-decode")


@pytest.fixture(scope="module")
def fresh(pocket):
    """Needles that did not choose the heads."""
    return needle_prompts(pocket.tokenizer, [160], [0, 50, 100], n_needles=2, seed=1)


@pytest.fixture(scope="module")
def report(pocket, fresh, scores):
    """Every kind of ablation, and one that only weakens heads."""
    return ablation_report(pocket, fresh, scores.above(0.1), ablations=(*REMOVING, "scale:0.5"))


def test_without_them_recall_collapses_and_without_random_heads_of_their_layers_it_does_not(report):
    assert report.frame.recall[0] > 0.8
    summary = report.summary().set_index("ablation")
    removing = summary.loc[list(REMOVING)]
    assert (summary.seeds == 5).all()
    assert (removing.kept <= 0.2).all(), summary
    assert (removing.high < report.frame.relative_low[0]).all(), "intervals of so few tests are wide, and still apart"
    assert (summary.random >= 0.9).all(), summary


def test_what_the_model_says_instead_depends_on_the_ablation(report):
    """Recall is 0 under all that remove the heads; the log-probability of the answer tells them apart."""
    chosen = report.frame[report.frame["heads"] == "chosen"].set_index("ablation")
    said = chosen.log_probability
    assert chosen.recall["scale:0.5"] > 0.5
    assert said["scale:0.5"] < report.frame.log_probability[0]
    assert said["resample:0"] < said["zero"] - 1, "heads that read another needle copy its value"
    assert said["mean-positional"] > said["mean"] + 0.3, "which digit is due can be told from the position"


def test_recall_by_length_and_depth_is_lost_everywhere(report, fresh):
    cells = report.by_length_and_depth().set_index(["ablation", "heads", "length", "depth"]).sort_index()
    assert set(cells.index.get_level_values("depth")) == {0.0, 50.0, 100.0}
    assert (cells.n.loc["zero", "random"] == cells.n.loc["zero", "chosen"]).all()  # draws are no further tests
    assert (cells.draws.loc["zero", "random"] == 5).all()
    assert (cells.recall.loc["zero", "chosen"] == 0).all()
    assert cells.recall.loc["none", "none"].mean() == pytest.approx(report.frame.recall[0])
    assert cells.n.loc["none", "none"].sum() == len(fresh)


def test_one_head_fewer_hurts_less_and_text_is_read_as_well_without_them(pocket, fresh, scores):
    study = removal_study(pocket, fresh, scores.top(2), [0, 1, 2], ablations=["zero"], seeds=(0,))
    chosen = study.frame[study.frame["heads"] != "random"].set_index("removed").log_probability
    assert chosen[0] > chosen[1] > chosen[2]
    text = sliding_windows(pocket, filler_text(1, 40), window=256)
    perplexity = ablation_report(pocket, text, scores.top(2), ablations=["zero"], seeds=(0,)).frame
    assert perplexity.relative[1] == pytest.approx(1.0, abs=0.03)


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
