"""Scores as plain arrays: DuoAttention's folder, which kvpress loads too, and NumPy files."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from interp.errors import MaskMismatch, UnreadableFile
from interp.heads.formats.format import Format, Shape, is_number, read_json
from interp.heads.mask import HeadMask

DUO_SCORES = "full_attention_heads.tsv"
DUO_CONFIG = "config.json"
DUO_SIZES = {"sink_size": 64, "recent_size": 256}
"""First and last tokens that a streaming head keeps when DuoAttention is deployed (Xiao et al. 2024)."""


def write_duo(mask: HeadMask, path: Path) -> None:
    """The folder `path`: scores `[layer kv_head]` as text, and the sizes a streaming head keeps, from the metadata."""
    path.mkdir()
    np.savetxt(path / DUO_SCORES, mask.scores, delimiter="\t", fmt="%.18e")
    config = json.dumps(DUO_SIZES | dict(mask.metadata), indent=2)
    (path / DUO_CONFIG).write_text(config + "\n", encoding="utf-8")


def read_duo(path: Path, _shape: Shape) -> HeadMask:
    """Scores clipped to 0…1, as DuoAttention and kvpress read them; the configuration becomes the metadata."""
    config = read_json(path / DUO_CONFIG)
    if not isinstance(config, dict) or not all(is_number(config.get(size)) for size in DUO_SIZES):
        raise UnreadableFile(f"{path / DUO_CONFIG} does not give the numbers {' and '.join(DUO_SIZES)}.")
    file = path / DUO_SCORES
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an empty file, which is refused below
            scores = np.loadtxt(file, delimiter="\t", dtype=np.float64, ndmin=2)
    except (OSError, ValueError) as error:
        raise UnreadableFile(f"{file} is not a table of scores, layers by key/value heads: {error}.") from error
    if scores.size == 0 or not np.isfinite(scores).all():
        raise UnreadableFile(f"{file} is not a table of finite scores, layers by key/value heads.")
    return HeadMask(np.clip(scores, 0, 1), "kv", "duo", kv_heads=scores.shape[1], metadata=config)


def write_npy(mask: HeadMask, path: Path) -> None:
    with path.open("wb") as file:  # given a name, NumPy would append its suffix
        np.save(file, mask.scores, allow_pickle=False)


def read_npy(path: Path, shape: Shape) -> HeadMask:
    """An array `[layer head]`: of key/value heads where the model has so many and no more, else of query heads."""
    try:
        scores = np.load(path, allow_pickle=False)
        scores = scores.astype(np.float64)
    except (OSError, ValueError, EOFError, TypeError, AttributeError) as error:
        raise UnreadableFile(f"{path} is not a NumPy array of numbers: {error}.") from error
    if scores.ndim != 2 or scores.size == 0 or not np.isfinite(scores).all():
        raise UnreadableFile(f"{path} holds an array of shape {scores.shape}; finite scores [layer head] are needed.")
    columns = scores.shape[1]
    if shape.heads is not None and columns not in (shape.heads, shape.kv_heads):
        raise MaskMismatch(f"{path} scores {columns} heads a layer; the model has {_counts(shape)}.")
    kind = "kv" if columns == shape.kv_heads and columns != shape.heads else "query"
    return HeadMask(scores, kind, kv_heads=shape.kv_heads)  # type: ignore[arg-type]


def _counts(shape: Shape) -> str:
    return f"{shape.heads} query and {shape.kv_heads} key/value heads" if shape.kv_heads else f"{shape.heads}"


def _is_duo(path: Path, _content: Any) -> bool:
    return path.is_dir() and (path / DUO_SCORES).is_file()


FORMATS = (
    Format(
        "duo",
        f"the scores of key/value heads for DuoAttention and kvpress: a folder of {DUO_SCORES} and {DUO_CONFIG}",
        read_duo,
        write_duo,
        _is_duo,
        "kv",
        why={"scores": "those outside 0 to 1 are clipped by who reads them"},
    ),
    Format(
        "npy",
        "the scores, [layer head]",
        read_npy,
        write_npy,
        lambda path, content: path.suffix == ".npy",
        why={"kind": "an array does not say which kind of heads it scores"},
    ),
)
