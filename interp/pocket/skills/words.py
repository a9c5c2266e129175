"""English articles and lists."""

from __future__ import annotations

from collections.abc import Sequence


def a(phrase: str) -> str:
    """The phrase with its indefinite article."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def listed(phrases: Sequence[str]) -> str:
    """`a, b, and c`."""
    return f"{', '.join(phrases[:-1])}, and {phrases[-1]}"
