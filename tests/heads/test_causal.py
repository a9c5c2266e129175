"""Ablation reports: what recall means, what each ablation does, and that the control is one."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from einops import rearrange

import interp
from interp.errors import BadInput
from interp.heads.ablation import fit
from interp.heads.answers import recall_under
from interp.heads.causal import AblationReport, ablation_report, random_heads, removal_study
from interp.heads.chain_of_thought import chain_of_thought_influence
from interp.heads.fed import Fed
from interp.runs import Journal
from interp.stats import wilson_interval
from interp.tasks.prompts import PromptSet


@pytest.fixture(scope="module")
def solvable(llama, prompts):
    """The random prompts with, for every second one, the answer that the model gives itself."""
    said = llama.generate(prompts, max_new_tokens=2).tokens
    words = [" " + " ".join(llama.tokenizer.convert_ids_to_tokens(list(new))) for new in said]
    answers = [own if i % 2 else other for i, (own, other) in enumerate(zip(words, prompts.answers, strict=True))]
    spans = [(2 * a, 2 * b - 1) for a, b in prompts.spans["value"]]
    return PromptSet.build(llama.tokenizer, prompts.texts, answers, spans={"value": spans})


def without(model, prompts, heads, ablation, **options):
    fitted = fit(model, ablation, Fed.answering(prompts), {layer for layer, _ in heads})
    return recall_under(model, prompts, fitted, heads, **options)


@torch.no_grad()
def by_hand(hf, prompts, edit=None):
    """Exact recall and mean log-probability of each answer from plain forward passes, with z pre-hooks from `edit`."""
    exact, log_probability = [], []
    for tokens, answer in zip(prompts.tokens, prompts.answer_tokens, strict=True):
        start = len(tokens) - 1
        handles = [
            block.self_attn.o_proj.register_forward_pre_hook(edit(layer, start))
            for layer, block in enumerate(hf.model.layers)
            if edit
        ]
        logits = hf(torch.tensor([[*tokens, *answer[:-1]]])).logits[0, start:]
        for handle in handles:
            handle.remove()
        exact.append(logits.argmax(-1).tolist() == list(answer))
        said = logits.log_softmax(-1)[range(len(answer)), list(answer)]
        log_probability.append(float(said.mean()))
    return np.array(exact, dtype=float), np.array(log_probability)


def test_recall_is_what_greedy_decoding_would_say(llama, solvable):
    recall = recall_under(llama, solvable)
    said = llama.generate(solvable, max_new_tokens=2).tokens
    exact, log_probability = by_hand(llama.hf, solvable)
    np.testing.assert_array_equal(recall.exact, [a == b for a, b in zip(said, solvable.answer_tokens, strict=True)])
    np.testing.assert_array_equal(recall.exact, exact)
    np.testing.assert_allclose(recall.log_probability, log_probability, atol=1e-5)
    assert 0 < recall.exact.mean() < 1


@pytest.mark.parametrize("batch_size", [1, 5])
def test_zero_ablation_equals_zeroing_the_heads_by_hand(llama, solvable, batch_size):
    heads = [(0, 1), (1, 3)]

    def edit(layer, _start):
        def hook(_module, args):
            z = rearrange(args[0].clone(), "b t (h d) -> b t h d", h=4)
            for at, head in heads:
                if at == layer:
                    z[:, :, head] = 0
            return (rearrange(z, "b t h d -> b t (h d)"),)

        return hook

    recall = without(llama, solvable, heads, "zero", batch_size=batch_size)
    exact, log_probability = by_hand(llama.hf, solvable, edit)
    np.testing.assert_array_equal(recall.exact, exact)
    np.testing.assert_allclose(recall.log_probability, log_probability, atol=1e-5)
    assert np.abs(recall.log_probability - recall_under(llama, solvable).log_probability).max() > 1e-3


def test_uniform_at_decode_averages_the_values_from_the_last_prompt_token_on(llama, solvable):
    layer_head = (1, 2)

    def edit(layer, start):
        values = llama.hf.model.layers[layer].self_attn.v_proj

        def hook(_module, args):
            if layer != layer_head[0]:
                return None
            z = rearrange(args[0].clone(), "b t (h d) -> b t h d", h=4)
            v = rearrange(seen[0], "b t (g d) -> b t g d", g=2)[:, :, layer_head[1] // 2]
            for t in range(start, z.shape[1]):
                z[:, t, layer_head[1]] = v[:, : t + 1].mean(1)
            return (rearrange(z, "b t h d -> b t (h d)"),)

        seen = []
        handle = values.register_forward_hook(lambda _m, _a, out: seen.__setitem__(slice(None), [out]))
        handles.append(handle)
        return hook

    handles = []
    recall = without(llama, solvable, [layer_head], "uniform-at-decode")
    _, log_probability = by_hand(llama.hf, solvable, edit)
    for handle in handles:
        handle.remove()
    np.testing.assert_allclose(recall.log_probability, log_probability, atol=1e-5)


def test_random_heads_come_from_the_same_layers_and_are_never_the_chosen_ones(llama):
    chosen = [(0, 0), (0, 2), (1, 1)]
    draws = {random_heads(llama, chosen, seed) for seed in range(30)}
    assert len(draws) > 3
    for draw in draws:
        assert not set(draw) & set(chosen)
        assert sorted(layer for layer, _ in draw) == [0, 0, 1]
    assert random_heads(llama, chosen, 7) == random_heads(llama, chosen, 7)


def test_too_many_heads_of_a_layer_leave_no_control_and_are_refused(llama):
    with pytest.raises(BadInput, match="layer 0 has 3 of 4 heads"):
        random_heads(llama, [(0, 0), (0, 1), (0, 2)], 0)
    with pytest.raises(BadInput, match="distinct"):
        random_heads(llama, [(0, 0), (0, 0)], 0)


def test_the_report_holds_the_baseline_every_ablation_and_every_seed(llama, solvable):
    report = ablation_report(llama, solvable, [(1, 0)], seeds=(0, 1))
    assert len(report.frame) == 1 + 3 * (1 + 2)
    baseline = report.frame.iloc[0]
    assert baseline.relative == 1.0
    assert baseline.recall == recall_under(llama, solvable).exact.mean()
    zero = report.frame[(report.frame.ablation == "zero") & (report.frame["heads"] == "chosen")].iloc[0]
    assert zero.recall == without(llama, solvable, [(1, 0)], "zero").exact.mean()
    assert (report.frame.low <= report.frame.recall).all()
    assert list(report.summary().ablation) == ["mean", "zero", "uniform-at-decode"]


def test_removal_takes_the_first_heads_of_the_ranking_and_controls_from_their_layers(llama, solvable):
    ranking = [(1, 2), (0, 0), (1, 0)]
    study = removal_study(llama, solvable, ranking, [3, 0, 1, 2], ablations=["zero", "uniform"], seeds=(0, 1))
    chosen = study.frame[study.frame["heads"] == "chosen"]
    assert chosen.which.tolist() == ["1-2", "1-2 0-0", "1-2 0-0 1-0"] * 2
    for row in chosen.itertuples():
        alone = without(llama, solvable, ranking[: row.removed], row.ablation)
        assert row.log_probability == pytest.approx(alone.log_probability.mean(), abs=1e-5)
    for row in study.frame[study.frame["heads"] == "random"].itertuples():
        drawn = [tuple(map(int, head.split("-"))) for head in row.which.split()]
        assert set(drawn) == set(random_heads(llama, ranking[: row.removed], row.seed))
    summary = study.summary()
    assert summary.removed.tolist() == [1, 2, 3] * 2
    assert set(study.frame.attention) == {"sdpa"}
    curve = next(trace for trace in study.plot().data if trace.name == "zero: chosen heads")
    np.testing.assert_allclose(curve.y[1:], chosen.recall[:3])


def test_draws_of_random_heads_are_no_further_tests_in_the_map():
    """Two tests and fifty draws: the interval is that of two tests, and no narrower for the draws."""
    conditions = [{"ablation": "none", "heads": "none", "removed": 0}]
    conditions += [{"ablation": "zero", "heads": "random", "removed": 1}] * 50
    samples = np.ones((51, 2, 3))
    samples[1:26, 0, 0] = 0
    tests = pd.DataFrame({"length": [64, 64], "depth": [50.0, 50.0]})
    report = AblationReport(pd.DataFrame(conditions), (), {}, {}, samples, tests)
    cells = report.by_length_and_depth().set_index("heads")
    assert cells.recall.to_dict() == {"none": 1.0, "random": 0.75}
    assert cells.n.to_dict() == {"none": 2, "random": 2}
    assert cells.draws.to_dict() == {"none": 1, "random": 50}
    assert cells.low["none"] == pytest.approx(wilson_interval(2, 2).low)
    assert cells.low["random"] < 0.25
    assert cells.high["random"] > 0.97


def test_a_ranking_shorter_than_what_is_to_be_removed_is_refused(llama, solvable):
    with pytest.raises(BadInput, match="4 heads cannot be removed: the ranking has 3"):
        removal_study(llama, solvable, [(1, 2), (0, 0), (1, 0)], [4])
    with pytest.raises(BadInput, match="at least one head"):
        ablation_report(llama, solvable, [])


def test_finished_conditions_are_not_measured_again(llama, solvable, tmp_path):
    options = {"ablations": ["zero", "resample"], "seeds": (0,)}
    whole = ablation_report(llama, solvable, [(1, 0)], **options)

    def stop(done, total):
        if done == 3:
            raise KeyboardInterrupt

    with Journal(tmp_path / "journal.jsonl", {}) as journal, pytest.raises(KeyboardInterrupt):
        ablation_report(llama, solvable, [(1, 0)], **options, journal=journal, progress=stop)
    added = []
    with Journal(tmp_path / "journal.jsonl", {}, resume=True) as journal:
        append = journal.append
        journal.append = lambda key, value: (added.append(key), append(key, value))
        again = ablation_report(llama, solvable, [(1, 0)], **options, journal=journal)
    assert len(added) == len(whole.frame) - 3
    np.testing.assert_allclose(again.samples, whole.samples, atol=1e-6)


def test_an_unknown_ablation_is_refused_before_anything_runs(llama, solvable):
    with pytest.raises(BadInput, match="did you mean 'zero'"):
        ablation_report(llama, solvable, [(0, 0)], ablations=("zeros",))


def test_chain_of_thought_accuracy_is_that_of_generation_under_the_same_edits(llama, solvable):
    report = chain_of_thought_influence(llama, solvable, solvable, [(1, 0)], seeds=(0,), max_new_tokens=2)
    frame = report.frame.set_index(["answer", "heads"])
    said = llama.generate(solvable, max_new_tokens=2, edits=[interp.zero("z.1.0")]).texts
    right = [a.split()[-1] == b.split()[-1] for a, b in zip(said, solvable.answers, strict=True)]
    assert frame.loc[("steps", "chosen"), "accuracy"] == pytest.approx(np.mean(right))
    assert frame.loc[("direct", "none"), "accuracy"] >= 0.5
    assert len(report.frame) == 6


def test_chain_of_thought_needs_the_same_problems_twice(llama, solvable):
    with pytest.raises(BadInput, match="same problems twice"):
        chain_of_thought_influence(llama, solvable, solvable[:3], [(1, 0)])
