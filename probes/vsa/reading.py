"""A text that a person gives: what is bound in its hidden state, beside chance and what the model itself says next."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from interp.errors import BadInput
from interp.next_token import NextToken, next_token
from interp.tables import in_notebook
from interp.tasks.encoding import encode
from interp.tracing.model import Model
from probes.vsa.codebook import Codebook
from probes.vsa.study import HyperdimensionalProbe

if TYPE_CHECKING:
    import plotly.graph_objects as go

TYPED = re.compile(r"([^:=]+):([^:=]+)(?:::?|=)([^:=]+)(?::\s*\??\s*)?")


@dataclass(frozen=True, eq=False, repr=False)
class DecodedText:
    """What the hidden state of a text holds, as `HyperdimensionalProbe.decode` says, and the model's own next token.

    `chance` is the cosine that 99 % of the best hits in random codebooks stay below.
    """

    text: str
    frame: pd.DataFrame
    said: NextToken
    encoder: str
    chance: float

    def __repr__(self) -> str:
        best = self.frame.drop_duplicates("query").set_index("query").concept
        return f"DecodedText({', '.join(f'{query} -> {concept}' for query, concept in best.items())})"

    def plot(self) -> go.Figure:
        """The first concepts of every query with their cosines, beside those in random codebooks."""
        from interp.plots.vsa import decoded_bars

        return decoded_bars(self.frame, self.chance)

    def _repr_html_(self) -> str:
        return in_notebook(self, self.frame)


def read_text(
    model: Model, probe: HyperdimensionalProbe, text: str, encoder: str, queries: Sequence[str] = (), top: int = 5
) -> DecodedText:
    """Decode the hidden state of a text. Raises BadInput as `HyperdimensionalProbe.decode`, PromptTooLong."""
    found = probe.decode(model, text, encoder, queries, top)
    return DecodedText(text, found, next_token(model, text, top=min(top, model.spec.vocab)), encoder, probe.chance)


def analogy_words(typed: str) -> tuple[str, str, str]:
    """The words of `A : B :: C : ?`, where `=` may stand for `::`. Raises BadInput for anything else."""
    found = TYPED.fullmatch(typed.strip())
    words = tuple(part.strip() for part in found.groups()) if found else ()
    if len(words) != 3 or not all(words):
        raise BadInput(f"an analogy reads A : B :: C : ?, with three words; {typed[:80]!r} does not")
    return words


def require_concepts(words: Sequence[str], model: Model, codebook: Codebook) -> None:
    """Raises BadInput for words that are no concepts of a codebook, saying which are near and how long they are."""
    unknown = [word for word in dict.fromkeys(words) if word not in codebook]
    if not unknown:
        return
    cased = {name.lower(): name for name in codebook.concepts}
    said = []
    for word in unknown:
        if word.lower() in cased:
            said.append(f"the concept {word!r} is not in the codebook; did you mean {cased[word.lower()]!r}?")
            continue
        count = len(pieces(model, word))
        length = f" (for this model {count} tokens, no single one)" if count > 1 else ""
        try:
            codebook.index(word)
        except BadInput as error:
            said.append(f"{error}{length}")
    raise BadInput("; ".join(said))


def pieces(model: Model, word: str) -> tuple[str, ...]:
    """The tokens that a word is inside a text."""
    start = len(encode(model.tokenizer, "x").ids)
    return tuple(str(model.tokenizer.decode([token])) for token in encode(model.tokenizer, f"x {word}").ids[start:])
