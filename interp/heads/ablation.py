"""Ablations as data: what takes the place of a head's output.

    Ablation.parse("mean")            0, a mean, another prompt's output, uniform attention, or less of the same
    fit(model, ablation, fed, layers) what it needs to know of the prompts, measured
    fitted.edits(heads, indices)      the edits that ablate these heads in runs of these prompts

The kinds answer different questions, so every result names its own. Zero depends on where a family keeps its value
bias; means do not. Positions are aligned at the end of the prompts, where the question and its answer are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from interp.errors import BadInput, choose
from interp.heads.fed import DECODE, Fed
from interp.tracing.edits import Edit, attend, mean, patch, scale, zero
from interp.tracing.model import Model

Head = tuple[int, int]
"""Layer and head."""

Kind = Literal["zero", "mean", "mean-positional", "mean-template", "resample", "uniform", "uniform-at-decode", "scale"]

KINDS: Mapping[Kind, str] = {
    "zero": "the head adds nothing",
    "mean": "its mean output over all tokens of the prompts",
    "mean-positional": "its mean output at each position, counted from the end of the prompts",
    "mean-template": "the same among prompts of one template (Wang et al. 2022): mean-template:KEY names the metadata",
    "resample": "its output in another prompt with another answer: resample:SEED",
    "uniform": "uniform attention over all it sees, everywhere",
    "uniform-at-decode": "uniform attention while the answer is decoded, the prompt read unharmed (Wu et al. 2024)",
    "scale": "a multiple of its output: scale:FACTOR",
}
"""Every ablation and what the head's output becomes."""

ABLATIONS: tuple[str, ...] = ("mean", "zero", "uniform-at-decode")
"""What a report compares unless told otherwise."""

REFERENCE_PROMPTS = 32
"""Prompts, spread over all of them, whose tokens the mean of a mean ablation is taken over."""
DEFAULT_FACTOR = 0.5


@dataclass(frozen=True)
class Ablation:
    """What becomes of an ablated head. `factor`, `template` and `seed` matter to scale, mean-template and resample."""

    kind: Kind
    factor: float = DEFAULT_FACTOR
    template: str = "template"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise BadInput(f"there is no ablation {self.kind!r}; {choose(self.kind, get_args(Kind))}")
        if not np.isfinite(self.factor):
            raise BadInput(f"scale:{self.factor} is no finite factor")

    @classmethod
    def parse(cls, text: str | Ablation) -> Ablation:
        """Read `"zero"`, `"scale:0.5"`, `"mean-template:length"` or `"resample:3"`. Raises BadInput."""
        if isinstance(text, Ablation):
            return text
        kind, _, argument = text.partition(":")
        if kind not in get_args(Kind):
            raise BadInput(f"there is no ablation {text!r}; {choose(kind, get_args(Kind))}")
        readers = {"scale": ("factor", float), "mean-template": ("template", str), "resample": ("seed", int)}
        if not argument:
            return cls(kind)  # type: ignore[arg-type]
        if kind not in readers:
            raise BadInput(f"{text!r}: the ablation {kind} takes nothing after a colon")
        name, reader = readers[kind]
        try:
            return cls(kind, **{name: reader(argument)})  # type: ignore[arg-type]
        except ValueError as error:
            raise BadInput(f"{text!r}: {argument!r} is not the {name} of this ablation ({error})") from None

    def __str__(self) -> str:
        argument = {"scale": f":{self.factor:g}", "mean-template": f":{self.template}", "resample": f":{self.seed}"}
        return self.kind + argument.get(self.kind, "")

    @property
    def is_alike(self) -> bool:
        """Whether it is the same at every position of every prompt, so that it can act on a shared beginning."""
        return self.kind in ("zero", "mean", "uniform", "scale")

    @property
    def spares_prompts(self) -> bool:
        """Whether prompts are read unharmed up to their last token."""
        return self.kind == "uniform-at-decode"


