"""Attribution patching: exact where the model is linear, complete as steps grow, an estimate elsewhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import interp
from interp.errors import BadInput
from interp.metrics import accuracy, kl, logit_difference
from interp.patching.activation import activation_patching
from interp.patching.attribution import attribution_patching
from tests.families import build
from tests.patching.random_pairs import ids, random_pairs

PAIRS = random_pairs()
CLEAN, TWIN = ids(PAIRS)
METRIC = [logit_difference()]


@pytest.fixture(scope="module")
def gpt2() -> interp.Model:
    return interp.wrap(build("gpt2", "sdpa", torch.float64))


def test_after_the_last_norm_nothing_is_estimated_away(gpt2: interp.Model) -> None:
    """With the last norm replaced by a scale, what follows the last attention's values is linear but for the MLP."""
    linear = interp.wrap(build("gpt2", "sdpa", torch.float64))
    hf: Any = linear.hf
    hf.transformer.ln_f.forward = lambda x: 0.7 * x
    hf.transformer.h[1].mlp.forward = torch.zeros_like
    for direction in ("denoise", "noise"):
        for by in ("head", "head_position", "layer"):
            arguments: Any = {"site": "z.1", "by": by, "direction": direction, "metrics": METRIC}
            estimated = attribution_patching(linear, PAIRS, **arguments)
            exact = activation_patching(linear, PAIRS, **arguments)
            np.testing.assert_allclose(estimated.values, exact.values, atol=1e-10)
            assert np.abs(exact.values - exact.base).max() > 1e-2
            curved = attribution_patching(gpt2, PAIRS, **arguments).values
            assert np.abs(curved - activation_patching(gpt2, PAIRS, **arguments).values).max() > 1e-3


def test_a_small_change_is_estimated_well_and_a_large_one_is_not(gpt2: interp.Model) -> None:
    """The error of a first-order estimate falls faster than the change: with the square of it."""
    errors, sizes = [], []
    start, end = (gpt2.run(rows, read="resid_pre.1")["resid_pre.1"] for rows in (TWIN, CLEAN))
    estimate = attribution_patching(gpt2, PAIRS, "resid_pre.1", metrics=METRIC)
    slope = estimate.values[0, 0] - estimate.base[0]
    for part in (1.0, 0.1, 0.01):
        logits = gpt2.run(TWIN, edits=interp.patch("resid_pre.1", torch.lerp(start, end, part))).logits
        rows = torch.arange(3)
        answers, distractors = (torch.tensor(t)[:, 0] for t in (PAIRS.answer_tokens, PAIRS.distractor_tokens))
        moved = (logits[rows, answers] - logits[rows, distractors]).numpy() - estimate.base[0]
        errors.append(np.abs(moved - part * slope).max())
        sizes.append(np.abs(moved).max())
    assert errors[2] / errors[1] < 0.05
    assert errors[0] > 0.1 * sizes[0]


def test_integrated_gradients_of_a_layer_account_for_its_patch_as_steps_grow(gpt2: interp.Model) -> None:
    exact = activation_patching(gpt2, PAIRS, "z", metrics=METRIC)
    errors = []
    for steps in (1, 4, 16):
        estimated = attribution_patching(gpt2, PAIRS, "z", method="ig", steps=steps, metrics=METRIC)
        errors.append(np.abs(estimated.values - exact.values).max())
    assert errors[2] < errors[1] < errors[0]
    assert errors[2] < 0.05 * np.abs(exact.values - exact.base).max()
    first = np.abs(attribution_patching(gpt2, PAIRS, "z", metrics=METRIC).values - exact.values).max()
    assert first > 5 * errors[2]


@pytest.mark.parametrize("method", ["attribution", "ig"])
def test_parts_add_up_to_the_layer(gpt2: interp.Model, method: Any) -> None:
    def changes(site: str, by: Any, **more: Any) -> np.ndarray:
        result = attribution_patching(gpt2, PAIRS, site, by, method=method, steps=2, metrics=METRIC, **more)
        return result.values - result.base

    whole = changes("z.1", "layer").sum(0)
    for by in ("head", "position", "head_position", "neuron"):
        np.testing.assert_allclose(changes("z.1", by).sum(0), whole, atol=1e-10)
    assert np.abs(whole).max() > 1e-3
    at = changes("z.1", "position", positions=["first", "end", -1])
    np.testing.assert_allclose(at[1], at[2], atol=1e-12)
    if method == "attribution":  # the line of integrated gradients depends on what is patched together
        np.testing.assert_allclose(
            changes("z.1", "layer", positions=["first", "end"]).sum(0), at[:2].sum(0), atol=1e-12
        )


def test_estimates_rank_heads_much_as_exact_patching_does(gpt2: interp.Model) -> None:
    exact, estimated = (
        run(gpt2, PAIRS, "z", "head_position", metrics=METRIC).values.mean(2).ravel()
        for run in (activation_patching, attribution_patching)
    )
    assert np.corrcoef(exact, estimated)[0, 1] > 0.5
    shuffled = np.random.default_rng(0).permutation(estimated)
    assert abs(np.corrcoef(exact, shuffled)[0, 1]) < 0.3


def test_both_sides_and_batches_are_as_in_exact_patching(gpt2: interp.Model) -> None:
    for direction in ("denoise", "noise"):
        arguments: Any = {"direction": direction, "metrics": METRIC}
        exact = activation_patching(gpt2, PAIRS, "z", "head", **arguments)
        one = attribution_patching(gpt2, PAIRS, "z", "head", batch_size=1, **arguments)
        np.testing.assert_allclose(one.clean, exact.clean, atol=1e-10)
        np.testing.assert_allclose(one.corrupted, exact.corrupted, atol=1e-10)
        np.testing.assert_allclose(
            one.values, attribution_patching(gpt2, PAIRS, "z", "head", **arguments).values, atol=1e-10
        )
        assert one.method == "attribution"
        assert list(one.frame.columns) == list(exact.frame.columns)


def test_nothing_stays_on_the_parameters() -> None:
    model = interp.wrap(build("llama"))
    attribution_patching(model, PAIRS, "resid_post")
    assert all(parameter.grad is None for parameter in model.hf.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"metrics": [accuracy()]}, "without a gradient"),
        ({"metrics": [kl()]}, "give a reference"),
        ({"metrics": [logit_difference(), logit_difference(position=2)]}, "one by one"),
        ({"method": "eap"}, "there is no estimate"),
        ({"method": "ig", "steps": 0}, "at least one step"),
    ],
)
def test_what_cannot_be_estimated_is_refused(gpt2: interp.Model, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        attribution_patching(gpt2, PAIRS, "z", "head", **arguments)
