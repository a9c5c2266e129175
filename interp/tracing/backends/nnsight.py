"""nnsight's own traces: runs natively on an `NNsight`, a `TransformersModel` or its deprecated name `LanguageModel`.

Every forward call is one trace, whose block visits the sites through the envoys' `.inputs` and `.output`. Every
attention implementation stays in place; what acts at the attention kernel does so underneath the trace.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, NamedTuple

import nnsight
import torch
from nnsight import Envoy, NNsight
from nnsight.intervention.interleaver import OutOfOrderError
from torch import nn

from interp.errors import BadInput, ModelNotLoadable, SiteDidNotFire, UnsupportedArchitecture
from interp.tracing.architectures import Parts, Refusals
from interp.tracing.backends.attachment import Attachment, running
from interp.tracing.backends.contract import Adopted
from interp.tracing.backends.kernel_tap import kernel_tap
from interp.tracing.compiled_edits import kernel_sites
from interp.tracing.session import Session, StopForward
from interp.tracing.spec import ModelSpec

Side = Literal["in", "out"]
Place = tuple[nn.Module, Side]
"""Where a forward pass enters or leaves a module."""


def adopt(obj: Any) -> Adopted:
    """Run on an nnsight model as it is, or on a Hugging Face model through an `NNsight` around it.

    A model that nnsight has not loaded yet is loaded now, as its first trace would.
    """
    if not isinstance(obj, Envoy):
        return Adopted(obj, None, lambda parts, spec: NnsightBackend(NNsight(obj), parts, spec))
    check_whole(obj)
    if not getattr(obj, "dispatched", True):
        try:
            obj.dispatch()
        except Exception as error:
            raise ModelNotLoadable(f"nnsight cannot load the weights of {obj.repo_id}: {error}") from error
    return Adopted(obj._module, getattr(obj, "tokenizer", None), lambda parts, spec: NnsightBackend(obj, parts, spec))


def check_whole(envoy: Envoy) -> None:
    """Raise UnsupportedArchitecture for an envoy of some module inside a model."""
    if envoy.parent is not None:
        raise UnsupportedArchitecture(f"{envoy.path} is one part of an nnsight model; give the whole one, its .root")


class NnsightBackend:
    """Runs sessions on the nnsight model `original`, one trace a forward call."""

    name = "nnsight"
    remote = False

    def __init__(self, original: Envoy, parts: Parts, spec: ModelSpec) -> None:
        self.original = original
        self.hf: nn.Module = original._module
        self.parts = parts
        self.spec = spec
        self.refusals: Refusals = {}
        self._envoys = {envoy._module: envoy for envoy in original.modules()}
        self._order: dict[Place, int] = {}
        self._stops: list[Stop] = []

    @property
    def attention(self) -> str:
        """The attention implementation the model runs with."""
        return str(self.hf.config.get_text_config()._attn_implementation)  # type: ignore[union-attr, operator]

    @contextmanager
    def attached(self, session: Session) -> Iterator[None]:
        """Plan the stops of the session's traces; nothing is registered on the model but the kernel's handlers."""
        if self.original._module is not self.hf:
            raise BadInput("this nnsight model holds another module than when it was wrapped; wrap it again")
        with running(self.hf), ExitStack() as stack:
            if self.original.interleaver.interleaving:
                raise BadInput("this nnsight model is in the middle of a trace; run it outside of the `with` block")
            self._order = self._order or execution_order(self.hf)
            if not self.original._edits:  # which come before the edits of a run
                session.kernel_sites = kernel_sites(session.plan, self.hf, self.parts, self.attention)
            itinerary = Itinerary(session, self.parts, self.spec, stack)
            stack.enter_context(kernel_tap(self.attention, itinerary.attach()))
            self._stops = itinerary.in_order(self._order)
            stack.callback(self._stops.clear)
            yield

    def forward(self, session: Session, **inputs: Any) -> Any:
        """One trace inside `attached`; the model's output, or None when the session stopped it early."""
        try:
            with self.original.trace(**inputs) as tracer:
                self._walk()
                output = nnsight.save(tracer.result)
        except StopForward:  # rather than tracer.stop(), after which edits that the object holds would be missed
            return None
        except OutOfOrderError as error:
            raise SiteDidNotFire(f"this forward pass went another way than the model's first one: {error}") from error
        if session.plan.touches("logits", None):
            output.logits = session.visit("logits", None, output.logits)
        return output

    def _walk(self) -> None:
        """Call every stop's hook, from inside the trace."""
        for module, side, hook in self._stops:
            envoy = self._envoys[module]
            if side == "in":
                changed = hook(module, *envoy.inputs)
                if changed is not None:
                    envoy.inputs = changed
            else:
                changed = hook(module, (), envoy.output)
                if changed is not None:
                    envoy.output = changed


class Stop(NamedTuple):
    """A hook, and where in the forward pass a trace waits to call it."""

    module: nn.Module
    side: Side
    hook: Callable[..., Any]


class Itinerary(Attachment):
    """The hooks of one session as stops of a trace."""

    def __init__(self, session: Session, parts: Parts, spec: ModelSpec, stack: ExitStack) -> None:
        super().__init__(session, parts, spec, stack)
        self._stops: list[Stop] = []

    def before(self, module: nn.Module, hook: Callable[..., Any]) -> None:
        self._stops.append(Stop(module, "in", hook))

    def after(self, module: nn.Module, hook: Callable[..., Any]) -> None:
        self._stops.append(Stop(module, "out", hook))

    def in_order(self, order: dict[Place, int]) -> list[Stop]:
        """The stops as a forward pass comes by; those it never reaches are left out, and the session will say so."""
        reached = [stop for stop in self._stops if stop[:2] in order]
        return sorted(reached, key=lambda stop: order[stop[:2]])


def execution_order(hf: nn.Module) -> dict[Place, int]:
    """In which order a forward pass enters and leaves the modules, seen on one token.

    A trace must ask for values in this order, and families differ in it (parallel blocks, norms shared or not).
    """
    order: dict[Place, int] = {}

    def entered(module: nn.Module, _args: Any) -> None:
        order.setdefault((module, "in"), len(order))

    def left(module: nn.Module, _args: Any, _output: Any) -> None:
        order.setdefault((module, "out"), len(order))

    device = next(p.device for p in hf.parameters() if not p.is_meta)
    with ExitStack() as stack, torch.no_grad():
        for module in hf.modules():
            stack.callback(module.register_forward_pre_hook(entered).remove)
            stack.callback(module.register_forward_hook(left).remove)
        hf(torch.zeros((1, 1), dtype=torch.long, device=device))
    return order
