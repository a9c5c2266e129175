"""Addition with the steps written down, as problems with an answer to check."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from interp.errors import BadInput
from interp.tasks.problems import Problems

MOST_TRIES = 1_000
"""Draws for every pair that is kept, before it is said that there are not enough."""


def addition_problems(
    n: int,
    seed: int = 0,
    digits: tuple[int, int] = (2, 4),
    keep: Callable[[int, int], bool] = lambda a, b: True,
) -> Problems:
    """`n` different sums of two numbers of equally many digits, from `digits[0]` to `digits[1]` of them.

    The prompts are those the bundled model learned: it writes the columns down after `Steps:` and the sum after
    `Answer:`, which are the delimiters of the reasoning. `keep` says which pairs may be asked, such as those kept from
    the model's training (`interp.pocket.documents.is_held_out`). Raises BadInput where there are not enough.
    """
    fewest, most = digits
    if not 1 <= fewest <= most or n < 1:
        raise BadInput(f"n={n} sums of {fewest} to {most} digits: need n >= 1 and 1 <= fewest <= most digits")
    rng = Random(f"addition problems {seed}")
    pairs: dict[tuple[int, int], None] = {}
    for _ in range(n * MOST_TRIES):
        low = 10 ** (rng.randint(fewest, most) - 1)
        pair = rng.randrange(low, 10 * low), rng.randrange(low, 10 * low)
        if keep(*pair):
            pairs[pair] = None
        if len(pairs) == n:
            return Problems(
                name="addition",
                questions=tuple(f"{a} + {b}" for a, b in pairs),
                prompts=tuple(f"Add {a} and {b}.\nSteps:" for a, b in pairs),
                answers=tuple(str(a + b) for a, b in pairs),
                pattern=r"Answer: ?(\d+)",
                compare="numeric",
                delimiters=("Steps:", "Answer:"),
            )
    raise BadInput(f"only {len(pairs)} of {n} different sums of {fewest} to {most} digits could be found")
