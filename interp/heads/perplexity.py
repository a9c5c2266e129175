"""Perplexity of text with some heads ablated: every token predicted once, in sliding windows.

A window feeds `window` tokens and scores its last `stride` ones, so each has at least `window - stride` tokens before
it; the first window scores all it can. Special tokens that the tokenizer puts before a text begin every window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from interp.errors import BadInput, PromptTooLong
from interp.heads.ablation import FittedAblation, Head
from interp.heads.fed import Fed
from interp.stats import bootstrap_interval
from interp.tasks.bundled import filler_text
from interp.tracing.model import Model

BUNDLED_SENTENCES = 400
WINDOW = 512
"""Tokens a window feeds at most, unless the model has fewer positions."""


@dataclass(frozen=True)
class Windows:
    """A text cut into windows: `fed.tokens` of each, and how many of their last tokens are `scored`."""

    fed: Fed
    scored: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.scored)

    @property
    def tokens(self) -> int:
        """How many tokens of the text are predicted."""
        return sum(self.scored)

    def batches(self, size: int) -> list[list[int]]:
        """Windows that score as many tokens, so that one run can do them."""
        groups: dict[int, list[int]] = {}
        for i, count in enumerate(self.scored):
            groups.setdefault(count, []).append(i)
        return [group[start : start + size] for group in groups.values() for start in range(0, len(group), size)]


def sliding_windows(model: Model, text: str | None = None, *, window: int = 0, stride: int = 0) -> Windows:
    """Cut a text, or bundled filler sentences, into windows of at most `window` tokens, `stride` apart.

    0 stands for `WINDOW` or what the model has positions for, and for half a window. Raises BadInput for a text of
    fewer than two tokens and a stride outside of the window, PromptTooLong for a window longer than the model.
    """
    context = model.spec.context
    window = window or min(WINDOW, context or WINDOW)
    stride = stride or max(1, window // 2)
    if context is not None and window > context:
        raise PromptTooLong(f"a window of {window} tokens is longer than the model's context of {context}")
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise BadInput("text needs a tokenizer; wrap(model, tokenizer=…)")
    text = filler_text(0, BUNDLED_SENTENCES) if text is None else text
    ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    whole = list(tokenizer(text)["input_ids"])
    start = whole[: len(whole) - len(ids)] if ids and whole[-len(ids) :] == ids else []
    first = 0 if start else 1  # without a token before it nothing predicts the first one
    room = window - len(start)
    if len(ids) <= first:
        raise BadInput(f"the text {text[:40]!r} has {len(ids)} tokens; perplexity needs at least {first + 1}")
    if not first < room or not 1 <= stride <= room:
        raise BadInput(f"a window of {window} tokens, {len(start)} of them special, cannot move by {stride}")
    ends = [*range(min(room, len(ids)), len(ids), stride), len(ids)]
    rows = tuple((*start, *ids[max(0, end - room) : end]) for end in ends)
    scored = tuple(end - before for before, end in zip([first, *ends[:-1]], ends, strict=True))
    return Windows(Fed(rows, (0,) * len(rows)), scored)


def text_losses(
    model: Model,
    windows: Windows,
    ablation: FittedAblation | None = None,
    heads: Sequence[Head] = (),
    *,
    batch_size: int = 4,
) -> np.ndarray:
    """Of every window the summed negative log-probability of its scored tokens, in nats, and their number, `[n 2]`."""
    losses = np.zeros((len(windows), 2))
    losses[:, 1] = windows.scored
    for batch in windows.batches(batch_size):
        rows, count = windows.fed.rows(batch), windows.scored[batch[0]]
        edits = ablation.edits(heads, batch) if ablation is not None and heads else []
        logits = model.run(rows, edits=edits, logits=list(range(-count - 1, -1))).logits
        wanted = torch.tensor([row[-count:] for row in rows.tokens], device=logits.device)
        said = logits.float().log_softmax(-1).gather(-1, wanted[..., None])[..., 0]
        losses[batch, 0] = -said.double().sum(-1).cpu().numpy()
    return losses


def perplexity(losses: np.ndarray) -> np.floating:
    """`exp` of the mean loss a token over all windows `[n 2]`, each weighed by the tokens it scored."""
    return np.exp(losses[:, 0].sum() / losses[:, 1].sum(), dtype=np.float64)


@dataclass(frozen=True, eq=False)
class Reading:
    """Perplexity of a text in sliding windows; a row of samples is a window: summed loss in nats, tokens."""

    model: Model
    windows: Windows
    batch_size: int = 4
    name: str = "perplexity"

    @property
    def fed(self) -> Fed:
        return self.windows.fed

    def samples(self, ablation: FittedAblation | None, heads: Sequence[Head]) -> np.ndarray:
        return text_losses(self.model, self.windows, ablation, heads, batch_size=self.batch_size)

    def row(self, samples: np.ndarray, baseline: np.ndarray, seed: int) -> dict[str, Any]:
        here = bootstrap_interval(samples, perplexity, seed=seed)
        paired = np.concatenate([samples, baseline], axis=1)
        kept = bootstrap_interval(paired, lambda both: perplexity(both[:, :2]) / perplexity(both[:, 2:]), seed=seed)
        row = {"perplexity": here.estimate, "low": here.low, "high": here.high}
        row |= {"relative": kept.estimate, "relative_low": kept.low, "relative_high": kept.high}
        return {**row, "tokens": int(samples[:, 1].sum()), "n": len(samples)}


def perplexity_record(windows: Windows) -> dict[str, Any]:
    """What a run says about the text."""
    return {"windows": len(windows), "scored_tokens": windows.tokens, "longest": max(map(len, windows.fed.tokens))}
