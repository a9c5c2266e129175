"""Gate gradients are what a gate does, exact effects are those of one run a head, and the two are set side by side."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from einops import rearrange
from scipy import stats

from interp.errors import BadInput
from interp.heads.ablation import fit
from interp.heads.answers import recall_under
from interp.heads.effects import ablation_effects
from interp.heads.fed import Fed
from interp.heads.importance import ORDERS, gate_gradients, head_importance
from interp.runs import Journal, load_run
from interp.tasks.prompts import PromptSet
from kernels import integration
from kernels.integration import LayerPlan, intervene
from kernels.types import HeadGates


@pytest.fixture(scope="module")
def few(prompts, tokenizer):
    """Six of the random prompts, with distractors."""
    part = prompts[3:9]
    distractors = [" a b" if answer.split()[0] != "a" else " c d" for answer in part.answers]
    metadata = [{"group": "ab"[i % 2]} for i in range(len(part))]
    return PromptSet.build(tokenizer, part.texts, part.answers, distractors=distractors, metadata=metadata)


def gated_by_hand(hf, prompts, metric):
    """The gradient of every test's metric at gates that multiply z in a hook, `[test layer head]`, by autograd."""
    result = []
    for i, (tokens, answer) in enumerate(zip(prompts.tokens, prompts.answer_tokens, strict=True)):
        gates = torch.ones(len(hf.model.layers), 4, requires_grad=True)

        def hook(layer, gates=gates):
            def edit(_module, args):
                z = rearrange(args[0], "b t (h d) -> b t h d", h=4) * gates[layer][None, None, :, None]
                return (rearrange(z, "b t h d -> b t (h d)"),)

            return edit

        handles = [
            block.self_attn.o_proj.register_forward_pre_hook(hook(layer)) for layer, block in enumerate(hf.model.layers)
        ]
        logits = hf(torch.tensor([[*tokens, *answer[:-1]]])).logits[0, len(tokens) - 1 :]
        for handle in handles:
            handle.remove()
        if metric == "log-probability":
            value = logits.log_softmax(-1)[range(len(answer)), list(answer)].mean()
        else:
            value = logits[0, answer[0]] - logits[0, prompts.distractor_tokens[i][0]]
        (slope,) = torch.autograd.grad(value, gates)
        result.append(slope.numpy())
    return np.stack(result)


@pytest.mark.parametrize("attention", ["eager", "sdpa", "workbench"])
@pytest.mark.parametrize("metric", ["log-probability", "logit-difference"])
def test_gradients_of_gates_equal_those_of_an_eager_hook(make_model, few, attention, metric):
    integration.install()
    by_hand = gated_by_hand(make_model("llama", "eager").hf, few, metric)
    ours = gate_gradients(make_model("llama", attention), few, metric=metric)
    np.testing.assert_allclose(ours.tests, by_hand, atol=2e-4 * np.abs(by_hand).max())
    assert np.abs(by_hand).min() > 0
    assert (ours.tokens >= np.abs(ours.tests) - 1e-9).all()


def test_the_kernels_gates_have_the_same_gradient(make_model, few):
    """One backward pass through `HeadGates` of the attention kernel itself."""
    integration.install()
    model = make_model("llama", "workbench")
    gates = [torch.ones(1, 4, requires_grad=True) for _ in range(2)]
    plans = {layer: LayerPlan(gates=HeadGates(gate=gate)) for layer, gate in enumerate(gates)}
    tokens, answer = few.tokens[0], few.answer_tokens[0]
    with intervene(model.hf, plans):
        logits = model.hf(torch.tensor([[*tokens, *answer[:-1]]])).logits[0, len(tokens) - 1 :]
    logits.log_softmax(-1)[range(len(answer)), list(answer)].mean().backward()
    slopes = torch.cat([gate.grad for gate in gates]).numpy()
    np.testing.assert_allclose(gate_gradients(model, few[:1]).tests[0], slopes, atol=1e-4 * np.abs(slopes).max())


def test_the_gradient_is_the_slope_of_scaling_a_head(llama, few):
    """Central differences of the metric between gates a little above and below 1."""
    ours = gate_gradients(llama, few).tests
    for layer, head in ((0, 2), (1, 1)):
        sides = [
            recall_under(llama, few, fit(llama, f"scale:{1 + step}", Fed.answering(few), [layer]), [(layer, head)])
            for step in (0.02, -0.02)
        ]
        slope = (sides[0].log_probability - sides[1].log_probability) / 0.04
        np.testing.assert_allclose(ours[:, layer, head], slope, atol=0.05 * np.abs(slope).max() + 1e-3)


def test_removed_heads_have_no_gradient_and_change_that_of_others(llama, few):
    whole, without = gate_gradients(llama, few), gate_gradients(llama, few, removed=[(0, 1)])
    assert (without.tests[:, 0, 1] == 0).all()
    assert np.abs(without.tests - whole.tests)[:, 1].max() > 1e-3


