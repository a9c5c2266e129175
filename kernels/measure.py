"""Comparing alternatives in one process: interleaved rounds, ratios within a round, medians over rounds.

Other work on the machine slows neighbouring calls alike, so a ratio taken within one round is steady where seconds are
not. On a CPU the clock is that of the process, which other processes do not add to; it cannot see a thread that is
missing, so the least wall times stand beside it. They mean something on a quiet machine alone.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

SLEEPING_THREADS = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}
"""Environment in which idle threads sleep: those that spin count as work. To be set before torch is imported."""


@dataclass(frozen=True)
class Timing:
    """One alternative: median seconds, the median, least and greatest ratio to the baseline of its round, and the
    least wall seconds."""

    name: str
    seconds: float
    ratio: float
    least: float
    greatest: float
    wall: float


@dataclass(frozen=True)
class Target:
    """`name` should take at most `ratio` times as long as the baseline."""

    name: str
    ratio: float


@dataclass(frozen=True)
class Comparison:
    """Alternatives against the first of them, which is the baseline."""

    subject: str
    setting: str
    rounds: int
    timings: tuple[Timing, ...]
    targets: tuple[Target, ...] = ()

    def __getitem__(self, name: str) -> Timing:
        return next(timing for timing in self.timings if timing.name == name)

    def __str__(self) -> str:
        width = max(len(timing.name) for timing in self.timings)
        first = self.timings[0]
        lines = [f"{self.subject}: {self.setting}; {self.rounds} rounds, ratios to {first.name}"]
        for t in self.timings:
            spread = f"({t.least:.3f} to {t.greatest:.3f})"
            wall = f"wall at least {1e3 * t.wall:.1f} ms, {t.wall / first.wall:.3f} x"
            lines.append(f"  {t.name:<{width}}  {1e3 * t.seconds:9.1f} ms   {t.ratio:6.3f} x  {spread}   {wall}")
        for target in self.targets:
            got = self[target.name].ratio
            verdict = "met" if got <= target.ratio else "MISSED"
            lines.append(f"  target {verdict}: {target.name} at {got:.3f} x, asked for at most {target.ratio} x")
        return "\n".join(lines)


def compare(
    subject: str,
    setting: str,
    alternatives: Mapping[str, Callable[[], Any]],
    *,
    rounds: int = 7,
    targets: tuple[Target, ...] = (),
    clock: Callable[[], float] = time.process_time,
    progress: Callable[[int, int], None] | None = None,
) -> Comparison:
    """Time every alternative once a round, each round in another order, after one round that is thrown away.

    clock: seconds, by default of CPU time; for a GPU one that waits for its work.
    """
    seconds: dict[str, list[float]] = {name: [] for name in alternatives}
    walls = dict.fromkeys(alternatives, float("inf"))
    names = list(alternatives)
    for turn in range(rounds + 1):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            wall, start = time.perf_counter(), clock()
            alternatives[name]()
            spent = clock() - start
            if turn:
                seconds[name].append(spent)
                walls[name] = min(walls[name], time.perf_counter() - wall)
        if progress:
            progress(turn + 1, rounds + 1)
    base = seconds[names[0]]
    timings = []
    for name in names:
        ratios = [own / other for own, other in zip(seconds[name], base, strict=True)]
        middle = statistics.median(seconds[name])
        timings.append(Timing(name, middle, statistics.median(ratios), min(ratios), max(ratios), walls[name]))
    return Comparison(subject, setting, rounds, tuple(timings), targets)
