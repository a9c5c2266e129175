"""Makes the sample runs that the explorer opens with: `python -m apps.explorer.samples [NAME …]`.

A few minutes on the bundled model; each run is what its command line says and can be made again alone.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from apps.explorer.settings import samples_folder
from interp.cli.main import app

COMMANDS: dict[str, str] = {
    "retrieval": "heads score pocket --lengths 256,512 --needles 3 --causal",
    "retrieval-early": "heads score pocket-early --lengths 256,512 --needles 3",
    "roles": "heads roles pocket",
    "needles": "heads ablate pocket --counts 2,4 --ablations mean --lengths 256,512,1024 --needles 3 --controls 2",
    "head-effects": "heads ablate pocket --all --ablations mean --lengths 256 --depths 0,50,100 --needles 4",
    "ioi-heads": "patch pocket --task ioi --site z --by head --n 24",
    "ioi-positions": "patch pocket --task ioi --site resid_pre --by position --positions IO,S1,S1+1,S2,end --n 24",
    "ioi-circuit": "circuit ioi pocket --prompts 40 --test 24 --random 10",
}
"""By the name of the run, the command that makes it."""


def make(folder: Path, names: list[str]) -> None:
    """Make the named runs anew in `folder`."""
    for name in names:
        shutil.rmtree(folder / name, ignore_errors=True)
        app(args=[*COMMANDS[name].split(), "--out", str(folder / name)], standalone_mode=False)


if __name__ == "__main__":
    make(samples_folder(), sys.argv[1:] or list(COMMANDS))
