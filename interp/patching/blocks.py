"""Making a model's blocks run on the rows that have begun, and only those."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from interp.tracing.model import Model
from kernels.model_masks import ModelMask
from kernels.types import MaskSpec


@contextmanager
def running_blocks(
    model: Model, layers: range, entering: Callable[[int, Tensor], Tensor], rows: int, returns: Sequence[int]
) -> Iterator[None]:
    """Let the blocks of `layers` run on what `entering(layer, hidden)` gives them, the others pass their input on.

    The model is called with `rows` rows; `entering` may give fewer, the first ones. `returns` says how many values each
    block returns (0: a tensor alone).
    """

    def enter(layer: int) -> Callable[..., Any]:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
            hidden = entering(layer, hidden_states(args, kwargs))
            few = _Few(len(hidden), rows, model.spec.heads)
            others = {name: few(value) for name, value in kwargs.items()}
            return ((hidden, *map(few, args[1:])), others) if args else ((), {**others, "hidden_states": hidden})

        return hook

    def passing(layer: int) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            hidden = hidden_states(args, kwargs)
            return (hidden, *[None] * (returns[layer] - 1)) if returns[layer] else hidden

        return forward

    with ExitStack() as undo:
        for layer, block in enumerate(model.parts.blocks):
            if layer in layers:
                hook = block.module.register_forward_pre_hook(enter(layer), prepend=True, with_kwargs=True)
                undo.callback(hook.remove)
            else:
                undo.enter_context(forward_replaced(block.module, passing(layer)))
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
            spec = value.spec
            starts = spec.starts
            if starts is not None and len(starts) == self.total:
                starts = starts[: self.rows]
            return replace(value, spec=replace(spec, starts=starts, key_mask=self(spec.key_mask)))
        return value


@contextmanager
def forward_replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Let a module compute something else; its hooks stay."""
    own = module.__dict__.get("forward")
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        module.__dict__.pop("forward")
        if own is not None:
            module.__dict__["forward"] = own


def hidden_states(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """What a block is called with, by position or by name."""
    return args[0] if args else kwargs["hidden_states"]
