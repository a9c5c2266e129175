"""Comparing alternatives in one process: interleaved rounds, ratios within a round, medians over rounds.

Other work on the machine slows neighbouring calls alike, so a ratio taken within one round is steady where seconds
are not. Time is CPU time of the process, which other processes do not add to.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

OUT = "INTERP_BENCH_OUT"
"""Environment variable naming the folder of the JSON files; `runs/bench` otherwise."""


@dataclass(frozen=True)
class Timing:
    """One alternative: median CPU seconds, and the median, least and greatest ratio to the baseline of its round."""

    name: str
    seconds: float
    ratio: float
    least: float
    greatest: float


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
        lines = [f"{self.subject}: {self.setting}; {self.rounds} rounds, ratios to {self.timings[0].name}"]
        for t in self.timings:
            spread = f"({t.least:.3f} to {t.greatest:.3f})"
            lines.append(f"  {t.name:<{width}}  {1e3 * t.seconds:9.1f} ms   {t.ratio:6.3f} x  {spread}")
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
) -> Comparison:
    """Time every alternative once a round, each round in another order, after one round that is thrown away."""
    seconds: dict[str, list[float]] = {name: [] for name in alternatives}
    names = list(alternatives)
    for turn in range(rounds + 1):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            start = time.process_time()
            alternatives[name]()
            spent = time.process_time() - start
            if turn:
                seconds[name].append(spent)
    base = seconds[names[0]]
    timings = []
    for name in names:
        ratios = [own / other for own, other in zip(seconds[name], base, strict=True)]
        timings.append(
            Timing(name, statistics.median(seconds[name]), statistics.median(ratios), min(ratios), max(ratios))
        )
    return Comparison(subject, setting, rounds, tuple(timings), targets)


def report(comparison: Comparison) -> Path:
    """Print the table and write it, with the versions it was measured on, to `<subject>.json`."""
    import transformers

    print(f"\n{comparison}")
    folder = Path(os.environ.get(OUT, "runs/bench"))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{comparison.subject}.json"
    record = {
        **asdict(comparison),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
    }
    staged = path.with_suffix(".partial")
    staged.write_text(json.dumps(record, indent=1))
    os.replace(staged, path)
    return path
