"""Where the numbers of a benchmark go: printed, and to a JSON file with the versions they were measured on."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict
from pathlib import Path

import torch

from kernels.measure import Comparison, Target, compare

__all__ = ["Comparison", "Target", "compare", "report"]

OUT = "INTERP_BENCH_OUT"
"""Environment variable naming the folder of the JSON files; `runs/bench` otherwise."""


def report(comparison: Comparison) -> Path:
    """Print the table and write it to `<subject>.json`."""
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
