"""Batches: what the model sees at each step of training."""

from __future__ import annotations

import pytest
import torch

from interp.pocket.batches import PHASES, TARGETS_MULTIPLE, Batches
from interp.pocket.tokenizer import CONTEXT, build_tokenizer


@pytest.fixture(scope="module")
def batches() -> Batches:
    return Batches(build_tokenizer(), seed=0, batch_tokens=4096, phases=PHASES)


def test_sequences_grow(batches: Batches) -> None:
    step = 0
    for phase in PHASES:
        for at in (step, step + phase.steps - 1):
            ids, positions, _, _ = batches[at]
            assert ids.shape == positions.shape == (4096 // phase.length, phase.length)
        step += phase.steps
    assert step == len(batches)
    assert [phase.length for phase in PHASES] == sorted(phase.length for phase in PHASES)


def test_a_batch_depends_on_seed_and_number_alone(batches: Batches) -> None:
    again = Batches(batches.tokenizer, seed=0, batch_tokens=4096, phases=PHASES)
    other = Batches(batches.tokenizer, seed=1, batch_tokens=4096, phases=PHASES)
    batches[3]
    assert all(map(torch.equal, batches[7], again[7]))
    assert not torch.equal(batches[7][0], other[7][0])
    assert not torch.equal(batches[7][0], batches[8][0])


def test_positions_rise_and_stay_in_the_context(batches: Batches) -> None:
    last = len(batches) - 1
    for step in (0, 1, 200, last):
        _, positions, _, _ = batches[step]
        steps = positions.diff(dim=1)
        assert (steps >= 1).all()
        assert positions.max() < CONTEXT
        assert step == last or (steps > 1).any()


def test_targets_of_full_weight_are_the_answers(batches: Batches) -> None:
    ids, _, index, weights = batches[250]
    assert len(index) % TARGETS_MULTIPLE == 0
    targets = index[weights == 1.0] + 1
    assert 0.05 < len(targets) / ids.numel() < 0.4
    text = batches.tokenizer.decode(ids.flatten()[targets])
    assert any(name in text for name in (" Mary", " France", " true", " positive"))
    assert " the valley" not in text


def test_the_last_token_of_a_row_predicts_nothing(batches: Batches) -> None:
    ids, _, index, weights = batches[2]
    last = index % ids.shape[1] == ids.shape[1] - 1
    assert (weights[last] == 0).all()
