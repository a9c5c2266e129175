"""Which layers' attention decides between context and prior: a layer search in O(log L) patch evaluations.

Follows Minder et al. 2025: attention outputs of a range of layers are patched, at the last token, from a source prompt
into a target prompt; the residual stream that results after each block is read out by a Patchscope (Ghandeharioun et
al. 2024), an identity prompt whose last token it replaces. Two binary searches find the range that makes the source's
answer appear, and a refinement adds later layers that take it back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, get_args

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from interp.errors import BadInput, choose
from interp.heads.scores import model_record
from interp.knob.last_token import LastTokens, last_tokens
from interp.knob.pairs import NOT_CONFIDENT, Pairs, intent_pairs
from interp.knob.search_result import SETTINGS, Evaluation, ExhaustiveSearch, Found, LayerSearch, Setting
from interp.metrics import probability
from interp.patching.sweep import sweep
from interp.stats import bootstrap_interval
from interp.tasks.context_prior import ContextItems, PromptForm
from interp.tracing.edits import Edit, patch
from interp.tracing.model import Model

IDENTITY = "cat -> cat\n1135 -> 1135\nhello -> hello\n?"
"""The Patchscope prompt."""
THRESHOLD, MARGIN, DROP = 0.88, 0.3, 0.05
"""Minder et al.'s for Llama: probability of the source's answer that counts as found; lead over the target's answer
that the last layer must keep; fall of the source's answer, from one layer to the next, that the refinement mends."""
BATCH = 32


