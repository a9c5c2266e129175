"""What the explorer shows: which folders of runs, and which model. The command line says so through the environment."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from interp.shipped import samples_folder

RUNS = "INTERP_EXPLORER_RUNS"
MODEL = "INTERP_EXPLORER_MODEL"
NO_MODEL = "none"
DEFAULT_MODEL = "pocket"
DEFAULT_RUNS = "runs"


@dataclass(frozen=True)
class Settings:
    """`folders` of runs by the name they have in the explorer; `model` is None where none is to be loaded."""

    folders: dict[str, Path]
    model: str | None

    @property
    def own(self) -> Path:
        """Where new runs are written."""
        return next(iter(self.folders.values()))


def settings() -> Settings:
    """The runs of the person first, then those that ship with the workbench."""
    own = Path(os.environ.get(RUNS) or DEFAULT_RUNS)
    model = os.environ.get(MODEL) or DEFAULT_MODEL
    return Settings({"runs": own, "samples": samples_folder()}, None if model == NO_MODEL else model)
