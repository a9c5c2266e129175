"""Controls: random where they should be random, and the same where they should be the same."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

import interp
from interp.errors import BadInput
from probes.controls import bag_of_tokens, control_labels, shuffled_labels, untrained
from probes.cross_validation import cross_validate
from probes.linear import ProbeSpec
from tests import families


def test_control_labels_depend_on_the_key_alone() -> None:
    keys = [f"key {i % 30}" for i in range(300)]
    labels = np.array(["a", "b", "a"] * 100)
    drawn = control_labels(labels, keys, seed=1)
    by_key = {key: set(drawn[[k == key for k in keys]]) for key in keys}
    assert all(len(values) == 1 for values in by_key.values())
    assert set(drawn) == {"a", "b"}
    assert (drawn == control_labels(labels, keys, seed=1)).all()
    assert (drawn != control_labels(labels, keys, seed=2)).any()
    shares = [np.mean(control_labels(labels, list(map(str, range(300))), seed=s) == "a") for s in range(20)]
    assert np.mean(shares) == pytest.approx(2 / 3, abs=0.03)


def test_too_few_keys_for_a_control_are_refused() -> None:
    with pytest.raises(BadInput, match="1 keys cannot carry"):
        control_labels([0, 1] * 10, ["k"] * 20)
    with pytest.raises(BadInput, match="3 keys for 4 labels"):
        control_labels([0, 1, 0, 1], ["a", "b", "c"])


def test_shuffled_labels_are_the_same_labels_elsewhere() -> None:
    labels = ["x"] * 30 + ["y"] * 70
    shuffled = shuffled_labels(labels, 3)
    assert Counter(shuffled.tolist()) == Counter(labels)
    assert (shuffled != np.array(labels)).any()


def test_a_probe_that_memorises_keys_is_not_selective() -> None:
    """Each key has its own direction: any labels of keys can be read, the real ones no better than random ones."""
    rng = np.random.default_rng(0)
    key = np.arange(400) % 20
    x = np.eye(20)[key] + 0.05 * rng.standard_normal((400, 20))
    labels = key % 2
    control = control_labels(labels, [str(k) for k in key])
    found = cross_validate({"x": x}, {"label": labels, "control": control}, ProbeSpec(strengths=(1.0,)))
    assert found.metric("accuracy", "label", "x").low > 0.95
    assert found.metric("accuracy", "control", "x").low > 0.95
    grouped = cross_validate({"x": x}, {"label": labels}, ProbeSpec(strengths=(1.0,)), groups=key)
    assert grouped.metric("accuracy", "label", "x").high < 0.75


def test_an_untrained_model_has_the_shape_and_none_of_the_weights() -> None:
    model = interp.wrap(families.build("llama"), tokenizer=families.word_tokenizer(), name="tiny")
    state = torch.get_rng_state()
    fresh, again, other = untrained(model), untrained(model), untrained(model, seed=1)
    assert torch.equal(state, torch.get_rng_state())
    assert fresh.fingerprint == again.fingerprint
    assert len({fresh.fingerprint, other.fingerprint, model.fingerprint}) == 3
    assert fresh.spec.name == "tiny untrained"
    assert (fresh.spec.layers, fresh.spec.width) == (model.spec.layers, model.spec.width)


def test_a_bag_of_tokens_counts_them_whatever_their_order() -> None:
    bag = bag_of_tokens([[5, 9, 5], [9, 5, 5], [7]])
    np.testing.assert_array_equal(bag, [[2, 0, 1], [2, 0, 1], [0, 1, 0]])
