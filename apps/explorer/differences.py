"""What two runs were made with, where they differ."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import pandas as pd

from interp.runs import RunRecord

TIMES = ("started", "finished")


def facts(record: RunRecord) -> dict[str, Any]:
    """A record as one flat mapping: `model fingerprint`, `parameters gate`, …"""
    flat: dict[str, Any] = {}
    for name, value in asdict(record).items():
        if isinstance(value, Mapping):
            flat |= {f"{name} {key}": entry for key, entry in value.items()}
        else:
            flat[name] = value
    return flat


def differences(a: RunRecord, b: RunRecord) -> pd.DataFrame:
    """A row a fact that differs, times left out: what it is in one run and in the other, "" where it is not there."""
    first, second = facts(a), facts(b)
    names = [name for name in dict.fromkeys([*first, *second]) if name not in TIMES]
    rows = [(name, said(first.get(name)), said(second.get(name))) for name in names]
    different = [row for row in rows if row[1] != row[2]]
    return pd.DataFrame(different, columns=["fact", "first", "second"])


def said(value: Any, most: int = 400) -> str:
    """A value as one line of text, cut where it is long."""
    if value is None:
        return ""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= most else f"{text[:most]} … ({len(text):,} characters)"
