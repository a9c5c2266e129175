"""One solve finds what scikit-learn finds problem by problem."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

from interp.errors import BadInput
from probes import solver
from probes.solver import Loss, Solution, solve

STRENGTHS = (0.01, 1.0, 30.0)


def activations(n: int, d: int, seed: int = 0) -> np.ndarray:
    """Correlated features of very different sizes, as hidden states have them."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((d, d)) * np.arange(1, d + 1)[:, None] ** -0.7
    return rng.standard_normal((n, d)) @ mixing * rng.uniform(0.1, 10, d) + rng.standard_normal(d)


def noisy_classes(x: np.ndarray, classes: int, seed: int = 1) -> np.ndarray:
    """Labels that follow the activations, with noise."""
    rng = np.random.default_rng(seed)
    scores = (x - x.mean(0)) / x.std(0) @ rng.standard_normal((x.shape[1], classes))
    return (2 * scores / scores.std() + rng.gumbel(size=scores.shape)).argmax(1)


def folds(n: int, k: int = 3) -> np.ndarray:
    """Training weights `[fold example]`."""
    return (np.arange(n) % k != np.arange(k)[:, None]).astype(float)


def exact(strength: float) -> LogisticRegression:
    """scikit-learn's solver that goes to the optimum itself; lbfgs stops where rounding hides further progress."""
    return LogisticRegression(C=strength, solver="newton-cholesky", tol=1e-12, max_iter=1_000)


def batched(
    designs: list[np.ndarray], targets: list[np.ndarray], weights: np.ndarray, loss: Loss, **options: Any
) -> Solution:
    return solve(
        torch.tensor(np.stack(designs)),
        torch.tensor(np.stack(targets), dtype=torch.float64),
        torch.tensor(np.broadcast_to(weights, (len(targets), *weights.shape[-2:])).copy()),
        torch.tensor(STRENGTHS, dtype=torch.float64),
        loss=loss,
        tolerance=1e-9,
        **options,
    )


@pytest.mark.parametrize(("n", "d"), [(240, 20), (60, 90)])
def test_every_logistic_problem_has_scikit_learns_optimum(n: int, d: int) -> None:
    designs = [activations(n, d, seed) for seed in (0, 1)]
    labels = [noisy_classes(designs[0], 2, seed) for seed in (1, 2)]
    weights = folds(n)
    found = batched(designs, [y[None] for y in labels], weights, "logistic")
    assert found.coefficients.shape == (2, 2, 3, 3, 1, d)
    assert bool(found.converged.all())
    for i, x in enumerate(designs):
        for j, y in enumerate(labels):
            for f, train in enumerate(weights.astype(bool)):
                for c, strength in enumerate(STRENGTHS):
                    theirs = exact(strength).fit(x[train], y[train])
                    at = (i, j, f, c, 0)
                    np.testing.assert_allclose(found.coefficients[at].numpy(), theirs.coef_[0], atol=1e-4)
                    np.testing.assert_allclose(float(found.intercepts[at]), theirs.intercept_[0], atol=1e-3)
                    ours = x @ found.coefficients[at].numpy() + float(found.intercepts[at]) > 0
                    np.testing.assert_array_equal(ours, theirs.predict(x) == 1)


def test_several_classes_have_scikit_learns_optimum_with_example_weights() -> None:
    x = activations(200, 12)
    y = noisy_classes(x, 4)
    importance = np.random.default_rng(3).uniform(0.5, 2, len(x))
    weights = folds(len(x)) * importance
    found = batched([x], [np.eye(4)[y].T], weights, "softmax")
    for f, weight in enumerate(weights):
        train = weight > 0
        for c, strength in enumerate(STRENGTHS):
            theirs = exact(strength)
            theirs.fit(x[train], y[train], sample_weight=weight[train])
            np.testing.assert_allclose(found.coefficients[0, 0, f, c].numpy(), theirs.coef_, atol=1e-4)
            np.testing.assert_allclose(found.intercepts[0, 0, f, c].numpy(), theirs.intercept_, atol=1e-3)


@pytest.mark.parametrize(("n", "d"), [(150, 10), (40, 60)])
def test_ridge_has_scikit_learns_optimum(n: int, d: int) -> None:
    x = activations(n, d)
    y = np.random.default_rng(5).standard_normal((2, n)) + x[:, :2].T
    weights = folds(n)
    found = batched([x], [y], weights, "squared")
    for f, train in enumerate(weights.astype(bool)):
        for c, strength in enumerate(STRENGTHS):
            theirs = Ridge(alpha=1 / strength).fit(x[train], y[:, train].T)
            np.testing.assert_allclose(found.coefficients[0, 0, f, c].numpy(), theirs.coef_, atol=1e-4)
            np.testing.assert_allclose(found.intercepts[0, 0, f, c].numpy(), theirs.intercept_, atol=1e-4)


def test_a_scale_for_each_fold_is_standardisation_within_the_fold() -> None:
    x = activations(160, 15)
    y = noisy_classes(x, 2)
    weights = folds(len(x))
    scale = np.stack([x[train].std(0) for train in weights.astype(bool)])
    found = batched([x], [y[None]], weights, "logistic", scale=torch.tensor(scale[None]))
    for f, train in enumerate(weights.astype(bool)):
        scaled = StandardScaler().fit_transform(x[train])
        for c, strength in enumerate(STRENGTHS):
            theirs = exact(strength).fit(scaled, y[train])
            np.testing.assert_allclose(found.coefficients[0, 0, f, c, 0].numpy(), theirs.coef_[0], atol=1e-4)


def test_separable_classes_are_solved_through_the_mean_hessian(monkeypatch: pytest.MonkeyPatch) -> None:
    refreshed = []
    refresh = solver._Preconditioner.refresh
    monkeypatch.setattr(solver, "SLOW", 3)
    monkeypatch.setattr(solver._Preconditioner, "refresh", lambda *a: (refreshed.extend(a[-1]), refresh(*a))[1])
    x = activations(200, 20)
    y = (x[:, 0] > np.median(x[:, 0])).astype(int)
    found = batched([x], [y[None]], folds(len(x)), "logistic")
    assert refreshed
    assert bool(found.converged.all())
    theirs = exact(STRENGTHS[-1]).fit(x[folds(len(x))[0] > 0], y[folds(len(x))[0] > 0])
    np.testing.assert_allclose(found.coefficients[0, 0, 0, -1, 0].numpy(), theirs.coef_[0], atol=1e-4)


def test_a_constant_feature_gets_no_weight() -> None:
    x = activations(100, 6)
    y = noisy_classes(x, 2)
    x[:, 2] = 7.0
    found = batched([x], [y[None]], folds(len(x)), "logistic")
    assert bool(found.converged.all())
    assert float(found.coefficients[..., 2].abs().max()) < 1e-10


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_activations_that_are_no_numbers_are_refused(bad: float) -> None:
    x = activations(30, 4)
    x[3, 1] = bad
    with pytest.raises(BadInput, match="NaN or infinite"):
        batched([x], [np.arange(30)[None] % 2], folds(30), "logistic")


def test_what_is_not_solved_says_so() -> None:
    x = activations(120, 20)
    found = batched([x], [noisy_classes(x, 2)[None]], folds(len(x)), "logistic", max_iter=1)
    assert not bool(found.converged.all())
    assert float(found.gradient.max()) > found.tolerance
