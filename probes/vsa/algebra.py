"""Vector symbolic architectures, through torch-hd: bundles of bound pairs of random hypervectors.

* MAP: bipolar, bound by product (Gayler 1998); the paper's choice. A bundle is the sign of the sum, a tie is -1.
* BSC: bits, bound by exclusive or (Kanerva 1996); a bundle is the majority, a tie is True.
* HRR: real, bound by circular convolution (Plate 1995); unbinding is approximate.
* FHRR: phases, bound by complex product (Plate 1995).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torchhd  # type: ignore[import-untyped]
from torch import Tensor

from interp.errors import BadInput, choose

Name = Literal["MAP", "HRR", "FHRR", "BSC"]
NAMES: tuple[Name, ...] = ("MAP", "HRR", "FHRR", "BSC")
DIMENSIONS = 4096
"""Of the paper's hypervectors."""


@dataclass(frozen=True)
class Algebra:
    """The operations of one architecture on plain tensors whose last axis is the hypervector. Raises BadInput."""

    name: Name = "MAP"

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise BadInput(f"there is no algebra {self.name!r}; {choose(self.name, NAMES)}")

    @property
    def binary(self) -> bool:
        """Whether a component is one of two values."""
        return self.name in ("MAP", "BSC")

    def random(self, count: int, dimensions: int, seed: int) -> Tensor:
        """`count` independent hypervectors, `[count dimensions]`."""
        generator = torch.Generator().manual_seed(seed)
        return _plain(torchhd.random(count, dimensions, self.name, generator=generator))

    def bind(self, a: Tensor, b: Tensor) -> Tensor:
        """What associates `a` with `b`: dissimilar to both. Raises BadInput where dimensions differ."""
        self._require_fit(a, b)
        return _plain(torchhd.bind(self._own(a), self._own(b)))

    def unbind(self, bound: Tensor, known: Tensor) -> Tensor:
        """What is associated with `known` in `bound`: exact for one pair (HRR: roughly), noisy for a bundle."""
        self._require_fit(bound, known)
        return _plain(torchhd.bind(self._own(bound), torchhd.inverse(self._own(known))))

    def bundle(self, vectors: Tensor) -> Tensor:
        """`[... count dimensions]` superposed to `[... dimensions]`: similar to each of them."""
        if self.name == "BSC":  # torch-hd breaks ties at random, which no encoder could learn
            return 2 * vectors.sum(-2) >= vectors.shape[-2]
        return _plain(torchhd.normalize(torchhd.multiset(self._own(vectors))))

    def similarity(self, a: Tensor, b: Tensor) -> Tensor:
        """Cosine (BSC: of the bits as -1 and 1) of every row of `a` with every row of `b`, `[len(a) len(b)]`."""
        self._require_fit(a, b)
        x, y = self.components(a), self.components(b)
        return _unit(x) @ _unit(y).mT

    def components(self, vectors: Tensor) -> Tensor:
        """Real numbers of about unit size that an encoder is to predict: bits as -1 and 1, complex as two halves."""
        if self.name == "BSC":
            return torch.where(vectors, 1.0, -1.0)
        if self.name == "FHRR":
            return torch.cat([vectors.real, vectors.imag], -1)
        return vectors * vectors.shape[-1] ** 0.5 if self.name == "HRR" else vectors

    def from_components(self, components: Tensor) -> Tensor:
        """The hypervector that predicted components stand for."""
        if self.name == "FHRR":
            real, imaginary = components.chunk(2, -1)
            values = torch.complex(real, imaginary)
            return values / values.abs().clamp_min(torch.finfo(real.dtype).tiny)
        if self.name == "HRR":
            return _unit(components)
        return components > 0 if self.name == "BSC" else torch.where(components > 0, 1.0, -1.0)

    def width(self, dimensions: int) -> int:
        """How many components a hypervector has."""
        return 2 * dimensions if self.name == "FHRR" else dimensions

    def _own(self, vectors: Tensor) -> torchhd.VSATensor:
        return torchhd.ensure_vsa_tensor(vectors, self.name)

    def _require_fit(self, a: Tensor, b: Tensor) -> None:
        if a.shape[-1] != b.shape[-1]:
            raise BadInput(
                f"hypervectors of {a.shape[-1]} and of {b.shape[-1]} dimensions have nothing to do with each other"
            )


MAP = Algebra()


def _plain(vectors: Tensor) -> Tensor:
    return vectors.as_subclass(Tensor)


def _unit(vectors: Tensor) -> Tensor:
    return vectors / vectors.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(vectors.dtype).tiny)
