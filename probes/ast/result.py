"""F1 of recovered syntax trees by layer and rank, beside its controls, and what follows from it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from interp.errors import BadInput, UnreadableFile, choose
from interp.runs import Run, load_run, save_run
from interp.tables import in_notebook
from probes.ast.decode import balanced, right_branching
from probes.ast.leaves import EMBEDDING
from probes.ast.probe import AstProbe, Labels
from probes.ast.subspaces import similarities
from probes.metrics import resamples

if TYPE_CHECKING:
    import plotly.graph_objects as go

KIND = "ast-probe"
COLUMNS = frozenset(("series", "site", "rank", "split", "metric", "value", "low", "high", "functions"))
LABELS_FILE = "labels.json"
CONTROL = "control."
"""What the names of the controls' probes begin with in a run."""
WORDS = "embedding"
"""The probe of the embedding where it is a control: states that know a token's word and no neighbours."""
PROBE, UNTRAINED, SHIFTED, FOLLOWING = "probe", "untrained", "shifted", "following token"
SHAPES = {"right-branching": right_branching, "balanced": balanced}
"""Baselines: these shapes, whatever the code, with the labels that the probe of the same layer gives."""
MARGIN = 0.1
"""F1 by which trees count as the model's doing, beyond its embedding and an untrained model."""
SATURATED = 0.01
"""F1 that a rank may lack to the best one and still hold all there is."""


