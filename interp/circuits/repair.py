"""Repairing one task with heads of another (Merullo et al. 2024, arXiv:2310.08744, section 5).

In coloured objects the heads that inhibit the wrong name in IOI do not look at the wrong colours. The intervention
makes them: at the last position the attention rows of chosen heads are divided evenly between the two wrong colours,
and nothing else is touched. A head that inhibits what it looks at then speaks for the right one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from interp.circuits.circuit import random_sets
from interp.circuits.discovery import Discovery
from interp.errors import BadInput, choose
from interp.heads.ablation import Head, check_heads
from interp.heads.scores import model_record
from interp.metrics import accuracy, logit_difference
from interp.patching.sweep import sweep
from interp.runs import Run, load_run, save_run
from interp.stats import wilson_interval
from interp.tables import in_notebook
from interp.tasks.colored_objects import WRONG_COLORS
from interp.tasks.prompts import PromptSet
from interp.tracing.edits import Edit, attend
from interp.tracing.model import Model

if TYPE_CHECKING:
    import plotly.graph_objects as go

REPAIRING_ROLES = ("inhibition", "negative mover", "subject suppressor")
"""Heads of IOI that speak against what they attend to, or make others not attend there."""
CONTROLS = 10


@dataclass(frozen=True, eq=False, repr=False)
class Repair:
    """Accuracy and logit difference before and after. `correct` and `logit_differences` are `[condition prompt]`.

    `frame` has a row for every condition: none, all components, each alone, each head alone, and random heads.
    """

    conditions: tuple[tuple[str, tuple[Head, ...]], ...]
    correct: np.ndarray
    logit_differences: np.ndarray
    model: Mapping[str, Any]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0

    def __repr__(self) -> str:
        before, after = self.correct[:2].mean(1)
        return f"Repair({self.model['name']}: accuracy {before:.3f} before, {after:.3f} after)"

    @property
    def frame(self) -> pd.DataFrame:
        """Columns: condition, heads, accuracy with its interval, logit difference, prompts repaired and broken, n."""
        rows = []
        before = self.correct[0].astype(bool)
        for (name, heads), right, difference in zip(
            self.conditions, self.correct.astype(bool), self.logit_differences, strict=True
        ):
            interval = wilson_interval(int(right.sum()), len(right))
            rows.append(
                {
                    "condition": name,
                    "heads": " ".join(f"{a}.{b}" for a, b in heads),
                    "accuracy": interval.estimate,
                    "low": interval.low,
                    "high": interval.high,
                    "logit_difference": difference.mean(),
                    "repaired": int((right & ~before).sum()),
                    "broken": int((before & ~right).sum()),
                    "n": len(right),
                }
            )
        return pd.DataFrame(rows)

    def plot(self) -> go.Figure:
        """Accuracy before, after and under the controls."""
        from interp.plots.circuit_reuse import repair_plot

        return repair_plot(self)

    def _repr_html_(self) -> str:
        return in_notebook(self, self.frame)

    @property
    def record(self) -> dict[str, Any]:
        """What JSON keeps of it; the numbers are in `arrays`."""
        return {**self.parameters, "conditions": self.conditions}

    def arrays(self, prefix: str = "") -> dict[str, np.ndarray]:
        """What every condition made of every prompt, by names that begin with `prefix`."""
        return {f"{prefix}correct": self.correct, f"{prefix}logit_differences": self.logit_differences}

    @classmethod
    def read(cls, run: Run, record: Mapping[str, Any], seed: int, prefix: str = "") -> Repair:
        """What `record` and `arrays` wrote into a run. Raises UnreadableFile."""
        conditions = tuple(
            (name, tuple((layer, head) for layer, head in heads)) for name, heads in record["conditions"]
        )
        correct = run.array(f"{prefix}correct", len(conditions), None)
        differences = run.array(f"{prefix}logit_differences", *correct.shape)
        parameters = {name: value for name, value in record.items() if name != "conditions"}
        return cls(conditions, correct, differences, run.record.model, parameters, seed)

    def save(self, path: str | Path, started: datetime | None = None) -> Run:
        """Write a run folder. Raises UnwritableOutput."""
        return save_run(
            path,
            kind="circuit-repair",
            parameters=self.record,
            model=self.model,
            seed=self.seed,
            frame=self.frame,
            arrays=self.arrays(),
            started=started,
        )

    @classmethod
    def load(cls, path: str | Path) -> Repair:
        """Read what `save` wrote. Raises UnreadableFile, BadInput for a run of another kind."""
        run = load_run(path, "circuit-repair")
        return cls.read(run, run.record.parameters, run.record.seed)


def repairing_components(discovery: Discovery) -> dict[str, tuple[Head, ...]]:
    """The heads of IOI that the intervention moves, by role; empty where the model has none."""
    return {role: heads for role, heads in discovery.by_role.items() if role in REPAIRING_ROLES}


def repair(
    model: Model,
    prompts: PromptSet,
    components: Mapping[str, Sequence[Head]],
    *,
    onto: Sequence[str] = WRONG_COLORS,
    controls: int = CONTROLS,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Repair:
    """Force last attention rows onto some roles: of all components, of each, of each head, and of random heads.

    `components` are named sets of heads; `controls` draws, all different, have as many heads of each layer
    (`random_sets`). A prompt is answered when the first token of its answer is the most probable of all. Raises
    BadInput for no heads, heads that the model does not have, and roles that the prompts do not mark.
    """
    if missing := [role for role in onto if role not in prompts.spans]:
        raise BadInput(f"no token position is called {missing[0]!r}; {choose(missing[0], prompts.spans)}")
    together = tuple(dict.fromkeys(head for heads in components.values() for head in heads))
    if not together:
        raise BadInput("there are no heads to force: name components such as {'inhibition': [(12, 3), (13, 4)]}")
    together = check_heads(model, together)
    conditions = [("all", together)]
    conditions += [(name, check_heads(model, heads)) for name, heads in components.items() if len(components) > 1]
    conditions += [(f"{layer}.{head}", ((layer, head),)) for layer, head in together if len(together) > 1]
    conditions += [(f"random {i}", heads) for i, heads in enumerate(random_sets(model, together, controls, seed))]
    edits = [force_attention(prompts, heads, onto) for _, heads in conditions]
    result = sweep(model, prompts, edits, (accuracy(), logit_difference()), progress=progress)
    values = np.concatenate([result.base[None], result.values])
    return Repair(
        conditions=(("none", ()), *conditions),
        correct=values[:, 0],
        logit_differences=values[:, 1],
        model=model_record(model),
        parameters={
            "prompts": prompts.hash,
            "onto": list(onto),
            "components": {name: [list(head) for head in heads] for name, heads in components.items()},
            "controls": controls,
        },
        seed=seed,
    )


def force_attention(prompts: PromptSet, heads: Sequence[Head], onto: Sequence[str]) -> tuple[Edit, ...]:
    """The edits that divide these heads' attention at the last position evenly between the tokens of some roles.

    Prompts in which these are at the same positions share an edit.
    """
    places: dict[tuple[int, ...], list[int]] = {}
    for i in range(len(prompts)):
        tokens = sorted({token for role in onto for token in range(*prompts.spans[role][i])})
        places.setdefault(tuple(tokens), []).append(i)
    return tuple(
        attend(f"pattern.{layer}.{head}", to=tokens).at(positions=-1, rows=rows)
        for layer, head in heads
        for tokens, rows in places.items()
    )
