"""Linear probes: what is fitted, and probes of all examples to look at or to steer along.

The optimum is scikit-learn's (`LogisticRegression`, `RidgeClassifier` after `StandardScaler`); the solver is our own,
because a study of depth fits thousands of probes on the same activations. Any other scikit-learn classifier can be
given instead, and is then fitted one problem at a time (`probes.cross_validation`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from interp.errors import BadInput, choose
from probes.folds import class_indices
from probes.solver import Loss, solve


@dataclass(frozen=True)
class ProbeSpec:
    """How probes are fitted and judged. Raises BadInput on values that make no sense.

    Attributes:
        kind: `"logistic"`, or `"ridge"` on targets of -1 and 1 (its scores are no probabilities).
        strengths: scikit-learn's `C` (`1 / alpha` for ridge). Of several, each training fold chooses one by
            `inner_folds`-fold cross-validation within itself: least log-loss, for ridge best accuracy.
        standardize: features to mean 0 and deviation 1 over the training fold.
        class_weight: `"balanced"` weighs examples by the inverse frequency of their class in the training fold.
        estimator: a scikit-learn classifier to fit instead, problem by problem; it keeps its own settings.
        tolerance: largest entry of the gradient at which a probe counts as fitted.
    """

    kind: Literal["logistic", "ridge"] = "logistic"
    strengths: tuple[float, ...] = (1e-3, 1e-2, 1e-1, 1.0)
    folds: int = 5
    inner_folds: int = 3
    standardize: bool = True
    class_weight: Literal["balanced"] | None = None
    estimator: Any = None
    tolerance: float = 1e-6
    max_iter: int = 100
    dtype: Literal["float64", "float32"] = "float64"
    device: str = "cpu"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in ("logistic", "ridge"):
            raise BadInput(f"there is no probe {self.kind!r}; {choose(self.kind, ('logistic', 'ridge'))}")
        if not self.strengths or not all(np.isfinite(c) and c > 0 for c in self.strengths):
            raise BadInput(f"strengths are positive numbers (C of scikit-learn), at least one; got {self.strengths}")
        if self.class_weight not in (None, "balanced"):
            raise BadInput(f"class_weight is None or 'balanced', not {self.class_weight!r}")

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a run's record."""
        values = {**asdict(self), "strengths": list(self.strengths)}
        return values | {"estimator": None if self.estimator is None else repr(self.estimator)}


CONSTANT = 1_000
"""Rounding errors of the mean square below which a feature does not vary within a fold."""
STANDARD = ProbeSpec()
"""Nested choice of strength on standardised features."""


@dataclass(frozen=True, eq=False)
class LinearProbe:
    """A probe fitted to all examples, in the coordinates of the activations.

    `weight` `[output feature]` and `bias` `[output]`; two classes have one output, for class 1.
    """

    site: str
    weight: np.ndarray
    bias: np.ndarray
    classes: np.ndarray
    strength: float

    def decision(self, x: np.ndarray) -> np.ndarray:
        """Outputs `[example output]` of activations `[example feature]`."""
        return x @ self.weight.T + self.bias

    def predict(self, x: np.ndarray) -> np.ndarray:
        """The classes of activations `[example feature]`."""
        z = self.decision(x)
        return self.classes[(z[:, 0] > 0).astype(int) if z.shape[1] == 1 else z.argmax(1)]

    def probabilities(self, x: np.ndarray) -> np.ndarray:
        """What a logistic probe gives each class, `[example class]`."""
        z = torch.tensor(self.decision(x), dtype=torch.float64).mT
        return scores_of(z, STANDARD).mT.numpy()


