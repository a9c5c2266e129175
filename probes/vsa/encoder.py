"""Encoders from hidden states to hypervectors: the paper's network for many layers at once, and a linear one.

The network has three layers and is trained on the paper's loss, binary cross-entropy of the components' signs plus 0.1
of their squared error (of real and complex algebras, whose components have no sign to tell, the squared error alone).
Encoders of one width are trained together: they share the targets, the order of examples, the dropout masks and the
first weights, so each is what it would have become alone, and one product of stacked matrices does the work of all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from interp.errors import BadInput, UnreadableFile
from interp.runs import Run
from probes.vsa.algebra import Algebra
from probes.vsa.codebook import Codebook

SQUARED = 0.1
"""The paper's weight of the squared error."""
RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Penalties of the linear encoder, in units of the mean variance of the states; validation chooses."""


@dataclass(frozen=True)
class Training:
    """How the network is trained: AdamW, stopped once `patience` epochs brought no better validation cosine.

    Dropout and weight decay are the paper's; the width and rate fit small models (the paper's networks have 55 to 71
    million weights, at a rate of 1e-4). Raises BadInput on values that make no sense.
    """

    hidden: int = 512
    dropout: float = 0.5
    rate: float = 1e-3
    decay: float = 1e-4
    batch: int = 32
    epochs: int = 200
    patience: int = 10
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        if min(self.hidden, self.batch, self.epochs, self.patience) < 1 or not 0 <= self.dropout < 1 or self.rate <= 0:
            raise BadInput(
                f"hidden, batch, epochs, patience >= 1, 0 <= dropout < 1 and rate > 0 are needed; got {self}"
            )

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


STANDARD = Training()


@dataclass(frozen=True, eq=False)
class Encoder:
    """A fitted encoder of states standardised by `mean` and `scale` `[feature]`, differentiable in the states.

    `weights` `[in out]` and `biases` `[out]`, one of each for a linear encoder; between layers is a GELU. `epochs` is
    how many were trained until the best one, `cosine` the mean cosine on the validation set.

    `centre` `[component]` is the mean of the training components. Of a MAP bundle of two pairs half the components are
    ties, which are -1, so that three in four are -1 whatever is bound: the sign of a cautious prediction says nothing,
    that of its difference from the centre does.
    """

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]
    mean: Tensor
    scale: Tensor
    centre: Tensor
    algebra: Algebra
    cosine: float
    epochs: int = 0

    def outputs(self, states: Tensor) -> Tensor:
        """Predicted components `[example component]`. Raises BadInput for states of another width."""
        if states.shape[-1] != len(self.mean):
            raise BadInput(f"this encoder reads states of {len(self.mean)} features, not {states.shape[-1]}")
        x = (states - self.mean) / self.scale
        *inner, last = zip(self.weights, self.biases, strict=True)
        for weight, bias in inner:
            x = F.gelu(x @ weight + bias)
        return x @ last[0] + last[1]

    def __call__(self, states: np.ndarray | Tensor) -> Tensor:
        """The hypervector of each state, `[example dimension]`: how its prediction differs from the mean."""
        with torch.no_grad():
            outputs = self.outputs(torch.as_tensor(states, dtype=torch.float32))
            return self.algebra.from_components(outputs - self.centre)

    def uncentred(self, states: np.ndarray | Tensor) -> Tensor:
        """The hypervector of each state as published, `[example dimension]`: the sign of the prediction itself."""
        with torch.no_grad():
            return self.algebra.from_components(self.outputs(torch.as_tensor(states, dtype=torch.float32)))

    def arrays(self, name: str, half: bool = False) -> dict[str, np.ndarray]:
        """The tensors by name, for a run; `half` keeps the weights in half precision."""
        kept = torch.float16 if half else torch.float32
        parts = {"mean": self.mean, "scale": self.scale, "centre": self.centre}
        parts |= {f"weight.{i}": weight.to(kept) for i, weight in enumerate(self.weights)}
        parts |= {f"bias.{i}": bias for i, bias in enumerate(self.biases)}
        return {f"{name}.{part}": tensor.numpy() for part, tensor in parts.items()}

    @classmethod
    def from_run(cls, name: str, run: Run, codebook: Codebook, cosine: float, epochs: int) -> Encoder:
        """The encoder that a run holds under this name. Raises UnreadableFile."""
        depth = sum(key.startswith(f"{name}.weight.") for key in run.arrays)
        mean = run.array(f"{name}.mean", None)
        weights, biases, inputs = [], [], len(mean)
        for i in range(depth):
            wanted = codebook.algebra.width(codebook.dimensions) if i == depth - 1 else None
            weights.append(run.array(f"{name}.weight.{i}", inputs, wanted))
            inputs = weights[-1].shape[1]
            biases.append(run.array(f"{name}.bias.{i}", inputs))
        if not weights:
            raise UnreadableFile(f"{run.path} has no weights of the encoder {name!r}")
        scale, centre = run.array(f"{name}.scale", len(mean)), run.array(f"{name}.centre", inputs)
        return cls(
            tuple(map(_single, weights)),
            tuple(map(_single, biases)),
            _single(mean),
            _single(scale),
            _single(centre),
            codebook.algebra,
            cosine,
            epochs,
        )


@dataclass(frozen=True, eq=False)
class Examples:
    """States of every ingestion `[example feature]` with the hypervectors they should give, and who is who.

    Raises BadInput where they do not fit together.
    """

    states: Mapping[str, np.ndarray]
    targets: Tensor
    train: np.ndarray
    validation: np.ndarray

    def __post_init__(self) -> None:
        for name, value in self.states.items():
            if len(value) != len(self.targets):
                raise BadInput(f"{name} has {len(value)} states for {len(self.targets)} hypervectors")
            if not np.isfinite(value).all():
                raise BadInput(f"{name} has states that are NaN or infinite")
        if not self.states or not len(self.train) or not len(self.validation):
            raise BadInput("an encoder needs states, training examples and validation examples")


def train_encoders(
    data: Examples,
    algebra: Algebra,
    training: Training = STANDARD,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Encoder]:
    """One network an ingestion; those of one width are trained as one. `progress` counts epochs, at most."""
    groups: dict[int, list[str]] = {}
    for name, value in data.states.items():
        groups.setdefault(value.shape[1], []).append(name)
    found: dict[str, Encoder] = {}
    for number, names in enumerate(groups.values()):

        def report(epoch: int, done: int = number * training.epochs) -> None:
            if progress:
                progress(done + epoch, len(groups) * training.epochs)

        found |= _train_together(names, data, algebra, training, report)
    return {name: found[name] for name in data.states}


def linear_encoders(data: Examples, algebra: Algebra) -> dict[str, Encoder]:
    """Ridge regression from each ingestion to the components; the penalty is the best of RIDGES in validation."""
    targets = algebra.components(data.targets).double()
    found = {}
    for name, value in data.states.items():
        states = torch.tensor(value, dtype=torch.float64)
        mean, scale = _standard(states[data.train])
        x, held = (states[data.train] - mean) / scale, (states[data.validation] - mean) / scale
        bias = targets[data.train].mean(0)
        values, basis = torch.linalg.eigh(x.mT @ x)
        turned = basis.mT @ (x.mT @ (targets[data.train] - bias))
        fits = []
        for ridge in RIDGES:
            weight = basis @ (turned / (values + ridge * len(x))[:, None])
            fits.append((float(_cosine(held @ weight + bias, targets[data.validation])), weight))
        cosine, weight = max(fits, key=lambda fit: fit[0])
        found[name] = Encoder(
            (weight.float(),), (bias.float(),), mean.float(), scale.float(), bias.float(), algebra, cosine
        )
    return found


def loss(outputs: Tensor, components: Tensor, binary: bool) -> Tensor:
    """The paper's loss, averaged over examples and components."""
    squared = (outputs - components).square().mean((-2, -1))
    if not binary:
        return squared
    return F.softplus(-components * outputs).mean((-2, -1)) + SQUARED * squared  # cross-entropy of the signs


