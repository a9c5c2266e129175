"""GraftMask: which parameters of a fine-tuned model are grafted onto the pre-trained one."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from safetensors import safe_open
from safetensors.torch import save
from scipy.stats import hypergeom
from torch import Tensor

from interp.errors import BadInput, MaskMismatch, UnreadableFile
from interp.runs import staged
from interp.skills.pairs import check_pair, independent_copy
from interp.tables import in_notebook
from interp.tracing.model import Model

SCHEMA = "interp-graft/1"
INT32 = torch.iinfo(torch.int32).max
"""Up to which an index takes four bytes in a file."""


@dataclass(frozen=True, eq=False, repr=False)
class GraftMask:
    """Flat indices of the chosen entries of each parameter, int64, ascending and without repetition.

    `shapes` are those of every parameter that could have been chosen. `pre` and `ft` are the fingerprints of the two
    models; `ft` is None where the mask came of several fine-tuned models. `metadata` is plain JSON: task, rule, ….
    Raises BadInput where these do not fit together.
    """

    indices: Mapping[str, Tensor]
    shapes: Mapping[str, tuple[int, ...]]
    pre: str
    ft: str | None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, indices in self.indices.items():
            if name not in self.shapes:
                raise BadInput(f"the mask has entries of {name}, whose shape it does not know")
            size = prod(self.shapes[name])
            if indices.dtype != torch.int64 or indices.ndim != 1:
                raise BadInput(f"the mask's entries of {name} are no list of int64 indices")
            if len(indices) and (int(indices[0]) < 0 or int(indices[-1]) >= size or bool((indices.diff() < 1).any())):
                raise BadInput(f"the mask's entries of {name} are not ascending indices below {size}")
        object.__setattr__(self, "indices", {name: i for name, i in self.indices.items() if len(i)})

    def __repr__(self) -> str:
        return f"GraftMask({len(self):,} of {self.size:,} parameters, {self.sparsity:.3%})"

    def _repr_html_(self) -> str:
        return in_notebook(self, self.shares("module"), self.shares("layer"))

    def __len__(self) -> int:
        """How many parameters are grafted."""
        return sum(map(len, self.indices.values()))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, GraftMask):
            return NotImplemented
        same = self.indices.keys() == other.indices.keys() and (self.pre, self.ft) == (other.pre, other.ft)
        return same and all(torch.equal(i, other.indices[name]) for name, i in self.indices.items())

    __hash__ = None  # type: ignore[assignment]

    @property
    def size(self) -> int:
        """How many parameters could be grafted."""
        return sum(map(prod, self.shapes.values()))

    @property
    def sparsity(self) -> float:
        """The share that is."""
        return len(self) / self.size

    def __or__(self, other: GraftMask) -> GraftMask:
        """What is in either."""
        return self._combine(other, "union", lambda a, b: torch.cat([a, b]).unique())

    def __and__(self, other: GraftMask) -> GraftMask:
        """What is in both."""
        return self._combine(other, "intersection", lambda a, b: a[torch.isin(a, b)])

    def __sub__(self, other: GraftMask) -> GraftMask:
        """What is in this one and not in the other."""
        return self._combine(other, "difference", lambda a, b: a[~torch.isin(a, b)])

    def invert(self) -> GraftMask:
        """Everything that is not in it."""
        inverted = {}
        for name, shape in self.shapes.items():
            left = torch.ones(prod(shape), dtype=torch.bool)
            left[self.indices.get(name, _NONE)] = False
            inverted[name] = left.nonzero().flatten()
        return replace(self, indices=inverted, metadata={"rule": "inversion", "of": dict(self.metadata)})

    def dense(self, name: str) -> Tensor:
        """The mask of one parameter, bool in its shape."""
        mask = torch.zeros(prod(self.shapes[name]), dtype=torch.bool)
        mask[self.indices.get(name, _NONE)] = True
        return mask.view(self.shapes[name])

    def check(self, pre: Model, ft: Model | None = None, transfer: bool = False) -> GraftMask:
        """Itself, if it was made for these very models; with `transfer` any that has these parameters will do.

        Raises MaskMismatch.
        """
        shapes = {name: tuple(parameter.shape) for name, parameter in pre.hf.named_parameters()}
        for name, shape in self.shapes.items():
            if shapes.get(name) != shape:
                has = f"has it as {list(shapes[name])}" if name in shapes else "has none of that name"
                raise MaskMismatch(f"the mask is of another model: its {name} is {list(shape)}, {pre.spec.name} {has}")
        for model, made_for, what in ((pre, self.pre, "pre-trained"), (ft, self.ft, "fine-tuned")):
            if model is not None and made_for is not None and not transfer and model.fingerprint != made_for:
                raise MaskMismatch(
                    f"the mask was made for the {what} model {made_for}, and {model.spec.name} is "
                    f"{model.fingerprint}; say transfer=True to use it on another"
                )
        return self

    def apply(self, pre: Model, ft: Model, *, outside: str = "pre", transfer: bool = False) -> Model:
        """A new model: `ft` where the mask is and `pre` elsewhere; with `outside="zero"` zero elsewhere.

        Zeroing is what a lottery ticket does. `pre` and `ft` stay. Raises MaskMismatch, BadInput.
        """
        if outside not in ("pre", "zero"):
            raise BadInput(f"outside the mask parameters are 'pre' or 'zero', not {outside!r}")
        self.check(pre, ft, transfer)
        check_pair(pre, ft, everything=True)
        grafted = independent_copy(pre, f"{pre.spec.name} grafted from {ft.spec.name}")
        parameters, theirs = dict(grafted.hf.named_parameters()), dict(ft.hf.named_parameters())
        with torch.no_grad():
            for name in self.shapes:
                if outside == "zero":
                    parameters[name].zero_()
                _write(parameters[name], self.indices.get(name, _NONE), theirs[name])
        return grafted

    @contextmanager
    def applied(self, pre: Model, ft: Model) -> Iterator[Model]:
        """`pre` with the mask grafted in place while the block lasts, which costs no second model.

        The model's lock is held, and the very same weights are back afterwards. Raises MaskMismatch.
        """
        self.check(pre)
        parameters, theirs = dict(pre.hf.named_parameters()), dict(ft.hf.named_parameters())
        with pre.lock, torch.no_grad():
            kept = {n: parameters[n].detach().view(-1)[i.to(parameters[n].device)] for n, i in self.indices.items()}
            try:
                for name, indices in self.indices.items():
                    _write(parameters[name], indices, theirs[name])
                yield pre
            finally:
                for name, values in kept.items():
                    parameters[name].detach().view(-1)[self.indices[name].to(values.device)] = values

    def breakdown(self) -> pd.DataFrame:
        """Where the entries are: one row a parameter, with its layer, module, share and enrichment.

        `share` is of the mask, `by_chance` that of a random mask on average, `density` of the parameter, `enrichment`
        the density over the whole mask's.
        """
        rows = []
        for name, shape in self.shapes.items():
            chosen, size = len(self.indices.get(name, _NONE)), prod(shape)
            layer = re.search(r"\.(\d+)\.", name)
            rows.append(
                {
                    "parameter": name,
                    "layer": int(layer[1]) if layer else -1,
                    "module": name[layer.end() :] if layer else name,
                    "chosen": chosen,
                    "size": size,
                    "share": chosen / max(len(self), 1),
                    "by_chance": size / self.size,
                    "density": chosen / size,
                    "enrichment": chosen / size / self.sparsity if len(self) else np.nan,
                }
            )
        return pd.DataFrame(rows)

    def shares(self, by: Literal["layer", "module"]) -> pd.DataFrame:
        """Which share of the mask each layer or module has: one row each, in the order of the model.

        Columns: `by`, chosen, size, share, by_chance, chance_low and chance_high: the mean, and where 95 % lie, of
        masks of as many parameters drawn at random (hypergeometric). Layer -1 is outside the blocks.
        """
        table = self.breakdown().groupby(by, sort=False, as_index=False)[["chosen", "size", "share", "by_chance"]].sum()
        bounds = hypergeom.ppf([[0.025], [0.975]], self.size, table["size"].to_numpy(), len(self)) / max(len(self), 1)
        return table.assign(chance_low=bounds[0], chance_high=bounds[1])

    def save(self, path: str | Path) -> None:
        """Write a safetensors file, whole or not at all. Raises UnwritableOutput."""
        header = {"schema": SCHEMA, "shapes": self.shapes, "pre": self.pre, "ft": self.ft, "metadata": self.metadata}
        with staged(path) as file:
            small = {name: i.int() if prod(self.shapes[name]) <= INT32 else i for name, i in self.indices.items()}
            file.write_bytes(save(small, {"graft": json.dumps(header)}))

    @classmethod
    def load(cls, path: str | Path) -> GraftMask:
        """Read what `save` wrote. Raises UnreadableFile."""
        try:
            with safe_open(str(path), "pt") as file:
                header = json.loads((file.metadata() or {})["graft"])
                indices = {name: file.get_tensor(name).long() for name in file.keys()}  # noqa: SIM118
            if header["schema"] != SCHEMA:
                raise ValueError(f"its schema is {header['schema']!r}, and this version reads {SCHEMA!r}")
            shapes = {name: tuple(map(int, shape)) for name, shape in header["shapes"].items()}
            return cls(indices, shapes, header["pre"], header["ft"], header["metadata"])
        except KeyError as error:
            raise UnreadableFile(f"{path} is no graft mask: it lacks {error}") from error
        except Exception as error:
            raise UnreadableFile(f"{path} is no graft mask: {error}") from error

    def _combine(self, other: GraftMask, what: str, combine: Callable[[Tensor, Tensor], Tensor]) -> GraftMask:
        if self.pre != other.pre or self.shapes != other.shapes:
            raise MaskMismatch(
                f"the {what} of masks needs one pre-trained model and the same trainable parameters; these are of "
                f"{self.pre} ({self.size:,} parameters) and {other.pre} ({other.size:,})"
            )
        indices = {name: combine(self.indices.get(name, _NONE), other.indices.get(name, _NONE)) for name in self.shapes}
        about = {"rule": what, "of": [dict(self.metadata), dict(other.metadata)]}
        return replace(self, indices=indices, ft=self.ft if self.ft == other.ft else None, metadata=about)


def union(masks: Sequence[GraftMask]) -> GraftMask:
    """What is in any of the masks. Raises BadInput where there is none, MaskMismatch."""
    if not masks:
        raise BadInput("there are no masks to unite")
    result = masks[0]
    for mask in masks[1:]:
        result = result | mask
    return result


_NONE = torch.empty(0, dtype=torch.int64)


def _write(parameter: Tensor, indices: Tensor, source: Tensor) -> None:
    here = indices.to(parameter.device)
    parameter.detach().view(-1)[here] = source.detach().to(parameter.device).view(-1)[here]
