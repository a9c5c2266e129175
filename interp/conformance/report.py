"""What conformance found: one outcome a check, as a table for people and for machines."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

import pandas as pd

Result = Literal["pass", "refused", "fail"]


@dataclass(frozen=True)
class Outcome:
    """One check: what was tried, how far off it was relative to the largest value, or why it was refused or failed."""

    group: str
    subject: str
    result: Result
    error: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Conformance:
    """All outcomes for one model on one backend."""

    model: str
    family: str
    backend: str
    attention: str
    outcomes: tuple[Outcome, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing failed; refusals are not failures."""
        return not self.failures

    @property
    def failures(self) -> tuple[Outcome, ...]:
        return tuple(outcome for outcome in self.outcomes if outcome.result == "fail")

    @property
    def refusals(self) -> dict[str, str]:
        """What is refused, with the reasons."""
        return {f"{o.group} {o.subject}": o.note for o in self.outcomes if o.result == "refused"}

    @property
    def frame(self) -> pd.DataFrame:
        """One row an outcome."""
        where = {"backend": self.backend, "attention": self.attention}
        return pd.DataFrame([{**where, **asdict(outcome)} for outcome in self.outcomes])

    def __str__(self) -> str:
        counts = pd.Series([o.result for o in self.outcomes]).value_counts()
        summary = ", ".join(f"{counts.get(result, 0)} {result}" for result in ("pass", "refused", "fail"))
        return f"{self.model} ({self.family}) on {self.backend}, {self.attention} attention: {summary}"
