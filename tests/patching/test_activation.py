"""Activation patching equals TransformerLens' sweeps and single runs, in both directions and along every axis."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import interp
from interp.errors import BadInput, SiteUnavailable, UnknownSite
from interp.metrics import kl, log_probability, logit_difference
from interp.patching.activation import PatchingResult, activation_patching
from interp.patching.effects import fraction_columns
from tests.families import build, word_tokenizer
from tests.patching.random_pairs import difference, ids, random_pairs

PAIRS = random_pairs()
CLEAN, TWIN = ids(PAIRS)
LENGTH = CLEAN.shape[1]


@pytest.fixture(scope="module")
def gpt2() -> interp.Model:
    return interp.wrap(build("gpt2"), word_tokenizer())


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def both(request: pytest.FixtureRequest) -> tuple[interp.Model, Any]:
    """A model, and TransformerLens' bridge around the same weights."""
    model = interp.wrap(build(request.param), word_tokenizer())
    return model, interp.wrap(model.hf, word_tokenizer(), backend="transformer_lens").backend_object


@pytest.mark.parametrize(
    ("theirs", "site", "by"),
    [
        ("get_act_patch_resid_pre", "resid_pre", "position"),
        ("get_act_patch_attn_head_out_all_pos", "z", "head"),
        ("get_act_patch_attn_head_out_by_pos", "z", "head_position"),
        ("get_act_patch_mlp_out", "mlp_out", "position"),
    ],
)
def test_sweeps_equal_those_of_transformer_lens(both: Any, theirs: str, site: str, by: Any) -> None:
    from transformer_lens import patching

    model, bridge = both
    with torch.no_grad():
        _, cache = bridge.run_with_cache(CLEAN)
        wanted = getattr(patching, theirs)(bridge, TWIN, cache, lambda x: difference(x[:, -1], PAIRS).mean())
    if by == "head_position":
        wanted = wanted.permute(0, 2, 1)  # they put positions before heads
    result = activation_patching(model, PAIRS, site, by)
    ours = result.frame.logit_difference.to_numpy().reshape(wanted.shape)
    np.testing.assert_allclose(ours, wanted.numpy(), atol=1e-4)
    assert np.ptp(ours) > 0.1


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_every_axis_is_one_run_at_a_time(gpt2: interp.Model, direction: Any) -> None:
    base, donor = (TWIN, CLEAN) if direction == "denoise" else (CLEAN, TWIN)
    trace = gpt2.run(donor, read=("z", "mlp_post", "k"))
    one = torch.zeros(gpt2.spec.mlp_width)
    one[7] = 1
    cases: list[tuple[dict[str, Any], int, interp.Edit]] = [
        ({"site": "mlp_post", "by": "layer"}, 1, interp.patch("mlp_post.1", trace)),
        ({"site": "k.1", "by": "head"}, 2, interp.patch("k.1.2", trace)),
        ({"site": "z", "by": "head", "positions": ["first"]}, 2, interp.patch("z.0.2", trace).at(positions=2)),
        ({"site": "z.0", "by": "position", "positions": [-1, "first"]}, 1, interp.patch("z.0", trace).at(positions=2)),
        ({"site": "mlp_post.1", "by": "neuron", "neurons": [3, 7]}, 1, interp.swap_subspace("mlp_post.1", one, trace)),
    ]
    for arguments, index, edit in cases:
        result = activation_patching(gpt2, PAIRS, direction=direction, **arguments)
        wanted = difference(gpt2.run(base, edits=edit).logits, PAIRS).numpy()
        np.testing.assert_allclose(result.values[index, 0], wanted, atol=1e-4, err_msg=str(arguments))
        assert np.abs(wanted - result.base[0]).max() > 1e-3, arguments


def test_patching_everything_turns_one_run_into_the_other_and_the_first_token_alone_does_not(
    gpt2: interp.Model,
) -> None:
    for direction, reached in (("denoise", 1.0), ("noise", 0.0)):
        frame = activation_patching(gpt2, PAIRS, "resid_pre", direction=direction).frame  # type: ignore[arg-type]
        np.testing.assert_allclose(frame.normalised_ratio_of_means, reached, atol=1e-4)
        np.testing.assert_allclose(frame.normalised_mean_of_ratios, reached, atol=1e-4)
    assert PAIRS.counterfactual is not None
    late = [(*clean[:-1], other[-1]) for clean, other in zip(CLEAN.tolist(), TWIN.tolist(), strict=True)]
    pairs = replace(PAIRS, counterfactual=replace(PAIRS.counterfactual, tokens=tuple(map(tuple, late))))
    control = activation_patching(gpt2, pairs, "resid_pre", "position", positions=["first", "end"]).frame
    first, end = (control[control.position == role].normalised_ratio_of_means for role in ("first", "end"))
    np.testing.assert_allclose(first, 0, atol=1e-6)
    assert (end.abs() > 0.1).all()


