"""The largest resident set of this very process so far."""

from __future__ import annotations

import re
import sys
from pathlib import Path


def peak_memory() -> float:
    """In MiB. On Linux not `ru_maxrss`, which in a child begins at the size of the process that started it."""
    status = Path("/proc/self/status")
    if status.exists() and (found := re.search(r"VmHWM:\s+(\d+) kB", status.read_text())):
        return int(found[1]) / 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)
