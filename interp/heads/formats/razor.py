"""RazorAttention's JSON: layer by layer, the key/value heads that keep their whole cache."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from interp.errors import BadInput, UnreadableFile
from interp.heads.formats.format import Format, Shape, read_json, require_within
from interp.heads.mask import Head, HeadMask

PROBES = ("prefix_matching", "copying")
"""What one of its implementations keeps apart: induction heads and echo heads."""


def write(mask: HeadMask, path: Path) -> None:
    """`{"0": [kv head, …], …}` with a list for every layer. Raises BadInput for a mask without a selection."""
    if mask.selected is None:
        raise BadInput("This format holds the selected heads: select some first, by threshold, top k or quantile.")
    lists = {str(layer): np.flatnonzero(row).tolist() for layer, row in enumerate(mask.selected)}
    path.write_text(json.dumps(lists) + "\n", encoding="utf-8")


def read(path: Path, shape: Shape) -> HeadMask:
    """Selected heads score 1, the others 0; of a file with two probes, heads that either selects."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise UnreadableFile(f'{path} is not an object of "layer" keys.')
    if shape.layers is None or shape.kv_heads is None:
        raise BadInput(
            f"{path} does not say how many layers and key/value heads the model has: name the model, or the numbers."
        )
    probes = [name for name in PROBES if name in content]
    heads = {head for part in ([content[name] for name in probes] or [content]) for head in _heads(path, part)}
    require_within(path, heads, shape.layers, shape.kv_heads)
    selected = np.zeros((shape.layers, shape.kv_heads), dtype=bool)
    for head in heads:
        selected[head] = True
    rule = f"listed under {' or '.join(probes)}" if probes else "listed"
    return HeadMask(selected, "kv", "razor", kv_heads=shape.kv_heads, selected=selected, rule=rule)


def _heads(path: Path, lists: object) -> set[Head]:
    if not isinstance(lists, dict):
        raise UnreadableFile(f'{path} is not an object of "layer" keys.')
    heads = set()
    for layer, listed in lists.items():
        if not layer.isdecimal() or not isinstance(listed, list):
            raise UnreadableFile(f'{path}: {layer!r} has {listed!r}; "layer" keys and lists of heads are needed.')
        for head in listed:
            if not isinstance(head, int) or isinstance(head, bool) or head < 0:
                raise UnreadableFile(f"{path}: layer {layer} lists {head!r}, which is no head.")
            heads.add((int(layer), head))
    return heads


def _recognises(_path: Path, content: Any) -> bool:
    return isinstance(content, dict) and bool(content) and all(key.isdecimal() or key in PROBES for key in content)


FORMATS = (
    Format(
        "razor",
        "the selected key/value heads of each layer",
        read,
        write,
        _recognises,
        "kv",
        shapeless=True,
        why={
            "scores": "only the selected heads are kept, so they score 1 and the others 0",
            "rule": "why the heads were selected is not kept",
        },
    ),
)
