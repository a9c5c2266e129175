"""Thousands of regularised linear probes in one solve: Newton's method by preconditioned conjugate gradients.

Problems that differ in label set, fold and regularisation share the activations, so every pass over them serves all
problems as one matrix product. A fold is a set of example weights, standardisation a scale of the coefficients. Two
preconditioners are shared too: the eigenvectors of one Gram matrix a design (of features, or of examples where those
are fewer), good while all examples curve the loss alike; and, where that becomes slow, the Hessian averaged over the
folds of a label set and strength. Directions are found in single precision, gradients and steps in that of the data,
so a direction costs half and the optimum loses nothing.

Each problem minimises, as scikit-learn does, with `S` the sum of its example weights `s` and `C` its strength,

    (1/S) Σ s_i loss(y_i, w·x_i + b) + |w|² / (2 C S)

over coefficients `w` and the unregularised intercept `b`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from interp.errors import BadInput

Loss = Literal["logistic", "softmax", "squared"]

FORCING = 0.1
"""A Newton step is solved to this fraction of its right-hand side, and ever closer as the gradient falls."""
SLOW = 15
"""Conjugate-gradient steps from which on a group of problems gets its own Hessian as preconditioner."""
CG_STEPS = 500
SUFFICIENT = 1e-4
"""Armijo's constant: the least share of the promised decrease that a step must bring."""
HALVINGS = 30
PATIENCE = 25
"""Newton steps after which directions, too, are found in the precision of the data."""
ROUNDING = 1e-13
"""Relative change of the objective below which a comparison of two values is rounding."""


@dataclass(frozen=True, eq=False)
class Solution:
    """Optimal probes of every design, label set, fold and strength.

    `coefficients` `[design labels fold strength output feature]`, `intercepts` without the last axis; binary problems
    have one output. `gradient` `[design labels fold strength]` is the largest absolute entry of the gradient that was
    left, `iterations` the Newton steps taken.
    """

    coefficients: Tensor
    intercepts: Tensor
    gradient: Tensor
    tolerance: float
    iterations: int

    @property
    def converged(self) -> Tensor:
        return self.gradient <= self.tolerance


def solve(
    x: Tensor,
    targets: Tensor,
    weights: Tensor,
    strengths: Tensor,
    *,
    loss: Loss,
    scale: Tensor | None = None,
    tolerance: float = 1e-6,
    max_iter: int = 100,
) -> Solution:
    """Minimise the problem of every label set, fold and strength on every design.

    Args:
        x: activations `[design example feature]`; the dtype of the computation is theirs.
        targets: `[labels output example]`: 0 or 1 for `"logistic"` (one output), one-hot for `"softmax"`, any numbers
            for `"squared"`.
        weights: `[labels fold example]`, 0 for examples outside the fold's training set.
        strengths: `[strength]`, scikit-learn's `C` (`1 / alpha` for ridge).
        scale: `[design fold feature]`: regularise the coefficients of `x / scale`, and return those.
        tolerance: largest absolute entry of the gradient at which a problem is solved.

    Raises BadInput on activations that are not finite.
    """
    if not bool(torch.isfinite(x).all()):
        raise BadInput("the activations hold NaN or infinite values, so no probe can be fitted to them")
    mean = x.mean(1)
    grid = (*weights.shape[:2], len(strengths))
    system = _System.of(x - mean[:, None], targets, weights, strengths, loss, scale, grid)
    u, left, steps = _newton(system, tolerance, max_iter)
    bias = u[..., -1] - ((u * system.inverse)[..., :-1] * mean[:, None, None]).sum(-1)
    if loss == "softmax":
        bias = bias - bias.mean(-1, keepdim=True)  # a constant added to all classes changes nothing
    return Solution(u[..., :-1].unflatten(1, grid), bias.unflatten(1, grid), left.unflatten(1, grid), tolerance, steps)


