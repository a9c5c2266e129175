"""Numbers by head, from the table of any run that has a row a head: what the Heads page can colour and compare."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from apps.explorer.results import read, result_of
from interp.errors import UnreadableFile
from interp.runs import Run

if TYPE_CHECKING:
    import plotly.graph_objects as go

KEYS = ["layer", "head"]
BESIDES = ("layer", "head", "n", "low", "high", "seed", "id")
"""Columns that say where or how sure, not how much."""
GROUPS = ("stage", "role")
"""Columns that tell several rows of one head apart."""
PLOTTED = {"head-scores": "score", "head-effects": "effect"}
"""The metric that a result of this kind plots itself."""
TABLES = {"lofit": "heads"}
"""By kind, the further table that has the rows a head."""
MEMBERSHIP = "circuit membership"
"""1 of heads that have a role in a circuit, 0 of the others."""
QUANTITIES: Mapping[str, Mapping[str, str]] = {
    "head-scores": {"score": "{method} score", "activation_frequency": "share of tests in which it scores"},
    "head-roles": {"score": "mean attention probability"},
    "head-effects": {"effect": "{metric} lost ({unit})"},
    "head-importance": {
        "effect": "{metric} lost ({unit})",
        "signed": "mean gradient of its gate ({unit})",
        "abs_of_mean": "absolute mean gradient of its gate ({unit})",
        "mean_of_abs": "gradient importance, mean of absolute values ({unit})",
        "tokens": "gradient importance, absolute at every token ({unit})",
    },
    "lofit": {"strength": "LoFiT strength (norm of A)", "selected": "LoFiT selection (share of seeds)"},
    "circuit": {MEMBERSHIP: "circuit membership (1: has a role)"},
}
"""By kind and column, what a number is, with its unit; other columns go by their names."""

Head = tuple[int, int]


@dataclass(frozen=True, eq=False)
class HeadMetric:
    """One number a head, `values` `[layer head]`, NaN where there is none, with its interval where the run has one.

    `quantity` says what the number is, with its unit. `labels` `[layer head]` are words on heads, such as their roles.
    """

    name: str
    values: np.ndarray
    low: np.ndarray
    high: np.ndarray
    n: int
    run: str
    model: str
    fingerprint: str
    quantity: str = ""
    labels: np.ndarray | None = None

    def __str__(self) -> str:
        return f"{self.name} · {self.run}"

    def rank(self, head: Head) -> int:
        """Place of a head among all, 1 the greatest."""
        return 1 + int((self.values > self.values[head]).sum())

    @property
    def signed(self) -> bool:
        return bool((self.values < 0).any())

    @property
    def axis(self) -> str:
        """What stands at an axis of this metric."""
        return f"{self.quantity or self.name} · {self.run}"

    def said(self) -> list[str]:
        """What is known of every head, row by row, in words."""
        said = []
        for layer, head in np.ndindex(*self.values.shape):
            value, low, high = (grid[layer, head] for grid in (self.values, self.low, self.high))
            words = f"head {layer}.{head}: " + ("no number" if np.isnan(value) else f"{value:.3f}")
            words += f" [{low:.3f}, {high:.3f}]" if np.isfinite([low, high]).all() else ""
            words += f", n = {self.n}" if self.n else ""
            label = "" if self.labels is None else self.labels[layer, head]
            said.append(f"{words}, {label}" if label else words)
        return said

    def figure(self) -> go.Figure:
        """Heat map, layers by heads: a colour a label where it has any, diverging around 0 where signs differ."""
        from interp.plots.ablation import effect_map
        from interp.plots.heads import head_map, role_map

        title = f"{self.name} on {self.model}"
        if self.labels is not None:
            return role_map(self.labels, title)
        if not self.signed:
            return head_map(self.values, title, self.quantity or self.name)
        layer, head = (index.ravel() for index in np.indices(self.values.shape))
        columns = {"effect": self.values.ravel(), "low": self.low.ravel(), "high": self.high.ravel(), "n": self.n}
        return effect_map(pd.DataFrame({"layer": layer, "head": head, **columns}), self.quantity or self.name, title)


def metrics_of(run: Run, name: str) -> dict[str, HeadMetric]:
    """Every metric of a run by head, under its name; none where its table has no row a head.

    `name` is the run's in the explorer. Raises UnreadableFile for a table that names heads its model does not have.
    """
    if not _may_have_heads(run):
        return {}
    return read(run, lambda _path: _metrics(run, name))


def metric_figure(run: Run, metric: HeadMetric) -> go.Figure:
    """The figure of a metric: what the result itself plots, where it plots this metric."""
    if PLOTTED.get(run.record.kind) == metric.name:
        return read(run, lambda _path: result_of(run).plot())
    return metric.figure()


def _may_have_heads(run: Run) -> bool:
    import pyarrow.parquet as parquet

    file = f"{TABLES.get(run.record.kind, 'table')}.parquet"
    return read(run, lambda path: set(KEYS) <= set(parquet.read_schema(path / file).names))


def _metrics(run: Run, name: str) -> dict[str, HeadMetric]:
    further = TABLES.get(run.record.kind)
    frame = (run.frame if further is None else run.table(further)).dropna(subset=KEYS)
    if not len(frame) or not all(pd.api.types.is_numeric_dtype(frame[key]) for key in KEYS):
        return {}
    found: dict[str, HeadMetric] = {}
    if run.record.kind == "circuit" and "role" in frame:
        found[MEMBERSHIP] = _membership(run, name, frame)
    for group, part in _groups(frame):
        for column in _columns(part):
            metric = _metric(run, name, part, column, group)
            found[metric.name] = metric
    return found


def _groups(frame: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    if not frame.duplicated(KEYS).any():
        return [("", frame)]
    for by in GROUPS:
        if by in frame and not frame.duplicated([*KEYS, by]).any():
            return [(str(value), part) for value, part in frame.groupby(by, sort=False)]
    return []


def _membership(run: Run, name: str, frame: pd.DataFrame) -> HeadMetric:
    """Whether a head has a role in the circuit, and which."""
    roles = frame.assign(role=frame.role.fillna("").astype(str))
    by_head = roles.groupby(KEYS).role.agg(lambda role: ", ".join(sorted({each for each in role if each})))
    table = by_head.reset_index()
    metric = _metric(run, name, table.assign(**{MEMBERSHIP: (table.role != "").astype(float)}), MEMBERSHIP, "")
    labels = np.full(metric.values.shape, "", dtype=object)
    labels[table.layer.to_numpy(dtype=int), table["head"].to_numpy(dtype=int)] = table.role.to_numpy()
    return replace(metric, labels=labels)


def _quantity(run: Run, column: str, group: str) -> str:
    """What a column's number is, with its unit."""
    from interp.plots.ablation import UNITS

    metric, method = (str(run.record.parameters.get(fact, "")) for fact in ("metric", "method"))
    unit = UNITS.get(metric, "").partition("(")[2].rstrip(")") or "unit unknown"
    facts = {"method": method, "metric": metric, "unit": unit}
    base = column.removesuffix("_by_layer")
    known = QUANTITIES.get(run.record.kind, {}).get(base)
    words = base.replace("_", " ") if known is None else known.format_map(facts)
    words += ", over the norm of its layer" if base != column else ""
    return f"{group}: {words}" if group else words


