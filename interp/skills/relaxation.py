"""A model whose weights lie between two others', one by one as a mask says, without ever being held whole.

θ(γ) = θ_pre + γ ⊙ (θ_ft − θ_pre), where γ = γ_base + (1 − 2 γ_base) ⊙ σ(S − b) (Panigrahi et al. 2023). Instead of S
the signed distance d of γ from γ_base is kept: σ where γ_base is 0 and −σ where it is 1, so one tensor holds both
γ_base and S. A weight is computed when a module asks for it, dropped after use, and computed again for backward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from interp.skills.pairs import same_storage_copy, trainable
from interp.tracing.model import Model

SMALLEST, LARGEST = 1e-30, 1 - 2**-24
"""Between which σ is kept, so that its sign and its logit stay defined."""


class Interpolate(torch.autograd.Function):
    """θ(γ) of one parameter, and the gradient of d, which is that of γ."""

    @staticmethod
    def forward(ctx: Any, distance: Tensor, pre: Tensor, ft: Tensor) -> Tensor:
        ctx.save_for_backward(pre, ft)
        return interpolated(distance, pre, ft)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        pre, ft = ctx.saved_tensors
        return gradients[0] * (ft - pre), None, None


def interpolated(distance: Tensor, pre: Tensor, ft: Tensor) -> Tensor:
    """Exactly `pre` where γ is 0 and exactly `ft` where it is 1."""
    return torch.lerp(pre, ft, gamma(distance).to(pre.dtype))


def gamma(distance: Tensor) -> Tensor:
    """γ of the signed distance from γ_base."""
    return distance + torch.signbit(distance)


class Between(nn.Module):
    """One parameter's place between its two values, as torch's parametrization of whoever owns it."""

    def __init__(self, name: str, ft: Tensor, distance: Tensor, note: Callable[[str, Tensor], None]) -> None:
        super().__init__()
        self.name = name
        self.note = note
        self.__dict__["ft"] = ft  # a buffer would be one of the module's own tensors
        self.distance = nn.Parameter(distance)

    def forward(self, pre: Tensor) -> Tensor:
        weight: Tensor = Interpolate.apply(self.distance, pre.detach(), self.ft)
        self.note(self.name, weight)
        return weight


class Relaxation:
    """The model between `pre` and `ft`, whose weights it shares, and the distances d `{name: tensor}`, its only own.

    `base` gives the flat indices where γ_base is 1; σ is drawn from σ(S − bias), S uniform in [0, 1) by `seed`.
    """

    def __init__(
        self, pre: Model, ft: Model, base: Mapping[str, Tensor], bias: float, everything: bool, seed: int
    ) -> None:
        self.model = same_storage_copy(pre)
        self.pre = {name: parameter.detach() for name, parameter in trainable(pre, everything).items()}
        self.ft = {name: parameter.detach() for name, parameter in trainable(ft, everything).items()}
        generator = torch.Generator().manual_seed(seed)
        self.places: dict[str, Between] = {}
        self.alive: WeakValueDictionary[int, Tensor] = WeakValueDictionary()
        self.owners: dict[int, str] = {}
        homes = _homes(self.model.hf)
        for name, parameter in self.pre.items():
            distance = torch.rand(parameter.shape, generator=generator).sub_(bias).sigmoid_()
            if name in base:
                distance.view(-1)[base[name]] *= -1
            distance = distance.to(parameter.device)
            place = Between(name, self.ft[name], distance, self._note)
            self.places[name] = place
            for module, attribute in homes[parameter.data_ptr()]:
                parametrize.register_parametrization(module, attribute, place, unsafe=True)

    @contextmanager
    def recomputing(self) -> Iterator[None]:
        """Inside, what backward would keep of the interpolated weights is computed again instead."""
        with torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack):
            yield

    def _note(self, name: str, weight: Tensor) -> None:
        pointer = weight.untyped_storage().data_ptr()
        self.alive[pointer], self.owners[pointer] = weight, name

    def _pack(self, tensor: Tensor) -> Any:
        pointer = tensor.untyped_storage().data_ptr()
        if pointer not in self.alive:  # a weight that is gone may have left its address to an activation
            return tensor
        return self.owners[pointer], tensor.size(), tensor.stride(), tensor.storage_offset()

    def _unpack(self, packed: Any) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        name, *geometry = packed
        with torch.no_grad():
            weight = interpolated(self.places[name].distance, self.pre[name], self.ft[name])
        return weight.as_strided(*geometry)

    @torch.no_grad()
    def step(self, name: str, gradient: Tensor, rate: float) -> None:
        """S ← S − (1 − 2 γ_base) · rate · ∂L/∂γ · σ'(S − b), in terms of d."""
        distance = self.places[name].distance
        sigma = distance.abs()
        slope = gradient.mul_(torch.where(torch.signbit(distance), -rate, rate)).mul_(sigma * (1 - sigma))
        moved = torch.logit(sigma).sub_(slope).sigmoid_().clamp_(SMALLEST, LARGEST)
        distance.copy_(torch.copysign(moved, distance))

    def scores(self) -> Iterator[tuple[str, Tensor]]:
        """γ by parameter, and 0 where the two models agree: grafting there changes nothing."""
        for name, place in self.places.items():
            yield name, gamma(place.distance.detach()) * (self.ft[name] != self.pre[name])


def _homes(module: nn.Module) -> dict[int, Sequence[tuple[nn.Module, str]]]:
    """Every module that owns a parameter, and what it calls it, by the parameter's address: tied ones have two."""
    homes: dict[int, list[tuple[nn.Module, str]]] = {}
    for owner in module.modules():
        for attribute, parameter in owner.named_parameters(recurse=False):
            homes.setdefault(parameter.data_ptr(), []).append((owner, attribute))
    return dict(homes)
