"""What two circuits share, counted by hand; the repair intervention, read back from the attention it forced."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save

from interp.circuits.repair import Repair, force_attention, repair, repairing_components
from interp.circuits.reuse import CircuitReuse, circuit_reuse, in_circuit, role_agreement, strongest
from interp.errors import BadInput, UnreadableFile
from interp.plots.circuit_reuse import overlap_map
from interp.tasks.colored_objects import WRONG_COLORS, colored_object_prompts


def altered(discovery, changes, task="other"):
    """The same discovery with the effects of single senders scaled, by (stage, head)."""
    stages = []
    for result in discovery.stages:
        patched = result.patched
        if patched is not None:
            values = patched.values.copy()
            for (stage, head), factor in changes.items():
                if stage == result.stage.name:
                    row = patched.senders.index(head)
                    values[row, 0] = patched.clean[0] + factor * (patched.corrupted[0] - patched.clean[0])
            patched = replace(patched, values=values)
        stages.append(replace(result, patched=patched))
    return replace(discovery, stages=tuple(stages), task=task)


def test_a_circuit_is_shared_whole_with_itself(found):
    reuse = circuit_reuse(found, replace(found, task="again"), shares=(0.02, 0.1, 0.25), resamples=50)
    assert (reuse.frame["overlap"] == 1).all()
    assert (reuse.frame["jaccard"] == 1).all()
    assert (reuse.frame["overlap_low"] <= 1).all()
    assert (reuse.agreement["agreement"] == 1).all()
    assert "overlap 1.00" in repr(reuse)


def test_overlap_counts_heads_and_jaccard_counts_them_stage_by_stage(found):
    # another mover, and the head that inhibits in the first feeds the logits directly in the second
    other = altered(found, {("movers", (2, 0)): 0.0, ("movers", (2, 3)): 0.0, ("movers", (1, 2)): 3.0})
    row = circuit_reuse(found, other, shares=(0.05,), resamples=20).frame.iloc[0]
    assert row["per_stage"] == 1
    assert in_circuit(found, 0.05) == {(2, 0), (1, 2), (0, 1)}
    assert in_circuit(other, 0.05) == {(1, 2), (0, 1)}
    assert (row["shared"], row["union"], row["which"]) == (2, 3, "0.1 1.2")
    assert row["overlap"] == pytest.approx(2 / 3)
    # pairs: movers 2.0 against 1.2, inhibition 1.2 in both, repetition 0.1 in both
    assert row["jaccard"] == pytest.approx(2 / 4)


def test_disjoint_circuits_share_nothing_and_more_heads_share_more(found):
    other = altered(found, {("movers", (2, 0)): 0, ("movers", (2, 3)): 0, ("movers", (0, 3)): 2})
    frame = circuit_reuse(found, other, shares=(0.05, 1.0), resamples=20).frame
    assert frame["overlap"].iloc[0] == pytest.approx(2 / 4)
    assert frame["shared"].iloc[1] >= frame["shared"].iloc[0]


def test_the_interval_is_as_wide_as_prompts_disagree(found):
    sure = circuit_reuse(found, found, shares=(0.05,), resamples=100).frame.iloc[0]
    assert (sure["overlap_low"], sure["overlap_high"]) == (1, 1)
    patched = found.stages[0].patched
    values = patched.values.copy()
    # on half of the prompts the mover's path does nothing and a head of the first layer does as much instead
    half = np.arange(values.shape[2]) % 2 == 0
    mover, rival = patched.senders.index((2, 0)), patched.senders.index((0, 3))
    values[rival, 0, half], values[mover, 0, half] = values[mover, 0, half], patched.clean[0, half]
    stages = (replace(found.stages[0], patched=replace(patched, values=values)), *found.stages[1:])
    unsure = circuit_reuse(found, replace(found, stages=stages), shares=(0.05,), resamples=200).frame.iloc[0]
    assert unsure["overlap_low"] < 0.8
    assert unsure["overlap_high"] == 1


def test_heads_without_any_effect_are_never_among_the_strongest():
    effects = np.array([[0.0, 3, 1, 0], [0, 0, 0, 0]])
    assert strongest(effects, 0.75).tolist() == [[False, True, True, False], [False] * 4]
    assert strongest(effects, 0.01).tolist() == [[False, True, False, False], [False] * 4]


def test_roles_agree_where_the_same_heads_have_them(found):
    stages = (replace(found.stages[0], found={(2, 0): "mover", (1, 1): "mover"}), *found.stages[1:])
    agreement = role_agreement(found, replace(found, stages=stages, task="other")).set_index("role")
    assert agreement.loc["mover", "agreement"] == pytest.approx(1 / 2)
    assert agreement.loc["mover", "other"] == "1.1 2.0"
    assert agreement.loc["negative mover", "agreement"] == 0
    assert agreement.loc["inhibition", "agreement"] == 1


def test_circuits_of_different_models_and_impossible_shares_are_refused(found, pocket_ioi):
    with pytest.raises(BadInput, match="different models"):
        circuit_reuse(found, pocket_ioi)
    with pytest.raises(BadInput, match="share of 1.5"):
        circuit_reuse(found, found, shares=(1.5,))


def test_chance_is_the_overlap_with_random_heads_of_the_same_layers(found):
    row = circuit_reuse(found, found, shares=(0.05,), resamples=4000).frame.iloc[0]
    # one head of each of three layers of four: exchanged ones are the same with odds of 1 in 4 each
    odds = {0: 27 / 64, 1: 27 / 64, 2: 9 / 64, 3: 1 / 64}
    assert row["overlap_chance"] == pytest.approx(sum(p * k / (6 - k) for k, p in odds.items()), abs=0.01)
    assert (row["overlap_chance_low"], row["overlap_chance_high"]) == (0, pytest.approx(2 / 4))
    assert row["overlap"] == 1


def test_members_say_which_circuit_a_head_is_in_and_what_it_does_there(found):
    other = altered(found, {("movers", (2, 0)): 0.0, ("movers", (2, 3)): 0.0, ("movers", (1, 2)): 3.0})
    reuse = circuit_reuse(found, other, shares=(0.05,), resamples=10)
    members = reuse.members(0.05).set_index(["layer", "head"])
    assert members["circuit"].to_dict() == {(0, 1): "both", (1, 2): "both", (2, 0): "ioi"}
    assert members.loc[(2, 0), "ioi role"] == "mover"
    assert members.loc[(1, 2), "other effect"] == pytest.approx(other.effects[1, 2])
    drawn = {trace.name: list(zip(trace.y, trace.x, strict=True)) for trace in overlap_map(reuse, 0.05).data}
    assert drawn["both (2)"] == [(0, 1), (1, 2)]
    assert drawn["ioi alone (1)"] == [(2, 0)]


def test_reuse_read_back_is_what_was_saved(found, tmp_path):
    repaired = Repair(
        (("none", ()), ("all", ((2, 0), (1, 2))), ("random 0", ((2, 1), (1, 1)))),
        np.array([[0.0, 1, 0], [1, 1, 0], [0, 0, 1]]),
        np.array([[-1.0, 2, -3], [4, 5, -6], [-7, -8, 9]]),
        found.model,
        {"onto": ["wrong_color_1", "wrong_color_2"], "controls": 1},
    )
    for name, repair_of_it in (("with", repaired), ("without", None)):
        other = replace(found, task="again", seed=3)
        reuse = replace(circuit_reuse(found, other, shares=(0.02, 0.25), resamples=10), repair=repair_of_it)
        again = CircuitReuse.load(reuse.save(tmp_path / name).path)
        pd.testing.assert_frame_equal(again.frame, reuse.frame)
        pd.testing.assert_frame_equal(again.agreement, reuse.agreement)
        pd.testing.assert_frame_equal(again.members(0.25), reuse.members(0.25))
        pd.testing.assert_frame_equal(again.b.frame, other.frame)
        assert again.plot().to_json() == reuse.plot().to_json()
        assert (again.a.task, again.b.task, again.b.seed) == ("ioi", "again", 3)
        assert again.parameters == reuse.parameters
        assert (again.repair is None) == (repair_of_it is None)
    with_repair = CircuitReuse.load(tmp_path / "with").repair
    pd.testing.assert_frame_equal(with_repair.frame, repaired.frame)
    alone = Repair.load(repaired.save(tmp_path / "alone").path)
    assert alone.plot().to_json() == with_repair.plot().to_json() == repaired.plot().to_json()
    assert (alone.conditions, alone.parameters) == (repaired.conditions, repaired.parameters)


def test_a_run_of_another_kind_or_with_arrays_of_another_shape_is_refused(found, tmp_path):
    run = circuit_reuse(found, found, shares=(0.25,), resamples=5).save(tmp_path / "run")
    with pytest.raises(BadInput, match="of kind 'circuit-reuse', not 'circuit-repair'"):
        Repair.load(run.path)
    arrays = dict(run.arrays) | {"b.attention.movers": np.zeros((3, 2))}
    (run.path / "arrays.safetensors").write_bytes(save(arrays))
    with pytest.raises(UnreadableFile, match=r"'b.attention.movers' has shape \(3, 2\)"):
        CircuitReuse.load(run.path)


# --- repair


@pytest.fixture(scope="module")
def scenes(pocket):
    return colored_object_prompts(pocket.tokenizer, 40, seed=5, style="lower")


def test_forced_heads_attend_evenly_to_the_wrong_colors_at_the_last_position_and_nowhere_else(pocket, scenes):
    few = scenes[:6]
    edits = force_attention(few, [(2, 6)], WRONG_COLORS)
    forced = pocket.run(few, read="pattern.2", edits=edits, materialize=True)["pattern.2"].numpy()
    plain = pocket.run(few, read="pattern.2", materialize=True)["pattern.2"].numpy()
    for i in range(len(few)):
        wrong = {few.spans[role][i][0] for role in WRONG_COLORS}
        assert len(wrong) == 2
        row = forced[i, 6, -1]
        assert set(np.flatnonzero(row).tolist()) == wrong
        assert row[sorted(wrong)].tolist() == [0.5, 0.5]
    np.testing.assert_allclose(forced[:, 6, :-1], plain[:, 6, :-1], atol=1e-6)
    np.testing.assert_allclose(np.delete(forced, 6, axis=1), np.delete(plain, 6, axis=1), atol=1e-6)
    assert np.abs(forced[:, 6, -1] - plain[:, 6, -1]).max() > 0.4


def test_heads_that_suppress_the_subject_of_ioi_repair_colored_objects_in_pocket(pocket, pocket_ioi, scenes):
    components = repairing_components(pocket_ioi)
    assert set(components) == {"subject suppressor"}
    done = repair(pocket, scenes, components, controls=3)
    frame = done.frame.set_index("condition")
    assert frame.loc["all", "accuracy"] > frame.loc["none", "accuracy"] + 0.2
    assert frame.loc["all", "broken"] <= 1
    assert frame.loc["all", "logit_difference"] > frame.loc["none", "logit_difference"]
    random = frame[frame.index.str.startswith("random")]
    assert len(random) == 3
    assert random["accuracy"].max() < frame.loc["none", "accuracy"] + 0.2


def test_the_numbers_of_a_repair_are_those_of_plain_runs(pocket, scenes):
    few = scenes[:12]
    done = repair(pocket, few, {"a": [(2, 6)], "b": [(2, 7), (3, 1)]}, controls=1)
    assert [name for name, _ in done.conditions] == ["none", "all", "a", "b", "2.6", "2.7", "3.1", "random 0"]
    assert [layer for layer, _ in done.conditions[-1][1]] == [2, 2, 3]
    wanted = [answer for (answer, *_) in few.answer_tokens]
    for (_, heads), right in zip(done.conditions, done.correct, strict=True):
        logits = pocket.run(few, edits=force_attention(few, heads, WRONG_COLORS)).logits
        assert (logits.argmax(-1).numpy() == wanted).tolist() == right.astype(bool).tolist()
    before, after = done.correct[:2].astype(bool)
    assert done.frame["repaired"][1] == (after & ~before).sum()
    assert done.frame["broken"][1] == (before & ~after).sum()
    drawn = {label: x for trace in done.plot().data for label, x in zip(trace.y, trace.x, strict=True)}
    assert list(drawn)[:3] == ["before", "all: 2.6 2.7 3.1", "a: 2.6"]
    assert list(drawn.values()) == pytest.approx(done.correct.mean(1).tolist())


def test_a_repair_without_heads_or_on_other_prompts_is_refused(pocket, scenes, found, abc):
    with pytest.raises(BadInput, match="no heads to force"):
        repair(pocket, scenes, {})
    with pytest.raises(BadInput, match="no head 9.0"):
        repair(pocket, scenes, {"inhibition": [(9, 0)]})
    with pytest.raises(BadInput, match="no token position is called 'wrong_color_1'"):
        repair(pocket, abc, {"inhibition": [(2, 6)]})
    assert repairing_components(found) == {"inhibition": ((1, 2),), "negative mover": ((2, 3),)}
