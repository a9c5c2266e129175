"""What a backend is: the library whose hooks carry a session through the model's forward pass.

Everything above this line (plans, edits, traces, generation) is the same for all backends.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

from torch import nn

from interp.tracing.architectures import Parts, Refusals
from interp.tracing.session import Session
from interp.tracing.spec import ModelSpec


class Backend(Protocol):
    """Carries sessions through one model.

    A backend calls `session.visit(name, layer, value)` at every site that `session.plan.touches`, in the site's own
    shape (`sites.py`), and goes on with what it returns; `session.read_rows` and `force_rows` around the attention
    kernel where `session.plan.uses_kernel`; `session.narrow` on what is about to be unembedded.
    """

    name: str
    remote: bool
    """Whether the weights are on a remote service, and here is only the shape of the model."""
    original: Any
    """The library's own object that runs are carried by: the one that was given, or the one made around it."""
    refusals: Refusals
    """Sites that this backend cannot offer although the family has them, with the reasons."""

    @property
    def attention(self) -> str:
        """The attention implementation the model runs with."""
        ...

    def attached(self, session: Session) -> AbstractContextManager[None]:
        """Within the block, `forward` calls carry the session; nothing stays behind, however the block ends."""
        ...

    def forward(self, session: Session, **inputs: Any) -> Any:
        """One forward call; an output with `logits` after their edits, or None when the session stopped it early."""
        ...


class Adopted(NamedTuple):
    """An object in memory, taken over by a backend: the Hugging Face module inside, and how to build the backend."""

    hf: nn.Module
    tokenizer: Any
    build: Callable[[Parts, ModelSpec], Backend]