@dataclass(frozen=True, eq=False)
class _System:
    """The objectives of some problems, with what a pass over the activations gives: outputs, gradients, curvature.

    `x` `[design example feature+1]` ends in a column of ones, so that the last coefficient is the intercept; `targets`
    `[problem output example]`, `weights` `[problem 1 example]` of sum 1, `penalty` `[problem 1 feature+1]`, `inverse`
    `[design problem 1 feature+1]` of the scale. Problems of one `group` differ only in their fold.
    """

    x: Tensor
    targets: Tensor
    weights: Tensor
    penalty: Tensor
    inverse: Tensor
    group: Tensor
    loss: Loss
    basis: Tensor
    spectrum: Tensor

    @classmethod
    def of(
        cls,
        x: Tensor,
        targets: Tensor,
        weights: Tensor,
        strengths: Tensor,
        loss: Loss,
        scale: Tensor | None,
        grid: tuple[int, int, int],
    ) -> _System:
        designs, _, d = x.shape
        sets, folds, levels = grid
        total = weights.sum(-1)
        ones = torch.ones_like(x[..., :1])
        penalty = x.new_ones(d + 1)
        penalty[-1] = 0
        ridge = 1 / (strengths * total[..., None]).flatten()
        inverse = x.new_ones(designs, folds, d + 1)
        if scale is not None:
            inverse[..., :-1] = 1 / scale
        fold = torch.arange(folds, device=x.device)[None, :, None].expand(grid).flatten()
        group = (torch.arange(sets * levels, device=x.device).view(sets, 1, levels)).expand(grid).flatten()
        basis, spectrum = _eigenbasis(x * inverse[..., :-1].mean(1, keepdim=True))
        return cls(
            x=torch.cat([x, ones], -1),
            targets=targets.repeat_interleave(folds * levels, 0),
            weights=(weights / total[..., None]).flatten(0, 1).repeat_interleave(levels, 0)[:, None],
            penalty=ridge[:, None, None] * penalty,
            inverse=inverse[:, fold, None],
            group=group,
            loss=loss,
            basis=basis,
            spectrum=spectrum,
        )

    def select(self, problems: Tensor) -> _System:
        """The same system with only some of its problems."""
        return replace(
            self,
            targets=self.targets[problems],
            weights=self.weights[problems],
            penalty=self.penalty[problems],
            inverse=self.inverse[:, problems],
            group=self.group[problems],
        )

    def single(self) -> _System:
        """The same system in single precision."""
        tensors = ("x", "targets", "weights", "penalty", "inverse", "basis", "spectrum")
        return replace(self, **{name: getattr(self, name).float() for name in tensors})

    def outputs(self, u: Tensor) -> Tensor:
        """From coefficients to one number an example, `[design problem output example]`."""
        flat = (u * self.inverse).flatten(1, 2) @ self.x.mT
        return flat.unflatten(1, u.shape[1:3])

    def pull(self, residual: Tensor) -> Tensor:
        """The transpose of `outputs`."""
        flat = residual.flatten(1, 2) @ self.x
        return flat.unflatten(1, residual.shape[1:3]) * self.inverse

    def predict(self, z: Tensor) -> Tensor:
        """What the loss compares with the targets: probabilities, or the outputs themselves."""
        if self.loss == "squared":
            return z
        return z.sigmoid() if self.loss == "logistic" else z.softmax(2)

    def objective(self, u: Tensor, z: Tensor) -> Tensor:
        """`[design problem]`."""
        if self.loss == "squared":
            each = (z - self.targets).square() / 2
        elif self.loss == "logistic":
            each = torch.nn.functional.softplus(z) - self.targets * z
        else:
            each = self.targets * (z.logsumexp(2, keepdim=True) - z)
        return (self.weights * each).sum((-1, -2)) + (self.penalty * u.square()).sum((-1, -2)) / 2

    def gradient(self, u: Tensor, p: Tensor) -> Tensor:
        return self.pull(self.weights * (p - self.targets)) + self.penalty * u

    def curvature(self, p: Tensor) -> Tensor:
        """Second derivative of the loss in each output, times the example's weight."""
        return self.weights * (torch.ones_like(p) if self.loss == "squared" else p * (1 - p))

    def hessian(self, p: Tensor, u: Tensor) -> Tensor:
        """The Hessian times a direction."""
        z = self.outputs(u)
        if self.loss == "softmax":
            bent = self.weights * p * (z - (p * z).sum(2, keepdim=True))
        else:
            bent = self.curvature(p) * z
        return self.pull(bent) + self.penalty * u