@dataclass(frozen=True, eq=False)
class FittedAblation:
    """An ablation with what it takes from the prompts.

    means: `[head dim]` by layer. tables: by layer and template, the mean output `[distance head dim]` at each distance
    from the end. donors: for every prompt the one whose outputs it receives.
    """

    ablation: Ablation
    model: Model
    fed: Fed
    means: Mapping[int, Tensor] = field(default_factory=dict)
    tables: Mapping[int, Mapping[str, Tensor]] = field(default_factory=dict)
    donors: tuple[int, ...] = ()

    def edits(self, heads: Sequence[Head], indices: Sequence[int] = ()) -> list[Edit]:
        """The edits that ablate `heads` in a run of the prompts at `indices`, in this order.

        An ablation that is alike everywhere needs no indices.
        """
        kind = self.ablation.kind
        if kind in ("mean-positional", "mean-template", "resample"):
            values = {layer: self._replacements(layer, indices) for layer in sorted({layer for layer, _ in heads})}
            return [patch(f"z.{layer}.{head}", values[layer][:, :, head]) for layer, head in heads]
        if kind == "mean":
            return [mean(f"z.{layer}.{head}", self.means[layer][head]) for layer, head in heads]
        if kind == "zero":
            return [zero(f"z.{layer}.{head}") for layer, head in heads]
        if kind == "scale":
            return [scale(f"z.{layer}.{head}", self.ablation.factor) for layer, head in heads]
        forced = [attend(f"pattern.{layer}.{head}", to="uniform") for layer, head in heads]
        return [edit.at(positions=DECODE) for edit in forced] if kind == "uniform-at-decode" else forced

    def _replacements(self, layer: int, indices: Sequence[int]) -> Tensor:
        """What replaces the layer's outputs in each of these prompts, `[batch tokens head dim]`, 0 past their ends."""
        lengths = [len(self.fed.tokens[i]) for i in indices]
        if self.ablation.kind == "resample":
            backwards = [self._donated(layer, self.donors[i], n) for i, n in zip(indices, lengths, strict=True)]
        else:
            groups = _templates(self.ablation, self.fed)
            backwards = [self.tables[layer][groups[i]][:n] for i, n in zip(indices, lengths, strict=True)]
        return torch.nn.utils.rnn.pad_sequence([value.flip(0) for value in backwards], batch_first=True)

    def _donated(self, layer: int, donor: int, length: int) -> Tensor:
        """A donor's outputs `[distance head dim]`, from its end backwards; a donor that is too short is repeated."""
        (_, values), *_ = _outputs(self.model, self.fed, [donor], [layer])
        backwards = values[layer].flip(0)
        return backwards[torch.arange(length) % len(backwards)]