def loss_gradient(outputs: Tensor, components: Tensor, binary: bool) -> Tensor:
    """Its gradient in the outputs; the value itself is never needed to train."""
    size = outputs.shape[-1] * outputs.shape[-2]
    error = outputs - components
    if not binary:
        return error.mul_(2 / size)
    share = torch.sigmoid(outputs).sub_((components + 1) / 2)  # of the cross-entropy
    return share.add_(error, alpha=2 * SQUARED).div_(size)


def _train_together(
    names: Sequence[str], data: Examples, algebra: Algebra, training: Training, report: Callable[[int], None]
) -> dict[str, Encoder]:
    device = torch.device(training.device)
    states = torch.tensor(np.stack([data.states[name] for name in names]), dtype=torch.float32)
    mean, scale = _standard(states[:, data.train])
    x = ((states - mean) / scale).to(device)
    y = algebra.components(data.targets).float().to(device)
    held, goal = x[:, data.validation], y[data.validation]
    x, y = x[:, data.train], y[data.train]
    generator = torch.Generator().manual_seed(training.seed)
    layers = _first_weights((x.shape[-1], training.hidden, training.hidden, y.shape[-1]), len(names), generator, device)
    parameters = [tensor for layer in layers for tensor in layer]
    optimiser = torch.optim.AdamW(parameters, training.rate, weight_decay=training.decay, fused=True)
    best = [tensor.detach().clone() for tensor in parameters]
    cosine, at = torch.full((len(names),), -torch.inf), torch.zeros(len(names), dtype=torch.long)
    for epoch in range(1, training.epochs + 1):
        for rows in torch.randperm(len(y), generator=generator).to(device).split(training.batch):
            outputs = _forward(x[:, rows], layers, training.dropout, generator)
            optimiser.zero_grad()
            outputs.backward(loss_gradient(outputs.detach(), y[rows], algebra.binary))
            optimiser.step()
        with torch.no_grad():
            now = _cosine(_forward(held, layers), goal).cpu()
        better = (now > cosine) & (epoch - at <= training.patience)
        for kept, tensor in zip(best, parameters, strict=True):
            kept[better] = tensor.detach()[better]
        cosine, at = torch.where(better, now, cosine), torch.where(better, epoch, at)
        report(epoch)
        if bool((epoch - at >= training.patience).all()):
            break
    final = [tensor.cpu() for tensor in best]
    return {
        name: Encoder(
            tuple(tensor[i] for tensor in final[::2]),
            tuple(tensor[i, 0] for tensor in final[1::2]),
            mean[i, 0],
            scale[i, 0],
            y.mean(0).cpu(),
            algebra,
            float(cosine[i]),
            int(at[i]),
        )
        for i, name in enumerate(names)
    }


