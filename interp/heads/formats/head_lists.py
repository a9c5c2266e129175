"""JSON that names heads `"layer-head"`: Retrieval_Head's and HeadKV's lists of scores, QRHead's ranking."""

from __future__ import annotations

import json
import re
from collections.abc import Container, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from interp.errors import UnreadableFile
from interp.heads.formats.format import Format, Shape, full_shape, is_number, read_json
from interp.heads.mask import Head, HeadMask

HEADKV_TASKS = ("retrieval_heads", "retrieval_reasoning_heads")
"""How HeadKV ends the names of its files, after the model and an underscore."""

_HEAD = re.compile(r"(\d+)-(\d+)")


def write_sample_lists(mask: HeadMask, path: Path) -> None:
    """`{"0-0": [score of each test that passed, …], …}` on one line, which is how far HeadKV reads."""
    lists = {}
    for layer, head in np.ndindex(mask.scores.shape):
        if mask.samples is None:
            lists[f"{layer}-{head}"] = [float(mask.scores[layer, head])]
        else:
            samples = mask.samples[:, layer, head]
            lists[f"{layer}-{head}"] = samples[~np.isnan(samples)].tolist()
    path.write_text(json.dumps(lists) + "\n", encoding="utf-8")


def read_sample_lists(path: Path, shape: Shape, method: str) -> HeadMask:
    """Lists of scores, or single scores as some forks write them."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise UnreadableFile(f'{path} is not an object of "layer-head" keys.')
    if not content:
        raise UnreadableFile(f"{path} holds no heads ({{}}): when it was made, no test passed the gate.")
    lists: dict[Head, list[float]] = {}
    for key, value in content.items():
        scores = value if isinstance(value, list) else [value]
        if not scores or not all(map(is_number, scores)):
            raise UnreadableFile(f"{path}: head {key!r} has {_short(value)}, which is not a list of finite numbers.")
        lists[_head(path, key, lists)] = scores
    layers, columns = full_shape(path, lists, shape, "query")
    samples = np.full((max(map(len, lists.values())), layers, columns), np.nan)
    for (layer, head), scores in lists.items():
        samples[: len(scores), layer, head] = scores
    if any(isinstance(value, list) for value in content.values()):
        return HeadMask.from_samples(samples, method=method, kv_heads=shape.kv_heads)
    return HeadMask(samples[0], method=method, kv_heads=shape.kv_heads)


def write_ranking(mask: HeadMask, path: Path) -> None:
    """`[["13-18", 0.91], …]`, best first."""
    ranking = [[f"{layer}-{head}", float(mask.scores[layer, head])] for layer, head in mask.ranking]
    path.write_text(json.dumps(ranking) + "\n", encoding="utf-8")


def read_ranking(path: Path, shape: Shape) -> HeadMask:
    content = read_json(path)
    if not isinstance(content, list) or not content:
        raise UnreadableFile(f'{path} is not a list of ["layer-head", score].')
    scores: dict[Head, float] = {}
    for i, entry in enumerate(content):
        if not (isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str) and is_number(entry[1])):
            raise UnreadableFile(f'{path}: entry {i} is {_short(entry)}, not ["layer-head", score].')
        scores[_head(path, entry[0], scores)] = entry[1]
    array = np.empty(full_shape(path, scores, shape, "query"))
    for head, score in scores.items():
        array[head] = score
    return HeadMask(array, method="qrhead", kv_heads=shape.kv_heads)


def _head(path: Path, key: str, known: Container[Head]) -> Head:
    if not (match := _HEAD.fullmatch(key)):
        raise UnreadableFile(f'{path} has the key {key!r}; heads are named "layer-head", such as "16-19".')
    head = int(match[1]), int(match[2])
    if head in known:
        raise UnreadableFile(f"{path} names head {key} twice.")
    return head


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:60] + "…"


def _named(keys: Iterable[Any]) -> bool:
    return all(isinstance(key, str) and _HEAD.fullmatch(key) for key in keys)


def _is_of_headkv(path: Path) -> bool:
    return path.stem.endswith(tuple(f"_{task}" for task in HEADKV_TASKS))


_WHY = {"scores": "readers take the mean of each list of scores, which is not this mask's score"}

FORMATS = (
    Format(
        "retrieval-head",
        "the score of every head in every test that passed",
        partial(read_sample_lists, method="retrieval-head"),
        write_sample_lists,
        lambda path, content: isinstance(content, dict) and _named(content) and not _is_of_headkv(path),
        "query",
        why=_WHY,
    ),
    Format(
        "headkv",
        "the same, for HeadKV, whose file names end in _retrieval_heads.json or _retrieval_reasoning_heads.json",
        partial(read_sample_lists, method="headkv-r2"),
        write_sample_lists,
        lambda path, content: isinstance(content, dict) and _named(content) and _is_of_headkv(path),
        "query",
        why=_WHY,
    ),
    Format(
        "qrhead",
        "every head with its score, best first",
        read_ranking,
        write_ranking,
        lambda path, content: isinstance(content, list),
        "query",
    ),
)