def fit(model: Model, ablation: str | Ablation, fed: Fed, layers: Sequence[int]) -> FittedAblation:
    """Measure what `ablation` puts in place of heads of these layers, on the prompts of the study themselves.

    mean: over the tokens of up to `REFERENCE_PROMPTS` prompts. mean-positional: at each distance from the end, over all
    prompts that reach it; where only one does, over all tokens. mean-template: the same within each template, which is
    an entry of the prompts' metadata. resample: for every prompt another one with another answer, drawn by the seed.

    Raises BadInput for text without answers where the ablation acts on them, metadata without the template, a template
    of a single prompt, and prompts that leave no other to resample from.
    """
    ablation = Ablation.parse(ablation)
    layers = sorted(set(layers))
    if ablation.spares_prompts and not fed.answers:
        raise BadInput(f"{ablation} acts where an answer is decoded, and plain text has none; valid: uniform")
    if ablation.kind == "mean":
        reference = range(0, len(fed), -(-len(fed) // REFERENCE_PROMPTS))
        return FittedAblation(ablation, model, fed, means=_means(model, fed, reference, layers))
    if ablation.kind in ("mean-positional", "mean-template"):
        return FittedAblation(ablation, model, fed, tables=_tables(model, fed, _templates(ablation, fed), layers))
    if ablation.kind == "resample":
        return FittedAblation(ablation, model, fed, donors=_donors(fed, ablation.seed))
    return FittedAblation(ablation, model, fed)


def check_heads(model: Model, heads: Sequence[Head]) -> tuple[Head, ...]:
    """The same heads as plain numbers; raises BadInput for repeated ones and ones that the model does not have."""
    chosen = tuple((int(layer), int(head)) for layer, head in heads)
    spec = model.spec
    for layer, head in chosen:
        if not (0 <= layer < spec.layers and 0 <= head < spec.heads):
            raise BadInput(
                f"there is no head {layer}.{head}: {spec.name} has layers 0 to {spec.layers - 1} of heads 0 to "
                f"{spec.heads - 1}"
            )
    if len(set(chosen)) < len(chosen):
        raise BadInput(f"the heads must be distinct; got {' '.join(f'{a}.{b}' for a, b in chosen)}")
    return chosen


def _outputs(
    model: Model, fed: Fed, indices: Sequence[int], layers: Sequence[int]
) -> Iterator[tuple[int, dict[int, Tensor]]]:
    """Every prompt's index and the outputs `[tokens head dim]` of its heads by layer, one prompt at a time."""
    for i in indices:
        trace = model.run([list(fed.tokens[i])], read=[f"z.{layer}" for layer in layers])
        yield i, {layer: trace[f"z.{layer}"][0].float().cpu() for layer in layers}


def _means(model: Model, fed: Fed, indices: Sequence[int], layers: Sequence[int]) -> dict[int, Tensor]:
    sums, tokens = dict.fromkeys(layers, torch.zeros(())), 0
    for _, values in _outputs(model, fed, indices, layers):
        sums = {layer: sums[layer] + value.double().sum(0) for layer, value in values.items()}
        tokens += len(next(iter(values.values())))
    return {layer: (total / tokens).float() for layer, total in sums.items()}


def _templates(ablation: Ablation, fed: Fed) -> list[str]:
    """The template of every prompt; one for all where positions alone are told apart."""
    if ablation.kind == "mean-positional":
        return ["all prompts"] * len(fed)
    keys = sorted(set.intersection(*(set(about) for about in fed.metadata)) if fed.metadata else ())
    if ablation.template not in keys:
        known = choose(ablation.template, keys) if keys else "these prompts have no metadata"
        raise BadInput(f"{ablation}: no prompt says its {ablation.template!r}; {known}")
    return [f"{ablation.template} {about[ablation.template]}" for about in fed.metadata]


def _tables(model: Model, fed: Fed, templates: Sequence[str], layers: Sequence[int]) -> dict[int, dict[str, Tensor]]:
    """By layer and template the mean output at each distance from the end, `[distance head dim]`."""
    tables: dict[int, dict[str, Tensor]] = {layer: {} for layer in layers}
    for template in dict.fromkeys(templates):
        members = [i for i, name in enumerate(templates) if name == template]
        if len(members) < 2:
            raise BadInput(f"{template} has a single prompt, whose mean is itself: give at least two, or use mean")
        longest = max(len(fed.tokens[i]) for i in members)
        shape = (longest, model.spec.heads, model.spec.head_dim)
        sums, counts = {layer: torch.zeros(shape) for layer in layers}, torch.zeros(longest, 1, 1)
        for i, values in _outputs(model, fed, members, layers):
            counts[: len(fed.tokens[i])] += 1
            for layer, value in values.items():
                sums[layer][: len(value)] += value.flip(0)
        for layer, total in sums.items():
            overall = total.sum(0) / counts.sum()
            tables[layer][template] = torch.where(counts > 1, total / counts, overall)
    return tables


def _donors(fed: Fed, seed: int) -> tuple[int, ...]:
    rng = np.random.default_rng(seed)
    donors = []
    for i in range(len(fed)):
        others = [j for j in range(len(fed)) if j != i and (not fed.answers or fed.answers[j] != fed.answers[i])]
        if not others:
            raise BadInput(f"resample: no other prompt has another answer than prompt {i}, so there is no donor for it")
        donors.append(int(rng.choice(others)))
    return tuple(donors)
