"""The text needles are hidden in: where its tokens and its sentences end, for any tokenizer."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from interp.errors import BadInput, UnreadableFile
from interp.tasks.bundled import filler_text
from interp.tasks.encoding import Span, encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FEWEST_FILLER_TOKENS = 5
"""No bundled filler sentence has fewer words, so none has fewer tokens."""

_SENTENCE_END = re.compile(
    r"""[.!?]+["'”’)\]]*(?=\s|$)"""  # punctuation, what closes with it, then white space
    r"""|[。！？]+[”’」』）]*"""
    r"""|(?<=\S)(?=\n)"""  # a line that ends without punctuation
)


@dataclass(frozen=True)
class Haystack:
    """A text and the character at which each of its tokens ends."""

    text: str
    token_ends: tuple[int, ...]

    @classmethod
    def read(cls, tokenizer: PreTrainedTokenizerBase, source: str | Path | None, tokens: int, seed: int) -> Haystack:
        """At least `tokens` tokens of `source` where it has as many; bundled filler where it is None.

        A string is the text itself; a path leads to a `.txt` file or to a folder of them, read in order of name.
        Raises BadInput where there is no text, UnreadableFile where a file cannot be read.
        """
        if source is None:
            text = filler_text(seed, tokens // FEWEST_FILLER_TOKENS + 1)
        else:
            text = _folder_text(source) if isinstance(source, Path) else source
        if not text.strip():
            raise BadInput("The haystack is empty: give it text, or leave it out for the bundled filler.")
        part = 8 * tokens  # characters: a book need not be tokenised for its first pages
        while True:
            offsets = encode(tokenizer, text[:part], special_tokens=False).offsets
            if len(offsets) >= tokens or part >= len(text):
                return cls(text[:part], tuple(end for _, end in offsets))
            part *= 2

    @cached_property
    def sentence_ends(self) -> tuple[int, ...]:
        """Characters at which a sentence ends, white space after it not included."""
        return tuple(sorted({match.end() for match in _SENTENCE_END.finditer(self.text)}))

    def sentence_end(self, tokens: int) -> int:
        """The character at which the last whole sentence of the first `tokens` tokens ends; 0 if there is none."""
        limit = self.token_ends[tokens - 1] if tokens else 0
        complete = bisect_right(self.sentence_ends, limit)
        return self.sentence_ends[complete - 1] if complete else 0

    def sentence_end_before(self, end: int) -> int:
        """The sentence end before the one at character `end`; 0 if there is none."""
        complete = bisect_left(self.sentence_ends, end)
        return self.sentence_ends[complete - 1] if complete else 0

    def place(self, end: int, depth: float) -> int:
        """Where a needle at `depth` percent of the text up to `end` goes: at or before it, after a sentence."""
        if depth == 100:
            return end
        return self.sentence_end(int(bisect_right(self.token_ends, end) * depth / 100))


def insert(text: str, sentences: Sequence[tuple[int, str]]) -> tuple[str, list[Span]]:
    """`text` with each sentence inserted at its character, and where the sentences stand in the result."""
    parts: list[str] = []
    spans: list[Span] = [(0, 0)] * len(sentences)
    length = at = 0
    for i in sorted(range(len(sentences)), key=lambda i: sentences[i][0]):
        place, sentence = sentences[i]
        before, after = ("", " ") if place == 0 else (" ", "")
        lead = text[at:place] + before
        parts += [lead, sentence, after]
        spans[i] = (length + len(lead), length + len(lead) + len(sentence))
        length, at = spans[i][1] + len(after), place
    return "".join(parts) + text[at:], spans


def _folder_text(path: Path) -> str:
    if path.is_dir():
        files = sorted(path.glob("*.txt"))
        if not files:
            raise BadInput(f"The folder {path} holds no .txt file to make a haystack of.")
    else:
        files = [path]
    try:
        return "\n".join(file.read_text(encoding="utf-8").strip() for file in files)
    except (OSError, UnicodeDecodeError) as error:
        raise UnreadableFile(f"The haystack {path} cannot be read: {error}.") from error
