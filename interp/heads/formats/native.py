"""Our own formats, which lose nothing: JSON to read and compare, safetensors for many samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from interp.errors import BadInput, UnreadableFile
from interp.heads.formats.format import Format, Shape, read_json
from interp.heads.mask import HeadMask

SCHEMA = "interp-head-mask"
VERSION = 1

_TEXTS = ("kind", "method", "model", "family", "fingerprint", "rule", "reduction")


def is_ours(content: object) -> bool:
    return isinstance(content, dict) and content.get("schema") == SCHEMA


def write_json(mask: HeadMask, path: Path) -> None:
    samples = None
    if mask.samples is not None:
        samples = [
            [_without_padding(mask.samples[:, i, j]) for j in range(row.size)] for i, row in enumerate(mask.scores)
        ]
    arrays = {
        "scores": mask.scores.tolist(),
        "selected": None if mask.selected is None else np.argwhere(mask.selected).tolist(),
        "samples": samples,
    }
    path.write_text(json.dumps(_header(mask) | arrays, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json_mask(path: Path, _shape: Shape) -> HeadMask:
    content = read_json(path)
    _require_version(path, content)
    try:
        scores = np.array(content["scores"], dtype=np.float64)
        selected = None if content["selected"] is None else _chosen(content["selected"], scores.shape)
        samples = None if content["samples"] is None else _padded(content["samples"])
        return HeadMask(scores, selected=selected, samples=samples, **_fields(content))
    except (KeyError, TypeError, ValueError) as error:
        raise UnreadableFile(f"{path} is not a head mask: {_what(error)}") from error


def write_safetensors(mask: HeadMask, path: Path) -> None:
    from safetensors.numpy import save_file

    arrays = {name: getattr(mask, name) for name in ("scores", "selected", "samples")}
    tensors = {name: np.ascontiguousarray(array) for name, array in arrays.items() if array is not None}
    save_file(tensors, path, metadata={"mask": json.dumps(_header(mask), ensure_ascii=False)})


def read_safetensors(path: Path, _shape: Shape) -> HeadMask:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            content = json.loads((file.metadata() or {}).get("mask", "null"))
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is not a dict
    except (OSError, ValueError, SafetensorError) as error:
        raise UnreadableFile(f"{path} cannot be read as safetensors: {error}.") from error
    _require_version(path, content)
    try:
        return HeadMask(**arrays, **_fields(content))
    except (KeyError, TypeError, ValueError) as error:
        raise UnreadableFile(f"{path} is not a head mask: {_what(error)}") from error


def _header(mask: HeadMask) -> dict[str, Any]:
    texts = {name: getattr(mask, name) for name in _TEXTS}
    return {
        "schema": SCHEMA,
        "version": VERSION,
        **texts,
        "kv_heads": mask.kv_heads,
        "metadata": mask.metadata,
    }


def _fields(content: dict[str, Any]) -> dict[str, Any]:
    for name in _TEXTS:
        if not isinstance(content[name], str):
            raise BadInput(f"its {name} is {content[name]!r}, not a text.")
    return {name: content[name] for name in (*_TEXTS, "kv_heads", "metadata")}


def _require_version(path: Path, content: object) -> None:
    if not is_ours(content):
        raise UnreadableFile(f"{path} does not say that it is a head mask of this workbench ({SCHEMA}).")
    version = content["version"] if isinstance(content, dict) and "version" in content else None
    if not isinstance(version, int) or version < 1:
        raise UnreadableFile(f"{path} has mask version {version!r}; versions are 1 to {VERSION}.")
    if version > VERSION:
        raise UnreadableFile(f"{path} has mask version {version}, and this release reads up to {VERSION}: update it.")


def _chosen(heads: list[list[int]], shape: tuple[int, ...]) -> np.ndarray:
    selected = np.zeros(shape, dtype=bool)
    for layer, head in heads:
        if not (0 <= layer < shape[0] and 0 <= head < shape[1]):
            raise BadInput(f"it selects head {layer}-{head}, which it does not score.")
        selected[layer, head] = True
    return selected


def _without_padding(samples: np.ndarray) -> list[float]:
    return samples[~np.isnan(samples)].tolist()


def _padded(lists: list[list[list[float]]]) -> np.ndarray:
    """Lists of samples `[layer head test]` of different lengths as one array `[test layer head]`."""
    tests = max(len(samples) for row in lists for samples in row)
    padded = [[[*samples, *[np.nan] * (tests - len(samples))] for samples in row] for row in lists]
    return np.moveaxis(np.array(padded, dtype=np.float64), -1, 0)


def _what(error: Exception) -> str:
    return f"it lacks {error}." if isinstance(error, KeyError) else str(error)


FORMATS = (
    Format(
        "json",
        "everything, as text",
        read_json_mask,
        write_json,
        lambda path, content: is_ours(content),
    ),
    Format(
        "safetensors",
        "everything, as arrays",
        read_safetensors,
        write_safetensors,
        lambda path, content: path.suffix == ".safetensors",
    ),
)