def search_layers(
    model: Model,
    items: ContextItems,
    settings: Sequence[Setting] = tuple(SETTINGS),
    *,
    form: PromptForm | None = None,
    identity: str = IDENTITY,
    threshold: float = THRESHOLD,
    margin: float = MARGIN,
    drop: float = DROP,
    confident: bool = True,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> LayerSearch:
    """Find the layers of each setting by two binary searches and a refinement.

    Args:
        items: as many as are to be averaged over; the paper takes 200.
        identity: the Patchscope prompt.
        threshold, margin, drop: see THRESHOLD.
        confident: only items that the model answers as asked under both intents.
        seed: of which item is patched into which (PRI and CTX).
        progress: called with the number of settings done and their total.

    Raises BadInput before any forward pass, and where no item is left.
    """
    _check_settings(settings)
    if not 0 < threshold < 1:
        raise BadInput(f"threshold={threshold} is not a probability between 0 and 1")
    pairs = intent_pairs(model, items, form or PromptForm())
    used = pairs.used(confident, least=2)
    readout, _ = last_tokens(model, [tuple(model.tokenizer(identity)["input_ids"])])
    found: dict[Setting, Found] = {}
    for number, setting in enumerate(settings):
        evaluate = _Patching(model, pairs, used, setting, readout, seed)
        layers = _search(evaluate, model.spec.layers, threshold, margin, drop)
        found[setting] = Found(setting, layers, tuple(evaluate.done.values()))
        if progress:
            progress(number + 1, len(settings))
    parameters = {"threshold": threshold, "margin": margin, "drop": drop, "identity": identity}
    return LayerSearch(found, model_record(model), {**parameters, **_described(pairs, used)}, seed)


def search_exhaustively(
    model: Model,
    items: ContextItems,
    settings: Sequence[Setting] = tuple(SETTINGS),
    *,
    form: PromptForm | None = None,
    confident: bool = True,
    seed: int = 0,
) -> ExhaustiveSearch:
    """Patch every range of layers, as one sweep a setting: the oracle of `search_layers`, in O(L²) patches."""
    _check_settings(settings)
    pairs = intent_pairs(model, items, form or PromptForm())
    used = pairs.used(confident, least=2)
    count = model.spec.layers
    ranges = [(start, stop) for start in range(count) for stop in range(start + 1, count + 1)]
    frames = []
    for setting in settings:
        patching = _Patching(model, pairs, used, setting, None, seed)
        targets = [list(pairs.prompts.tokens[i]) for i in patching.targets.tolist()]
        donors = patching.donors(range(len(targets)))
        edits = [[donors[layer] for layer in range(start, stop)] for start, stop in ranges]
        result = sweep(model, targets, edits, probability(patching.answers.tolist()))
        frames += [
            {
                "setting": setting,
                "start": start,
                "stop": stop,
                "p_source": (interval := bootstrap_interval(values[0], seed=seed)).estimate,
                "p_source_low": interval.low,
                "p_source_high": interval.high,
                "p_unpatched": float(result.base[0].mean()),
                "n": interval.n,
            }
            for (start, stop), values in zip(ranges, result.values, strict=True)
        ]
    return ExhaustiveSearch(pd.DataFrame(frames), model_record(model), _described(pairs, used), seed)


class _Patching:
    """Patches of one setting, each evaluated once."""

    def __init__(
        self, model: Model, pairs: Pairs, used: np.ndarray, setting: Setting, readout: LastTokens | None, seed: int
    ) -> None:
        self.model = model
        self.pairs = pairs
        self.readout = readout
        sources, targets = _rows(setting, used, seed)
        answers = pairs.answers.cpu()
        differ = answers[sources] != answers[targets]  # of two items that are answered alike a patch shows nothing
        self.sources, self.targets = sources[differ], targets[differ]
        if not len(self.targets):
            raise BadInput(f"{setting}: all {len(targets)} prompts are answered alike; give more items")
        self.answers, self._own = answers[self.sources], answers[self.targets]
        self.done: dict[tuple[int, ...], Evaluation] = {}
        self._attn_out = self._read(self.sources)

    def _read(self, rows: Tensor) -> Tensor:
        """Attention outputs `[layer row width]` at the last token."""
        parts = []
        for some in rows.split(BATCH):
            trace = self.model.run(self._tokens(some), read="attn_out", positions=-1)
            parts.append(trace.stack("attn_out")[:, :, 0])
        return torch.cat(parts, dim=1)

    def _tokens(self, rows: Tensor) -> list[list[int]]:
        return [list(self.pairs.prompts.tokens[i]) for i in rows.tolist()]

    def donors(self, places: Sequence[int]) -> list[Edit]:
        """The patch of each layer into the targets at `places`, at their last token, wherever that is."""
        chosen = list(places)
        longest = max(len(self.pairs.prompts.tokens[i]) for i in self.targets[chosen].tolist())
        donors = self._attn_out[:, chosen, None].expand(-1, -1, longest, -1)
        return [patch(f"attn_out.{layer}", donor).at(positions=-1) for layer, donor in enumerate(donors)]

    def __call__(self, layers: Iterable[int]) -> Evaluation:
        chosen = tuple(sorted(layers))
        if chosen not in self.done:
            self.done[chosen] = self._evaluate(chosen)
        return self.done[chosen]

    def _evaluate(self, layers: tuple[int, ...]) -> Evaluation:
        source: list[Tensor] = []
        target: list[Tensor] = []
        for places in torch.arange(len(self.targets)).split(BATCH):
            donors = self.donors(places.tolist())
            edits = [donors[layer] for layer in layers]
            tokens = self._tokens(self.targets[places])
            resid = self.model.run(tokens, read="resid_post", edits=edits, positions=-1).stack("resid_post")[:, :, 0]
            probabilities = self._read_out(resid)
            for found, wanted in ((source, self.answers), (target, self._own)):
                tokens_here = wanted[places].to(resid.device)[None, :, None].expand(len(resid), -1, 1)
                found.append(probabilities.gather(-1, tokens_here)[..., 0].cpu())
        return Evaluation(layers, *(torch.cat(found, dim=1).double().mean(1).numpy() for found in (source, target)))

    @torch.no_grad()
    def _read_out(self, resid: Tensor) -> Tensor:
        """What the identity prompt predicts with each residual stream at its last token, `[layer row vocab]`."""
        assert self.readout is not None
        place = torch.zeros(resid.shape[1], dtype=torch.long)
        logits = self.readout.logits_from(range(len(resid)), list(resid), [place] * len(resid))
        return torch.stack(logits).float().softmax(-1)


def _search(
    evaluate: Callable[[Iterable[int]], Evaluation], count: int, threshold: float, margin: float, drop: float
) -> tuple[int, ...]:
    """The layers; empty where a patch of all of them does not bring the source's answer about."""

    def enough(start: int, stop: int) -> bool:
        return bool(evaluate(range(start, stop)).source.max() > threshold)

    if not enough(0, count):
        return ()
    upper = _smallest(1, count, lambda stop: enough(0, stop))
    lower = upper - _smallest(1, upper, lambda size: enough(upper - size, upper))
    layers = set(range(lower, upper))
    while True:
        found = evaluate(layers)
        if found.source[-1] > found.target[-1] + margin:
            break
        falling = (
            layer
            for layer in range(max(layers) + 1, count)
            if layer not in layers and found.source[layer - 1] - found.source[layer] > drop
        )
        after = next(falling, None)
        if after is None:
            break
        layers.add(after)
    return tuple(sorted(layers))


def _smallest(low: int, high: int, holds: Callable[[int], bool]) -> int:
    """The smallest number in `[low, high]` for which a monotone condition holds; it does for `high`."""
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return high


def _rows(setting: Setting, items: np.ndarray, seed: int) -> tuple[Tensor, Tensor]:
    """Source and target rows `[item]` of a setting: twins, or different items in a seeded cycle."""
    first = torch.from_numpy(2 * items)
    context, prior = first, first + 1
    if setting == "CP":
        return context, prior
    if setting == "PC":
        return prior, context
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(items)))
    rows = context if setting == "CTX" else prior
    return rows[order.roll(1)], rows[order]


def _described(pairs: Pairs, used: np.ndarray) -> dict[str, Any]:
    lost = {**pairs.items.lost, NOT_CONFIDENT: len(pairs) - len(used)}
    return {**pairs.form.as_dict(), "items": pairs.items.hash, "used": len(used), "lost": lost}


def _check_settings(settings: Sequence[str]) -> None:
    if not settings:
        raise BadInput(f"a search needs a setting; valid: {', '.join(SETTINGS)}")
    for setting in settings:
        if setting not in get_args(Setting):
            raise BadInput(f"there is no setting {setting!r}; {choose(setting, SETTINGS)}")
