"""Which heads two tasks share, and whether heads of one repair the other (Merullo et al. 2024, arXiv:2310.08744).

A head is in a task's circuit when it is among the strongest share of heads of some stage (2 % in the paper). How much
two circuits share depends on that share, so every one of several is reported, with intervals over prompts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from interp.circuits.discovery import Discovery
from interp.circuits.repair import Repair
from interp.errors import BadInput, choose
from interp.heads.ablation import Head
from interp.runs import Run, load_run, save_run
from interp.tables import in_notebook

if TYPE_CHECKING:
    import plotly.graph_objects as go

PUBLISHED_SHARE = 0.02
SHARES = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25)
"""Shares of all heads that a stage puts into the circuit."""
RESAMPLES = 1_000


@dataclass(frozen=True, eq=False, repr=False)
class CircuitReuse:
    """What two discoveries on one model share. `frame` has a row for every share of heads, `agreement` one a role.

    `repair`: what heads of the first task do for the second, where that was tried too.
    """

    a: Discovery
    b: Discovery
    frame: pd.DataFrame
    agreement: pd.DataFrame
    parameters: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    repair: Repair | None = None

    def __repr__(self) -> str:
        row = self.frame.iloc[(self.frame["share"] - PUBLISHED_SHARE).abs().argmin()]
        overlap = f"{row.overlap:.2f} [{row.overlap_low:.2f}, {row.overlap_high:.2f}]"
        names = f"{self.a.task} and {self.b.task} on {self.a.model['name']}"
        return f"CircuitReuse({names}: overlap {overlap} at the top {row.share:.0%} of each stage)"

    @property
    def names(self) -> tuple[str, str]:
        """What the two circuits are called: their tasks, told apart where they are the same."""
        return _task_names(self.a, self.b)

    def heads(self, share: float = PUBLISHED_SHARE) -> tuple[frozenset[Head], frozenset[Head]]:
        """The heads of both circuits at a share."""
        return in_circuit(self.a, share), in_circuit(self.b, share)

    def members(self, share: float = PUBLISHED_SHARE) -> pd.DataFrame:
        """One row a head of either circuit at a share: which circuit ("both" or a task), role and effect in each."""
        first, second = self.heads(share)
        rows = []
        for head in sorted(first | second):
            circuit = "both" if head in first & second else self.names[head in second]
            row: dict[str, Any] = {"layer": head[0], "head": head[1], "circuit": circuit}
            for name, each in zip(self.names, (self.a, self.b), strict=True):
                row |= {f"{name} role": each.roles.get(head, ""), f"{name} effect": each.effects[head]}
            rows.append(row)
        return pd.DataFrame(rows)

    @property
    def plots(self) -> tuple[str, ...]:
        """What `plot` can show."""
        return ("overlap", "shared heads", *(() if self.repair is None else ("repair",)))

    def plot(self, what: str = "overlap") -> go.Figure:
        """Overlap by share of heads beside chance, or another of `plots`. Raises BadInput."""
        from interp.plots.circuit_reuse import overlap_map, repair_plot, threshold_curve

        if what not in self.plots:
            raise BadInput(f"this comparison has no figure {what!r}; {choose(what, self.plots)}")
        if what == "repair":
            assert self.repair is not None
            return repair_plot(self.repair)
        return threshold_curve(self) if what == "overlap" else overlap_map(self)

    def _repr_html_(self) -> str:
        return in_notebook(self, self.frame, self.agreement)

    def save(self, path: str | Path, started: datetime | None = None) -> Run:
        """Write a run folder: the frame, both discoveries, the repair, `agreement.parquet`. Raises UnwritableOutput."""
        parts = {"a": self.a, "b": self.b} | ({} if self.repair is None else {"repair": self.repair})
        return save_run(
            path,
            kind="circuit-reuse",
            parameters={
                **self.parameters,
                "parts": {name: {"seed": part.seed, "record": part.record} for name, part in parts.items()},
            },
            model=self.a.model,
            seed=self.seed,
            frame=self.frame,
            arrays={k: array for name, part in parts.items() for k, array in part.arrays(f"{name}.").items()},
            files={"agreement.parquet": self.agreement.to_parquet},
            started=started,
        )

    @classmethod
    def load(cls, path: str | Path) -> CircuitReuse:
        """Read what `save` wrote. Raises UnreadableFile, BadInput for a run of another kind."""
        run = load_run(path, "circuit-reuse")
        parameters = dict(run.record.parameters)
        parts = parameters.pop("parts")

        def part(of: Any, name: str) -> Any:
            return of.read(run, parts[name]["record"], parts[name]["seed"], f"{name}.")

        return cls(
            a=part(Discovery, "a"),
            b=part(Discovery, "b"),
            frame=run.frame,
            agreement=run.table("agreement"),
            parameters=parameters,
            seed=run.record.seed,
            repair=part(Repair, "repair") if "repair" in parts else None,
        )


def circuit_reuse(
    a: Discovery, b: Discovery, shares: Sequence[float] = SHARES, *, resamples: int = RESAMPLES, seed: int = 0
) -> CircuitReuse:
    """Overlap of the circuits of two tasks at every share of heads.

    overlap: shared heads over the union, whichever stages they come from. jaccard: the same of pairs (stage, head), so
    that a head counts as shared only where it does so in the same stage. Intervals resample the prompts of both tasks;
    the receivers of later stages stay those that were found. Chance is what is left when the heads of the second
    circuit are exchanged for random ones of their layers: mean and 95 % of `resamples` draws.

    Raises BadInput for discoveries on different models and shares outside (0, 1].
    """
    if a.model["fingerprint"] != b.model["fingerprint"]:
        raise BadInput(f"the circuits are of different models: {a.model['name']} and {b.model['name']}")
    for share in shares:
        if not 0 < share <= 1:
            raise BadInput(f"a share of {share} of the heads cannot be in a circuit: shares lie between 0 and 1")
    rng = np.random.default_rng(seed)
    names = tuple(dict.fromkeys(result.stage.name for each in (a, b) for result in each.stages))
    moved = [_moved(each, names) for each in (a, b)]
    means = [np.abs(each.mean(0))[None] for each in moved]
    drawn = [_resampled(each, resamples, rng) for each in moved]
    exchanged = _exchanged(a.scores.shape, resamples, rng)
    rows = []
    for share in shares:
        once, again = ([strongest(effects, share) for effects in both] for both in (means, drawn))
        chance = once[0], once[1][0][:, exchanged].swapaxes(0, 1)
        first, second = (in_circuit(each, share) for each in (a, b))
        row: dict[str, Any] = {"share": share, "per_stage": _count(share, moved[0].shape[-1])}
        for name, of in (("overlap", _heads), ("jaccard", _pairs)):
            shared, resampled, by_chance = (_jaccard(*map(of, both)) for both in (once, again, chance))
            row |= _with_bounds(name, shared[0], resampled)
            row |= _with_bounds(f"{name}_chance", by_chance.mean(), by_chance)
        row |= {"shared": len(first & second), "union": len(first | second), "which": _named(first & second)}
        rows.append({**row, "n_a": len(moved[0]), "n_b": len(moved[1])})
    return CircuitReuse(
        a,
        b,
        pd.DataFrame(rows),
        role_agreement(a, b),
        parameters={
            "tasks": [a.task, b.task],
            "prompts": [a.parameters["prompts"], b.parameters["prompts"]],
            "accuracies": [a.accuracy, b.accuracy],
            "resamples": resamples,
        },
        seed=seed,
    )


def in_circuit(discovery: Discovery, share: float = PUBLISHED_SHARE) -> frozenset[Head]:
    """The heads among the strongest `share` (at least one) of some stage, by absolute effect."""
    names = tuple(result.stage.name for result in discovery.stages)
    chosen = strongest(np.abs(_moved(discovery, names).mean(0)), share).any(0)
    return frozenset(divmod(int(i), int(discovery.model["heads"])) for i in np.flatnonzero(chosen))


def strongest(effects: np.ndarray, share: float) -> np.ndarray:
    """Which of `effects` `[… head]` are among the largest `share` of the heads; no effect at all never is."""
    order = np.argsort(-effects, axis=-1, kind="stable")[..., : _count(share, effects.shape[-1])]
    chosen = np.zeros(effects.shape, dtype=bool)
    np.put_along_axis(chosen, order, True, axis=-1)
    return chosen & (effects > 0)


def role_agreement(a: Discovery, b: Discovery) -> pd.DataFrame:
    """One row a role that a head has in either task: the heads that have it in each, and shared over union."""
    first, second = a.by_role, b.by_role
    names = _task_names(a, b)
    rows = []
    for role in dict.fromkeys([*first, *second]):
        here, there = set(first.get(role, ())), set(second.get(role, ()))
        both, either = here & there, here | there
        rows.append(
            {
                "role": role,
                names[0]: _named(here),
                names[1]: _named(there),
                "shared": len(both),
                "union": len(either),
                "agreement": len(both) / len(either),
            }
        )
    return pd.DataFrame(rows, columns=["role", *names, "shared", "union", "agreement"])


def _task_names(a: Discovery, b: Discovery) -> tuple[str, str]:
    return a.task, b.task if a.task != b.task else f"{b.task} again"


def _moved(discovery: Discovery, names: Sequence[str]) -> np.ndarray:
    """How far every path of these stages moves every prompt's logit difference, `[prompt stage head]`; else 0."""
    n = discovery.parameters["n"]
    grid = np.zeros((n, len(names), discovery.scores.size))
    for result in discovery.stages:
        if result.patched is not None:
            grid[:, names.index(result.stage.name)] = result.moved[0].reshape(n, -1)
    return grid


