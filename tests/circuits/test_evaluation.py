"""Knockouts against hand-written hooks; faithfulness, completeness and minimality on a circuit that is known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from interp.circuits.circuit import Circuit, all_heads, random_like
from interp.circuits.curve import FaithfulnessCurve, faithfulness_curve
from interp.circuits.discovery import Discovery
from interp.circuits.evaluation import evaluate_circuit
from interp.circuits.ioi import ioi_knockout
from interp.circuits.knockout import knockout
from interp.circuits.study import CircuitStudy
from interp.errors import BadInput
from interp.plots.circuits import completeness_plot, faithfulness_plot, minimality_plot
from interp.tasks.ioi import ioi_prompts

PLANTED = Circuit(
    ((2, 0), (2, 3), (1, 2), (0, 1)),
    {(2, 0): "mover", (2, 3): "negative mover", (1, 2): "inhibition", (0, 1): "duplicate token"},
)


@pytest.fixture(scope="module")
def reference(pocket):
    return ioi_prompts(pocket.tokenizer, 48, 5, style="pocket", corruption="ABC").counterfactual


@pytest.fixture(scope="module")
def prompts(pocket):
    return ioi_prompts(pocket.tokenizer, 16, 3, style="pocket", corruption="ABC")


@torch.no_grad()
def by_hand(model, prompts, reference, removed, at=None):
    """Logit differences with z of some heads replaced by its mean over references of the same template and order."""

    def z_of(tokens):
        seen = []
        handles = [
            block.self_attn.o_proj.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0][0].clone()))
            for block in model.hf.model.layers
        ]
        model.hf(torch.tensor([tokens]))
        for handle in handles:
            handle.remove()
        return seen

    heads, width = model.spec.heads, model.spec.head_dim
    differences = []
    for i, tokens in enumerate(prompts.tokens):
        about = prompts.metadata[i]
        alike = [
            z_of(reference.tokens[j])
            for j, other in enumerate(reference.metadata)
            if (other["template"], other["order"]) == (about["template"], about["order"])
        ]
        means = [torch.stack(layer).mean(0) for layer in zip(*alike, strict=True)]

        def replaced(layer, means=means):
            def hook(_module, inputs):
                z = inputs[0].clone()
                for at_layer, head in removed:
                    if at_layer == layer:
                        own = slice(head * width, (head + 1) * width)
                        where = slice(None) if at is None else slice(-1, None)
                        z[:, where, own] = means[layer][where, own]
                return (z,)

            return hook

        handles = [
            block.self_attn.o_proj.register_forward_pre_hook(replaced(layer))
            for layer, block in enumerate(model.hf.model.layers)
        ]
        logits = model.hf(torch.tensor([tokens])).logits[0, -1]
        for handle in handles:
            handle.remove()
        differences.append(float(logits[prompts.answer_tokens[i][0]] - logits[prompts.distractor_tokens[i][0]]))
    assert heads == 8
    return np.array(differences)


@pytest.mark.parametrize("at", [None, "end"])
def test_knocking_out_by_template_means_equals_a_hand_written_hook(pocket, prompts, reference, at):
    few = prompts[:5]
    out = knockout(pocket, few, reference, by=("template", "order"), at=at)
    sets = [[(2, 6), (2, 7), (0, 3)], [(1, head) for head in range(8)], []]
    mine = out.measure(sets)
    for values, removed in zip(mine, sets, strict=True):
        np.testing.assert_allclose(values, by_hand(pocket, few, reference, removed, at), atol=2e-3)
    assert np.abs(mine[0] - mine[2]).max() > 1


def test_pocket_keeps_its_logit_difference_on_a_quarter_of_its_heads_and_random_circuits_do_not(pocket, pocket_ioi):
    fresh = ioi_prompts(pocket.tokenizer, 24, 9, style="pocket", corruption="ABC")
    outside = ioi_knockout(pocket, fresh, reference=160, style="pocket", at="end")
    circuit = pocket_ioi.circuit(8, at="end")
    evaluation = evaluate_circuit(outside, circuit, random=5, subsets=0, greedy_steps=0)
    assert len(circuit.heads) <= 8
    assert evaluation.kept.estimate >= 0.85
    assert evaluation.random["kept"].max() < 0.3
    assert set(evaluation.random["shared"]) == {0}


@pytest.fixture(scope="module")
def evaluated(planted, abc):
    return evaluate_circuit(ioi_knockout(planted, abc, style="pocket"), PLANTED, random=6, subsets=2, greedy_steps=2)


def test_a_planted_circuit_is_faithful_complete_and_minimal(evaluated):
    assert evaluated.kept.estimate == pytest.approx(1, abs=1e-4)
    assert evaluated.faithfulness.estimate == pytest.approx(1, abs=1e-4)
    assert evaluated.completeness["incompleteness"].max() < 1e-3
    assert set(evaluated.completeness["K"]) >= {"nothing", "inhibition", "mover", "random 0", "greedy"}
    assert evaluated.minimality["score"].min() > 0.05
    best = evaluated.minimality.set_index(["layer", "head"])["score"]
    assert best[2, 0] >= 1  # without the mover, nothing of the difference is left
    assert evaluated.random["kept"].abs().max() < 0.3


def test_a_circuit_that_lacks_a_head_is_neither_faithful_nor_complete(planted, abc):
    lacking = Circuit(((2, 0), (1, 2)), {(2, 0): "mover", (1, 2): "inhibition"})
    evaluation = evaluate_circuit(
        ioi_knockout(planted, abc, style="pocket"), lacking, random=2, subsets=1, greedy_steps=1
    )
    assert evaluation.kept.estimate < 0.5
    assert evaluation.completeness["incompleteness"].max() > 3


def test_a_head_that_does_nothing_is_not_minimal(planted, abc):
    padded = Circuit((*PLANTED.heads, (1, 0)), PLANTED.roles)
    minimality = evaluate_circuit(
        ioi_knockout(planted, abc, style="pocket"), padded, random=0, subsets=1, greedy_steps=0
    ).minimality.set_index(["layer", "head"])["score"]
    assert minimality[1, 0] < 1e-4
    assert minimality.drop((1, 0)).min() > 0.05


def test_the_numbers_of_an_evaluation_follow_from_its_logit_differences(evaluated):
    frame = evaluated.frame.set_index("what")
    full, alone, empty = evaluated.full, evaluated.alone, evaluated.empty
    assert frame.loc["F(M)", "value"] == pytest.approx(full.mean())
    assert frame.loc["gap F(M) - F(C)", "value"] == pytest.approx((full - alone).mean(), abs=1e-6)
    assert frame.loc["kept, ratio of means", "value"] == pytest.approx(alone.mean() / full.mean())
    assert frame.loc["kept, mean of ratios", "value"] == pytest.approx((alone / full).mean())
    expected = (alone - empty).mean() / (full - empty).mean()
    assert frame.loc["faithfulness", "value"] == pytest.approx(expected)
    assert evaluated.summary()["random_circuits"] == 6
    circuit, random = evaluated.plot().data
    assert circuit.x[0] == pytest.approx(alone.mean() / full.mean())
    np.testing.assert_array_equal(random.x, evaluated.random["kept"])


def test_completeness_and_minimality_are_drawn_with_their_numbers(evaluated):
    points, diagonal = completeness_plot(evaluated).data
    np.testing.assert_array_equal(points.x, evaluated.completeness["model"])
    np.testing.assert_array_equal(points.y, evaluated.completeness["circuit"])
    assert diagonal.x == diagonal.y
    heads = minimality_plot(evaluated).data[0]
    assert heads.y[0] == "2.0 mover"
    assert list(heads.x) == sorted(evaluated.minimality["score"], reverse=True)
    bars = heads.error_x
    assert (bars.arrayminus >= -1e-9).all()
    assert (bars.array >= -1e-9).all()


def test_a_study_read_back_is_the_one_that_was_saved(planted, abc, found, evaluated, tmp_path):
    curve = faithfulness_curve(ioi_knockout(planted, abc[:8], style="pocket"), found.scores, fractions=(0.5,))
    study = CircuitStudy(found, {"everywhere": evaluated}, {"everywhere": curve})
    again = CircuitStudy.load(study.save(tmp_path / "run").path)
    pd.testing.assert_frame_equal(again.frame, study.frame)
    assert again.plot().to_json() == study.plot().to_json()
    for name, table in study.tables("everywhere").items():
        pd.testing.assert_frame_equal(again.tables("everywhere")[name], table)
    there, read = again.evaluations["everywhere"], again.curves["everywhere"]
    assert there.plot().to_json() == evaluated.plot().to_json()
    assert (there.circuit, there.parameters) == (evaluated.circuit, evaluated.parameters)
    assert read.plot().to_json() == curve.plot().to_json()
    assert read.ranking == curve.ranking
    assert Discovery.load(tmp_path / "run").parameters == found.parameters
    bare = CircuitStudy.load(CircuitStudy(found).save(tmp_path / "bare").path)
    assert (bare.evaluations, bare.curves) == ({}, {})


def test_the_curve_rises_to_one_and_its_areas_are_those_of_the_benchmark(planted, abc, found):
    outside = ioi_knockout(planted, abc, style="pocket")
    curve = faithfulness_curve(outside, found.scores)
    assert curve.sizes == tuple(range(13))
    assert set(curve.ranking[:4]) == set(PLANTED.heads)
    f = curve.faithfulness
    assert (f[0], f[-1]) == (0, 1)
    np.testing.assert_allclose(f[4:], 1, atol=1e-3)
    steps = range(12)
    assert curve.cpr == pytest.approx(sum((f[i] + f[i + 1]) / 2 for i in steps) / 12)
    assert curve.cmd == pytest.approx(sum((abs(1 - f[i]) + abs(1 - f[i + 1])) / 2 for i in steps) / 12)
    worst = faithfulness_curve(outside, -found.scores)
    assert worst.cpr < curve.cpr
    assert worst.cmd > curve.cmd
    assert curve.plot().data[-1].y[4] == pytest.approx(f[4])
    assert faithfulness_plot(curve, 4).layout.shapes[-1].x0 == 4


def test_areas_of_a_curve_known_in_closed_form():
    heads = tuple((0, head) for head in range(4))
    straight = FaithfulnessCurve((0, 1, 2, 3, 4), np.array([[0.0], [1], [2], [3], [4]]), heads, {"name": "line"})
    assert straight.cpr == pytest.approx(0.5)
    assert straight.cmd == pytest.approx(0.5)
    over = FaithfulnessCurve((0, 2, 4), np.array([[0.0], [8], [4]]), heads, {"name": "over"})
    assert over.cpr == pytest.approx(0.5 * (0 + 2) / 2 + 0.5 * (2 + 1) / 2)
    assert over.cmd == pytest.approx(0.5 * (1 + 1) / 2 + 0.5 * (1 + 0) / 2)


def test_signed_and_absolute_scores_rank_differently(planted, abc):
    scores = np.zeros((3, 4))
    scores[2, 0], scores[2, 3] = 1, -2
    outside = ioi_knockout(planted, abc[:8], style="pocket")
    assert faithfulness_curve(outside, scores, fractions=(0.5,)).ranking[0] == (2, 0)
    assert faithfulness_curve(outside, scores, fractions=(0.5,), absolute=True).ranking[0] == (2, 3)
    assert faithfulness_curve(outside, scores, fractions=(0.5,)).sizes == (0, 6, 12)


def test_random_circuits_have_as_many_heads_of_each_layer_and_others_while_there_are_any(planted):
    heads = [(0, 0), (0, 1), (0, 2), (2, 3)]
    drawn = [random_like(planted, heads, seed) for seed in range(20)]
    for one in drawn:
        assert [layer for layer, _ in one] == [0, 0, 0, 2]
        assert (0, 3) in one
        assert (2, 3) not in one
    assert len(set(drawn)) > 3
    assert random_like(planted, heads, 3) == drawn[3]
    with pytest.raises(BadInput, match="whole layers"):
        random_like(planted, [(1, head) for head in range(4)], 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"by": ("theme",)}, "no 'theme' in its metadata"),
        ({"by": ()}, "so their positions do not correspond"),
        ({"by": ("template", "order", "io")}, "a mean needs two"),
    ],
)
def test_references_that_give_no_mean_are_refused(planted, abc, change, message):
    with pytest.raises(BadInput, match=message):
        knockout(planted, abc, abc.counterfactual[:8] if change["by"][2:] else abc.counterfactual, **change)


def test_impossible_circuits_and_scores_are_refused(planted, abc):
    outside = ioi_knockout(planted, abc[:4], style="pocket")
    with pytest.raises(BadInput, match="at least one head"):
        Circuit(())
    with pytest.raises(BadInput, match="is not in the circuit"):
        Circuit(((0, 1),), {(2, 2): "mover"})
    with pytest.raises(BadInput, match="there is no head 7.1"):
        evaluate_circuit(outside, Circuit(((7, 1),)))
    with pytest.raises(BadInput, match=r"scores have shape \(2, 2\)"):
        faithfulness_curve(outside, np.zeros((2, 2)))
    assert len(all_heads(planted)) == 12
