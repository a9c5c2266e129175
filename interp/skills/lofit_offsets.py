"""HeadOffsets: a vector for each of a few heads, added to its output; what LoFiT learns and ITI measures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.errors import BadInput, MaskMismatch, UnreadableFile
from interp.heads.mask import Head
from interp.runs import staged
from interp.tracing.edits import Edit, add

if TYPE_CHECKING:
    from interp.tracing.model import Model

SCHEMA = "interp-head-offsets/1"


@dataclass(frozen=True, eq=False, repr=False)
class HeadOffsets:
    """`z[head] ← z[head] + vector` at every position, for some query heads of one model.

    `vectors` `[chosen head_dim]` follow `heads`. `fingerprint` is of the model they were fitted on, the only one they
    act on. `metadata` is plain JSON. Raises BadInput where these do not fit together.
    """

    heads: tuple[Head, ...]
    vectors: Tensor
    model: str
    fingerprint: str
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "heads", tuple((int(layer), int(head)) for layer, head in self.heads))
        object.__setattr__(self, "vectors", self.vectors.detach().clone())
        if self.vectors.ndim != 2 or len(self.vectors) != len(self.heads) or not self.heads:
            raise BadInput(
                f"offsets are one vector a head, [chosen head_dim]; got shape {tuple(self.vectors.shape)} for "
                f"{len(self.heads)} heads"
            )
        if repeated := [head for head in dict.fromkeys(self.heads) if self.heads.count(head) > 1]:
            raise BadInput(f"head {repeated[0][0]}-{repeated[0][1]} is given more than one offset")
        if not bool(self.vectors.isfinite().all()):
            raise BadInput("offsets must be finite, and some are not")

    def __repr__(self) -> str:
        return f"HeadOffsets({len(self.heads)} heads of {self.model}, {self.vectors.numel()} numbers)"

    def check(self, model: Model) -> HeadOffsets:
        """These offsets; raises MaskMismatch where they were fitted on another model."""
        if self.fingerprint != model.fingerprint:
            raise MaskMismatch(
                f"these offsets belong to {self.model} (fingerprint {self.fingerprint}), and this is "
                f"{model.spec.name} ({model.fingerprint}): fit them on it, or load the model they were fitted on"
            )
        return self

    def edits(self, model: Model) -> list[Edit]:
        """The offsets as interventions, one a layer. Raises MaskMismatch for another model than theirs."""
        return layer_edits(self.check(model).heads, self.vectors, model.spec.heads)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, whole or not at all. Raises UnwritableOutput."""
        from safetensors.torch import save_file

        header = {
            "schema": SCHEMA,
            "model": self.model,
            "fingerprint": self.fingerprint,
            "metadata": json.dumps(dict(self.metadata)),
        }
        tensors = {"heads": torch.tensor(self.heads), "vectors": self.vectors.cpu().contiguous()}
        with staged(path) as partial:
            save_file(tensors, partial, metadata=header)

    @classmethod
    def load(cls, path: str | Path) -> HeadOffsets:
        """Read what `save` wrote. Raises UnreadableFile."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                header = file.metadata() or {}
                if header.get("schema") != SCHEMA:
                    raise UnreadableFile(f"{path} has schema {header.get('schema')!r}; this version reads {SCHEMA!r}")
                heads, vectors = file.get_tensor("heads"), file.get_tensor("vectors")
            pairs = tuple((int(layer), int(head)) for layer, head in heads.tolist())
            return cls(pairs, vectors, header["model"], header["fingerprint"], json.loads(header["metadata"]))
        except UnreadableFile:
            raise
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise UnreadableFile(f"{path} does not hold head offsets: {error}") from error


def layer_edits(heads: tuple[Head, ...], vectors: Tensor, per_layer: int) -> list[Edit]:
    """One `add` a layer that has any of the heads; gradients reach `vectors` `[chosen head_dim]`."""
    edits = []
    for layer in sorted({layer for layer, _ in heads}):
        rows = [i for i, (where, _) in enumerate(heads) if where == layer]
        index = torch.tensor([heads[i][1] for i in rows], device=vectors.device)
        whole = vectors.new_zeros(per_layer, vectors.shape[1]).index_put((index,), vectors[rows])
        edits.append(add(f"z.{layer}", whole))
    return edits
