"""One forward call over stacked rows, each a prompt under its own edits, from its own layer and one common column on.

The model's own forward method does the computing. What keeps it to the work that is needed hangs on its blocks: blocks
that no row has reached pass their input on; at every other block the rows that begin there join, with the residual
stream of the base run; and a cache offers each row the base run's keys and values of earlier columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from interp.errors import SiteDidNotFire
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
from kernels.model_masks import ModelMask
from kernels.types import MaskSpec


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
        self.whole: Frame
        self._kept_columns = columns
        self._width = stack.frame.width

    def begin(self, frame: Frame) -> None:
        self.frame = self.whole = frame

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
                resid[layer] = _hidden(args, kwargs)

        return hook

    session = WalkSession(stack, model.spec.layers, columns)
    with ExitStack() as hooks:
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
    cache = _cache(base, stack.prompts, start)
    joining = _Joining(base, stack, start)
    with _blocks(model, base, session, range(stack.begins[0], last + 1), joining):
        if read == start:
            logits = _forward(model, session, part(stack.frame, start, width), cache, tokens)
        else:
            cache.layers[last] = made = _Made(cache.layers[last])
            _forward(model, session, part(stack.frame, start, width), cache, tokens)
    if read > start:
        rest = joining.entered[:, read - start :]
        cache = _cache(base, stack.prompts, read)
        cache.layers[last] = _Given(made.all_keys, made.all_values, read)
        with _blocks(model, base, session, range(last, last + 1), lambda _layer, _hidden: rest):
            logits = _forward(model, session, part(stack.frame, read, width), cache, tokens)
    session.check()
    assert logits is not None
    return logits


def first_read(columns: Tensor, start: int) -> int:
    """The first of the kept columns that lies at `start` or after it."""
    return int(columns[columns >= start].min())


class _Joining:
    """What enters each block: the rows that have begun, and those of the base run that begin there."""

    def __init__(self, base: Base, stack: Stack, start: int) -> None:
        self.base = base
        self.stack = stack
        self.start = start
        self.entered: Tensor

    def __call__(self, layer: int, hidden: Tensor) -> Tensor:
        before, now = self.stack.begun(layer - 1), self.stack.begun(layer)
        if now > before:
            joining = self.base.resid[layer][self.stack.prompts[before:now], self.start :].to(hidden.device)
            hidden = torch.cat([hidden[:before], joining]) if before else joining
        self.entered = hidden
        return hidden


@contextmanager
def _blocks(
    model: Model, base: Base, session: WalkSession, layers: range, entering: Callable[[int, Tensor], Tensor]
) -> Iterator[None]:
    """Let the blocks of `layers` run on what `entering(layer, hidden)` gives them, the others pass their input on."""
    stack = session.stack

    def enter(layer: int) -> Callable[..., Any]:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
            hidden = entering(layer, _hidden(args, kwargs))
            session.frame = first_rows(session.whole, len(hidden))
            few = _Few(len(hidden), len(stack.begins), model.spec.heads)
            if args:
                return (hidden, *map(few, args[1:])), {name: few(value) for name, value in kwargs.items()}
            return (), {**{name: few(value) for name, value in kwargs.items()}, "hidden_states": hidden}

        return hook

    def passing(layer: int) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            hidden, several = _hidden(args, kwargs), base.returns[layer]
            return (hidden, *[None] * (several - 1)) if several else hidden

        return forward

    with ExitStack() as undo:
        for layer, block in enumerate(model.parts.blocks):
            if layer in layers:
                hook = block.module.register_forward_pre_hook(enter(layer), prepend=True, with_kwargs=True)
                undo.callback(hook.remove)
            else:
                undo.enter_context(_forward_replaced(block.module, passing(layer)))
        yield


class _Few:
    """The first `rows` of `total` rows in whatever a block is called with."""

    def __init__(self, rows: int, total: int, heads: int) -> None:
        self.rows = rows
        self.total = total
        self.heads = heads

    def __call__(self, value: Any) -> Any:
        if self.rows == self.total:
            return value
        if isinstance(value, Tensor):
            if value.ndim > 1 and len(value) == self.total:
                return value[: self.rows]
            if value.ndim == 3 and len(value) == self.total * self.heads:  # BLOOM's ALiBi
                return value[: self.rows * self.heads]
            return value
        if isinstance(value, (tuple, list)):
            return type(value)(map(self, value))
        if isinstance(value, dict):
            return {name: self(one) for name, one in value.items()}
        if isinstance(value, ModelMask) and isinstance(value.spec, MaskSpec):
            rows = {name: self._padding(getattr(value.spec, name)) for name in ("starts", "key_mask")}
            return replace(value, spec=replace(value.spec, **rows))
        return value

    def _padding(self, value: Tensor | None) -> Tensor | None:
        return value[: self.rows] if value is not None and len(value) == self.total else value


class _Earlier(DynamicLayer):
    """Keys and values of the base run's columns before `start`, for any number of leading rows."""

    def __init__(self, keys: Tensor, values: Tensor, prompts: Tensor, start: int) -> None:
        super().__init__()
        self.base = (keys, values)
        self.prompts = prompts
        self.start = start

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if self.start == 0:
            return key_states, value_states
        rows = self.prompts[: len(key_states)]
        keys, values = (
            torch.cat([base[:, :, : self.start].index_select(0, rows.to(base.device)), new], dim=2)
            for base, new in zip(self.base, (key_states, value_states), strict=True)
        )
        return keys, values

    def get_seq_length(self) -> int:
        return self.start


class _Made(_Earlier):
    """Keeps the last layer's keys and values, of all columns, and ends the pass."""

    def __init__(self, layer: _Earlier) -> None:
        super().__init__(*layer.base, layer.prompts, layer.start)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self.all_keys, self.all_values = super().update(key_states, value_states)
        raise StopForward


class _Given(DynamicLayer):
    """Keys and values of all columns, made before."""

    def __init__(self, keys: Tensor, values: Tensor, start: int) -> None:
        super().__init__()
        self.made = keys, values
        self.start = start

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return self.made

    def get_seq_length(self) -> int:
        return self.start


def _cache(base: Base, prompts: Tensor, start: int) -> DynamicCache:
    cache = DynamicCache()
    cache.layers = [_Earlier(k, v, prompts, start) for k, v in zip(base.keys, base.values, strict=True)]
    return cache


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
    with model.lock, torch.no_grad(), running(model.hf), ExitStack() as stack:
        handlers = Attachment(session, model.parts, model.spec, stack).attach()
        stack.enter_context(kernel_tap(model.attention, handlers))
        if tokens is not None:
            stack.enter_context(_forward_replaced(model.parts.unembed, _unembedding(model.parts.unembed, tokens)))
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


@contextmanager
def _forward_replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    own = module.__dict__.get("forward")
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        module.__dict__.pop("forward")
        if own is not None:
            module.__dict__["forward"] = own


def _hidden(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    return args[0] if args else kwargs["hidden_states"]


def first_rows(frame: Frame, rows: int) -> Frame:
    """The first rows of a frame, without its roles."""
    if rows == frame.batch:
        return frame
    return replace(
        frame, lengths=frame.lengths[:rows], offsets=frame.offsets[:rows], key_mask=frame.key_mask[:rows], spans={}
    )