def test_metrics_stand_side_by_side(gpt2: interp.Model) -> None:
    result = activation_patching(gpt2, PAIRS, "z", "head")
    frame = result.frame
    assert result.metrics == ("logit_difference", "log_probability", "kl", "accuracy")
    for i, name in enumerate(result.metrics):
        np.testing.assert_allclose(frame[name], result.values[:, i].mean(1), rtol=1e-6)
        assert (frame[f"{name}_low"] <= frame[name] + 1e-9).all()
        assert (frame[name] <= frame[f"{name}_high"] + 1e-9).all()
    moved, way = result.values[:, 0] - result.corrupted[0], result.clean[0] - result.corrupted[0]
    np.testing.assert_allclose(frame.normalised_ratio_of_means, moved.mean(1) / way.mean(), rtol=1e-6)
    np.testing.assert_allclose(frame.normalised_mean_of_ratios, (moved / way).mean(1), rtol=1e-6)
    assert (frame.normalised_ratio_of_means - frame.normalised_mean_of_ratios).abs().max() > 1e-3
    np.testing.assert_allclose(result.clean[2], 0, atol=1e-6)  # KL is from the clean prediction
    assert (result.corrupted[2] > 0.01).all()
    np.testing.assert_allclose(result.clean[0], difference(gpt2.run(CLEAN).logits, PAIRS).numpy(), atol=1e-5)


def test_without_distractors_the_log_probability_comes_first(gpt2: interp.Model) -> None:
    pairs = replace(PAIRS, distractors=(), distractor_tokens=())
    result = activation_patching(gpt2, pairs, "resid_pre")
    assert result.metrics == ("log_probability", "kl", "accuracy")
    np.testing.assert_allclose(result.frame.normalised_ratio_of_means, 1, atol=1e-4)


def test_batches_of_prompts_change_nothing(gpt2: interp.Model) -> None:
    told: list[tuple[int, int]] = []
    metrics = [logit_difference(answers=[5, 6, 7], distractors=9), kl()]
    whole = activation_patching(gpt2, PAIRS, "z", "head", metrics=metrics)
    parts = activation_patching(
        gpt2, PAIRS, "z", "head", metrics=metrics, batch_size=2, progress=lambda *now: told.append(now)
    )
    np.testing.assert_allclose(parts.values, whole.values, atol=1e-5)
    np.testing.assert_allclose(parts.corrupted, whole.corrupted, atol=1e-5)
    assert told[-1] == (16, 16)
    assert told == sorted(told)


def test_a_prompt_that_its_twin_equals_leaves_no_ratio(gpt2: interp.Model) -> None:
    assert PAIRS.counterfactual is not None
    tokens = (PAIRS.tokens[0], *PAIRS.counterfactual.tokens[1:])
    pairs = replace(PAIRS, counterfactual=replace(PAIRS.counterfactual, tokens=tokens))
    result = activation_patching(gpt2, pairs, "resid_pre")
    assert result.clean[0, 0] == pytest.approx(result.corrupted[0, 0], abs=1e-6)
    assert np.isfinite(result.frame.normalised_ratio_of_means).all()


def test_a_run_gives_the_result_back(gpt2: interp.Model, tmp_path: Path) -> None:
    result = activation_patching(gpt2, PAIRS, "z", "head_position", positions=["first", -1], seed=4)
    result.save(tmp_path / "run")
    again = PatchingResult.load(tmp_path / "run")
    pd.testing.assert_frame_equal(again.frame, result.frame)
    assert (again.units, again.labels, again.seed) == (result.units, result.labels, 4)
    np.testing.assert_array_equal(again.values, result.values)
    assert dict(again.model) == dict(result.model)
    stored = pd.read_parquet(tmp_path / "run" / "table.parquet")
    np.testing.assert_allclose(stored.logit_difference, result.frame.logit_difference)


def test_labels_name_the_token_only_where_all_prompts_have_it(gpt2: interp.Model) -> None:
    shared = tuple((*row[:4], 50, *row[5:]) for row in PAIRS.tokens)
    result = activation_patching(gpt2, replace(PAIRS, tokens=shared), "resid_pre.1", "position")
    assert result.labels[:5] == ("0", "1", "2", "3", "4 'w50'")


ragged = replace(
    PAIRS,
    tokens=(PAIRS.tokens[0][:-1], *PAIRS.tokens[1:]),
    counterfactual=replace(
        PAIRS.counterfactual, tokens=(PAIRS.counterfactual.tokens[0][:-1], *PAIRS.counterfactual.tokens[1:])
    ),
    spans={},
)


