"""Head masks on disk: our own files, and those of the tools that make and use such masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from interp.errors import BadInput, MaskMismatch, UnreadableFile, choose
from interp.heads.formats import arrays, head_lists, native, razor
from interp.heads.formats.format import Format, Loss, Shape, read_json
from interp.heads.mask import HeadCounts, HeadMask, differing_fields
from interp.runs import staged

__all__ = ["FORMATS", "Format", "Loss", "read_mask", "write_mask"]

FORMATS: dict[str, Format] = {
    each.name: each for each in (*native.FORMATS, *head_lists.FORMATS, *arrays.FORMATS, *razor.FORMATS)
}
"""By name, in the order in which an unnamed file is tried."""

ROUNDING = 1e-12
"""Relative difference between two orders of taking the same mean; a score is not lost by it."""


def write_mask(mask: HeadMask, path: str | Path, format: str = "json") -> tuple[Loss, ...]:
    """Write a mask, whole or not at all, and say which of its fields the file does not give back.

    What is lost is found by reading the file again; nothing is for "json" and "safetensors". Raises BadInput for an
    unknown format and for a mask it cannot hold (of the other kind of heads, without a selection), UnwritableOutput.
    """
    form = _format(format)
    path = Path(path)
    _require_kind(form, mask)
    layers, heads = mask.scores.shape
    shape = Shape(layers, kv_heads=heads) if form.shapeless else Shape()
    with staged(path) as partial:
        form.write(mask, partial)
        again = form.read(partial, shape)
    return tuple(Loss(name, form.why.get(name, "the format has no place for it")) for name in _lost(mask, again))


def read_mask(
    path: str | Path,
    format: str | None = None,
    *,
    like: HeadCounts | None = None,
    layers: int | None = None,
    heads: int | None = None,
) -> HeadMask:
    """Read a mask; without `format` it is recognised by what the file holds.

    `like` is the model's `spec`, or `layers` and `heads` say as much: key/value heads where the format is of those,
    query heads otherwise. RazorAttention's files cannot be read without; others are checked against it.

    Raises UnreadableFile naming the place, MaskMismatch for a file with other heads than the model's.
    """
    path = Path(path)
    form = _recognise(path) if format is None else _format(format)
    if like is not None:
        shape = Shape(like.layers, like.heads, like.kv_heads)
    else:
        shape = Shape(layers, None if form.kind == "kv" else heads, heads if form.kind == "kv" else None)
    mask = form.read(path, shape)
    if like is not None:
        return mask.check(like)
    for wanted, there, what in zip((layers, heads), mask.scores.shape, ("layers", "heads a layer"), strict=True):
        if wanted not in (None, there):
            raise MaskMismatch(f"{path} scores {there} {what}; {wanted} were expected.")
    return mask


def _format(name: str) -> Format:
    if name not in FORMATS:
        raise BadInput(f"There is no mask format {name!r}; {choose(name, FORMATS)}.")
    return FORMATS[name]


def _recognise(path: Path) -> Format:
    if not path.exists():
        raise UnreadableFile(f"There is no file {path}.")
    content = read_json(path) if path.suffix == ".json" and path.is_file() else None
    if content == {}:
        return FORMATS["retrieval-head"]  # whose reader says what an empty file means
    for form in FORMATS.values():
        if form.recognises(path, content):
            return form
    raise UnreadableFile(f"{path} looks like none of the mask formats; name one of {', '.join(FORMATS)}.")


def _require_kind(form: Format, mask: HeadMask) -> None:
    if form.kind in (None, mask.kind):
        return
    if form.kind == "query":
        raise BadInput(f"The format {form.name} holds query heads and this mask scores key/value heads.")
    if mask.kv_heads != mask.scores.shape[1]:  # where every query head has its own keys, its score is theirs
        raise BadInput(
            f"The format {form.name} holds key/value heads and this mask scores query heads: reduce it first, "
            'with to_kv("max") or to_kv("mean").'
        )


def _lost(mask: HeadMask, again: HeadMask) -> list[str]:
    """Fields that say something and do not come back; what a format adds of its own is no loss."""
    changed = [name for name in differing_fields(mask, again, ROUNDING) if _says_something(getattr(mask, name))]
    if mask.metadata.items() <= again.metadata.items():
        changed = [name for name in changed if name != "metadata"]
    return changed


def _says_something(value: object) -> bool:
    return isinstance(value, np.ndarray) or value not in (None, "", {})