def _columns(frame: pd.DataFrame) -> list[str]:
    numeric = [str(column) for column in frame if pd.api.types.is_numeric_dtype(frame[column])]
    named = [column for column in numeric if column not in BESIDES and not column.endswith(("_low", "_high"))]
    return [column for column in named if frame[column].notna().any()]


def _metric(run: Run, name: str, frame: pd.DataFrame, column: str, group: str) -> HeadMetric:
    shape = run.heads
    layer, head = (frame[key].to_numpy(dtype=int) for key in KEYS)
    if (layer < 0).any() or (head < 0).any() or (layer >= shape[0]).any() or (head >= shape[1]).any():
        raise UnreadableFile(f"{run.path.name} names heads beyond {shape[0]} layers of {shape[1]}")

    def grid(which: str) -> np.ndarray:
        values = np.full(shape, np.nan)
        if which in frame:
            values[layer, head] = frame[which].to_numpy(dtype=float)
        return values

    first = _columns(frame)[0]
    bounds = ("low", "high") if column == first and "low" in frame else (f"{column}_low", f"{column}_high")
    n = int(frame["n"].max()) if "n" in frame else 0
    title = f"{group}: {column}" if group else column
    model, fingerprint = (str(run.record.model.get(key)) for key in ("name", "fingerprint"))
    quantity = _quantity(run, column, group)
    return HeadMetric(title, grid(column), grid(bounds[0]), grid(bounds[1]), n, name, model, fingerprint, quantity)


def head_table(metrics: list[HeadMetric], head: Head) -> pd.DataFrame:
    """What every metric says of one head, with its place among the heads."""
    rows = [
        {
            "run": metric.run,
            "metric": metric.name,
            "value": metric.values[head],
            "low": metric.low[head],
            "high": metric.high[head],
            "place": f"{metric.rank(head)} of {np.isfinite(metric.values).sum()}",
            "n": metric.n,
            "what it is": metric.quantity,
        }
        for metric in metrics
        if head[0] < metric.values.shape[0] and head[1] < metric.values.shape[1] and np.isfinite(metric.values[head])
    ]
    return pd.DataFrame(rows, columns=["run", "metric", "value", "low", "high", "place", "n", "what it is"])


def both(x: HeadMetric, y: HeadMetric) -> pd.DataFrame:
    """A row a head that both metrics have: layer, head, x, y."""
    shape = tuple(map(min, x.values.shape, y.values.shape))
    layer, head = (index.ravel() for index in np.indices(shape))
    frame = pd.DataFrame({"layer": layer, "head": head, "x": x.values[layer, head], "y": y.values[layer, head]})
    return frame.dropna(ignore_index=True)


def parse_head(text: str) -> Head:
    """`"2.5"` as layer and head. Raises UnreadableFile for anything else."""
    layer, dot, head = text.partition(".")
    if not (dot and layer.isdecimal() and head.isdecimal() and len(text) < 12):
        raise UnreadableFile(f"{text[:40]!r} is not a head such as 2.5")
    return int(layer), int(head)
