"""Edits on disk: one JSON file, with the tensors beside it in safetensors."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from interp.errors import UnreadableFile, UnwritableOutput
from interp.tracing.edits import KINDS, Edit
from interp.tracing.frame import Positions
from interp.tracing.sites import Site

SCHEMA = 1


def edit_to_dict(edit: Edit, index: int, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """A JSON-ready description; its tensors are added to `tensors` and referred to by key."""
    references = {}
    for name, tensor in edit.tensors.items():
        references[name] = f"{index}.{name}"
        tensors[f"{index}.{name}"] = tensor.contiguous()
    return {
        "kind": edit.kind,
        "site": str(edit.site),
        "tensors": references,
        "parameters": dict(edit.parameters),
        "positions": _positions_to_json(edit.positions),
        "rows": None if edit.rows is None else list(edit.rows),
    }


def edit_from_dict(record: dict[str, Any], tensors: dict[str, Tensor]) -> Edit:
    """The inverse of `edit_to_dict`; raises UnreadableFile for kinds and tensors that do not exist."""
    if record["kind"] not in (*KINDS, "attend"):
        raise UnreadableFile(f"an edit of kind {record['kind']!r} is unknown; valid: {', '.join([*KINDS, 'attend'])}")
    missing = [key for key in record["tensors"].values() if key not in tensors]
    if missing:
        raise UnreadableFile(f"the tensors {', '.join(missing)} of {record['kind']}({record['site']}) are missing")
    return Edit(
        record["kind"],
        Site.parse(record["site"]),
        {name: tensors[key] for name, key in record["tensors"].items()},
        record["parameters"],
        _positions_from_json(record["positions"]),
        None if record["rows"] is None else tuple(record["rows"]),
    )


def save_edits(path: str | Path, edits: Sequence[Edit]) -> None:
    """Write `path` (JSON) and, when there are tensors, `path` with the suffix `.safetensors`."""
    path = Path(path)
    tensors: dict[str, Tensor] = {}
    records = [edit_to_dict(edit, i, tensors) for i, edit in enumerate(edits)]
    try:
        if tensors:
            staged = path.with_suffix(".safetensors.partial")
            save_file(tensors, staged)
            os.replace(staged, path.with_suffix(".safetensors"))
        staged = path.with_suffix(path.suffix + ".partial")
        staged.write_text(json.dumps({"schema": SCHEMA, "edits": records}, indent=1))
        os.replace(staged, path)
    except (OSError, SafetensorError) as error:
        raise UnwritableOutput(f"edits cannot be written to {path}: {error}") from error


def load_edits(path: str | Path) -> list[Edit]:
    """Read what `save_edits` wrote; raises UnreadableFile."""
    path = Path(path)
    try:
        document = json.loads(path.read_text())
        records = document["edits"]
        beside = path.with_suffix(".safetensors")
        tensors = load_file(beside) if any(record["tensors"] for record in records) else {}
    except (OSError, SafetensorError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise UnreadableFile(f"{path} does not hold edits: {error}") from error
    if document.get("schema") != SCHEMA:
        raise UnreadableFile(f"{path} has schema {document.get('schema')}, this version reads {SCHEMA}")
    return [edit_from_dict(record, tensors) for record in records]


def _positions_to_json(positions: Positions) -> Any:
    if isinstance(positions, slice):
        return {"start": positions.start, "stop": positions.stop}
    return positions if isinstance(positions, (int, str)) or positions is None else list(positions)


def _positions_from_json(value: Any) -> Positions:
    if isinstance(value, dict):
        return slice(value["start"], value["stop"])
    return tuple(value) if isinstance(value, list) else value
