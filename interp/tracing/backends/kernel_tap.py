"""Seeing what a model's attention kernel is given, whatever the kernel is.

transformers looks the attention function up by name at every call. While at least one run needs to see a kernel, the
entry of that name is wrapped by a pass-through that only acts for modules with a registered handler; the original
kernel always does the computing. Other models, and the same model afterwards, are unaffected.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

Kernel = Callable[..., tuple[Tensor, Tensor | None]]
Handler = Callable[..., tuple[Tensor, Tensor | None]]
"""`handler(kernel, module, q, k, v, mask, **kwargs)`, returning what the kernel returns."""

_handlers: dict[int, Handler] = {}
_users: dict[str, int] = {}
_originals: dict[str, Kernel] = {}
_lock = threading.Lock()


@contextmanager
def kernel_tap(implementation: str, handlers: Mapping[nn.Module, Handler]) -> Iterator[None]:
    """Route the attention calls of these modules through their handlers."""
    if not handlers:
        yield
        return
    _install(implementation)
    try:
        _handlers.update({id(module): handler for module, handler in handlers.items()})
        yield
    finally:
        for module in handlers:
            _handlers.pop(id(module), None)
        _uninstall(implementation)


def is_tapped(module: nn.Module) -> bool:
    """Whether somebody waits for the attention calls of this module."""
    return id(module) in _handlers


def show(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, output: Tensor) -> Tensor:
    """Show a handler of `module` attention that was computed elsewhere; what the handler makes of its output."""
    handler = _handlers.get(id(module))
    return output if handler is None else handler(lambda *_args, **_kwargs: (output, None), module, q, k, v, None)[0]


def _install(name: str) -> None:
    with _lock:
        _users[name] = _users.get(name, 0) + 1
        if _users[name] == 1:
            overrides = ALL_ATTENTION_FUNCTIONS._local_mapping
            if name in overrides:
                _originals[name] = overrides[name]
            ALL_ATTENTION_FUNCTIONS[name] = _tapped(ALL_ATTENTION_FUNCTIONS.get(name))


def _uninstall(name: str) -> None:
    with _lock:
        _users[name] -= 1
        if _users[name] == 0:
            del ALL_ATTENTION_FUNCTIONS[name]
            if name in _originals:
                ALL_ATTENTION_FUNCTIONS[name] = _originals.pop(name)


def _tapped(kernel: Kernel | None) -> Kernel:
    def attention(
        module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Any, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        inner = kernel or _eager(module)
        handler = _handlers.get(id(module))
        if handler is None:
            return inner(module, q, k, v, mask, *args, **kwargs)
        return handler(inner, module, q, k, v, mask, *args, **kwargs)

    return attention


def _eager(module: nn.Module) -> Kernel:
    """Eager attention has no entry in the table: every modeling file brings its own."""
    function: Kernel = sys.modules[type(module).__module__].eager_attention_forward
    return function
