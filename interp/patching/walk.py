"""One forward call over stacked rows, each a prompt under its own edits, from its own layer and one common column on.

The model's own forward method does the computing. What keeps it to the work that is needed hangs on its blocks: blocks
that no row has reached pass their input on; at every other block the rows that begin there join, with the residual
stream of the base run; and a cache offers each row the base run's keys and values of earlier columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from interp.errors import SiteDidNotFire
from interp.patching.blocks import forward_replaced, hidden_states, running_blocks
from interp.patching.earlier_keys import Given, Made, earlier_keys
from interp.tracing.attention import KernelCall, attend_rows
from interp.tracing.backends.attachment import Attachment, running
from interp.tracing.backends.kernel_tap import kernel_tap
from interp.tracing.edits import Edit
from interp.tracing.frame import Frame, gather_columns
from interp.tracing.interventions import edited
from interp.tracing.model import Model
from interp.tracing.plan import Plan
from interp.tracing.session import Session, StopForward
from interp.tracing.sites import Site


@dataclass(frozen=True, eq=False)
class Base:
    """What the base run left of some prompts, over all columns.

    `resid` `[prompt column width]` entering each layer that an edit begins in; `keys` and `values` of every layer
    `[prompt kv_head column dim]`; `returns` how many values each block returns (0: a tensor).
    """

    resid: Mapping[int, Tensor]
    keys: Sequence[Tensor]
    values: Sequence[Tensor]
    returns: Sequence[int]


@dataclass(frozen=True, eq=False)
class Placed:
    """An edit of the stacked rows `[start, stop)`, made at their `chosen` columns `[row column]`, all in `[low, high)`.

    `frame` is that of these rows' prompts over all columns.
    """

    edit: Edit
    start: int
    stop: int
    chosen: Tensor
    low: int
    high: int
    frame: Frame

    def apply(self, value: Tensor, width: int) -> None:
        """Edit `value` `[row column ...]`, whose columns are the last of `width`, in place."""
        first = width - value.shape[1]
        low = max(self.low, first)
        if low < self.high:
            here = value[self.start : self.stop, low - first : self.high - first]
            frame = part(self.frame, low, self.high)
            here.copy_(edited(self.edit, here, frame, self.chosen[:, low : self.high]))

    def attend(self, call: KernelCall, z: Tensor, width: int) -> None:
        """Force attention rows in the kernel's output `z` `[row query head dim]`, in place."""
        rows = slice(self.start, self.stop)
        mine = replace(call, q=call.q[rows], k=call.k[rows], v=call.v[rows])
        z[rows] = attend_rows(self.edit, mine, part(self.frame, width - z.shape[1], width), z[rows])[0]


def part(frame: Frame, start: int, stop: int) -> Frame:
    """The columns `[start, stop)` of a frame over all columns."""
    return replace(frame, start=start, width=stop - start, key_mask=frame.key_mask[:, :stop])


@dataclass(frozen=True, eq=False)
class Stack:
    """The rows of one walk. Row i is prompt `prompts[i]` (of the base run) and begins at layer `begins[i]`, ascending.

    `ids` `[row column]` and `frame` cover all columns; `edits` are by site.
    """

    prompts: Tensor
    begins: tuple[int, ...]
    ids: Tensor
    frame: Frame
    edits: Mapping[Site, Sequence[Placed]]
    _begun: dict[int, int] = field(default_factory=dict)

    def begun(self, layer: int) -> int:
        """How many rows have begun by a layer."""
        if layer not in self._begun:
            self._begun[layer] = sum(begin <= layer for begin in self.begins)
        return self._begun[layer]


class WalkSession(Session):
    """Makes the edits of stacked rows, each in its own rows only, and keeps the hidden states that metrics read."""

    def __init__(self, stack: Stack, layers: int, columns: Tensor) -> None:
        """`columns` `[row kept]` are unembedded."""
        edits = tuple(placed.edit for of_site in stack.edits.values() for placed in of_site)
        super().__init__(Plan((), (), edits, None, "all", False, layers, None))
        self.stack = stack
        self.reached: set[Site] = set()
        self._frame: Frame
        self._kept_columns = columns
        self._width = stack.frame.width

    def begin(self, frame: Frame) -> None:
        self.frame = self._frame = frame

    def rows_begun(self, rows: int) -> None:
        """Only the first rows are computed from here on."""
        self.frame = first_rows(self._frame, rows)

    def visit(self, name: str, layer: int | None, value: Tensor, frame: Frame | None = None) -> Tensor:
        site = Site(name, layer)
        self.reached.add(site)
        placed = self.stack.edits.get(site, ())
        if placed:
            value = value.clone(memory_format=torch.contiguous_format)
            for one in placed:
                one.apply(value, self._width)
        return value

    def hand_over(self, call: KernelCall) -> None:
        """The kernel makes none of these edits: its gates are for whole batches."""

    def read_rows(self, call: KernelCall, measured: bool = False) -> None:
        """Sweeps read no attention rows."""

    def force_rows(self, call: KernelCall, z: Tensor) -> Tensor:
        site = Site("pattern", call.layer)
        self.reached.add(site)
        placed = self.stack.edits.get(site, ())
        if placed:
            z = z.clone(memory_format=torch.contiguous_format)
            for one in placed:
                one.attend(call, z, self._width)
        return z

    def narrow(self, hidden: Tensor) -> Tensor:
        first = self._width - hidden.shape[1]
        return gather_columns(hidden, (self._kept_columns - first).clamp(min=0))

    def check(self) -> None:
        if missing := self.stack.edits.keys() - self.reached:
            raise SiteDidNotFire(f"the walk never reached {', '.join(map(str, missing))} (see Model.doctor())")


