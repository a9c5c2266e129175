"""What a mask format is, and what its readers share."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from interp.errors import MaskMismatch, UnreadableFile
from interp.heads.mask import Head, HeadKind, HeadMask


@dataclass(frozen=True)
class Shape:
    """What is known of the model a file belongs to; None where nothing is."""

    layers: int | None = None
    heads: int | None = None
    kv_heads: int | None = None

    def columns(self, kind: HeadKind) -> int | None:
        return self.heads if kind == "query" else self.kv_heads


@dataclass(frozen=True)
class Loss:
    """A field of a mask that its file does not give back, and why."""

    field: str
    why: str


@dataclass(frozen=True)
class Format:
    """One way to keep a mask: how it is read, written and recognised by its path and its JSON, if it is JSON.

    `kind` is the only kind of head it can hold, if there is one; `shapeless` says that a file does not tell how many
    heads there are; `why` explains the fields it loses.
    """

    name: str
    holds: str
    read: Callable[[Path, Shape], HeadMask]
    write: Callable[[HeadMask, Path], None]
    recognises: Callable[[Path, Any], bool]
    kind: HeadKind | None = None
    shapeless: bool = False
    why: Mapping[str, str] = field(default_factory=dict)


def read_json(path: Path) -> Any:
    """The JSON in `path`. Raises UnreadableFile."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UnreadableFile(f"{path} cannot be read: {error.strerror or error}.") from error
    except ValueError as error:
        raise UnreadableFile(f"{path} is not JSON: {error}.") from error


def is_number(value: object) -> bool:
    """Whether a JSON value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def full_shape(path: Path, heads: Collection[Head], shape: Shape, kind: HeadKind) -> tuple[int, int]:
    """Layers and heads a layer of a file that must name every head: as known, or as far as the file goes.

    Raises MaskMismatch for a head the model does not have, UnreadableFile for one that the file leaves out.
    """
    layers = shape.layers or 1 + max(layer for layer, _ in heads)
    columns = shape.columns(kind) or 1 + max(head for _, head in heads)
    require_within(path, heads, layers, columns)
    named = set(heads)
    if missing := layers * columns - len(named):
        everything = ((layer, head) for layer in range(layers) for head in range(columns))
        layer, head = next(each for each in everything if each not in named)
        raise UnreadableFile(
            f"{path} leaves out {missing} heads of {layers} layers of {columns}, the first of them {layer}-{head}."
        )
    return layers, columns


def require_within(path: Path, heads: Collection[Head], layers: int, columns: int) -> None:
    """Raise MaskMismatch where the file names a head that the model does not have."""
    for layer, head in sorted(heads):
        if layer >= layers or head >= columns:
            raise MaskMismatch(
                f"{path} names head {layer}-{head}; the model has layers 0 to {layers - 1} of heads 0 to {columns - 1}."
            )
