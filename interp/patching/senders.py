"""The first pass of path patching: what reaches the receivers from each sender while all other heads are frozen.

Nothing moves between positions while every head's output is frozen, so each position of each prompt runs as a prompt of
one token, from the sender's layer on. On the hooks backend the layers before it are passed by, and so are projections
that only frozen heads would use.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import groupby
from typing import Any

import torch
from einops import rearrange, repeat
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from interp.patching.blocks import forward_replaced, hidden_states
from interp.tasks.prompts import PromptSet
from interp.tracing.edits import Edit, patch
from interp.tracing.frame import Positions
from interp.tracing.model import Model
from interp.tracing.sites import Site
from interp.tracing.trace import Trace

Head = tuple[int, int]
Returns = dict[nn.Module, int]
"""How many values each block returns; 0: a tensor alone."""


def receiver_edits(
    model: Model,
    clean: PromptSet,
    corrupt: PromptSet,
    senders: Sequence[Head],
    receivers: Sequence[Site],
    positions: Positions,
    freeze_mlps: bool,
    memory: int,
) -> Iterator[tuple[Edit, ...]]:
    """For every sender the edits that put what was recorded into the receivers; senders come in layer order.

    `memory` bytes of frozen activations are held at a time.
    """
    skips = model.backend.name == "hooks"
    layers = sorted({layer for layer, _ in senders})
    frozen = [Site(name, n) for n in range(model.spec.layers) for name in ("z", "mlp_out")[: 1 + freeze_mlps]]
    frozen = [site for site in frozen if site.order < receivers[-1].order]
    entering = {layer: Site("resid_pre", layer if skips else 0) for layer in layers}
    with _counting(model) as returns:
        here = model.run(clean, read=[*entering.values(), *frozen], positions=positions)
    there = model.run(corrupt, read=[Site("z", layer) for layer in layers], positions=positions)
    tokens = here.tokens.gather(1, here.positions).flatten()
    each = len(tokens) * model.spec.width * here[entering[layers[0]]].element_size() * (1 + len(frozen))
    most = max(1, memory // each)
    for layer, of_layer in groupby(senders, key=lambda sender: sender[0]):
        heads = [head for _, head in of_layer]
        kept = [site for site in frozen if not skips or (site.layer or 0) >= layer]
        for some in (heads[start : start + most] for start in range(0, len(heads), most)):
            fixed = {site: _rows(here[site], len(some)) for site in kept}
            fixed[Site("z", layer)] = _sent(here[f"z.{layer}"], there[f"z.{layer}"], some)
            edits = [patch("embed", _rows(here[entering[layer]], len(some)))]
            edits += [patch(site, value) for site, value in fixed.items()]
            with _passing_by(model, layer if skips else 0, receivers, returns):
                trace = model.run(tokens.repeat(len(some))[:, None], read=receivers, edits=edits)
            shape = {"s": len(some), "b": len(clean)}
            seen = [rearrange(trace[site], "(s b p) 1 ... -> s b p ...", **shape) for site in receivers]
            for values in zip(*seen, strict=True):
                recorded = zip(receivers, values, strict=True)
                yield tuple(patch(site, _donor(value, here)).at(positions=positions) for site, value in recorded)


def _rows(value: Tensor, senders: int) -> Tensor:
    """`[prompt position ...]` for every sender, `[(sender prompt position) 1 ...]`."""
    return rearrange(repeat(value, "b p ... -> s b p ...", s=senders), "s b p ... -> (s b p) 1 ...")


def _sent(clean: Tensor, corrupt: Tensor, heads: Sequence[int]) -> Tensor:
    """The sender's layer: every head clean `[prompt position head dim]`, but for the sender."""
    z = repeat(clean, "b p ... -> s b p ...", s=len(heads)).clone()
    for own, head in zip(z, heads, strict=True):
        own[:, :, head] = corrupt[:, :, head]
    return rearrange(z, "s b p ... -> (s b p) 1 ...")


def _donor(value: Tensor, trace: Trace) -> Tensor:
    """`value` `[prompt position ...]` as a donor with a row for every token, of which only these positions are used."""
    tokens = trace.tokens.shape[1]
    if value.shape[1] == tokens:
        return value
    if value.shape[1] == 1:
        return value.expand(-1, tokens, *value.shape[2:])
    donor = value.new_zeros(len(value), tokens, *value.shape[2:])
    donor[torch.arange(len(value))[:, None], trace.positions] = value
    return donor


@contextmanager
def _counting(model: Model) -> Iterator[Returns]:
    """Learn from a run how many values each block returns."""
    returns: Returns = {}

    def look(module: nn.Module, _args: Any, output: Any) -> None:
        returns[module] = 0 if isinstance(output, Tensor) else len(output)

    with ExitStack() as hooks:
        for block in model.parts.blocks:
            hooks.callback(block.module.register_forward_hook(look).remove)
        yield returns


@contextmanager
def _passing_by(model: Model, layer: int, receivers: Sequence[Site], returns: Returns) -> Iterator[None]:
    """Let blocks before `layer` pass their input on, and projections give zeros where no receiver reads them."""
    if model.backend.name != "hooks":
        yield
        return
    read = {site.layer for site in receivers if site.name in ("q", "k", "v")}
    with model.lock, ExitStack() as undo:
        for n, block in enumerate(model.parts.blocks):
            if n < layer:
                undo.enter_context(forward_replaced(block.module, _Identity(returns[block.module])))
            elif n not in read:
                for projection in block.projections:
                    if type(projection) in (nn.Linear, Conv1D):
                        undo.enter_context(forward_replaced(projection, _Zeros(projection)))
        yield


class _Identity:
    """The forward method of a block that does nothing."""

    def __init__(self, returns: int) -> None:
        self.returns = returns

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        hidden = hidden_states(args, kwargs)
        return (hidden, *[None] * (self.returns - 1)) if self.returns else hidden


class _Zeros:
    """The forward method of a projection whose result is replaced later on."""

    def __init__(self, projection: Any) -> None:
        self.width = projection.nf if isinstance(projection, Conv1D) else projection.out_features

    def __call__(self, x: Tensor) -> Tensor:
        return x.new_zeros(*x.shape[:-1], self.width)