def _eigenbasis(x: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvectors `[design feature rank]` and eigenvalues of the mean of `x xᵀ`, from the smaller Gram matrix."""
    n, d = x.shape[1:]
    if d <= n:
        values, vectors = torch.linalg.eigh(x.mT @ x / n)
        return vectors, values.clamp(min=0)
    values, vectors = torch.linalg.eigh(x @ x.mT / n)
    found = values > values[..., -1:] * n * torch.finfo(x.dtype).eps
    norms = torch.where(found, (n * values.clamp(min=0)).sqrt(), torch.inf)
    return x.mT @ vectors / norms[:, None], torch.where(found, values, 0)


class _Preconditioner:
    """Approximate inverses of the Hessians: from the eigenbasis, or for slow groups from their mean Hessian."""

    def __init__(self) -> None:
        self.factors: dict[int, Tensor] = {}

    def refresh(self, system: _System, p: Tensor, groups: set[int]) -> None:
        """Factor the Hessian of each of `groups`, averaged over its folds, output by output."""
        n, d = system.x.shape[1:]
        if d > n:
            return  # the eigenbasis has the rank of the examples; a Hessian of all features would cost more
        curvature = system.curvature(p)
        for group in groups:
            member = system.group == group
            bend = curvature[:, member].mean(1).sqrt()
            factors = []
            for output in range(p.shape[2]):
                bent = system.x * bend[:, output, :, None] * system.inverse[:, member].mean(1)
                mean = bent.mT @ bent
                mean.diagonal(dim1=-2, dim2=-1).add_(system.penalty[member].mean(0))
                factors.append(torch.linalg.cholesky_ex(mean))
            if not any(bool(info.any()) for _, info in factors):
                self.factors[group] = torch.stack([factor for factor, _ in factors], 1)

    def bind(self, system: _System, p: Tensor) -> _Bound:
        level = system.curvature(p).sum(-1, keepdim=True).clamp(min=1e-12)
        return _Bound(system, level, self.factors)


@dataclass(frozen=True, eq=False)
class _Bound:
    """The preconditioner at one point."""

    system: _System
    level: Tensor
    factors: dict[int, Tensor]

    def select(self, problems: Tensor) -> _Bound:
        return _Bound(self.system.select(problems), self.level[:, problems], self.factors)

    def __call__(self, u: Tensor) -> Tensor:
        system = self.system
        ridge = system.penalty[..., :1]
        turned = (u[..., :-1].flatten(1, 2) @ system.basis).unflatten(1, u.shape[1:3])
        turned = turned * (1 / (self.level * system.spectrum[:, None, None] + ridge) - 1 / ridge)
        back = (turned.flatten(1, 2) @ system.basis.mT).unflatten(1, u.shape[1:3])
        result = torch.cat([back + u[..., :-1] / ridge, u[..., -1:] / self.level], -1)
        for group, factor in self.factors.items():
            member = system.group == group
            if member.any():
                solved = torch.cholesky_solve(u[:, member].permute(0, 2, 3, 1), factor)
                result[:, member] = solved.permute(0, 3, 1, 2)
        return result


def _newton(system: _System, tolerance: float, max_iter: int) -> tuple[Tensor, Tensor, int]:
    designs, (problems, outputs, _) = len(system.x), system.targets.shape
    u = system.x.new_zeros(designs, problems, outputs, system.x.shape[-1])
    left = u.new_full((designs, problems), torch.inf)
    first = left
    active = torch.arange(problems, device=u.device)
    single, preconditioner = system.single(), _Preconditioner()
    slow: set[int] = set()
    for steps in range(max_iter + 1):
        part = system.select(active)
        z = part.outputs(u[:, active])
        p = part.predict(z)
        gradient = part.gradient(u[:, active], p)
        left[:, active] = gradient.abs().amax((-1, -2))
        if steps == 0:
            first = left.clamp(min=torch.finfo(u.dtype).tiny)
        remaining = (left[:, active] > tolerance).any(0)
        if steps == max_iter or not remaining.any():
            return u, left, steps
        active, part = active[remaining], part.select(remaining)
        z, p, gradient = z[:, remaining], p[:, remaining], gradient[:, remaining]
        if steps == PATIENCE:
            single, preconditioner = system, _Preconditioner()
        cheap, like = single.select(active), p.to(single.x.dtype)
        preconditioner.refresh(cheap, like, slow)
        forcing = (left[:, active] / first[:, active]).sqrt().clamp(max=FORCING)
        direction, taken = _conjugate_gradients(cheap, like, gradient, forcing, preconditioner.bind(cheap, like))
        slow = set(part.group[taken > SLOW].tolist())
        length = _line_search(part, u[:, active], z, gradient, direction)
        u[:, active] += length[..., None, None] * direction
    raise AssertionError("unreachable")


def _inner(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum((-1, -2))


def _conjugate_gradients(
    system: _System, p: Tensor, gradient: Tensor, forcing: Tensor, precondition: _Bound
) -> tuple[Tensor, Tensor]:
    """The Newton direction of every problem, to `forcing` of the gradient in the preconditioner's norm, and its cost.

    It is found in the precision of `system`, and of the dtype of `gradient`. Problems that are done leave, so that the
    last ones do not pay for all.
    """
    result = torch.zeros_like(gradient, dtype=system.x.dtype)
    taken = torch.zeros(gradient.shape[1], dtype=torch.long, device=gradient.device)
    active = torch.arange(gradient.shape[1], device=gradient.device)
    height = gradient.abs().amax((-1, -2), keepdim=True).clamp(min=torch.finfo(gradient.dtype).tiny)
    residual = (-gradient / height).to(system.x.dtype)
    direction = precondition(residual)
    step, size = torch.zeros_like(residual), _inner(residual, direction)
    enough = forcing.to(size.dtype).square() * size
    for _ in range(CG_STEPS):
        going = size > enough
        if not (keep := going.any(0)).all():
            result[:, active[~keep]] = step[:, ~keep]
            if not keep.any():
                break
            active, system, precondition = active[keep], system.select(keep), precondition.select(keep)
            p, residual, direction, step = p[:, keep], residual[:, keep], direction[:, keep], step[:, keep]
            size, enough, going = size[:, keep], enough[:, keep], going[:, keep]
        taken[active] += 1
        image = system.hessian(p, direction)
        bend = _inner(direction, image)
        alpha = torch.where(going & (bend > 0), size / bend, 0)[..., None, None]
        step = step + alpha * direction
        residual = residual - alpha * image
        conditioned = precondition(residual)
        before, size = size, torch.where(going, _inner(residual, conditioned), size)
        direction = conditioned + torch.where(before > 0, size / before, 0)[..., None, None] * direction
    else:
        result[:, active] = step
    return result.to(gradient.dtype) * height, taken


def _line_search(system: _System, u: Tensor, z: Tensor, gradient: Tensor, direction: Tensor) -> Tensor:
    """The first of 1, 1/2, 1/4, … at which each problem falls enough, `[design problem]`; 0 where none does."""
    dz = system.outputs(direction)
    promised = _inner(gradient, direction)
    length = torch.ones_like(promised)
    here = system.objective(u, z)
    for _ in range(HALVINGS):
        by = length[..., None, None]
        fell = system.objective(u + by * direction, z + by * dz)
        fell = fell <= here + SUFFICIENT * length * promised + ROUNDING * here.abs()
        if fell.all():
            return length
        length = torch.where(fell, length, length / 2)
    return torch.where(fell, length, 0)
