"""The knob itself: a subspace of the residual stream after one block, and the values that mean context and prior."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from interp.errors import BadInput, UnknownSite, UnreadableFile
from interp.runs import staged
from interp.tasks.context_prior import INTENTS
from interp.tracing.edits import Edit, set_coordinate
from interp.tracing.model import Model

WEIGHT = "proj.weight"
"""The tensor `[width rank]` of the published checkpoints."""
STEERED = slice(-1, None)
"""Where a knob is set: at the last token of the prompt and at every token that is decoded."""


@dataclass(frozen=True, eq=False, repr=False)
class Knob:
    """An orthonormal `basis` `[rank width]` of what leaves block `layer`, at the last token.

    `values`: what the coordinate of a rank-1 knob is set to for `"context"` and `"prior"`. `model` describes the one it
    was fitted on. Raises BadInput for a basis that is not orthonormal.
    """

    layer: int
    basis: Tensor
    values: Mapping[str, float] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        basis = self.basis.detach().float().cpu()
        if basis.ndim != 2 or not 0 < len(basis) <= basis.shape[1]:
            raise BadInput(f"a knob's basis is [rank width] with rank at most width; got shape {tuple(basis.shape)}")
        if not torch.allclose(basis @ basis.T, torch.eye(len(basis)), atol=1e-4):
            raise BadInput("the rows of a knob's basis must be orthonormal; take the Q of a QR decomposition")
        object.__setattr__(self, "basis", basis)

    def __repr__(self) -> str:
        values = ", ".join(f"{name} {value:+.3g}" for name, value in self.values.items())
        return f"Knob(resid_post.{self.layer}, rank {self.rank} of {self.width}{'; ' if values else ''}{values})"

    @property
    def rank(self) -> int:
        return len(self.basis)

    @property
    def width(self) -> int:
        return self.basis.shape[1]

    @property
    def site(self) -> str:
        return f"resid_post.{self.layer}"

    @property
    def direction(self) -> Tensor:
        """The unit vector `[width]` of a rank-1 knob; raises BadInput for another rank."""
        if self.rank != 1:
            raise BadInput(f"a knob of rank {self.rank} has no one direction and no one value; fit it with rank=1")
        return self.basis[0]

    def value(self, setting: str | float) -> float:
        """A number, or the calibrated value of `"context"` or `"prior"`. Raises BadInput."""
        if isinstance(setting, str):
            if setting not in self.values:
                known = ", ".join(self.values) or "none: give the number, or calibrate the knob"
                raise BadInput(f"this knob has no value called {setting!r}; it has {known}")
            return self.values[setting]
        return float(setting)

    def as_dict(self) -> dict[str, Any]:
        """What a result says about the knob that it turned."""
        return {"layer": self.layer, "values": dict(self.values), "fitted_on": dict(self.model)}

    def edit(self, setting: str | float) -> Edit:
        """The Edit that sets the coordinate, at the prompt's last token and every decoded one."""
        return set_coordinate(self.site, self.direction, self.value(setting)).at(positions=STEERED)

    def check(self, model: Model) -> None:
        """Raise BadInput (UnknownSite) where the model has no such layer or another width."""
        if self.width != model.spec.width:
            raise BadInput(
                f"the knob's direction has {self.width} features and {model.spec.name} has width {model.spec.width}: "
                "a knob moves only between models of the same width"
            )
        check_layer(model, self.layer)

    def with_values(self, **values: float) -> Knob:
        """The same with other values."""
        return replace(self, values={name: float(value) for name, value in values.items()})

    def save(self, path: str | Path) -> None:
        """Write a safetensors file with the tensor and key of the published checkpoints. Raises UnwritableOutput."""
        about = {"layer": self.layer, "values": dict(self.values), "model": dict(self.model)}
        content = save({WEIGHT: self.basis.T.contiguous()}, metadata={"knob": json.dumps(about)})
        with staged(path) as file:
            file.write_bytes(content)

    @classmethod
    def load(cls, path: str | Path, layer: int | None = None, **values: float) -> Knob:
        """Read what `save` wrote, or a published checkpoint in safetensors: then say its layer and values.

        Raises UnreadableFile, and BadInput where no layer is given and the file names none.
        """
        try:
            with safe_open(str(path), framework="pt") as file:
                about = json.loads((file.metadata() or {}).get("knob", "{}"))
                weight = file.get_tensor(WEIGHT) if WEIGHT in file.keys() else None  # noqa: SIM118
                found = ", ".join(file.keys())
        except (OSError, SafetensorError, ValueError) as error:
            raise UnreadableFile(f"{path} cannot be read as safetensors: {error}") from error
        if weight is None:
            raise UnreadableFile(f"{path} holds no {WEIGHT!r}, the direction of a knob; it holds {found}")
        layer = about.get("layer") if layer is None else layer
        if layer is None:
            raise BadInput(f"{path} does not say after which block its knob belongs; give layer=")
        if weight.ndim != 2:
            raise UnreadableFile(f"{path}: {WEIGHT} has shape {tuple(weight.shape)}, not [width rank]")
        basis = torch.linalg.qr(weight.float()).Q.T
        basis = basis * torch.einsum("r w, w r -> r", basis, weight.float()).sign()[:, None]  # QR is free in sign
        return cls(int(layer), basis, values or about.get("values", {}), about.get("model", {}))


def check_layer(model: Model, layer: int) -> int:
    """The layer; raises UnknownSite where the model does not have it."""
    if not 0 <= layer < model.spec.layers:
        raise UnknownSite(f"there is no layer {layer}: {model.spec.name} has layers 0 to {model.spec.layers - 1}")
    return int(layer)


def coordinates(basis: Tensor, resid: Tensor) -> Tensor:
    """Coordinates `[... rank]` of `resid` `[... width]`, in float32 or better."""
    value = resid.to(torch.promote_types(resid.dtype, torch.float32))
    return value @ basis.to(value).T


def oriented(basis: Tensor, resid: Tensor) -> Tensor:
    """A rank-1 basis, turned so that context prompts lie above prior ones; `resid` `[pair intent width]`."""
    if len(basis) != 1:
        return basis
    means = coordinates(basis, resid).mean(dim=(0, 2))
    upwards = bool(means[INTENTS.index("context")] >= means[INTENTS.index("prior")])
    return basis if upwards else -basis