def _single(array: np.ndarray) -> Tensor:
    return torch.tensor(array, dtype=torch.float32)


def _first_weights(
    widths: Sequence[int], count: int, generator: torch.Generator, device: torch.device
) -> list[tuple[Tensor, Tensor]]:
    """The same for every encoder: uniform by the number of inputs, biases 0."""
    layers = []
    for inputs, outputs in pairwise(widths):
        weight = torch.empty(inputs, outputs).uniform_(-1, 1, generator=generator) / inputs**0.5
        stacked = weight.expand(count, -1, -1).contiguous().to(device)
        layers.append((stacked.requires_grad_(), torch.zeros(count, 1, outputs, device=device).requires_grad_()))
    return layers


def _forward(
    x: Tensor, layers: Sequence[tuple[Tensor, Tensor]], dropout: float = 0.0, generator: torch.Generator | None = None
) -> Tensor:
    """`[encoder example feature]` to `[encoder example component]`; all encoders drop the same units."""
    *inner, (weight, bias) = layers
    for inner_weight, inner_bias in inner:
        x = F.gelu(torch.baddbmm(inner_bias, x, inner_weight))
        if dropout:
            kept = torch.empty(x.shape[1:]).bernoulli_(1 - dropout, generator=generator).to(x.device)
            x = x * (kept / (1 - dropout))
    return torch.baddbmm(bias, x, weight)


def _standard(states: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation over examples, the deviation 1 where a feature is constant."""
    scale, mean = torch.std_mean(states, -2, keepdim=True, correction=0)
    scale = torch.where(scale > 1e-6 * (1 + mean.abs()), scale, 1)
    return (mean, scale) if states.ndim == 3 else (mean[0], scale[0])


def _cosine(outputs: Tensor, components: Tensor) -> Tensor:
    return F.cosine_similarity(outputs, components, dim=-1).mean(-1)