def fit_probes(
    features: Mapping[str, np.ndarray],
    labels: Sequence[Any] | np.ndarray,
    strength: float,
    spec: ProbeSpec = STANDARD,
) -> dict[str, LinearProbe]:
    """One probe a site, fitted to all examples at one strength: directions to look at or to steer along.

    Raises BadInput as `cross_validate`, and for a given estimator, which need not be linear.
    """
    if spec.estimator is not None:
        raise BadInput("the coefficients of a given estimator are its own; fit it directly")
    numbers, classes = class_indices("labels", labels)
    whole = np.ones((1, len(numbers)), dtype=bool)
    probes = {}
    for site in features:
        x = torch.tensor(checked(site, features[site], len(numbers)), dtype=getattr(torch, spec.dtype))[None]
        scale = deviations(x, torch.tensor(whole)) if spec.standardize else None
        weights = weights_of(numbers[None], whole, spec)
        found = solve(
            x,
            torch.tensor(targets_of(numbers, len(classes), spec)[None], dtype=x.dtype),
            torch.tensor(weights, dtype=x.dtype),
            torch.tensor([strength], dtype=x.dtype),
            loss=loss_of(len(classes), spec),
            scale=scale,
            tolerance=spec.tolerance,
            max_iter=spec.max_iter,
        )
        weight = found.coefficients[0, 0, 0, 0] if scale is None else found.coefficients[0, 0, 0, 0] / scale[0]
        probes[site] = LinearProbe(site, weight.numpy(), found.intercepts[0, 0, 0, 0].numpy(), classes, strength)
    return probes


def checked(site: str, x: np.ndarray, n: int) -> np.ndarray:
    """The activations of a site as `[n feature]`. Raises BadInput on another length, and on NaN and infinity."""
    x = np.asarray(x)
    if x.ndim != 2 or len(x) != n:
        raise BadInput(f"{site} has activations of shape {x.shape} for {n} labels; they must be [{n}, features]")
    if not np.isfinite(x).all():
        rows = np.flatnonzero(~np.isfinite(x).all(1))
        raise BadInput(
            f"{site} has NaN or infinite activations in {len(rows)} of {n} examples, the first of them {rows[0]}"
        )
    return x


def loss_of(classes: int, spec: ProbeSpec) -> Loss:
    if spec.kind == "ridge":
        return "squared"
    return "logistic" if classes == 2 else "softmax"


def targets_of(numbers: np.ndarray, classes: int, spec: ProbeSpec) -> np.ndarray:
    """`[output example]`: one output for two classes, else one a class."""
    hot = np.eye(classes)[numbers].T
    hot = hot[1:] if classes == 2 else hot
    return hot if spec.kind == "logistic" else 2 * hot - 1


def weights_of(numbers: np.ndarray, train: np.ndarray, spec: ProbeSpec) -> np.ndarray:
    """`[labels fold example]`: who trains, and how much they count."""
    weights = np.broadcast_to(train, (len(numbers), *train.shape)).astype(float)
    if spec.class_weight == "balanced":
        for t, f in np.ndindex(weights.shape[:2]):
            count = np.bincount(numbers[t, train[f]])
            weights[t, f] *= (train[f].sum() / (len(count) * count))[numbers[t]]
    return weights


def deviations(x: Tensor, train: Tensor) -> Tensor:
    """Standard deviation of each feature over each training fold, `[site fold feature]`; 1 where it is constant."""
    own = train.to(x.dtype)
    count = own.sum(1, keepdim=True)
    centred = x - x.mean(1, keepdim=True)
    mean = own @ centred / count
    square = own @ centred.square() / count
    variance = square - mean.square()
    varies = variance > CONSTANT * torch.finfo(x.dtype).eps * square
    return torch.where(varies, variance, 1).sqrt()


def scores_of(z: Tensor, spec: ProbeSpec) -> Tensor:
    """From outputs to one score a class, on the axis before the last."""
    if spec.kind == "ridge":
        return torch.cat([-z, z], -2) if z.shape[-2] == 1 else z
    if z.shape[-2] == 1:
        return torch.cat([(-z).sigmoid(), z.sigmoid()], -2)
    return z.softmax(-2)
