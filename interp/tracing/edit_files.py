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

from interp.errors import UnknownSite, UnreadableFile, UnwritableOutput, choose
from interp.tracing.edits import Edit
from interp.tracing.interventions import KINDS
from interp.tracing.sites import Site

SCHEMA = 1


def edit_to_dict(edit: Edit, index: int, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """A JSON-ready description; its tensors are added to `tensors` and referred to by key."""
    references = {}
    for name, tensor in edit.tensors.items():
        references[name] = f"{index}.{name}"
        tensors[f"{index}.{name}"] = tensor.detach().clone().contiguous()
    return {
        "kind": edit.kind,
        "site": str(edit.site),
        "tensors": references,
        "parameters": {name: _to_json(value) for name, value in edit.parameters.items()},
        "positions": _to_json(edit.positions),
        "rows": None if edit.rows is None else list(edit.rows),
    }


def edit_from_dict(record: dict[str, Any], tensors: dict[str, Tensor]) -> Edit:
    """The inverse of `edit_to_dict`; raises UnreadableFile for kinds and tensors that do not exist."""
    if record["kind"] not in (*KINDS, "attend"):
        raise UnreadableFile(
            f"there is no edit of kind {record['kind']!r}; {choose(record['kind'], [*KINDS, 'attend'])}"
        )
    missing = [key for key in record["tensors"].values() if key not in tensors]
    if missing:
        raise UnreadableFile(f"the tensors {', '.join(missing)} of {record['kind']}({record['site']}) are missing")
    return Edit(
        record["kind"],
        Site.parse(record["site"]),
        {name: tensors[key] for name, key in record["tensors"].items()},
        {name: _from_json(value) for name, value in record["parameters"].items()},
        _from_json(record["positions"]),
        None if record["rows"] is None else tuple(record["rows"]),
    )


def save_edits(path: str | Path, edits: Sequence[Edit]) -> None:
    """Write `path` (JSON) and the tensors beside it, with the suffix `.safetensors`; raises UnwritableOutput."""
    path = Path(path)
    if path.suffix == ".safetensors":
        raise UnwritableOutput(f"{path}: that name is for the tensors; give the JSON file, such as edits.json")
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
        if document["schema"] != SCHEMA:
            raise UnreadableFile(f"{path} has schema {document['schema']}, this version reads {SCHEMA}")
        records = document["edits"]
        beside = path.with_suffix(".safetensors")
        tensors = load_file(beside) if any(record["tensors"] for record in records) else {}
        return [edit_from_dict(record, tensors) for record in records]
    except KeyError as error:
        raise UnreadableFile(f"{path} does not hold edits: it lacks {error}") from error
    except UnknownSite as error:
        raise UnreadableFile(f"{path}: {error}") from error
    except (OSError, SafetensorError, UnicodeDecodeError, json.JSONDecodeError, TypeError, AttributeError) as error:
        raise UnreadableFile(f"{path} does not hold edits: {error}") from error


def _to_json(value: Any) -> Any:
    return {"start": value.start, "stop": value.stop} if isinstance(value, slice) else value


def _from_json(value: Any) -> Any:
    if isinstance(value, dict):
        return slice(value["start"], value["stop"])
    return tuple(value) if isinstance(value, list) else value