def base_run(
    model: Model, ids: Tensor, frame: Frame, layers: Sequence[int], columns: Tensor, tokens: Tensor | None
) -> tuple[Base, Tensor]:
    """Run prompts without edits, keeping what walks need; and logits as `walk` returns them."""
    stack = Stack(torch.arange(len(ids)), (0,) * len(ids), ids, frame, {})
    resid: dict[int, Tensor] = {}
    returns = [0] * model.spec.layers
    cache = DynamicCache()

    def look(layer: int) -> Callable[..., None]:
        def hook(_module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            returns[layer] = 0 if isinstance(output, Tensor) else len(output)
            if layer in layers:
                resid[layer] = hidden_states(args, kwargs)

        return hook

    session = WalkSession(stack, model.spec.layers, columns)
    with model.lock, ExitStack() as hooks:
        for layer, block in enumerate(model.parts.blocks):
            hooks.callback(block.module.register_forward_hook(look(layer), with_kwargs=True).remove)
        logits = _forward(model, session, frame, cache, tokens)
    assert logits is not None
    keys, values = ([getattr(layer, name) for layer in cache.layers] for name in ("keys", "values"))
    return Base(resid, keys, values, returns), logits


def walk(model: Model, base: Base, stack: Stack, start: int, columns: Tensor, tokens: Tensor | None) -> Tensor:
    """Logits `[row kept token]` at `columns` `[row kept]` of the stacked rows, computed from column `start` on.

    `tokens` are those whose logits are computed; None: the whole vocabulary. Columns before `start` were not computed,
    and their logits mean nothing. In the last layer, only keys and values are computed before the first column kept.
    """
    last, width = model.spec.layers - 1, stack.frame.width
    read = first_read(columns, start)
    session = WalkSession(stack, model.spec.layers, columns)
    cache = earlier_keys(base.keys, base.values, stack.prompts, start)
    joining = _Joining(base, session, start)
    rows = len(stack.begins)
    with model.lock, running_blocks(model, range(stack.begins[0], last + 1), joining, rows, base.returns):
        if read == start:
            logits = _forward(model, session, part(stack.frame, start, width), cache, tokens)
        else:
            cache.layers[last] = made = Made(cache.layers[last])
            _forward(model, session, part(stack.frame, start, width), cache, tokens)
    if read > start:
        rest = joining.entered[:, read - start :]
        cache = earlier_keys(base.keys, base.values, stack.prompts, read)
        cache.layers[last] = Given(made.all_keys, made.all_values, read)
        with model.lock, running_blocks(model, range(last, last + 1), lambda _layer, _hidden: rest, rows, base.returns):
            logits = _forward(model, session, part(stack.frame, read, width), cache, tokens)
    session.check()
    assert logits is not None
    return logits


def first_read(columns: Tensor, start: int) -> int:
    """The first of the kept columns that lies at `start` or after it."""
    return int(columns[columns >= start].min())


class _Joining:
    """What enters each block: the rows that have begun, and those of the base run that begin there."""

    def __init__(self, base: Base, session: WalkSession, start: int) -> None:
        self.base = base
        self.session = session
        self.start = start
        self.entered: Tensor

    def __call__(self, layer: int, hidden: Tensor) -> Tensor:
        stack = self.session.stack
        before, now = stack.begun(layer - 1), stack.begun(layer)
        if now > before:
            joining = self.base.resid[layer][stack.prompts[before:now], self.start :]
            hidden = torch.cat([hidden[:before], joining]) if before else joining
        self.session.rows_begun(now)
        self.entered = hidden
        return hidden


def _forward(
    model: Model, session: WalkSession, frame: Frame, cache: DynamicCache, tokens: Tensor | None
) -> Tensor | None:
    """One call of the model over the columns of `frame`; None when the cache ended it."""
    session.begin(frame)
    inputs = {
        "input_ids": session.stack.ids[:, frame.start :],
        "attention_mask": frame.key_mask.long(),
        "position_ids": frame.positions.clamp(min=0) + model.parts.architecture.first_position,
    }
    with torch.no_grad(), running(model.hf), ExitStack() as stack:
        handlers = Attachment(session, model.parts, model.spec, stack).attach()
        stack.enter_context(kernel_tap(model.attention, handlers))
        if tokens is not None and model.parts.unembed is not None:
            stack.enter_context(forward_replaced(model.parts.unembed, _unembedding(model.parts.unembed, tokens)))
        try:
            return model.hf(**inputs, past_key_values=cache).logits
        except StopForward:
            return None


def can_unembed_few(unembed: nn.Module | None) -> bool:
    """Whether single rows of the unembedding can be used: it is a plain matrix."""
    return type(unembed) is nn.Linear and type(unembed.weight) is nn.Parameter and not unembed.weight.is_meta


def _unembedding(unembed: Any, tokens: Tensor) -> Callable[[Tensor], Tensor]:
    """The unembedding of some tokens only; what a model does to its logits afterwards, it does to each alone."""
    weight = unembed.weight[tokens]
    bias = None if unembed.bias is None else unembed.bias[tokens]
    return lambda hidden: nn.functional.linear(hidden, weight, bias)


def first_rows(frame: Frame, rows: int) -> Frame:
    """The first rows of a frame, without its roles."""
    if rows == frame.batch:
        return frame
    return replace(
        frame, lengths=frame.lengths[:rows], offsets=frame.offsets[:rows], key_mask=frame.key_mask[:rows], spans={}
    )
