"""A text and its tokens side by side: which characters each token stands for, and what follows a prompt."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING

from interp.errors import BadInput

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]
"""Half-open: `[start, end)`."""


@dataclass(frozen=True)
class Encoded:
    """A text, its token ids, and the characters each token stands for."""

    text: str
    ids: tuple[int, ...]
    offsets: tuple[Span, ...]

    def token_span(self, characters: Span, what: str) -> Span:
        """The tokens that touch `characters`, straddling ones included. Raises BadInput where none does."""
        start, end = characters
        if not 0 <= start < end <= len(self.text):
            raise BadInput(f"{what} is characters {start} to {end}; the prompt has {len(self.text)}.")
        first = bisect_right(self.offsets, start, key=lambda offset: offset[1])
        last = bisect_left(self.offsets, end, key=lambda offset: offset[0])
        if first >= last:
            raise BadInput(f"{what}, {self.text[start:end]!r}, touches no token.")
        return first, last


def encode(tokenizer: PreTrainedTokenizerBase, text: str, special_tokens: bool = True) -> Encoded:
    """Tokenise a text that is to be continued: no special token after it.

    Raises BadInput for a slow tokenizer, which cannot say where its tokens are in the text.
    """
    if not getattr(tokenizer, "is_fast", False):
        name = type(tokenizer).__name__
        raise BadInput(f"{name} does not say which characters a token stands for: use the fast tokenizer.")
    coded = tokenizer(
        text,
        add_special_tokens=special_tokens,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
        return_attention_mask=False,
        verbose=False,  # too long for the model is an error elsewhere, not a warning here
    )
    n = len(coded["input_ids"])
    while n and coded["special_tokens_mask"][n - 1]:
        n -= 1
    return Encoded(text, tuple(coded["input_ids"][:n]), tuple(coded["offset_mapping"][:n]))


def following(
    tokenizer: PreTrainedTokenizerBase, prompt: Encoded, continuation: str, special_tokens: bool, what: str
) -> tuple[int, ...]:
    """The tokens `continuation` has after `prompt`.

    Raises BadInput where it adds none, or where the prompt's own tokens are others once it follows.
    """
    whole = encode(tokenizer, prompt.text + continuation, special_tokens)
    n = len(prompt.ids)
    if whole.ids[:n] != prompt.ids:
        changed = next(i for i, b in enumerate(prompt.ids) if i >= len(whole.ids) or whole.ids[i] != b)
        end = prompt.text[prompt.offsets[changed][0] :]
        pieces = " + ".join(repr(whole.text[a:b]) for a, b in whole.offsets[changed : changed + 3])
        hint = " Move the space from the prompt's end to its start." if end[-1:].isspace() else ""
        raise BadInput(
            f"The {what} is {continuation!r}, and the prompt's end {end!r} is tokenised otherwise when it "
            f"follows ({pieces}…), so the prompt alone would not lead to it.{hint}"
        )
    if len(whole.ids) == n:
        raise BadInput(f"The {what} is {continuation!r}, which adds no token to the prompt.")
    return whole.ids[n:]
