"""Where every head looks on one prompt, measured in the kernel: no attention matrix is built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from interp.errors import BadInput, choose
from interp.heads.scores import model_record
from interp.next_token import decoded, one_row
from interp.tables import in_notebook
from interp.tracing.batch import Prompts
from interp.tracing.model import Model

if TYPE_CHECKING:
    import plotly.graph_objects as go

STATISTICS = {
    "distance": "mean distance to the token a head looks at most (tokens)",
    "probability": "mean attention on that token",
    "entropy": "mean entropy of attention (nats)",
    "first": "share of positions that look at the first token most",
    "copies": "share of positions that look most at the very token the model says next",
}


@dataclass(frozen=True, eq=False, repr=False)
class AttentionSummary:
    """Of every head and position of a prompt `[layer head position]`: `argmax`, the position it looks at most, the
    attention there (`probability`) and the `entropy` of the row in nats. `said` are the tokens the model says next, one
    a position, `ids` the prompt's.
    """

    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    predicted: tuple[int, ...]
    said: tuple[str, ...]
    argmax: np.ndarray
    probability: np.ndarray
    entropy: np.ndarray
    model: Mapping[str, Any]

    def __repr__(self) -> str:
        layers, heads, n = self.argmax.shape
        return f"AttentionSummary({self.model['name']}: {layers} x {heads} heads, {n} tokens)"

    @cached_property
    def copied(self) -> np.ndarray:
        """Whether the token looked at most is the one the model says next, `[layer head position]`."""
        return np.array(self.ids)[self.argmax] == np.array(self.predicted)

    def statistic(self, name: str) -> np.ndarray:
        """A number a head, `[layer head]`: one of STATISTICS. Raises BadInput for another."""
        if name not in STATISTICS:
            raise BadInput(f"there is no statistic {name!r}; {choose(name, STATISTICS)}")
        if name == "distance":
            return (np.arange(len(self.ids)) - self.argmax).mean(-1)
        values = {"first": self.argmax == 0, "copies": self.copied}
        values |= {"probability": self.probability, "entropy": self.entropy}
        return values[name].mean(-1)

    @cached_property
    def frame(self) -> pd.DataFrame:
        """A row a head with every statistic."""
        layers, heads, n = self.argmax.shape
        layer, head = np.divmod(np.arange(layers * heads), heads)
        statistics = {name: self.statistic(name).ravel() for name in STATISTICS}
        return pd.DataFrame({"layer": layer, "head": head, **statistics, "n": n})

    def head(self, layer: int, head: int) -> pd.DataFrame:
        """A row a position: the token, where this head looks most, and whether that is what the model says next.

        Raises BadInput for a head the model does not have.
        """
        layers, heads, n = self.argmax.shape
        if not (0 <= layer < layers and 0 <= head < heads):
            raise BadInput(f"there is no head {layer}.{head}: layers are 0 to {layers - 1}, heads 0 to {heads - 1}")
        looks = self.argmax[layer, head]
        return pd.DataFrame(
            {
                "position": np.arange(n),
                "token": self.tokens,
                "looks at": looks,
                "its token": [self.tokens[i] for i in looks],
                "attention": self.probability[layer, head],
                "model says": self.said,
                "copied": self.copied[layer, head],
            }
        )

    def plot(self, statistic: str = "distance") -> go.Figure:
        """Heat map of a statistic, layers by heads. Raises BadInput for one that does not exist."""
        from interp.plots.attention import statistic_map

        return statistic_map(self, statistic)

    def _repr_html_(self) -> str:
        return in_notebook(self, self.frame)


def attention_summary(model: Model, prompt: Prompts) -> AttentionSummary:
    """Summarise the attention of every head on one prompt, in one forward pass and memory linear in its length.

    Raises BadInput for several prompts, PromptTooLong, SiteUnavailable where the kernel cannot be observed.
    """
    row = one_row(model, prompt)
    trace = model.run([row], read="attention_stats", logits="all")
    predicted = trace.logits[0].argmax(-1).tolist()
    stats = [trace[f"attention_stats.{layer}"] for layer in range(model.spec.layers)]
    return AttentionSummary(
        ids=tuple(row),
        tokens=tuple(decoded(model, token) for token in row),
        predicted=tuple(predicted),
        said=tuple(decoded(model, token) for token in predicted),
        argmax=np.stack([each.argmax[0].cpu().numpy() for each in stats]),
        probability=np.stack([each.probability[0].float().cpu().numpy() for each in stats]),
        entropy=np.stack([each.entropy[0].float().cpu().numpy() for each in stats]),
        model=model_record(model),
    )
