"""English lists."""

from __future__ import annotations

from collections.abc import Sequence


def listed(phrases: Sequence[str]) -> str:
    """`a, b, and c`."""
    return f"{', '.join(phrases[:-1])}, and {phrases[-1]}"