def test_orders_of_the_absolute_value_are_what_they_say(llama, few):
    gradients = gate_gradients(llama, few)
    np.testing.assert_array_equal(gradients.importance("abs-of-mean"), abs(gradients.tests.mean(0)))
    np.testing.assert_array_equal(gradients.importance("mean-of-abs"), abs(gradients.tests).mean(0))
    assert (gradients.importance("mean-of-abs") >= gradients.importance("abs-of-mean") - 1e-12).all()
    assert (gradients.importance("tokens") >= gradients.importance("mean-of-abs") - 1e-9).all()
    for order in ORDERS:
        normalised = gradients.importance(order, by_layer=True)
        np.testing.assert_allclose(np.linalg.norm(normalised, axis=1), 1.0)
        plain = gradients.importance(order)
        assert (normalised.argsort(1) == plain.argsort(1)).all()
    with pytest.raises(BadInput, match="no order 'absolute'"):
        gradients.importance("absolute")


@pytest.mark.parametrize("attention", ["sdpa", "workbench"])
@pytest.mark.parametrize(
    "ablation", ["zero", "mean", "mean-template:group", "resample", "uniform", "uniform-at-decode"]
)
def test_one_head_per_batch_row_equals_one_run_per_head(make_model, few, attention, ablation):
    integration.install()
    model = make_model("llama", attention)
    effects = ablation_effects(model, few, ablation=ablation, chunk=3)
    fitted = fit(model, ablation, Fed.answering(few), [0, 1])
    whole = recall_under(model, few).log_probability
    for layer, head in np.ndindex(2, 4):
        alone = recall_under(model, few, fitted, [(layer, head)]).log_probability
        np.testing.assert_allclose(effects.samples[:, layer, head], whole - alone, atol=3e-4)
    assert np.abs(effects.samples).max() > 0.01


def test_effects_on_top_of_removed_heads_leave_these_out(llama, few):
    effects = ablation_effects(llama, few, ablation="zero", removed=[(1, 0)], metric="logit-difference")
    fitted = fit(llama, "zero", Fed.answering(few), [0, 1])
    without = recall_under(llama, few, fitted, [(1, 0)]).logit_difference
    both = recall_under(llama, few, fitted, [(1, 0), (0, 3)]).logit_difference
    assert np.isnan(effects.samples[:, 1, 0]).all()
    np.testing.assert_allclose(effects.samples[:, 0, 3], without - both, atol=1e-4)
    np.testing.assert_allclose(effects.baseline, without, atol=1e-4)


def test_finished_prompts_are_not_run_again(llama, few, tmp_path):
    whole = ablation_effects(llama, few, ablation="zero")
    with Journal(tmp_path / "journal.jsonl", {}) as journal:
        ablation_effects(llama, few[:2], ablation="zero", journal=journal)
    kept: list[str] = []
    with Journal(tmp_path / "journal.jsonl", {}, resume=True) as journal:
        append = journal.append
        journal.append = lambda key, value: (kept.append(key), append(key, value))  # type: ignore[method-assign]
        again = ablation_effects(llama, few, ablation="zero", journal=journal)
    assert kept == ["2", "3", "4", "5"]
    np.testing.assert_allclose(again.samples, whole.samples, atol=1e-6)


def test_agreement_is_the_rank_correlation_of_means_over_the_same_tests(llama, few, tmp_path):
    importance = head_importance(llama, few)
    table = importance.agreement.set_index(["order", "by_layer"])
    assert len(table) == 2 * len(ORDERS)
    effect, gradient = importance.exact.effects, importance.gradients.tests
    expected = stats.spearmanr(abs(gradient).mean(0).ravel(), abs(effect).ravel()).statistic
    assert table.loc[("mean-of-abs", False), "spearman"] == pytest.approx(expected)
    expected = stats.kendalltau(gradient.mean(0).ravel(), effect.ravel()).statistic
    assert table.loc[("signed", False), "kendall"] == pytest.approx(expected)
    assert (table.spearman_low <= table.spearman).all()
    assert (table.spearman <= table.spearman_high).all()
    assert (table.n == len(few)).all()
    run = importance.save(tmp_path / "run")
    assert load_run(run.path).frame.equals(importance.frame)
    assert sum(len(trace.x) for trace in importance.plot().data) == 8
    np.testing.assert_array_equal(importance.exact.plot().data[0].z, effect)


def test_bad_requests_are_refused_before_anything_runs(llama, few, prompts):
    with pytest.raises(BadInput, match="recall has no gradient"):
        gate_gradients(llama, few, metric="recall")
    with pytest.raises(BadInput, match="needs distractors"):
        ablation_effects(llama, prompts, metric="logit-difference")
    with pytest.raises(BadInput, match="no metric 'logprob'"):
        ablation_effects(llama, few, metric="logprob")
    with pytest.raises(BadInput, match="at least one head"):
        ablation_effects(llama, few, chunk=0)
    with pytest.raises(BadInput, match="no prompts"):
        ablation_effects(llama, few[:0])
    with pytest.raises(BadInput, match=r"no head 7\.0"):
        gate_gradients(llama, few, removed=[(7, 0)])