@dataclass(frozen=True, eq=False, repr=False)
class AstStudy:
    """F1 of recovered trees by layer and rank, with controls.

    Attributes:
        frame: one row a series, site, rank, split and metric, with bootstrap intervals over files.
        types: precision, recall and F1 of every node type at the best layer, on the test functions.
        f1: `[row function]` of the rows of `curves`: F1 (membership) of every test function.
        curves: series, site and rank of the rows of `f1`.
        files: `[function]`: the file of every test function.
        probes: the probe of every site, of the model, at the reference rank.
        controls: the probe of each trained control, at its best site on the validation functions.
    """

    frame: pd.DataFrame
    types: pd.DataFrame
    f1: np.ndarray
    curves: pd.DataFrame
    files: tuple[str, ...]
    probes: Mapping[str, AstProbe]
    model: Mapping[str, Any]
    parameters: Mapping[str, Any]
    controls: Mapping[str, AstProbe] = field(default_factory=dict)

    def __repr__(self) -> str:
        return (
            f"AstStudy({self.model['name']}: {len(self.probes)} sites, best {self.best}, {len(self.files)} functions)"
        )

    @property
    def title(self) -> str:
        """Model, language and where the code is from."""
        return f"{self.model['name']}, {self.parameters['language']} ({self.parameters['source']})"

    @property
    def best(self) -> str:
        """The site with the best F1 on the validation functions."""
        rows = self.curve(PROBE, split="valid")
        return str(rows.site[rows.value.idxmax()])

    def curve(self, series: str, metric: str = "f1", split: str = "test") -> pd.DataFrame:
        """A series by layer, at the reference rank."""
        f = self.frame
        at = (f.series == series) & (f.metric == metric) & (f.split == split)
        return f[at & (f["rank"] == self.parameters["settings"]["rank"])]

    def by_rank(self) -> pd.DataFrame:
        """F1 of the best site by rank, on the test functions, the least rank first."""
        f = self.frame
        rows = f[(f.series == PROBE) & (f.metric == "f1") & (f.split == "test") & (f.site == self.best)]
        return rows.sort_values("rank", ignore_index=True)

    @property
    def saturation_rank(self) -> int:
        """The least rank whose F1 is at most `SATURATED` below that of the best one."""
        rows = self.by_rank()
        return int(rows["rank"][rows.value >= rows.value.max() - SATURATED].iloc[0])

    def comparisons(self) -> pd.DataFrame:
        """F1 of the best site minus that of each control, paired over functions, with intervals over files.

        A control of several layers is taken at its own best one. `beyond` says whether the difference is at least
        `MARGIN` and the intervals of the two do not overlap.
        """
        rank, best = self.parameters["settings"]["rank"], self.best
        own, value = self._of(PROBE, best, rank)
        rows = []
        against = [(WORDS, PROBE, [EMBEDDING])]
        against += [(name, name, list(self.curve(name).site)) for name in (UNTRAINED, SHIFTED, FOLLOWING, *SHAPES)]
        for name, series, sites in against:
            found = [self._of(series, site, rank) for site in sites]
            if found:
                other, control = max(found, key=lambda each: each[1].value)
                low, high = bootstrap_over_files(own - other, self.files, self.parameters["seed"])
                beyond = value.value - control.value >= MARGIN and bool(value.low > control.high)
                about = {"control": name, "site": control.site, "f1": control.value}
                gap = {"difference": value.value - control.value, "low": low, "high": high}
                rows.append({**about, **gap, "beyond": beyond})
        return pd.DataFrame(rows)

    def similarities(self, other: AstStudy | None = None) -> pd.DataFrame:
        """How alike the layers' subspaces are, those of this study or of this (rows) and another (columns).

        `subspaces.similarities`. Raises BadInput for studies of models of different widths.
        """
        return similarities(self.probes, None if other is None else other.probes)

    def probe(self, site: str) -> AstProbe:
        """The probe of a site. Raises BadInput naming those there are."""
        if site not in self.probes:
            raise BadInput(f"there is no probe of {site!r} here; {choose(site, self.probes)}")
        return self.probes[site]

    def plot(self) -> go.Figure:
        """F1 by layer and by rank, with controls."""
        from interp.plots.syntax import by_layer_and_rank

        return by_layer_and_rank(self)

    def _repr_html_(self) -> str:
        return in_notebook(self, self.comparisons(), self.curve(PROBE))

    def save(self, path: str | Path, started: datetime | None = None) -> Run:
        """Write a run folder: the table, all functions' F1, the probes, and the tables of types and comparisons."""
        named = {**self.probes, **{f"{CONTROL}{name}": probe for name, probe in self.controls.items()}}
        arrays = {
            f"{name}.{key}": getattr(probe, name).numpy()
            for key, probe in named.items()
            for name in ("projection", "offset", "c", "u")
        }
        first = next(iter(self.probes.values()))
        labels = {
            "c": first.labels.c,
            "u": first.labels.u,
            "orthogonality": {key: probe.orthogonality for key, probe in named.items()},
            "controls": {name: probe.site for name, probe in self.controls.items()},
            "files": self.files,
        }
        return save_run(
            path,
            kind=KIND,
            parameters={**self.parameters, "best": self.best, "saturation_rank": self.saturation_rank},
            model=self.model,
            seed=self.parameters["seed"],
            frame=self.frame,
            arrays={**arrays, "f1": self.f1},
            files={
                LABELS_FILE: lambda file: file.write_text(json.dumps(labels) + "\n", encoding="utf-8"),
                "types.parquet": self.types.to_parquet,
                "curves.parquet": self.curves.to_parquet,
                "comparisons.parquet": self.comparisons().to_parquet,
            },
            started=started,
        )

    @classmethod
    def load(cls, path: str | Path) -> AstStudy:
        """Read what `save` wrote. Raises UnreadableFile, and BadInput for a run of another kind."""
        run = load_run(path, KIND)
        held = _held(run.path / LABELS_FILE)
        labels = Labels(tuple(map(tuple, held["c"])), tuple(map(tuple, held["u"])))
        width = run.record.model.get("width")

        def probe(key: str, site: str) -> AstProbe:
            projection = torch.from_numpy(run.array(f"projection.{key}", width, None))
            rank = projection.shape[1]
            shapes = {"offset": (rank,), "c": (rank, len(labels.c)), "u": (rank, len(labels.u))}
            offset, c, u = (torch.from_numpy(run.array(f"{n}.{key}", *shape)) for n, shape in shapes.items())
            return AstProbe(site, projection, offset, c, u, labels, held["orthogonality"][key])

        controls = {name: probe(f"{CONTROL}{name}", site) for name, site in held["controls"].items()}
        probes = {key: probe(key, key) for key in held["orthogonality"] if not key.startswith(CONTROL)}
        curves, files = run.table("curves"), tuple(held["files"])
        f1 = run.array("f1", len(curves), len(files))
        if missing := sorted(COLUMNS - set(run.frame)):
            raise UnreadableFile(f"the table of {path} lacks {', '.join(missing)}")
        parameters = {k: v for k, v in run.record.parameters.items() if k not in ("best", "saturation_rank")}
        return cls(run.frame, run.table("types"), f1, curves, files, probes, run.record.model, parameters, controls)

    def _of(self, series: str, site: str, rank: int) -> tuple[np.ndarray, Any]:
        """F1 of every function, and the row of the table."""
        c, f = self.curves, self.frame
        (at,) = np.flatnonzero((c.series == series) & (c.site == site) & (c["rank"] == rank))
        rows = f[(f.series == series) & (f.site == site) & (f["rank"] == rank)]
        (row,) = rows[(rows.metric == "f1") & (rows.split == "test")].itertuples()
        return self.f1[at], row


def _held(file: Path) -> dict[str, Any]:
    """What a run says of its probes; older ones keep no controls. Raises UnreadableFile."""
    try:
        held: dict[str, Any] = {"controls": {}} | json.loads(file.read_text(encoding="utf-8"))
        missing = {"c", "u", "orthogonality", "files"} - held.keys()
    except (OSError, ValueError, TypeError) as error:
        raise UnreadableFile(f"{file} cannot be read: {error}") from error
    if missing:
        raise UnreadableFile(f"{file} lacks {', '.join(sorted(missing))}")
    return held


def bootstrap_over_files(values: np.ndarray, files: Sequence[str], seed: int = 0) -> tuple[float, float]:
    """95 % percentile bounds of the mean over functions `[function]`; whole files are drawn, as theirs are alike.

    NaN for the functions of a single file.
    """
    _, group = np.unique(np.asarray(files), return_inverse=True)
    if group.max() == 0:
        return np.nan, np.nan
    counts = resamples(int(group.max()) + 1, seed=seed)[:, group]
    low, high = np.quantile(counts @ values / counts.sum(1), [0.025, 0.975])
    return float(low), float(high)
