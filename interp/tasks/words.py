"""Words that are one token each, so that prompts which differ in a word align token for token, and prompts in files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from interp.errors import BadInput, UnreadableFile
from interp.tasks.encoding import encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class SingleTokens:
    """The words of a list that are one token after a space, and those that are not."""

    kept: tuple[str, ...]
    dropped: tuple[str, ...]


def single_tokens(
    tokenizer: PreTrainedTokenizerBase, words: Sequence[str], what: str, *, least: int, drop: bool = False
) -> SingleTokens:
    """Which `words` are one token of their own when they follow another word.

    Raises BadInput naming the words that are not, unless `drop`; and where fewer than `least` different ones remain.
    """
    words = tuple(dict.fromkeys(words))
    fits = {word: _is_one_token(tokenizer, word) for word in words}
    kept = tuple(word for word in words if fits[word])
    dropped = tuple(word for word in words if not fits[word])
    if dropped and not drop:
        raise BadInput(
            f"{len(dropped)} of {len(words)} {what} are more than one token of this tokenizer, so prompts would not "
            f"align: {', '.join(dropped)}. Replace them, or have them dropped."
        )
    if len(kept) < least:
        without = f" ({', '.join(dropped[:20])} are more than one token)" if dropped else ""
        raise BadInput(f"{len(kept)} {what} are one token of this tokenizer{without}; at least {least} are needed.")
    return SingleTokens(kept, dropped)


def _is_one_token(tokenizer: PreTrainedTokenizerBase, word: str) -> bool:
    before = encode(tokenizer, "and").ids
    after = encode(tokenizer, f"and {word}").ids
    return len(after) == len(before) + 1 and after[:-1] == before and after[-1] != tokenizer.unk_token_id


def with_article(phrase: str) -> str:
    """`a cup`, `an umbrella`."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def listed(phrases: Sequence[str]) -> str:
    """`a, b, and c`."""
    return f"{', '.join(phrases[:-1])}, and {phrases[-1]}"


def read_labelled(path: str | Path) -> list[tuple[str, str]]:
    """Prompts with their labels from a JSON list of `[prompt, label]`. Raises UnreadableFile."""
    path = Path(path)
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UnreadableFile(f"{path} cannot be read: {error}.") from error
    if not isinstance(rows, list) or not rows:
        raise UnreadableFile(f"{path} is not a list of [prompt, label].")
    for number, row in enumerate(rows):
        if not isinstance(row, list) or len(row) != 2 or not all(isinstance(part, str) for part in row):
            raise UnreadableFile(f"Entry {number} of {path} is {str(row)[:60]!r}, not [prompt, label].")
    return [(prompt, label) for prompt, label in rows]
