"""Where in a trace the reasoning begins and ends: at delimiters, or at the ends where there are none."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from probes.traces import Response

Missing = Literal["refuse", "drop", "ends"]
"""What is done with a trace that lacks a delimiter: refuse it, leave it out, or take the last token of the prompt for
the beginning of the reasoning and the last token of the trace for its end."""
MISSING: tuple[Missing, ...] = ("refuse", "drop", "ends")


@dataclass(frozen=True)
class Reasoning:
    """Positions of the first and last token of the reasoning in a trace, and whether delimiters said so."""

    start: int
    end: int
    start_found: bool
    end_found: bool


def locate(response: Response, delimiters: tuple[str, str] | None, tokenizer: Any) -> Reasoning:
    """Where the reasoning begins and ends; the ends of the response stand in for what is not found.

    The opening delimiter is the one the prompt ends with, else the first of the response, else the last of the prompt:
    worked examples in a prompt, and questions that a response goes on to make up, have delimiters of their own. The
    closing one is the first of the response after it.
    """
    trace = response.trace
    start, end = max(0, len(response.prompt) - 1), len(trace) - 1
    if delimiters is None:
        return Reasoning(start, end, False, False)
    opened = _opening(response, delimiters[0], tokenizer)
    if opened is not None:
        start = opened
    after = max(start + 1, len(response.prompt))
    closed = _final_token(trace[after:], delimiters[1], tokenizer)
    if closed is not None:
        end = after + closed
    return Reasoning(start, end, opened is not None, closed is not None)


def _opening(response: Response, delimiter: str, tokenizer: Any) -> int | None:
    """The position of the final token of the opening delimiter."""
    prompt = response.prompt
    said = _last_token(prompt, delimiter, tokenizer)
    if said is not None and not tokenizer.decode(list(prompt[said + 1 :])).strip():
        return said
    within = _final_token(response.tokens, delimiter, tokenizer)
    return said if within is None else len(prompt) + within


def _last_token(tokens: Sequence[int], delimiter: str, tokenizer: Any) -> int | None:
    """The position of the token in which the last occurrence of a text ends."""
    lacks = bisect_left(range(len(tokens) + 1), True, key=lambda n: delimiter not in _text(tokens[n:], tokenizer))
    if lacks == 0:
        return None
    last = _final_token(tokens[lacks - 1 :], delimiter, tokenizer)
    return None if last is None else lacks - 1 + last


def found(places: Sequence[Reasoning | None]) -> dict[str, int]:
    """How many traces had which delimiters, for the record."""
    kinds = Counter("dropped" if p is None else (p.start_found, p.end_found) for p in places)
    return {
        "both": kinds[True, True],
        "start only": kinds[True, False],
        "end only": kinds[False, True],
        "none": kinds[False, False],
        "dropped": kinds["dropped"],
    }


def _final_token(tokens: Sequence[int], delimiter: str, tokenizer: Any) -> int | None:
    """The position of the token in which the first occurrence of a text ends.

    The ids themselves are searched, as a sampled response need not be tokenised the way its text would be: the text of
    the first n tokens holds the delimiter from that token on, so the place is found by bisection.
    """

    def holds(n: int) -> bool:
        return delimiter in _text(tokens[:n], tokenizer)

    if not holds(len(tokens)):
        return None
    return bisect_left(range(len(tokens) + 1), True, key=holds) - 1


def _text(tokens: Sequence[int], tokenizer: Any) -> str:
    return str(tokenizer.decode(list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False))
