"""LabelledTexts: texts with a label each, from a generator or from a file."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from interp.errors import BadInput, UnreadableFile
from interp.tables import in_notebook

SHOWN = 6
"""Texts in a notebook."""


@dataclass(frozen=True, repr=False)
class LabelledTexts:
    """A data set for probes. Raises BadInput where the fields do not have one entry a text.

    `keys` name what decides a label (the adjective of a review): control labels are drawn once a key. `groups` stay
    together in cross-validation, so that a probe is tested on groups it has not seen. Both are optional.
    """

    name: str
    texts: tuple[str, ...]
    labels: tuple[Any, ...]
    keys: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    level: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for what, column in (("labels", self.labels), ("keys", self.keys), ("groups", self.groups)):
            if len(column) != len(self.texts) and (column or what == "labels"):
                raise BadInput(f"{self.name} has {len(column)} {what} for {len(self.texts)} texts")
        if not self.texts:
            raise BadInput(f"{self.name} holds no texts")

    def __len__(self) -> int:
        return len(self.texts)

    def __repr__(self) -> str:
        level = f" ({self.level})" if self.level else ""
        return f"LabelledTexts({self.name}{level}: {len(self)} texts, classes {sorted(set(map(str, self.labels)))})"

    def _repr_html_(self) -> str:
        import pandas as pd

        columns = {"text": self.texts, "label": self.labels, "key": self.keys, "group": self.groups}
        return in_notebook(self, pd.DataFrame({name: column for name, column in columns.items() if column}), most=SHOWN)

    @classmethod
    def from_file(cls, path: str | Path, name: str | None = None) -> LabelledTexts:
        """Read a JSONL or CSV file with `text` and `label`, and where wanted `key` and `group`.

        Raises UnreadableFile naming the line that does not fit, and BadInput.
        """
        path = Path(path)
        rows = read_rows(path)
        columns: dict[str, tuple[Any, ...]] = {}
        for column in ("text", "label", "key", "group"):
            having = [i for i, row in enumerate(rows, 1) if row.get(column) not in (None, "")]
            if column in ("text", "label") and len(having) < len(rows):
                lacking = next(i for i in range(1, len(rows) + 1) if i not in set(having))
                raise UnreadableFile(f"entry {lacking} of {path} has no {column}; each needs a text and a label")
            if having and len(having) < len(rows):
                raise UnreadableFile(
                    f"{len(having)} of {len(rows)} entries of {path} have a {column}; all or none must"
                )
            columns[column] = tuple(row[column] for row in rows) if having else ()
        texts, keys, groups = (tuple(map(str, columns[c])) for c in ("text", "key", "group"))
        return cls(name or path.stem, texts, columns["label"], keys, groups, parameters={"file": str(path)})


def read_rows(path: Path, delimiter: str = ",") -> list[dict[str, Any]]:
    """The entries of a CSV, JSON-lines or JSON-list file, as objects. Raises UnreadableFile."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UnreadableFile(f"{path} cannot be read: {error}") from error
    if path.suffix.lower() in (".csv", ".tsv"):
        rows: list[Any] = list(csv.DictReader(text.splitlines(keepends=True), delimiter=delimiter))
    else:
        rows = [_parsed(line, number, path) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not rows:
        raise UnreadableFile(f"{path} holds no entries")
    return rows


def _parsed(line: str, number: int, path: Path) -> Mapping[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UnreadableFile(f"line {number} of {path} is not JSON: {error}") from error
    if not isinstance(row, dict):
        raise UnreadableFile(f"line {number} of {path} is not an object with a text and a label")
    return row


def balanced(labels: Sequence[Any], n: int) -> list[Any]:
    """`n` labels, each class as often as every other (to within one)."""
    return [labels[i % len(labels)] for i in range(n)]
