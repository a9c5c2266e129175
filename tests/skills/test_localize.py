"""The optimised mask: its update is the paper's, a planted skill is found, and nothing whole is ever held."""

from __future__ import annotations

import copy

import pytest
import torch

import interp
from interp.errors import BadInput
from interp.skills.finetune import FineTuning, batches, task_loss
from interp.skills.localize import localize, mask_step
from interp.skills.pairs import trainable
from interp.skills.relaxation import Relaxation, gamma
from interp.skills.selection import largest, movement
from interp.tasks.classification import Classification
from interp.tracing.model import Model

BIAS = 3.0


def relaxed_pair(pocket: Model, ft: Model, k: int = 1000) -> tuple[Relaxation, dict[str, torch.Tensor]]:
    base = largest(movement(trainable(pocket), trainable(ft)), k)
    return Relaxation(pocket, ft, base, BIAS, everything=False, seed=0), base


def test_one_step_is_the_papers_update(pocket: Model, taught: FineTuning, topic: Classification) -> None:
    relaxed, base = relaxed_pair(pocket, taught.model)
    examples, rate = next(batches(topic["train"], 8, 0)), 1e4
    sigma = {name: place.distance.detach().abs().double() for name, place in relaxed.places.items()}
    bases: dict[str, torch.Tensor] = {}
    plain = interp.wrap(copy.deepcopy(pocket.hf), tokenizer=pocket.tokenizer)
    moved = trainable(taught.model)
    for name, parameter in trainable(plain).items():
        in_base = torch.zeros(parameter.numel(), dtype=torch.float64)
        in_base[base.get(name, torch.empty(0, dtype=torch.long))] = 1
        in_base = in_base.view(parameter.shape)
        mask = in_base + (1 - 2 * in_base) * sigma[name]
        torch.testing.assert_close(gamma(relaxed.places[name].distance.detach()).double(), mask, atol=1e-6, rtol=0)
        parameter.data.copy_(parameter + mask * (moved[name] - parameter))
        parameter.requires_grad_(True)
        bases[name] = in_base
    loss = task_loss(plain, topic, examples)
    loss.backward()
    assert mask_step(relaxed, topic, [examples], rate) == pytest.approx(loss.item(), abs=1e-5)
    changed = 0.0
    for name, parameter in trainable(plain).items():
        in_base, before = bases[name], sigma[name]
        assert parameter.grad is not None
        delta = (moved[name] - trainable(pocket)[name]).double()
        gradient = rate * parameter.grad.double() * delta
        logit = torch.logit(before) - (1 - 2 * in_base) * gradient * before * (1 - before)
        expected = in_base + (1 - 2 * in_base) * torch.sigmoid(logit)
        actual = gamma(relaxed.places[name].distance.detach()).double()
        torch.testing.assert_close(actual, expected, atol=2e-5, rtol=1e-4)
        changed = max(changed, float((expected - in_base - (1 - 2 * in_base) * before).abs().max()))
    assert changed > 1e-2  # the step did something


def test_several_batches_make_one_step_of_their_mean_gradient(
    pocket: Model, taught: FineTuning, topic: Classification
) -> None:
    drawn = batches(topic["train"], 4, 0)
    two = [next(drawn), next(drawn)]
    both = topic["train"].select(
        [topic["train"].prompts.texts.index(text) for examples in two for text in examples.prompts.texts]
    )
    apart, _ = relaxed_pair(pocket, taught.model)
    together, _ = relaxed_pair(pocket, taught.model)
    mask_step(apart, topic, two, 1e4)
    mask_step(together, topic, [both], 1e4)
    for name, place in apart.places.items():
        torch.testing.assert_close(place.distance, together.places[name].distance, atol=1e-4, rtol=1e-3)


def test_interpolated_weights_are_gone_after_use_and_the_models_stay(
    pocket: Model, taught: FineTuning, topic: Classification
) -> None:
    before = [parameter.clone() for parameter in pocket.hf.parameters()]
    relaxed, _ = relaxed_pair(pocket, taught.model)
    most = 0
    pack = relaxed._pack

    def watching(tensor: torch.Tensor) -> object:
        nonlocal most
        most = max(most, len(relaxed.alive))
        return pack(tensor)

    relaxed._pack = watching  # type: ignore[method-assign]
    mask_step(relaxed, topic, [next(batches(topic["train"], 4, 0))], 1e4)
    assert 1 <= most <= 4  # of more than fifty: a module's weight and bias, and its neighbour's not yet collected
    assert len(relaxed.alive) == 0
    assert all(place.distance.grad is None for place in relaxed.places.values())
    for tensor, parameter in zip(before, pocket.hf.parameters(), strict=True):
        assert torch.equal(tensor, parameter)
        assert parameter.grad is None


@pytest.mark.parametrize("steps", [0, 4])
def test_a_planted_skill_is_recovered_exactly(
    pocket: Model, planted: tuple[Model, dict[str, torch.Tensor]], topic: Classification, steps: int
) -> None:
    model, entries = planted
    size = sum(parameter.numel() for parameter in trainable(pocket).values())
    found = localize(pocket, model, topic, sparsity=40 / size, steps=steps, batch=8, measure_every=4, measured=8).mask
    assert len(found) == 40
    assert found.indices.keys() == entries.keys()
    assert all(torch.equal(found.indices[name], indices) for name, indices in entries.items())


def test_optimising_with_a_small_bias_changes_the_mask_and_keeps_the_budget(
    pocket: Model, taught: FineTuning, topic: Classification
) -> None:
    result = localize(
        pocket,
        taught.model,
        topic,
        sparsity=1e-3,
        steps=6,
        learning_rate=1e5,
        sigmoid_bias=2.0,
        batch=16,
        measure_every=3,
        measured=32,
    )
    assert len(result.mask) == int(1e-3 * result.mask.size)
    assert list(result.history.step) == [0, 3, 6]
    assert result.history.kept.iloc[0] == 1.0 > result.history.kept.iloc[-1]
    best = result.history.sort_values(["accuracy", "loss"], ascending=[False, True]).step.iloc[0]
    assert result.mask.metadata["step"] == best


def test_what_cannot_be_localized_is_refused(pocket: Model, taught: FineTuning, topic: Classification) -> None:
    for sparsity in (0.0, -0.1, 1.5, float("nan")):
        with pytest.raises(BadInput, match="no share"):
            localize(pocket, taught.model, topic, sparsity=sparsity)
    with pytest.raises(BadInput, match="less than one of"):
        localize(pocket, taught.model, topic, sparsity=1e-9)
    with pytest.raises(BadInput, match="no skill"):
        localize(pocket, pocket, topic, sparsity=0.1)
