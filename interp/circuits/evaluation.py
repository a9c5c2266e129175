"""How well a circuit explains a behaviour: faithfulness, completeness and minimality (Wang et al. 2022).

F(X) is the mean logit difference when every head outside X is knocked out by its mean; M are all heads, C the circuit.
MLPs are part of every circuit. Ratios are ratios of means over prompts, unless they say otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from interp.circuits.circuit import Circuit, all_heads, random_sets, without
from interp.circuits.knockout import Knockout
from interp.errors import BadInput, choose
from interp.heads.ablation import Head, check_heads
from interp.heads.scores import model_record
from interp.stats import Interval, bootstrap_interval, bootstrap_means
from interp.tables import in_notebook

if TYPE_CHECKING:
    import plotly.graph_objects as go

Progress = Callable[[int, int], None]
Heads = frozenset[Head]

RANDOM_CIRCUITS = 20
SUBSETS = 3
"""Random subsets K of the circuit that completeness and minimality are tried on."""
PLOTS = ("kept", "completeness", "minimality")
GREEDY_STEPS = 2
"""Heads that the greedy search for an incomplete subset takes out, one after the other."""


@dataclass(frozen=True, eq=False, repr=False)
class CircuitEvaluation:
    """Logit differences `[prompt]` of the whole model, the circuit alone and the model without any head, and the rest.

    `random` has a row for every random circuit of as many heads in each layer (`random_sets`), `completeness` one for
    every set K taken out of circuit and model, `minimality` one for every head, each with its interval over prompts
    (`low`, `high`), of the signed difference whose size `incompleteness` and `score` are; that K was chosen among
    several is not in it. `parameters` name the ablation.
    """

    circuit: Circuit
    full: np.ndarray
    alone: np.ndarray
    empty: np.ndarray
    random: pd.DataFrame
    completeness: pd.DataFrame
    minimality: pd.DataFrame
    model: Mapping[str, Any]
    parameters: Mapping[str, Any]
    seed: int = 0

    def __repr__(self) -> str:
        return f"CircuitEvaluation({len(self.circuit.heads)} heads of {self.model['name']}, kept {self.kept})"

    @property
    def kept(self) -> Interval:
        """F(C) / F(M), the share of the logit difference that the circuit keeps alone (paired bootstrap)."""
        return bootstrap_interval(np.stack([self.alone, self.full], 1), _ratio, seed=self.seed)

    @property
    def faithfulness(self) -> Interval:
        """(F(C) - F(0)) / (F(M) - F(0)), as the benchmark normalises it."""
        columns = np.stack([self.alone - self.empty, self.full - self.empty], 1)
        return bootstrap_interval(columns, _ratio, seed=self.seed)

    @property
    def frame(self) -> pd.DataFrame:
        """One row a number: what it is, its estimate with bounds, n prompts."""
        each = np.divide(self.alone, self.full, out=np.full(len(self.full), np.nan), where=self.full != 0)
        rows = {
            "F(M)": bootstrap_interval(self.full, seed=self.seed),
            "F(C)": bootstrap_interval(self.alone, seed=self.seed),
            "F(0)": bootstrap_interval(self.empty, seed=self.seed),
            "gap F(M) - F(C)": bootstrap_interval(self.full - self.alone, seed=self.seed),
            "kept, ratio of means": self.kept,
            "kept, mean of ratios": bootstrap_interval(each[np.isfinite(each)], seed=self.seed),
            "faithfulness": self.faithfulness,
        }
        return pd.DataFrame(
            {"what": name, "value": i.estimate, "low": i.low, "high": i.high, "n": i.n} for name, i in rows.items()
        )

    def summary(self) -> dict[str, Any]:
        """The numbers a report quotes."""
        return {
            "heads": [list(head) for head in self.circuit.heads],
            "kept": self.kept.estimate,
            "kept_low": self.kept.low,
            "kept_high": self.kept.high,
            "random_kept_mean": float(self.random["kept"].mean()) if len(self.random) else float("nan"),
            "random_kept_max": float(self.random["kept"].max()) if len(self.random) else float("nan"),
            "random_circuits": len(self.random),
            "largest_incompleteness": float(self.completeness["incompleteness"].max()),
            "smallest_minimality": float(self.minimality["score"].min()),
            "n": len(self.full),
        }

    def plot(self, what: str = "kept") -> go.Figure:
        """What the circuit keeps beside random ones, or another of PLOTS. Raises BadInput."""
        from interp.plots.circuits import completeness_plot, evaluation_plot, minimality_plot

        if what not in PLOTS:
            raise BadInput(f"an evaluation has no figure {what!r}; {choose(what, PLOTS)}")
        draw = {"kept": evaluation_plot, "completeness": completeness_plot, "minimality": minimality_plot}
        return draw[what](self)

    def _repr_html_(self) -> str:
        return in_notebook(self, self.frame)


def evaluate_circuit(
    knockout: Knockout,
    circuit: Circuit,
    *,
    random: int = RANDOM_CIRCUITS,
    subsets: int = SUBSETS,
    greedy_steps: int = GREEDY_STEPS,
    seed: int = 0,
    progress: Progress | None = None,
) -> CircuitEvaluation:
    """Evaluate a circuit on the prompts of a knockout, which says what the heads outside become.

    `random` circuits, all different, have as many heads in each layer (`random_sets`). Completeness is measured for
    K: nothing, every class of heads of one role, `subsets` random halves, and the set that a greedy search of
    `greedy_steps` finds. Minimality of a head is its largest effect |F(C - K - v) - F(C - K)| / F(M) over K: nothing,
    the other heads of its class, and `subsets` random halves of the rest. Raises BadInput for heads that the model
    does not have.
    """
    model = knockout.model
    own = frozenset(check_heads(model, circuit.heads))
    measure = _Measure(knockout, progress)
    rng = np.random.default_rng(seed)
    draws = random_sets(model, circuit.heads, random, seed)
    full, alone, empty = measure([frozenset(all_heads(model)), own, frozenset()])
    controls = measure([frozenset(draw) for draw in draws]).mean(1) if draws else np.zeros(0)
    return CircuitEvaluation(
        circuit=circuit,
        full=full,
        alone=alone,
        empty=empty,
        random=pd.DataFrame(
            {
                "heads": [" ".join(f"{a}.{b}" for a, b in draw) for draw in draws],
                "shared": [len(own & set(draw)) for draw in draws],
                "logit_difference": controls,
                "kept": controls / full.mean(),
            }
        ),
        completeness=_completeness(measure, circuit, rng, subsets, greedy_steps, seed),
        minimality=_minimality(measure, circuit, rng, subsets, full, seed),
        model=model_record(model),
        parameters={
            "ablation": "mean over reference prompts of the same kind, by position",
            "at": "everywhere" if knockout.at is None else knockout.at,
            "reference": knockout.reference,
            "prompts": knockout.prompts.hash,
            "random": random,
            "subsets": subsets,
            "greedy_steps": greedy_steps,
        },
        seed=seed,
    )


class _Measure:
    """F of sets of heads that are kept, `[set prompt]`; what was measured once is remembered."""

    def __init__(self, knockout: Knockout, progress: Progress | None) -> None:
        self.knockout = knockout
        self.every = frozenset(all_heads(knockout.model))
        self.known: dict[Heads, np.ndarray] = {}
        self.progress = progress

    def __call__(self, kept: Sequence[Heads]) -> np.ndarray:
        new = [heads for heads in dict.fromkeys(kept) if heads not in self.known]
        if new:
            values = self.knockout.measure([without(self.every, heads) for heads in new], progress=self.progress)
            self.known |= dict(zip(new, values, strict=True))
        return np.stack([self.known[heads] for heads in kept])

    def less(self, own: Heads, removed: Sequence[Heads]) -> np.ndarray:
        """F(C - K) and F(M - K) for every K, `[K 2 prompt]`."""
        values = self([without(base, k) for k in removed for base in (own, self.every)])
        return values.reshape(len(removed), 2, -1)


def _completeness(
    measure: _Measure, circuit: Circuit, rng: np.random.Generator, subsets: int, greedy_steps: int, seed: int
) -> pd.DataFrame:
    own = frozenset(circuit.heads)
    named: list[tuple[str, Heads]] = [("nothing", frozenset())]
    named += [(role, frozenset(heads)) for role, heads in circuit.classes.items()]
    named += [(f"random {i}", _half(rng, circuit.heads)) for i in range(subsets)]
    worst: Heads = frozenset()
    for _ in range(min(greedy_steps, len(own))):
        candidates = [worst | {head} for head in circuit.heads if head not in worst]
        means = measure.less(own, candidates).mean(-1)
        worst = candidates[int(np.argmax(np.abs(means[:, 0] - means[:, 1])))]
    named += [("greedy", worst)] if worst else []
    values = measure.less(own, [k for _, k in named])
    gaps = values[:, 0] - values[:, 1]
    low, high = bootstrap_means(gaps.T, seed=seed)
    return pd.DataFrame(
        {
            "K": [name for name, _ in named],
            "heads": [" ".join(f"{a}.{b}" for a, b in sorted(k)) for _, k in named],
            "circuit": values[:, 0].mean(-1),
            "model": values[:, 1].mean(-1),
            "incompleteness": np.abs(gaps.mean(-1)),
            "low": low,
            "high": high,
            "n": gaps.shape[1],
        }
    )


def _minimality(
    measure: _Measure, circuit: Circuit, rng: np.random.Generator, subsets: int, full: np.ndarray, seed: int
) -> pd.DataFrame:
    own, none = frozenset(circuit.heads), frozenset[Head]()
    trials: list[tuple[Head, str, Heads]] = []
    for head in circuit.heads:
        mates = circuit.classes.get(circuit.roles.get(head, ""), ())
        rest = [other for other in circuit.heads if other != head]
        trials.append((head, "nothing", frozenset()))
        trials += [(head, "its class", without(mates, {head}))] if len(mates) > 1 else []
        trials += [(head, f"random {i}", _half(rng, rest)) for i in range(subsets)]
    values = measure([without(own, k | extra) for head, _, k in trials for extra in (none, {head})])
    effects = values[::2] - values[1::2]
    rows = []
    for head in circuit.heads:
        own_trials = [i for i, trial in enumerate(trials) if trial[0] == head]
        best = max(own_trials, key=lambda i: abs(effects[i].mean()))
        share = bootstrap_interval(np.stack([effects[best], full], 1), _ratio, seed=seed)
        rows.append(
            {
                "layer": head[0],
                "head": head[1],
                "role": circuit.roles.get(head, ""),
                "K": trials[best][1],
                "score": abs(share.estimate),
                "low": share.low,
                "high": share.high,
                "n": share.n,
            }
        )
    return pd.DataFrame(rows)


def _half(rng: np.random.Generator, heads: Sequence[Head]) -> Heads:
    """Each head with even odds."""
    return frozenset(head for head in heads if rng.random() < 0.5)


def _ratio(columns: np.ndarray) -> np.floating:
    """Ratio of the columns' means; NaN is no number for an interval, so a mean of exactly 0 below gives 0."""
    below = columns[:, 1].mean()
    return columns[:, 0].mean() / below if below else np.float64(0)
