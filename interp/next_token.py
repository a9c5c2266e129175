"""What a model says next after one prompt, and what it says under edits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from interp.errors import BadInput
from interp.heads.scores import model_record
from interp.tables import in_notebook
from interp.tracing.batch import Prompts, encode
from interp.tracing.edits import Edit
from interp.tracing.model import Model

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True, eq=False, repr=False)
class NextToken:
    """The most probable next tokens, `ids` and `said`, most probable before the edits first.

    `log_probabilities` `[k]` in nats; `edited` `[k]` the same under the edits, None where there were none.
    """

    ids: tuple[int, ...]
    said: tuple[str, ...]
    log_probabilities: np.ndarray
    edited: np.ndarray | None
    model: Mapping[str, Any]
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        after = "" if self.edited is None else f", under {self.parameters['edits']}"
        return f"NextToken({self.model['name']}: {self.said[0]!r}{after})"

    @property
    def frame(self) -> pd.DataFrame:
        """A row a token: its probability, and under edits also that, and the change of its log-probability."""
        columns: dict[str, Any] = {"token": self.said, "id": self.ids, "probability": np.exp(self.log_probabilities)}
        if self.edited is not None:
            columns |= {"edited": np.exp(self.edited), "change": self.edited - self.log_probabilities}
        return pd.DataFrame(columns)

    def plot(self) -> go.Figure:
        """Bars of the probabilities, beside them those under the edits."""
        from interp.plots.logit_lens import next_token_bars

        return next_token_bars(self)

    def _repr_html_(self) -> str:
        return in_notebook(self, self.frame)


def next_token(model: Model, prompt: Prompts, *, edits: Edit | Sequence[Edit] = (), top: int = 10) -> NextToken:
    """The `top` most probable next tokens of one prompt; with `edits`, also those that are most probable under them.

    Raises BadInput for several prompts and for `top` outside the vocabulary; PromptTooLong; as `Model.run` for edits.
    """
    if not 1 <= top <= model.spec.vocab:
        raise BadInput(f"top={top}: show at least one token; the vocabulary has {model.spec.vocab}")
    row = one_row(model, prompt)
    edits = (edits,) if isinstance(edits, Edit) else tuple(edits)
    before = model.run([row], logits="last").logits[0].double().log_softmax(-1)
    after = model.run([row], edits=edits, logits="last").logits[0].double().log_softmax(-1) if edits else None
    chosen = before.topk(top).indices.tolist()
    if after is not None:
        new = [number for number in after.topk(top).indices.tolist() if number not in chosen]
        chosen += sorted(new, key=lambda number: -float(before[number]))
    return NextToken(
        ids=tuple(chosen),
        said=tuple(decoded(model, number) for number in chosen),
        log_probabilities=before[chosen].cpu().numpy(),
        edited=None if after is None else after[chosen].cpu().numpy(),
        model=model_record(model),
        parameters={"edits": ", ".join(map(str, edits)), "tokens": len(row)},
    )


def one_row(model: Model, prompt: Prompts) -> list[int]:
    """The token ids of a single prompt; raises BadInput for none, an empty one and several."""
    rows = encode(prompt, model.tokenizer).rows
    if len(rows) != 1:
        raise BadInput(f"one prompt is read at a time, and these are {len(rows)}")
    return list(rows[0])


def decoded(model: Model, token: int) -> str:
    """A token as text, or its number where the model has no tokenizer."""
    return str(token) if model.tokenizer is None else str(model.tokenizer.decode([token]))