@pytest.mark.parametrize(
    ("pairs", "arguments", "error", "message"),
    [
        (PAIRS[:0], {}, BadInput, "prompt set is empty"),
        (replace(PAIRS, counterfactual=None), {}, BadInput, "needs a counterfactual"),
        (replace(PAIRS, counterfactual=replace(PAIRS, counterfactual=None)), {}, BadInput, "equals its counterfactual"),
        (replace(PAIRS, distractor_tokens=PAIRS.answer_tokens), {}, BadInput, "the same token"),
        (replace(PAIRS, answers=(), answer_tokens=()), {}, BadInput, "these prompts have none"),
        (PAIRS, {"site": "resid_pre.7"}, UnknownSite, "layers 0 to 1"),
        (PAIRS, {"site": "z.1.9", "by": "head"}, UnknownSite, "heads 0 to 3"),
        (PAIRS, {"site": "z.1.1"}, BadInput, "is one head"),
        (PAIRS, {"site": "resid_pree"}, UnknownSite, "did you mean 'resid_pre'"),
        (PAIRS, {"site": "pattern"}, UnknownSite, "cannot be patched"),
        (PAIRS, {"site": "embed"}, UnknownSite, "resid_pre.0"),
        (PAIRS, {"site": "q_rot"}, SiteUnavailable, "rotary"),
        (PAIRS, {"by": "head"}, BadInput, "not split by head"),
        (PAIRS, {"by": "heads"}, BadInput, "did you mean 'head'"),
        (PAIRS, {"direction": "denoising"}, BadInput, "did you mean 'denoise'"),
        (PAIRS, {"by": "position", "positions": [9]}, BadInput, "outside a prompt of 9 tokens"),
        (PAIRS, {"by": "position", "positions": ["S2"]}, BadInput, "no token position is called 'S2'"),
        (PAIRS, {"positions": "end"}, BadInput, "give a list"),
        (PAIRS, {"site": "mlp_post", "by": "neuron", "neurons": [160_000]}, BadInput, "neurons 0 to"),
        (PAIRS, {"neurons": [3]}, BadInput, "by='neuron'"),
        (PAIRS, {"metrics": [log_probability(answers=4_000)]}, BadInput, "the vocabulary has 199"),
        (PAIRS, {"batch_size": 0}, BadInput, "at least one prompt"),
        (ragged, {"by": "position"}, BadInput, "8 to 9 tokens"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(
    gpt2: interp.Model,
    monkeypatch: pytest.MonkeyPatch,
    pairs: Any,
    arguments: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    monkeypatch.setattr(gpt2.hf, "forward", lambda *_, **__: pytest.fail("the model was run"))
    with pytest.raises(error, match=message):
        activation_patching(gpt2, pairs, **{"site": "resid_pre", **arguments})


def test_pairs_of_unequal_length_are_refused() -> None:
    assert PAIRS.counterfactual is not None
    with pytest.raises(BadInput, match="has 9 tokens and its counterfactual 8"):
        replace(PAIRS, counterfactual=ragged.counterfactual)


def test_prompts_of_unequal_length_are_patched_from_the_end(gpt2: interp.Model) -> None:
    result = activation_patching(gpt2, ragged, "resid_pre", "position", positions=[-1])
    assert ragged.counterfactual is not None
    donor = gpt2.run([list(ragged.tokens[0])], read="resid_pre")
    edit = interp.patch("resid_pre.1", donor).at(positions=-1)
    logits = gpt2.run([list(ragged.counterfactual.tokens[0])], edits=edit).logits
    np.testing.assert_allclose(result.values[1, 0, 0], difference(logits, ragged[:1]).item(), atol=1e-4)


def test_the_two_ratios_differ_only_where_prompts_differ_in_what_there_is_to_change() -> None:
    rng = np.random.default_rng(0)
    values, start = rng.normal(size=(5, 40)), rng.normal(size=40)
    same = fraction_columns("x", values, start, start + 2.0)
    for bound in ("", "_low", "_high"):
        np.testing.assert_allclose(same[f"x_ratio_of_means{bound}"], same[f"x_mean_of_ratios{bound}"], atol=1e-12)
    np.testing.assert_allclose(same["x_ratio_of_means"], (values - start).mean(1) / 2)
    uneven = fraction_columns("x", values, start, start + rng.uniform(0.5, 4, size=40))
    assert np.abs(uneven["x_ratio_of_means"] - uneven["x_mean_of_ratios"]).min() > 1e-3
    assert (uneven["x_ratio_of_means_low"] < uneven["x_ratio_of_means"]).all()
    assert (uneven["x_ratio_of_means"] < uneven["x_ratio_of_means_high"]).all()


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(1)
    way = rng.uniform(1, 3, size=(200, 30))
    moved = 0.5 * way + rng.normal(size=way.shape)
    columns = [
        fraction_columns("x", row[None], np.zeros(30), ways, seed=i)
        for i, (row, ways) in enumerate(zip(moved, way, strict=True))
    ]
    held = [c["x_ratio_of_means_low"][0] < 0.5 < c["x_ratio_of_means_high"][0] for c in columns]
    assert 0.88 < np.mean(held) < 0.99


def test_a_ratio_without_a_way_to_go_is_unknown() -> None:
    nothing = fraction_columns("x", np.ones((2, 3)), np.zeros(3), np.zeros(3))
    assert all(np.isnan(column).all() for column in nothing.values())
    single = fraction_columns("x", np.ones((2, 1)), np.zeros(1), np.full(1, 2.0))
    assert (single["x_ratio_of_means"] == 0.5).all()
    assert np.isnan(single["x_ratio_of_means_low"]).all()
    some = fraction_columns("x", np.ones((2, 3)), np.zeros(3), np.array([0.0, 2.0, 4.0]))
    np.testing.assert_allclose(some["x_mean_of_ratios"], 0.375)  # the mean over the prompts that have one
