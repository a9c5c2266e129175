"""Do the heads matter? Recall with heads ablated, beside random heads of the same layers.

Three ablations, as they answer different questions: `zero` and `mean` act on the head's output at every token, prompt
included; `uniform-at-decode` is what the published masking code really does: attention of the head becomes uniform from
the last prompt token on, while the prompt itself is read unharmed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from interp.errors import BadInput, choose
from interp.heads.scores import model_record
from interp.heads.sharing import run_shared
from interp.stats import bootstrap_interval
from interp.tasks.prompts import PromptSet
from interp.tracing.edits import Edit, attend, mean, zero
from interp.tracing.model import Model

Head = tuple[int, int]
Ablation = Literal["zero", "mean", "uniform-at-decode"]
ABLATIONS: tuple[Ablation, ...] = ("mean", "zero", "uniform-at-decode")
REFERENCE_PROMPTS = 8
"""Prompts whose tokens the mean of a mean ablation is taken over."""


@dataclass(frozen=True, eq=False)
class Recall:
    """What a model answers under some intervention, one entry a test.

    `exact` whether greedy decoding would give the whole answer, `tokens` the fraction of its tokens predicted right
    after the true ones before, `log_probability` the mean over its tokens in nats.
    """

    exact: np.ndarray
    tokens: np.ndarray
    log_probability: np.ndarray


@dataclass(frozen=True, eq=False)
class AblationReport:
    """Recall of every condition: `frame` has a row for the baseline and one an ablation, set of heads and seed."""

    frame: pd.DataFrame
    heads: tuple[Head, ...]
    model: Mapping[str, Any]
    parameters: Mapping[str, Any]

    def summary(self) -> pd.DataFrame:
        """One row an ablation: recall kept (relative to the baseline) without the heads and without random ones."""
        rows = []
        for ablation, part in self.frame[self.frame.ablation != "none"].groupby("ablation", sort=False):
            chosen = part[part.heads == "chosen"].iloc[0]
            random = part[part.heads == "random"]
            rows.append(
                {
                    "ablation": ablation,
                    "kept": chosen.relative,
                    "low": chosen.relative_low,
                    "high": chosen.relative_high,
                    "random": random.relative.mean(),
                    "random_low": random.relative.min(),
                    "random_high": random.relative.max(),
                    "seeds": len(random),
                    "n": chosen.n,
                }
            )
        return pd.DataFrame(rows)

    def _repr_html_(self) -> str:
        return self.frame.to_html(index=False)


def ablation_report(
    model: Model,
    prompts: PromptSet,
    heads: Sequence[Head],
    *,
    ablations: Sequence[Ablation] = ABLATIONS,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    batch_size: int = 8,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> AblationReport:
    """Recall with `heads` ablated, against as many random heads of the same layers, once for each of `seeds`.

    Recall is the fraction of tests whose whole answer greedy decoding gives; intervals are paired bootstraps over the
    tests.
    Raises BadInput for unknown ablations, repeated heads, and layers without enough other heads for the control.
    """
    for ablation in ablations:
        if ablation not in ABLATIONS:
            raise BadInput(f"there is no ablation {ablation!r}; {choose(ablation, ABLATIONS)}")
    controls = {s: random_heads(model, heads, s) for s in seeds}
    means = _means(model, prompts) if "mean" in ablations else {}
    conditions = [(a, "chosen", -1, tuple(heads)) for a in ablations]
    conditions += [(a, "random", s, controls[s]) for a in ablations for s in seeds]
    baseline = recall_under(model, prompts, batch_size=batch_size)
    rows = [_row("none", "none", -1, (), baseline, baseline, seed)]
    for i, (ablation, kind, draw, chosen) in enumerate(conditions):
        edits = ablate(chosen, ablation, means)
        recall = recall_under(model, prompts, edits, batch_size=batch_size)
        rows.append(_row(ablation, kind, draw, chosen, recall, baseline, seed))
        if progress:
            progress(i + 1, len(conditions))
    parameters = {"ablations": list(ablations), "seeds": list(seeds), "prompts": prompts.hash, "seed": seed}
    return AblationReport(pd.DataFrame(rows), tuple(heads), model_record(model), parameters)


def recall_under(model: Model, prompts: PromptSet, edits: Sequence[Edit] = (), *, batch_size: int = 8) -> Recall:
    """Predict every answer under `edits`, by one teacher-forced pass a test.

    Edits may use the role `"decode"`: the last prompt token and the answer's tokens.
    """
    if not prompts.answers:
        raise BadInput("recall is measured against answers, and these prompts have none")
    rows = [(*p, *a[:-1]) for p, a in zip(prompts.tokens, prompts.answer_tokens, strict=True)]
    everywhere = [edit for edit in edits if edit.positions is None]
    exact, tokens, log_probability = (np.zeros(len(rows)) for _ in range(3))
    for batch, prefix in run_shared(model, rows, batch_size, everywhere):
        for group in _equal_answers(prompts, batch):
            count = len(prompts.answer_tokens[group[0]])
            inputs = _Rows([rows[i] for i in group], count)
            logits = model.run(inputs, edits=edits, logits=list(range(-count, 0)), prefix=prefix).logits
            wanted = torch.tensor([prompts.answer_tokens[i] for i in group], device=logits.device)
            right = (logits.argmax(-1) == wanted).float()
            said = logits.float().log_softmax(-1).gather(-1, wanted[..., None])[..., 0]
            exact[group] = right.min(-1).values.cpu()
            tokens[group] = right.mean(-1).cpu()
            log_probability[group] = said.mean(-1).cpu()
    return Recall(exact, tokens, log_probability)


class _Rows:
    """Token rows whose last `count` positions carry the role "decode"."""

    def __init__(self, tokens: Sequence[tuple[int, ...]], count: int) -> None:
        self.tokens = tokens
        self.spans = {"decode": [(len(row) - count, len(row)) for row in tokens]}


def _equal_answers(prompts: PromptSet, batch: list[int]) -> list[list[int]]:
    groups: dict[int, list[int]] = {}
    for i in batch:
        groups.setdefault(len(prompts.answer_tokens[i]), []).append(i)
    return list(groups.values())


def ablate(heads: Sequence[Head], ablation: Ablation, means: Mapping[int, Tensor] | None = None) -> list[Edit]:
    """The edits that ablate these heads; `means` `[head dim]` by layer, for `"mean"`."""
    if ablation == "zero":
        return [zero(f"z.{layer}.{head}") for layer, head in heads]
    if ablation == "mean":
        if means is None:
            raise BadInput("mean ablation needs the means to replace by")
        return [mean(f"z.{layer}.{head}", means[layer][head]) for layer, head in heads]
    return [attend(f"pattern.{layer}.{head}", to="uniform").at(positions="decode") for layer, head in heads]


def random_heads(model: Model, heads: Sequence[Head], seed: int) -> tuple[Head, ...]:
    """As many heads from the same layers, none of them among `heads`; raises BadInput when a layer has too few."""
    if len(set(heads)) < len(heads) or not heads:
        raise BadInput(f"the heads to ablate must be distinct and at least one; got {list(heads)}")
    rng = np.random.default_rng(seed)
    chosen: list[Head] = []
    for layer in sorted({layer for layer, _ in heads}):
        taken = {head for at, head in heads if at == layer}
        others = [head for head in range(model.spec.heads) if head not in taken]
        if len(others) < len(taken):
            raise BadInput(
                f"layer {layer} has {len(taken)} of {model.spec.heads} heads ablated, so no equal number of others is "
                "left for the random control; ablate fewer heads"
            )
        chosen += [(layer, int(head)) for head in rng.choice(others, len(taken), replace=False)]
    return tuple(chosen)


def _means(model: Model, prompts: PromptSet) -> dict[int, Tensor]:
    """Mean output of every head over the tokens of some prompts, `[head dim]` by layer."""
    reference = prompts.select(range(0, len(prompts), max(1, len(prompts) // REFERENCE_PROMPTS)))
    traces = [model.run([list(row)], read="z") for row in reference.tokens]
    return {
        layer: torch.stack([trace.mean(f"z.{layer}") for trace in traces]).mean(0) for layer in range(model.spec.layers)
    }


def _row(
    ablation: str, kind: str, draw: int, heads: Sequence[Head], recall: Recall, baseline: Recall, seed: int
) -> dict[str, Any]:
    here = bootstrap_interval(recall.exact, seed=seed)
    pairs = np.stack([recall.exact, baseline.exact], axis=1)
    kept = bootstrap_interval(pairs, _ratio, seed=seed) if baseline.exact.any() else None
    return {
        "ablation": ablation,
        "heads": kind,
        "seed": draw,
        "which": " ".join(f"{layer}-{head}" for layer, head in heads),
        "recall": here.estimate,
        "low": here.low,
        "high": here.high,
        "relative": kept.estimate if kept else float("nan"),
        "relative_low": kept.low if kept else float("nan"),
        "relative_high": kept.high if kept else float("nan"),
        "token_recall": float(recall.tokens.mean()),
        "log_probability": float(recall.log_probability.mean()),
        "n": len(recall.exact),
    }


def _ratio(pairs: np.ndarray) -> np.floating:
    """Recall relative to the baseline of the same tests; 0 where the resampled baseline is 0."""
    return np.divide(pairs[:, 0].mean(), pairs[:, 1].mean()) if pairs[:, 1].any() else np.float64(0)
