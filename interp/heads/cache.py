"""How little of its key/value cache a model needs: KV bytes against recall.

The key/value heads that score best keep every key, the others sinks and a recent window (DuoAttention,
arXiv:2410.10819), with RazorAttention's compensation token if wanted (arXiv:2407.15891). Each test is answered as it
would be in production: the prompt in chunks, then greedy decoding through a `HeadwiseCache` on the kernels. Beside them
stand the full cache, and as many random key/value heads kept instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import torch

from interp.errors import BadInput
from interp.heads.headwise import CHUNK, decode_greedily, headwise_attention
from interp.heads.mask import HeadMask, Reduction
from interp.heads.scores import model_record
from interp.runs import Journal, Run, load_run, save_run
from interp.stats import Interval, bootstrap_interval, wilson_interval
from interp.tables import in_notebook
from interp.tasks.prompts import PromptSet
from interp.tracing.batch import Encoded, check_length
from interp.tracing.model import Model
from kernels.headwise_cache import FullHeads, HeadwiseCache
from kernels.model_masks import check_family

if TYPE_CHECKING:
    import plotly.graph_objects as go

Kept = Literal["all", "chosen", "random"]


class Condition(NamedTuple):
    """A set of key/value heads that keep everything, `full` `[layer kv_head]`."""

    kept: Kept
    heads: int
    seed: int
    full: np.ndarray

    @property
    def names(self) -> str:
        return " ".join(f"{layer}-{head}" for layer, head in np.argwhere(self.full))


@dataclass(frozen=True, eq=False, repr=False)
class CacheStudy:
    """KV bytes and recall of every set of heads kept, and every single answer.

    `frame` has a row a length and set of heads: recall (share of tests answered exactly) with its interval, the
    difference to the full cache on the same tests with its paired interval, how many tests were lost and gained,
    mean bytes of keys and values, the share of them saved, n. `tests` has a row for each answer; hidden says that the
    value lies where heads that do not keep everything no longer see it when the answer begins.
    """

    frame: pd.DataFrame
    tests: pd.DataFrame
    model: Mapping[str, Any]
    parameters: Mapping[str, Any]
    seed: int = 0

    def summary(self) -> pd.DataFrame:
        """One row a length and number of heads: what is saved, and recall lost with these heads and random ones.

        random is the mean over the draws, least to most their range; both intervals of differences to the full cache
        are paired over tests, each test being the mean of its draws.
        """
        rows = []
        for (length, heads), part in self.frame[self.frame.kept != "all"].groupby(["length", "heads"], sort=False):
            chosen, random = part[part.kept == "chosen"].iloc[0], part[part.kept == "random"]
            row = {
                "length": length,
                "heads": heads,
                "saved": chosen.saved,
                "recall": chosen.recall,
                **{name: chosen[name] for name in ("difference", "difference_low", "difference_high")},
            }
            if len(random):
                lost = self._losses(length, heads)
                row |= {"random": random.recall.mean(), "least": random.recall.min(), "most": random.recall.max()}
                row |= _columns("random_difference", bootstrap_interval(lost, seed=self.seed))
            rows.append({**row, "draws": len(random), "n": chosen.n})
        return pd.DataFrame(rows)

    def _losses(self, length: Any, heads: Any) -> np.ndarray:
        """Recall of each test with random heads, the mean of its draws, less that with the full cache."""
        tests = self.tests[self.tests.length == length]
        random = tests[(tests.kept == "random") & (tests["heads"] == heads)].groupby("test").right.mean()
        whole = tests[tests.kept == "all"].set_index("test").right
        return (random - whole).to_numpy(dtype=float)

    def plot(self) -> go.Figure:
        """KV bytes against recall: heads by score, the band of random ones, the full cache."""
        from interp.plots.cache import bytes_against_recall

        return bytes_against_recall(self)

    def __repr__(self) -> str:
        return f"CacheStudy({self.model['name']}: {len(self.frame)} sets of heads, {len(self.tests)} answers)"

    def _repr_html_(self) -> str:
        return in_notebook(self, self.summary())

    def save(self, path: str | Path, started: datetime | None = None, **files: Any) -> Run:
        """Write a run folder: the table and every answer. Raises UnwritableOutput."""
        return save_run(
            path,
            kind="cache-study",
            parameters=self.parameters,
            model=self.model,
            seed=self.seed,
            frame=self.frame,
            files={"tests.parquet": self.tests.to_parquet, **files},
            started=started,
        )

    @classmethod
    def load(cls, path: str | Path) -> CacheStudy:
        """Read what `save` wrote. Raises UnreadableFile, BadInput for a run of another kind."""
        run = load_run(path, "cache-study")
        return cls(run.frame, run.table("tests"), run.record.model, run.record.parameters, run.record.seed)


def cache_study(
    model: Model,
    prompts: PromptSet,
    mask: HeadMask,
    heads: Sequence[int],
    *,
    reduction: Reduction = "max",
    sinks: int = 64,
    window: int = 256,
    compensation: bool = False,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    chunk: int = CHUNK,
    backend: str = "auto",
    seed: int = 0,
    journal: Journal | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> CacheStudy:
    """Recall with the best `heads` key/value heads keeping every key, for each number in `heads`.

    Args:
        prompts: tests with answers; rows of the result go by `metadata["length"]` where the prompts say it.
        mask: scores of query heads, reduced to key/value heads by `reduction`, or of key/value heads as they are.
        sinks, window: keys that the other heads keep. compensation: RazorAttention's token for what they drop.
        seeds: draws of random heads kept instead; they avoid the chosen ones as long as there are others.
        chunk: tokens of the prompt that run at once. backend: of the kernels.
        journal: keeps every answered test, so that an interrupted study goes on.

    Raises MaskMismatch for a mask of another model, PromptTooLong where prompt and answer exceed its context, BadInput
    for numbers of heads that it has not; InvalidRequest for sizes that make no cache, UnsupportedRequest for families
    whose attention the kernels do not replace; all before anything runs.
    """
    by_score = _kv_scores(model, mask, reduction)
    _check(model, prompts, heads, by_score, chunk)
    check_family(model.hf.config)
    make = partial(
        _cache, model, sinks=sinks, window=window, compensation=compensation, backend=backend, rule=by_score.reduction
    )
    make(np.zeros(by_score.scores.shape, dtype=bool), 1)
    conditions = _conditions(by_score, heads, seeds)
    answers = _answer_all(model, prompts, conditions, make, chunk, journal, progress)
    tests = _tests(prompts, conditions, answers, sinks, window)
    parameters = {
        "mask": mask.method,
        "reduction": by_score.reduction,
        "sinks": sinks,
        "window": window,
        "compensation": compensation,
        "heads": list(heads),
        "seeds": list(seeds),
        "chunk": chunk,
        "backend": backend,
        "prompts": prompts.hash,
    }
    return CacheStudy(_frame(tests, conditions, seed), tests, model_record(model), parameters, seed)


class Answer(NamedTuple):
    """What was decoded, whether it is the answer to the last token, and the bytes of keys and values at its end."""

    right: bool
    response: str
    kv_bytes: int
    full_bytes: int


def _kv_scores(model: Model, mask: HeadMask, reduction: Reduction) -> HeadMask:
    mask.check(model.spec, model.fingerprint)
    return mask if mask.kind == "kv" else replace(mask, kv_heads=model.spec.kv_heads).to_kv(reduction)


def _check(model: Model, prompts: PromptSet, heads: Sequence[int], by_score: HeadMask, chunk: int) -> None:
    if model.remote:
        raise BadInput("the weights are on a remote service; a cache is filled where the model runs")
    if model.hf.training:
        raise BadInput("the model is in training mode, so dropout is on; call model.hf.eval() first")
    if not prompts.answers:
        raise BadInput("recall is measured against answers, and these prompts have none")
    there = by_score.scores.size
    if not heads or len(set(heads)) < len(heads) or not all(0 <= k <= there for k in heads):
        raise BadInput(f"heads={list(heads)}: give distinct numbers of key/value heads, from 0 to all {there}")
    if chunk < 1:
        raise BadInput(f"chunk={chunk}: a prompt runs at least one token at a time")
    rows = tuple((*tokens, *answer) for tokens, answer in zip(prompts.tokens, prompts.answer_tokens, strict=True))
    check_length(Encoded(rows, prompts.spans), model.spec.context)


def _cache(model: Model, full: np.ndarray, length: int, *, rule: str, **how: Any) -> HeadwiseCache:
    config: Any = model.hf.config
    return HeadwiseCache(config, FullHeads(torch.from_numpy(full), rule), max_length=length, **how)


def _conditions(by_score: HeadMask, heads: Sequence[int], seeds: Sequence[int]) -> list[Condition]:
    everything = np.ones(by_score.scores.shape, dtype=bool)
    conditions = [Condition("all", everything.size, -1, everything)]
    for count in heads:
        chosen = by_score.top(count).selected
        assert chosen is not None
        conditions.append(Condition("chosen", count, -1, np.array(chosen)))
        conditions += [Condition("random", count, seed, random_instead(chosen, seed)) for seed in seeds]
    return conditions


def random_instead(chosen: np.ndarray, seed: int) -> np.ndarray:
    """As many random heads `[layer kv_head]`, none of them chosen; past the last of the others some that are."""
    rng = np.random.default_rng(seed)
    others, own = (rng.permutation(np.flatnonzero(which)) for which in (~chosen, chosen))
    drawn = np.zeros(chosen.size, dtype=bool)
    drawn[np.concatenate([others, own])[: len(own)]] = True
    return drawn.reshape(chosen.shape)


def _answer_all(
    model: Model,
    prompts: PromptSet,
    conditions: Sequence[Condition],
    make: Callable[[np.ndarray, int], HeadwiseCache],
    chunk: int,
    journal: Journal | None,
    progress: Callable[[int, int], None] | None,
) -> dict[str, list[Answer]]:
    """Every test under every set of heads, by the names of the heads; sets that occur twice run once."""
    sets = {condition.names: condition.full for condition in conditions}
    known: dict[str, Any] = {} if journal is None else journal.done
    answers: dict[str, list[Answer]] = {names: [] for names in sets}
    with headwise_attention(model):
        for done, (test, names) in enumerate(product(range(len(prompts)), sets), 1):
            key = f"{test}: {names}"
            if key not in known:
                answer = _answer(model, prompts, test, partial(make, sets[names]), chunk)
                if journal is not None:
                    journal.append(key, answer)
                known[key] = answer
            answers[names].append(Answer(*known[key]))
            if progress:
                progress(done, len(prompts) * len(sets))
    return answers


def _answer(model: Model, prompts: PromptSet, test: int, make: Callable[[int], HeadwiseCache], chunk: int) -> Answer:
    tokens, wanted = prompts.tokens[test], prompts.answer_tokens[test]
    cache = make(len(tokens) + len(wanted))
    said = decode_greedily(model, cache, tokens, len(wanted), chunk)
    text = "" if model.tokenizer is None else model.tokenizer.decode(said)
    return Answer(said == list(wanted), text, cache.bytes, cache.bytes_if_full)


def _tests(
    prompts: PromptSet,
    conditions: Sequence[Condition],
    answers: Mapping[str, Sequence[Answer]],
    sinks: int,
    window: int,
) -> pd.DataFrame:
    about = prompts.metadata or ({},) * len(prompts)
    lengths = [details.get("length", max(map(len, prompts.tokens))) for details in about]
    hidden: list[bool | None] = [None] * len(prompts)
    if "value" in prompts.spans:
        ends = [len(tokens) - window for tokens in prompts.tokens]
        hidden = [sinks <= a and b <= end for (a, b), end in zip(prompts.spans["value"], ends, strict=True)]
    rows = [
        {
            "kept": condition.kept,
            "heads": condition.heads,
            "seed": condition.seed,
            "test": test,
            "length": lengths[test],
            "depth": about[test].get("depth"),
            "hidden": hidden[test],
            "answer": prompts.answers[test],
            **answers[condition.names][test]._asdict(),
        }
        for condition in conditions
        for test in range(len(prompts))
    ]
    return pd.DataFrame(rows)


def _frame(tests: pd.DataFrame, conditions: Sequence[Condition], seed: int) -> pd.DataFrame:
    rows = []
    which = {(c.kept, c.heads, c.seed): c.names for c in conditions}
    for length, same_length in tests.groupby("length"):
        parts = {key: part.set_index("test") for key, part in same_length.groupby(["kept", "heads", "seed"])}
        whole = parts[next(iter(which))].right
        for (kept, heads, draw), names in which.items():
            part = parts[kept, heads, draw]
            rows.append(
                {
                    "length": length,
                    "kept": kept,
                    "heads": heads,
                    "seed": draw,
                    "which": names,
                    **_columns("recall", wilson_interval(int(part.right.sum()), len(part))),
                    **_columns("difference", bootstrap_interval(part.right.astype(float) - whole, seed=seed)),
                    "lost": int((whole & ~part.right).sum()),
                    "gained": int((part.right & ~whole).sum()),
                    "kv_bytes": part.kv_bytes.mean(),
                    "full_bytes": part.full_bytes.mean(),
                    "saved": 1 - part.kv_bytes.sum() / part.full_bytes.sum(),
                    "n": len(part),
                }
            )
    return pd.DataFrame(rows)


def _columns(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.estimate, f"{name}_low": interval.low, f"{name}_high": interval.high}
