"""Staged discovery: finds the circuit that was written by hand, with the effects that its weights imply."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import interp
from interp.circuits.colored_objects import colored_objects_circuit
from interp.circuits.discovery import Discovery, Thresholds
from interp.circuits.ioi import ioi_circuit
from interp.errors import BadInput, SiteUnavailable
from interp.plots.circuit_graph import circuit_graph as found_graph
from interp.runs import load_run
from interp.tasks.colored_objects import colored_object_prompts
from tests import families
from tests.planted import ioi_model


def test_the_planted_circuit_is_found_with_every_role(found):
    assert found.accuracy == 1
    assert found.by_role == {
        "mover": ((2, 0),),
        "negative mover": ((2, 3),),
        "inhibition": ((1, 2),),
        "duplicate token": ((0, 1),),
    }
    assert set(found.circuit().heads) == {(2, 0), (2, 3), (1, 2), (0, 1)}
    assert found.circuit().roles[1, 2] == "inhibition"


def test_effects_are_what_the_planted_weights_imply(found):
    movers, inhibition, repetition, previous = found.stages
    # the mover writes 10, its opposite -3, of a difference of 7 that p_ABC takes to 0
    assert found.contrast.estimate == pytest.approx(7, abs=0.05)
    assert movers.effects[2, 0] == pytest.approx(10 / 7, abs=0.01)
    assert movers.effects[2, 3] == pytest.approx(-3 / 7, abs=0.01)
    assert inhibition.receivers == ((2, 0), (2, 3))
    assert repetition.receivers == ((1, 2),)
    assert previous.patched is None
    assert previous.found == {}
    others = np.ones((3, 4), dtype=bool)
    others[[2, 2], [0, 3]] = False
    assert np.abs(movers.effects[others]).max() < 1e-3


def test_a_head_that_attends_elsewhere_or_does_not_copy_gets_no_role(planted, abc):
    hf = ioi_model(planted.spec.vocab)
    width, dim = hf.config.n_embd, hf.config.n_embd // 4
    # the mover now looks at the inhibited name, so that it writes the subject: negative, but no name is written against
    for start in (0, 3 * dim):
        keys = hf.transformer.h[2].attn.c_attn.weight.data[:, width + start : width + start + dim]
        keys[:, 1:] *= -1
    turned = ioi_circuit(interp.wrap(hf, planted.tokenizer), abc)
    assert turned.accuracy == 0
    assert turned.stages[0].effects[2, 0] == pytest.approx(10 / 7, abs=0.05)
    assert (2, 0) not in turned.roles
    assert not ({"mover", "negative mover"} & set(turned.by_role))


def test_thresholds_decide_which_heads_count(planted, abc, found):
    strict = ioi_circuit(planted, abc, thresholds=Thresholds(effect=1.0))
    assert "negative mover" not in strict.by_role
    assert set(strict.circuit().heads) == {(2, 0), (0, 1), (1, 2)}
    assert found.circuit(size=2).heads == ((2, 0), (0, 1))
    assert set(found.circuit(at="end").heads) == {(2, 0), (1, 2), (2, 3)}
    with pytest.raises(BadInput, match="attention=1.5 is not a share"):
        Thresholds(attention=1.5)
    with pytest.raises(BadInput, match="no head .* certainly reaches an effect"):
        found.circuit(at="S1+1")


def test_induction_and_previous_token_heads_are_found_where_a_model_works_by_them(planted, abc):
    model = interp.wrap(ioi_model(planted.spec.vocab, by_induction=True), planted.tokenizer)
    found = ioi_circuit(model, abc)
    assert found.accuracy == 1
    assert found.by_role == {
        "mover": ((3, 0),),
        "negative mover": ((3, 3),),
        "inhibition": ((2, 2),),
        "induction": ((1, 1),),
        "previous token": ((0, 3),),
    }
    previous = found.stages[3]
    assert previous.receivers == ((1, 1),)
    assert previous.effects[0, 3] > 1
    edges = [trace for trace in found.plot().data if trace.mode == "lines"]
    assert len(edges) == 2 + 2 + 1 + 1


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_neox", "gpt_oss", "opt"])
def test_the_stages_run_on_other_families_and_no_role_is_given_below_its_thresholds(planted, abc, name):
    model = interp.wrap(families.build(name), planted.tokenizer)
    thresholds = Thresholds(effect=0.001, attention=0.01, copy=0)
    found = ioi_circuit(model, abc[:8], thresholds=thresholds)
    named = found.frame[found.frame["role"] != ""]
    assert len(named)
    assert (named["effect"].abs() >= thresholds.effect).all()
    for result in found.stages:
        tests = {test.role: test for test in result.stage.tests}
        for head, role in result.found.items():
            assert result.attention[tests[role].link][head] >= thresholds.attention
            assert np.sign(result.effects[head]) == tests[role].sign


@pytest.mark.parametrize(("name", "reason"), [("bloom", "inside its own module"), ("opt_post_norm", "made from 64")])
def test_models_whose_heads_cannot_be_tested_are_refused_with_the_reason(planted, abc, name, reason):
    model = interp.wrap(families.build(name), planted.tokenizer)
    with pytest.raises(SiteUnavailable, match=reason):
        ioi_circuit(model, abc[:4])


def test_a_head_whose_effect_changes_sign_between_prompts_is_not_certain(found):
    patched = found.stages[0].patched
    values = patched.values.copy()
    row = patched.senders.index((0, 2))
    values[row, 0] = patched.clean[0] + np.where(np.arange(found.parameters["n"]) % 8 < 5, 9, -9)
    stages = (replace(found.stages[0], patched=replace(patched, values=values)), *found.stages[1:])
    doubtful = replace(found, stages=stages)
    assert abs(doubtful.stages[0].effects[0, 2]) > 0.2
    assert doubtful.stages[0].certain[0, 2] == 0
    assert (0, 2) not in doubtful.circuit().heads
    assert doubtful.stages[0].certain[2, 0] == pytest.approx(10 / 7, abs=0.02)


def test_pocket_copies_both_names_and_suppresses_the_subject(pocket_ioi):
    assert pocket_ioi.accuracy >= 0.9
    assert pocket_ioi.contrast.low > 5
    suppressors = pocket_ioi.by_role["subject suppressor"]
    assert suppressors
    assert pocket_ioi.by_role["mover"]
    at_s2 = pocket_ioi.stages[0].attention["end", "S2"]
    assert min(at_s2[head] for head in suppressors) > 0.9
    assert {layer for layer, _ in pocket_ioi.by_role["own token"]} == {0}


def test_the_frame_says_what_each_head_did_at_each_stage(found):
    frame = found.frame
    assert list(frame["stage"].unique()) == ["movers", "inhibition", "repetition"]
    best = frame[frame["stage"] == "movers"].iloc[0]
    assert (best["layer"], best["head"], best["role"]) == (2, 0, "mover")
    assert best["low"] - 1e-6 <= best["effect"] <= best["high"] + 1e-6
    assert best["end→IO"] == pytest.approx(1, abs=1e-3)
    assert set(frame["n"]) == {32}


def test_a_discovery_read_back_is_the_one_that_was_saved(found, tmp_path):
    run = load_run(found.save(tmp_path / "run").path)
    np.testing.assert_array_equal(run.arrays["effects.movers"], found.stages[0].effects)
    assert run.record.parameters["roles"]["mover"] == [[2, 0]]
    again = Discovery.load(run.path)
    pd.testing.assert_frame_equal(again.frame, found.frame)
    assert again.plot().to_json() == found.plot().to_json()
    assert (again.by_role, again.contrast, again.parameters) == (found.by_role, found.contrast, found.parameters)
    assert again.circuit() == found.circuit()
    assert [result.stage for result in again.stages] == [result.stage for result in found.stages]
    np.testing.assert_array_equal(again.copies.positive, found.copies.positive)


def test_the_graph_has_a_line_from_every_head_to_what_it_feeds(found):
    figure = found.plot()
    named = {trace.name: trace.text for trace in figure.data if trace.name}
    assert named["inhibition"] == ("1.2",)
    edges = [trace for trace in figure.data if trace.mode == "lines"]
    assert len(edges) == 2 + 2 + 1  # both movers to the logits, inhibition to both movers, duplicates to inhibition
    against = [edge for edge in edges if edge.line.dash == "dash"]
    assert [edge.name for edge in against] == ["pushes against the answer"]  # the negative mover alone
    assert max(edges, key=lambda edge: edge.line.width).x[1] == 0.5  # from the mover to the logits
    said = [text for trace in figure.data if trace.mode == "markers" for text in trace.hovertext]
    assert any("1.2 into the queries of 2.0, at end<br>effect" in one and "n=32" in one for one in said)
    mover = next(trace for trace in figure.data if trace.name == "mover")
    assert [list(head) for head in mover.customdata] == [[2, 0]]


def test_a_graph_of_some_size_has_the_heads_with_the_largest_effects(found):
    assert found.strongest(3) == tuple(sorted(found.strongest(12), key=lambda head: -found.scores[head])[:3])

    def heads(size):
        traces = found_graph(found, size).data
        points = [point for trace in traces if trace.customdata is not None for point in trace.customdata]
        return {tuple(point) for point in points if len(point) == 2}  # the logits' point holds the accuracy alone

    for size in (1, 3, 6):
        assert heads(size) == set(found.strongest(size))
    assert "no role" in {trace.name for trace in found_graph(found, 6).data}


def unfit(prompts):
    """Prompt sets that no circuit can be found on, and what is said of each."""
    yield replace(prompts, distractors=(), distractor_tokens=()), "needs distractors"
    yield replace(prompts, counterfactual=None), "needs a counterfactual"
    yield prompts[:0], "empty"
    yield replace(prompts, distractors=prompts.answers, distractor_tokens=prompts.answer_tokens), "the same token"
    yield replace(prompts, answer_tokens=((9999,),) * len(prompts)), "token 9999 does not exist"
    yield replace(prompts, spans={"end": prompts.spans["end"]}), "no token position is called"


@pytest.mark.parametrize("find", [ioi_circuit, colored_objects_circuit])
def test_prompts_that_show_no_circuit_are_refused_before_any_forward_pass(planted, abc, find):
    def never(*_arguments):
        raise AssertionError("a forward pass began")

    handle = planted.hf.register_forward_pre_hook(never)
    try:
        for prompts, message in unfit(abc):
            with pytest.raises(BadInput, match=message):
                find(planted, prompts)
    finally:
        handle.remove()


def test_a_model_that_does_not_know_the_task_has_no_contrast(pocket):
    prompts = colored_object_prompts(pocket.tokenizer, 24, style="lower")
    found = colored_objects_circuit(pocket, prompts)
    assert found.accuracy < 0.6
    assert not found.contrast.low > 0
