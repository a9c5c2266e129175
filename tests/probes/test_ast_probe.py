"""The probe's loss is the paper's, layers learn apart though together, and syntax that is there is found."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from interp.errors import BadInput
from probes.ast.decode import recovered
from probes.ast.languages import parse
from probes.ast.leaves import LeafStates
from probes.ast.metrics import membership
from probes.ast.probe import AstProbe, Labels, Weights, boundaries, orthogonality, rank_loss, scores
from probes.ast.subspaces import chance, principal_angles, similarities, similarity
from probes.ast.training import UNKNOWN, Settings, TrainingSet, fit, losses
from probes.ast.tree import TreeTuple, to_tuple

CODES = [
    "def f(a, b):\n    return a + b\n",
    "def g(x):\n    if x:\n        return [x, x.y]\n    return g(x)(1)\n",
    "def h():\n    while h():\n        pass\n",
    "def k(a):\n    for b in a:\n        print(b)\n",
]
TREES = [to_tuple(parse(code, "python")) for code in CODES]


def by_double_loop(predicted: Tensor, true: Tensor) -> float:
    total, pairs = 0.0, 0
    for said, real in zip(predicted.tolist(), true.tolist(), strict=True):
        for i in range(len(real)):
            for j in range(len(real)):
                if real[i] > real[j]:  # never with NaN
                    total += max(0.0, 1 - (said[i] - said[j]))
                    pairs += 1
    return total / pairs


def test_the_rank_loss_is_the_double_loop_over_pairs() -> None:
    generator = torch.Generator().manual_seed(0)
    true = torch.randint(0, 5, (4, 9), generator=generator).float()
    true[1, 6:] = torch.nan
    true[3, 1:] = torch.nan
    predicted = torch.randn(3, 4, 9, generator=generator) * 2
    expected = [by_double_loop(layer, true) for layer in predicted]
    assert rank_loss(predicted, true).tolist() == pytest.approx(expected, rel=1e-5)
    assert rank_loss(torch.zeros(1, 1, 2), torch.tensor([[3.0, 3.0]])).item() == 0  # equals are no pair


def test_the_gradient_of_the_rank_loss_is_that_of_the_sum_over_pairs() -> None:
    generator = torch.Generator().manual_seed(0)
    true = torch.randint(0, 5, (3, 8), generator=generator).float()
    true[2, 4:] = torch.nan
    predicted = (torch.randn(2, 3, 8, generator=generator) * 2).requires_grad_()
    above = true[:, :, None] > true[:, None, :]
    pairs = torch.relu(1 - (predicted[..., :, None] - predicted[..., None, :]))[:, above].mean(1)
    (expected,) = torch.autograd.grad(pairs.sum(), predicted)
    (found,) = torch.autograd.grad(rank_loss(predicted, true).sum(), predicted)
    assert expected.abs().max() > 0
    assert torch.allclose(found, expected, atol=1e-6)


def test_distances_in_the_right_order_cost_nothing_beyond_the_margin() -> None:
    true = torch.tensor([[1.0, 3.0, 2.0]])
    assert rank_loss(2 * true[None], true).item() == 0
    assert rank_loss(-true[None], true).item() == pytest.approx(np.mean([1 + 2, 1 + 1, 1 + 1]))


def planted(trees: list[TreeTuple], width: int, seed: int = 0, layers: int = 1) -> LeafStates:
    """States in which the tree is: neighbouring leaves differ by a step as long as the root of their distance, in the
    direction of the label of their ancestor; a further coordinate tells the chains above leaves apart."""
    labels = Labels.of(trees)
    c, u = labels.numbers
    rng = np.random.default_rng(seed)
    rows = []
    for tree in trees:
        steps = np.zeros((len(tree.u), width))
        for i, (distance, chain) in enumerate(zip(tree.d, tree.c, strict=True)):
            steps[i + 1, c[chain]] = np.sqrt(distance)
        states = steps.cumsum(0)
        states[:, len(c)] += [0.3 * u[chain] for chain in tree.u]
        rows.append(states)
    values = torch.tensor(np.concatenate(rows), dtype=torch.float32)
    noise = rng.standard_normal((layers, *values.shape)) * np.arange(layers)[:, None, None]
    return LeafStates(
        tuple(f"resid_post.{i}" for i in range(layers)),
        values + torch.tensor(noise, dtype=torch.float32),
        tuple(len(tree.u) for tree in trees),
    )


def f1(probe: AstProbe, states: LeafStates, trees: list[TreeTuple]) -> float:
    said = probe.predict(states.of(probe.site), states.lengths)
    return float(np.mean([membership(recovered(p), recovered(t)).f1 for p, t in zip(said, trees, strict=True)]))


def test_a_planted_tree_is_recovered_and_not_from_shifted_leaves() -> None:
    width = len(Labels.of(TREES).c) + 1
    states = planted(TREES, width)
    settings = Settings(rank=width, epochs=150, batch=2, learning_rate=0.03, patience=150, plateau=20)
    settings = replace(settings, orthogonality=0.1, standardize=False)
    probes = fit((states, TREES), (states, TREES), settings)
    assert f1(probes["resid_post.0"], states, TREES) > 0.9
    assert f1(probes["resid_post.0"], states.shifted(), TREES) < 0.5


def test_layers_trained_together_are_those_trained_alone_even_where_one_stops_early() -> None:
    states = planted(TREES, 40, layers=3)
    settings = Settings(rank=8, epochs=12, batch=2, learning_rate=0.05, patience=2)
    valid = planted(TREES, 40, seed=1, layers=3)
    together = fit((states, TREES), (valid, TREES), settings)
    for site, probe in together.items():
        alone = fit((states, TREES), (valid, TREES), settings, [site])[site]
        assert torch.allclose(alone.projection, probe.projection, atol=1e-5)
        assert torch.allclose(alone.c, probe.c, atol=1e-5)
    assert not torch.allclose(together["resid_post.1"].c, together["resid_post.2"].c, atol=1e-2)


def test_packed_and_sorted_batches_cost_what_each_function_costs_alone() -> None:
    states = planted(TREES, 40)
    labels = Labels.of(TREES[:3])  # the last function has labels that were never seen
    generator = torch.Generator().manual_seed(0)
    shapes = ((1, 40, 6), (1, 6, len(labels.c)), (1, 6, len(labels.u)))
    weights = Weights(*(torch.randn(shape, generator=generator) * 0.3 for shape in shapes))
    scale = torch.zeros(1, 1, 40), torch.ones(1, 1, 40)
    whole = TrainingSet.of(states, TREES, labels, 4, scale)
    (batch,) = whole.batches
    starts = np.cumsum([0, *states.lengths])
    rank, pairs = 0.0, 0
    surprise: dict[str, list[Tensor]] = {"c": [], "u": []}
    for i, tree in enumerate(TREES):
        own = states.values[:, starts[i] : starts[i + 1]]
        said = scores(weights, own)
        n = sum(a > b for a in tree.d for b in tree.d)
        rank += by_double_loop(said.d, torch.tensor([tree.d])) * n
        pairs += n
        for name, numbers in zip("cu", labels.numbers, strict=True):
            log = getattr(said, name)[0].log_softmax(-1)
            surprise[name] += [-log[j, numbers[x]] for j, x in enumerate(getattr(tree, name)) if x in numbers]
    expected = rank / pairs + sum(float(torch.stack(each).mean()) for each in surprise.values())
    assert losses(weights, whole.values, batch).item() == pytest.approx(expected, rel=1e-4)
    assert (batch.c == UNKNOWN).any()


def test_orthonormal_columns_cost_nothing_and_training_leads_there() -> None:
    q, _ = torch.linalg.qr(torch.randn(20, 5, generator=torch.Generator().manual_seed(0)))
    off = 2 * q
    assert orthogonality(torch.stack([q, off])).tolist() == pytest.approx([0, 45], abs=1e-4)
    states = planted(TREES, 40)
    loose, tight = (
        fit((states, TREES), (states, TREES), Settings(8, 60, 2, 0.02, orthogonality=weight, patience=60, plateau=60))[
            "resid_post.0"
        ]
        for weight in (0.0, 5.0)
    )
    assert tight.orthogonality < 0.3 < loose.orthogonality


def test_a_boundary_lies_within_one_function() -> None:
    assert boundaries([3, 1, 2]).tolist() == [0, 1, 4]


def probe_of(projection: Tensor, site: str = "resid_post.0") -> AstProbe:
    rank = projection.shape[1]
    return AstProbe(
        site, projection, torch.zeros(rank), torch.zeros(rank, 1), torch.zeros(rank, 1), Labels(((),), ((),)), 0.0
    )


def test_principal_angles_of_known_subspaces() -> None:
    eye = torch.eye(4)
    tilt = np.deg2rad(30)
    turned = torch.stack([eye[0], np.cos(tilt) * eye[1] + np.sin(tilt) * eye[2]], dim=1)
    a, b = probe_of(eye[:, :2]), probe_of(turned @ torch.tensor([[2.0, 1.0], [0.0, 3.0]]))
    assert np.rad2deg(principal_angles(a, b)) == pytest.approx([0, 30], abs=1e-4)
    assert similarity(a, b) == pytest.approx((1 + 0.75) / 2)
    assert similarity(a, probe_of(eye[:, 2:])) == pytest.approx(0, abs=1e-6)
    assert set(similarities({"a": a, "b": b}).similarity.round(6)) == {1.0, 0.875}
    with pytest.raises(BadInput, match="share no space"):
        principal_angles(a, probe_of(torch.eye(5)[:, :2]))


def test_random_subspaces_are_as_alike_as_chance_says() -> None:
    generator = torch.Generator().manual_seed(0)
    pairs = [[probe_of(torch.randn(24, rank, generator=generator)) for rank in (4, 6)] for _ in range(60)]
    found = [similarity(a, b) for a, b in pairs]
    assert np.mean(found) == pytest.approx(chance(*pairs[0]), abs=0.02)


def test_settings_that_make_no_sense_are_refused() -> None:
    states = planted(TREES, 40)
    with pytest.raises(BadInput, match="at most rank 40, not 41"):
        fit((states, TREES), (states, TREES), Settings(rank=41))
    with pytest.raises(BadInput, match="epochs is at least 1"):
        Settings(epochs=0)
    with pytest.raises(BadInput, match="no leaf states of 'resid_post.7'"):
        fit((states, TREES), (states, TREES), Settings(rank=4), ["resid_post.7"])
    probe = probe_of(torch.eye(40)[:, :4])
    with pytest.raises(BadInput, match="reads 40 features of 3 leaves"):
        probe.predict(torch.zeros(3, 39), [3])
