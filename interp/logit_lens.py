"""The logit lens: what a model would say if it stopped after each layer (nostalgebraist 2020, "interpreting GPT").

The residual stream after a layer takes the place of the last one, and the model's own final norm and unembedding read
it, with whatever its family does to the logits besides. So the last layer's prediction is the model's, exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from interp.errors import BadInput
from interp.heads.scores import model_record
from interp.next_token import decoded, one_row
from interp.runs import Run, load_run, save_run
from interp.tables import in_notebook
from interp.tracing.batch import Prompts
from interp.tracing.edits import patch
from interp.tracing.model import Model

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True, eq=False, repr=False)
class LogitLens:
    """Predictions after every site, `sites` in the order of the forward pass (first the embedding, `resid_pre.0`).

    `tokens` are those at the positions that were read; `parameters["first"]` is the position of the first of them.
    `ids` and `log_probabilities` `[site position k]` are the k most probable next tokens (nats), `said` their texts by
    id; `entropy` and `kl` (from the model's own prediction) `[site position]` in nats; `following` `[site position]`
    the log-probability of the token that comes next in the prompt, NaN after the last.
    """

    tokens: tuple[str, ...]
    sites: tuple[str, ...]
    ids: np.ndarray
    log_probabilities: np.ndarray
    entropy: np.ndarray
    kl: np.ndarray
    following: np.ndarray
    said: Mapping[int, str]
    model: Mapping[str, Any]
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"LogitLens({self.model['name']}: {len(self.sites)} sites x {len(self.tokens)} positions)"

    @cached_property
    def frame(self) -> pd.DataFrame:
        """A row a site and position: the most probable token, its probability, entropy, KL, the next token's log-p."""
        site, position = np.divmod(np.arange(len(self.sites) * len(self.tokens)), len(self.tokens))
        return pd.DataFrame(
            {
                "site": [self.sites[i] for i in site],
                "position": position + self.parameters.get("first", 0),
                "token": [self.tokens[i] for i in position],
                "said": [self.said[int(i)] for i in self.ids[:, :, 0].ravel()],
                "probability": np.exp(self.log_probabilities[:, :, 0].ravel()),
                "entropy": self.entropy.ravel(),
                "kl": self.kl.ravel(),
                "log_probability_of_next": self.following.ravel(),
            }
        )

    def top(self, site: str, position: int = -1) -> pd.DataFrame:
        """The k most probable tokens after a site, at one of the positions that were read, counted among them.

        Raises BadInput for what the lens does not hold.
        """
        if site not in self.sites or not -len(self.tokens) <= position < len(self.tokens):
            raise BadInput(
                f"the lens holds no {site} at position {position}: it has the sites {', '.join(self.sites)} and "
                f"{len(self.tokens)} positions"
            )
        row = self.sites.index(site)
        ids = self.ids[row, position]
        probabilities = np.exp(self.log_probabilities[row, position])
        return pd.DataFrame({"token": [self.said[int(i)] for i in ids], "id": ids, "probability": probabilities})

    def plot(self) -> go.Figure:
        """Heat map of the probability of the most probable token, which is written in each cell."""
        from interp.plots.logit_lens import lens_map

        return lens_map(self)

    def _repr_html_(self) -> str:
        last = self.frame[self.frame.position == self.frame.position.max()]
        return in_notebook(self, last, most=None)

    def save(self, path: str | Path, started: datetime | None = None) -> Run:
        """Write a run folder. Raises UnwritableOutput."""
        said = {str(number): text for number, text in self.said.items()}
        described = {"tokens": list(self.tokens), "sites": list(self.sites), "said": said}
        arrays = ("ids", "log_probabilities", "entropy", "kl", "following")
        return save_run(
            path,
            kind="logit-lens",
            parameters={**self.parameters, **described},
            model=self.model,
            seed=0,
            frame=self.frame,
            arrays={name: getattr(self, name) for name in arrays},
            started=started,
        )

    @classmethod
    def load(cls, path: str | Path) -> LogitLens:
        """Read what `save` wrote. Raises UnreadableFile, BadInput for a run of another kind."""
        run = load_run(path, "logit-lens")
        parameters = dict(run.record.parameters)
        said = {int(number): text for number, text in parameters.pop("said").items()}
        tokens, sites = (tuple(parameters.pop(name)) for name in ("tokens", "sites"))
        places = len(sites), len(tokens)
        ids, log_probabilities = (run.array(name, *places, None) for name in ("ids", "log_probabilities"))
        entropy, kl, following = (run.array(name, *places) for name in ("entropy", "kl", "following"))
        model = run.record.model
        return cls(tokens, sites, ids, log_probabilities, entropy, kl, following, said, model, parameters)


def logit_lens(model: Model, prompt: Prompts, *, top: int = 5, last: int | None = None) -> LogitLens:
    """Read the residual stream of one prompt after every layer as the model's own head does.

    `last` reads only so many positions at the prompt's end, all by default. Costs one forward pass a layer. Raises
    BadInput for several prompts, for `top` outside the vocabulary and `last` below 1, SiteUnavailable for a model
    without a language-model head, PromptTooLong.
    """
    if not 1 <= top <= model.spec.vocab:
        raise BadInput(f"top={top}: a lens shows at least one token, and the vocabulary has {model.spec.vocab}")
    if last is not None and last < 1:
        raise BadInput(f"last={last}: a lens reads at least one position")
    row = one_row(model, prompt)
    first = 0 if last is None else max(0, len(row) - last)
    wanted = list(range(first, len(row)))
    end = f"resid_post.{model.spec.layers - 1}"
    sites = ("resid_pre.0", *(f"resid_post.{layer}" for layer in range(model.spec.layers)))
    trace = model.run([row], read=sites, logits=wanted)
    own = trace.logits[0].double().log_softmax(-1)
    following = torch.tensor(row[first + 1 :], device=own.device)
    columns: dict[str, list[np.ndarray]] = {
        name: [] for name in ("ids", "log_probabilities", "entropy", "kl", "following")
    }
    for site in sites:
        logits = model.run([row], edits=patch(end, trace[site]), logits=wanted).logits[0]
        for name, value in _read(logits.double().log_softmax(-1), own, following, top).items():
            columns[name].append(value.cpu().numpy())
    arrays = {name: np.stack(values) for name, values in columns.items()}
    said = {int(number): decoded(model, int(number)) for number in np.unique(arrays["ids"])}
    tokens = tuple(decoded(model, number) for number in row[first:])
    parameters = {"top": top, "first": first, "prompt_tokens": len(row)}
    return LogitLens(tokens, sites, **arrays, said=said, model=model_record(model), parameters=parameters)


def _read(logs: Tensor, own: Tensor, following: Tensor, top: int) -> dict[str, Tensor]:
    """What is kept of log-probabilities `[position vocab]`, beside the model's `own`."""
    best = logs.topk(top, dim=-1)
    next_token = logs[:-1].gather(-1, following[:, None])[:, 0]
    return {
        "ids": best.indices,
        "log_probabilities": best.values,
        "entropy": -(logs.exp() * logs).sum(-1),
        "kl": (own.exp() * (own - logs)).sum(-1),
        "following": torch.cat([next_token, next_token.new_full((1,), float("nan"))]),
    }
