"""Head roles: against whole eager attention matrices, on a model built to have them, and on pocket."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import interp
from interp.errors import BadInput, PromptTooLong
from interp.heads.roles import ROLES, head_roles
from interp.runs import load_run
from tests.planted import induction_model


@pytest.fixture(scope="module")
def induction():
    return interp.wrap(induction_model())


def test_scores_equal_the_mean_mass_on_whole_attention_matrices(family, make_model):
    model = make_model(family, "eager" if family == "gemma2" else "sdpa")
    segment, repeats = 5, 4
    mine = head_roles(model, segment=segment, repeats=repeats, sequences=3, seed=7)
    generator = torch.Generator().manual_seed(7)
    eager = make_model(family, "eager").hf
    for sample in mine.samples:
        row = (torch.arange(1, 7)[torch.randperm(6, generator=generator)[:segment]]).tolist() * repeats
        with torch.no_grad():
            rows = torch.stack(eager(torch.tensor([row]), output_attentions=True).attentions)[:, 0].double().numpy()
        n, second = len(row), range(segment, 2 * segment)
        expected = {
            "previous-token": np.mean([rows[:, :, i, i - 1] for i in range(1, n)], 0),
            "duplicate-token": np.mean([rows[:, :, i, i - segment] for i in second], 0),
            "induction": np.mean([rows[:, :, i, i - segment + 1] for i in second], 0),
            "echo": np.mean(
                [sum(rows[:, :, i, j] for j in range(i) if row[j] == row[i]) for i in range(segment, n)], 0
            ),
        }
        for role, values in zip(ROLES, sample, strict=True):
            np.testing.assert_allclose(values, expected[role], atol=1e-5, err_msg=role)


def test_a_model_built_by_hand_is_found_to_have_the_heads_it_was_given(induction):
    roles = head_roles(induction, segment=16, repeats=3, sequences=4)
    assert roles.above("previous-token") == [(0, 0)]
    assert roles.above("duplicate-token") == [(0, 1)]
    assert roles.above("induction") == [(1, 1)]
    assert roles.above("echo") == [(0, 1)]
    assert roles.scores("previous-token")[0, 0] == pytest.approx(1, abs=1e-3)
    # the first token has none before it and is taken for its own: one of the sixteen queries splits in two there
    assert roles.scores("induction")[1, 1] == pytest.approx(1 - 1 / 32, abs=1e-3)
    # itself and the one before it look alike to the head that matches tokens; in the third copy there are two
    assert roles.scores("duplicate-token")[0, 1] == pytest.approx(1 / 2, abs=1e-2)
    assert roles.scores("echo")[0, 1] == pytest.approx((1 / 2 + 2 / 3) / 2, abs=1e-2)


def test_without_its_previous_token_head_the_built_model_has_no_induction_head():
    hf = induction_model()
    hf.transformer.h[0].attn.c_proj.weight.data.zero_()
    roles = head_roles(interp.wrap(hf), segment=16, repeats=3, sequences=4)
    assert roles.above("previous-token") == [(0, 0)]
    assert roles.above("induction") == []


def test_pocket_has_induction_heads_after_previous_token_heads_and_a_random_model_has_neither(llama):
    pocket = head_roles(interp.load("pocket"), segment=32, sequences=4)
    before, induction = pocket.above("previous-token", 0.9), pocket.above("induction", 0.9)
    assert before
    assert induction
    assert min(layer for layer, _ in before) < min(layer for layer, _ in induction)
    chance = head_roles(llama, segment=6, repeats=8, sequences=4)
    assert max(chance.scores(role).max() for role in ("previous-token", "induction")) < 0.3


def test_the_frame_has_every_head_in_every_role_with_intervals_over_sequences(induction):
    frame = head_roles(induction, segment=16, sequences=4, seed=1).frame
    assert len(frame) == len(ROLES) * 4
    assert (frame.low <= frame.score + 1e-12).all()
    assert (frame.score <= frame.high + 1e-12).all()
    assert set(frame.n) == {4}
    best = frame.groupby("role", sort=False).first()
    assert list(zip(best["layer"], best["head"], strict=True)) == [(0, 0), (0, 1), (1, 1), (0, 1)]


def test_a_seed_gives_the_same_scores_and_another_gives_others(llama):
    one, same, other = (head_roles(llama, segment=5, sequences=2, seed=seed).samples for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


def test_a_result_is_drawn_and_saved(induction, tmp_path):
    roles = head_roles(induction, segment=16, sequences=2)
    figure = roles.plot()
    assert [np.array(trace.z).shape for trace in figure.data] == [(2, 2)] * len(ROLES)
    assert float(figure.data[2].z[1][1]) == roles.scores("induction")[1, 1]
    run = load_run(roles.save(tmp_path / "roles").path)
    np.testing.assert_array_equal(run.arrays["samples"], roles.samples)
    assert run.record.model["fingerprint"] == induction.fingerprint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"segment": 1}, "two copies of two tokens"),
        ({"repeats": 1}, "two copies of two tokens"),
        ({"sequences": 0}, "two copies of two tokens"),
        ({"segment": 200}, "vocabulary has 32"),
    ],
)
def test_what_repeats_nothing_is_refused(induction, change, message):
    with pytest.raises(BadInput, match=message):
        head_roles(induction, **change)
    with pytest.raises(PromptTooLong):
        head_roles(induction, segment=30, repeats=3)
    with pytest.raises(BadInput, match="no role 'inductoin'; did you mean 'induction'"):
        head_roles(induction, segment=8, sequences=1).scores("inductoin")