def _resampled(moved: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Absolute mean effects over prompts drawn again, `[resample stage head]`; all stages see the same draw."""
    n = len(moved)
    counts = rng.multinomial(n, np.full(n, 1 / n), size=resamples)
    return np.abs(np.tensordot(counts, moved, axes=1)) / n


def _exchanged(shape: tuple[int, ...], draws: int, rng: np.random.Generator) -> np.ndarray:
    """All heads in random orders in which every head keeps its layer, `[draw head]`."""
    layers, heads = shape
    orders = rng.permuted(np.tile(np.arange(heads), (draws, layers, 1)), axis=-1)
    return (orders + heads * np.arange(layers)[:, None]).reshape(draws, -1)


def _count(share: float, heads: int) -> int:
    return max(1, round(share * heads))


def _heads(chosen: np.ndarray) -> np.ndarray:
    """`[draw stage head]` to `[draw head]`: a head is a member whichever stage it comes from."""
    return np.asarray(chosen.any(1))


def _pairs(chosen: np.ndarray) -> np.ndarray:
    """`[draw stage head]` with every pair of stage and head as a member of its own."""
    return chosen.reshape(len(chosen), -1)


def _jaccard(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Shared members over the union, `[draw member]` to `[draw]`; NaN where both are empty."""
    union = (a | b).sum(-1)
    return np.divide((a & b).sum(-1), union, out=np.full(len(union), np.nan), where=union > 0)


def _with_bounds(name: str, value: float, draws: np.ndarray) -> dict[str, float]:
    low, high = np.nanquantile(draws, [0.025, 0.975])
    return {name: float(value), f"{name}_low": float(low), f"{name}_high": float(high)}


def _named(heads: Iterable[Head]) -> str:
    return " ".join(f"{layer}.{head}" for layer, head in sorted(heads))
