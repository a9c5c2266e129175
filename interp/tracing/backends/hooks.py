"""Plain torch hooks on the Hugging Face model: the default backend, and the fastest.

Every attention implementation stays in place. Hooks live exactly as long as the `attached` block.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from interp.tracing.architectures import Parts, Refusals
from interp.tracing.backends.attachment import Attachment, running
from interp.tracing.backends.contract import Adopted
from interp.tracing.backends.kernel_tap import kernel_tap
from interp.tracing.compiled_edits import kernel_sites
from interp.tracing.session import Session, StopForward
from interp.tracing.spec import ModelSpec


def adopt(model: nn.Module) -> Adopted:
    """Run on a Hugging Face model as it is."""
    return Adopted(model, None, lambda parts, spec: HooksBackend(model, parts, spec))


class HooksBackend:
    """Runs sessions on `hf` through forward hooks."""

    name = "hooks"
    remote = False

    def __init__(self, hf: nn.Module, parts: Parts, spec: ModelSpec) -> None:
        self.hf = self.original = hf
        self.parts = parts
        self.spec = spec
        self.refusals: Refusals = {}

    @property
    def attention(self) -> str:
        """The attention implementation the model runs with."""
        return str(self.hf.config.get_text_config()._attn_implementation)  # type: ignore[union-attr, operator]

    def forward(self, session: Session, **inputs: Any) -> Any:
        """One forward call inside `attached`; the model's output, or None when the session stopped it early."""
        try:
            output = self.hf(**inputs)
        except StopForward:
            return None
        if session.plan.touches("logits", None):
            output.logits = session.visit("logits", None, output.logits)
        return output

    @contextmanager
    def attached(self, session: Session) -> Iterator[None]:
        """Register what the session's plan needs, and take it all away again however the block ends."""
        with running(self.hf), ExitStack() as stack:
            session.kernel_sites = kernel_sites(session.plan, self.hf, self.parts, self.attention)
            handlers = Attachment(session, self.parts, self.spec, stack).attach()
            stack.enter_context(kernel_tap(self.attention, handlers))
            yield
