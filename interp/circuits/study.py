"""A circuit with what was measured of it: what `interp circuit ioi` writes, and what reads it back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from interp.circuits.circuit import Circuit
from interp.circuits.curve import FaithfulnessCurve
from interp.circuits.discovery import Discovery
from interp.circuits.evaluation import PLOTS, CircuitEvaluation
from interp.errors import BadInput, choose
from interp.runs import Run, load_run, save_run
from interp.tables import in_notebook

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True, eq=False, repr=False)
class CircuitStudy:
    """A discovery, and how well its circuit explains the behaviour with the other heads knocked out.

    `evaluations` and `curves` are by where they are knocked out: "end" (the last position) or "everywhere".
    """

    discovery: Discovery
    evaluations: Mapping[str, CircuitEvaluation] = field(default_factory=dict)
    curves: Mapping[str, FaithfulnessCurve] = field(default_factory=dict)

    def __repr__(self) -> str:
        kept = ", ".join(f"kept {scope} {evaluation.kept}" for scope, evaluation in self.evaluations.items())
        return f"CircuitStudy({self.discovery!r}; {kept or 'not evaluated'})"

    @property
    def frame(self) -> pd.DataFrame:
        """The frame of the discovery, a row a stage and sender."""
        return self.discovery.frame

    def tables(self, scope: str) -> dict[str, pd.DataFrame]:
        """Everything that was measured with heads knocked out there, by name."""
        evaluation = self.evaluations[scope]
        return {
            "numbers": evaluation.frame,
            "random": evaluation.random,
            "completeness": evaluation.completeness,
            "minimality": evaluation.minimality,
            "curve": self.curves[scope].frame,
        }

    @property
    def plots(self) -> tuple[str, ...]:
        """What `plot` can show: the graph, and of every scope what the evaluation and the curve do."""
        measured = (*PLOTS, "faithfulness")
        return ("graph", *(f"{what}, {scope}" for scope in self.evaluations for what in measured))

    def plot(self, what: str = "graph") -> go.Figure:
        """The graph of the circuit, or another of `plots`, such as "kept, end". Raises BadInput."""
        if what not in self.plots:
            raise BadInput(f"this study has no figure {what!r}; {choose(what, self.plots)}")
        if what == "graph":
            return self.discovery.plot()
        what, scope = what.split(", ")
        return self.curves[scope].plot() if what == "faithfulness" else self.evaluations[scope].plot(what)

    def _repr_html_(self) -> str:
        numbers = "".join(f"<h4>{escape(scope)}</h4>{e._repr_html_()}" for scope, e in self.evaluations.items())
        return in_notebook(self, self.discovery.frame) + numbers

    def save(self, path: str | Path, started: datetime | None = None) -> Run:
        """Write a run folder: the discovery, and a table for every scope and measurement. Raises UnwritableOutput."""
        arrays = self.discovery.arrays()
        for scope, evaluation in self.evaluations.items():
            arrays |= {f"{name}.{scope}": getattr(evaluation, name) for name in ("full", "alone", "empty")}
            curve = self.curves[scope]
            arrays |= {f"curve.{scope}": curve.values, f"ranking.{scope}": np.array(curve.ranking)}
        return save_run(
            path,
            kind="circuit",
            parameters={
                **self.discovery.record,
                "evaluations": {scope: self._record(scope) for scope in self.evaluations},
            },
            model=self.discovery.model,
            seed=self.discovery.seed,
            frame=self.frame,
            arrays=arrays,
            files={
                f"{scope}-{name}.parquet": table.to_parquet
                for scope in self.evaluations
                for name, table in self.tables(scope).items()
            },
            started=started,
        )

    @classmethod
    def load(cls, path: str | Path) -> CircuitStudy:
        """Read what `save`, or that of a `Discovery`, wrote. Raises UnreadableFile, BadInput for another kind."""
        run = load_run(path, "circuit")
        scopes = run.record.parameters.get("evaluations", {})
        return cls(
            Discovery.load(path),
            {scope: _evaluation(run, scope, about) for scope, about in scopes.items()},
            {scope: _curve(run, scope, about["curve"]) for scope, about in scopes.items()},
        )

    def _record(self, scope: str) -> dict[str, Any]:
        """What JSON keeps of the measurements of a scope."""
        evaluation, curve = self.evaluations[scope], self.curves[scope]
        return {
            "heads": evaluation.circuit.heads,
            "roles": [[*head, role] for head, role in evaluation.circuit.roles.items()],
            "parameters": evaluation.parameters,
            "seed": evaluation.seed,
            "curve": {"sizes": curve.sizes, "parameters": curve.parameters, "seed": curve.seed},
        }


def _evaluation(run: Run, scope: str, about: Mapping[str, Any]) -> CircuitEvaluation:
    full = run.array(f"full.{scope}", None)
    return CircuitEvaluation(
        circuit=Circuit(
            tuple((layer, head) for layer, head in about["heads"]),
            {(layer, head): role for layer, head, role in about["roles"]},
        ),
        full=full,
        alone=run.array(f"alone.{scope}", len(full)),
        empty=run.array(f"empty.{scope}", len(full)),
        random=run.table(f"{scope}-random"),
        completeness=run.table(f"{scope}-completeness"),
        minimality=run.table(f"{scope}-minimality"),
        model=run.record.model,
        parameters=about["parameters"],
        seed=about["seed"],
    )


def _curve(run: Run, scope: str, about: Mapping[str, Any]) -> FaithfulnessCurve:
    layers, heads = run.heads
    return FaithfulnessCurve(
        sizes=tuple(about["sizes"]),
        values=run.array(f"curve.{scope}", len(about["sizes"]), None),
        ranking=tuple((int(layer), int(head)) for layer, head in run.array(f"ranking.{scope}", layers * heads, 2)),
        model=run.record.model,
        parameters=about["parameters"],
        seed=about["seed"],
    )
