"""What a session hooks onto a Hugging Face model: which modules, and what is done with what passes through them.

The hooks backend registers these functions with torch; the nnsight backend calls the same ones from its traces.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakSet

from einops import einsum, rearrange
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from interp.errors import BadInput, SiteDidNotFire
from interp.tracing.architectures import Block, Parts
from interp.tracing.attention import KernelCall
from interp.tracing.backends.kernel_tap import Handler, Kernel
from interp.tracing.session import Session
from interp.tracing.sites import Site
from interp.tracing.spec import ModelSpec
from interp.tracing.views import IDENTITY, View, heads_view, qkv_views, unflattened_view
from kernels.integration import is_planned, planned

_running: WeakSet[nn.Module] = WeakSet()
"""Models whose hooks are in place: the lock keeps other threads out, this the same thread."""


@contextmanager
def running(hf: nn.Module) -> Iterator[None]:
    """Mark a model as being run; raises BadInput when it is already."""
    if hf in _running:
        raise BadInput("this model is in the middle of a run; a RowFold or hook cannot run it again")
    _running.add(hf)
    try:
        yield
    finally:
        _running.discard(hf)


class Attachment:
    """Registers the hooks of one session; a backend that carries them otherwise overrides `before` and `after`."""

    def __init__(self, session: Session, parts: Parts, spec: ModelSpec, stack: ExitStack) -> None:
        self.session = session
        self.parts = parts
        self.spec = spec
        self.stack = stack

    def attach(self) -> dict[nn.Module, Handler]:
        handlers: dict[nn.Module, Handler] = {}
        self._on_input(self.parts.blocks[0].module, "embed", None, require_grad=self.session.plan.grad)
        for layer, block in enumerate(self.parts.blocks):
            self._attach_attention(layer, block)
            self._attach_mlp(layer, block)
            if self.session.plan.uses_kernel(layer) or Site("z", layer) in self.session.kernel_sites:
                handlers[block.attn] = self._kernel_handler(layer)
        if self.parts.final_norm is not None:
            self._on_output(self.parts.final_norm, "final_norm", None)
        if self.parts.unembed is not None:
            self.before(self.parts.unembed, self._narrow)
        return handlers

    def _narrow(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Unembed only the positions whose logits are kept; a vocabulary is wide."""
        return _with_argument(module, args, kwargs, self.session.narrow(_argument(module, args, kwargs)))

    def _attach_attention(self, layer: int, block: Block) -> None:
        spec, architecture = self.spec, self.parts.architecture
        self._on_input(block.module, "resid_pre", layer)
        self._on_input(block.attn, "attn_in", layer)
        for name, index, view in qkv_views(architecture.qkv, spec.heads, spec.kv_heads, spec.head_dim):
            self._on_output(block.projections[index], name, layer, view)
        self._on_input(block.o, "z", layer, heads_view(spec.head_dim))
        self._attach_head_out(layer, block)
        self._on_output(block.attn_out, "attn_out", layer)
        self._attach_resid_mid(layer, block)

    def _attach_mlp(self, layer: int, block: Block) -> None:
        flat = unflattened_view(lambda: self.session.frame.batch)
        self._on_input(block.mlp, "mlp_in", layer, flat)
        if block.mlp_down is not None:
            self._on_input(block.mlp_down, "mlp_post", layer, flat)
        self._on_output(block.mlp_out, "mlp_out", layer, flat)
        self._on_output(block.module, "resid_post", layer)

    def _on_input(
        self,
        module: nn.Module,
        name: str,
        layer: int | None,
        view: View = IDENTITY,
        require_grad: bool = False,
    ) -> None:
        if not (self.session.plan.touches(name, layer) or require_grad):
            return

        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            raw = _argument(module, args, kwargs)
            new = raw if raw.requires_grad or not require_grad else raw.detach().requires_grad_()
            if self.session.plan.touches(name, layer):
                value = view.get(new)
                seen = self.session.visit(name, layer, value)
                new = new if seen is value else view.put(new, seen)
            return None if new is raw else _with_argument(module, args, kwargs, new)

        self.before(module, hook)

    def _on_output(self, module: nn.Module, name: str, layer: int | None, view: View = IDENTITY) -> None:
        if self.session.plan.touches(name, layer):

            def change(raw: Tensor) -> Tensor:
                value = view.get(raw)
                new = self.session.visit(name, layer, value)
                raw = raw if new is value else view.put(raw, new)
                return raw.clone() if name in self.parts.architecture.overwrites else raw

            self.after(module, _output_hook(change))

    def _attach_resid_mid(self, layer: int, block: Block) -> None:
        """Edit the residual stream itself, not only the branch that the MLP normalises.

        `resid_mid` is formed inside the block's own code, so the change is carried by `attn_out`; where a norm follows
        the sum, its output is the residual stream.
        """
        if block.norm_after_attn is not None:
            self._on_output(block.norm_after_attn, "resid_mid", layer)
            return
        if not self.session.plan.touches("resid_mid", layer):
            return
        resid: list[Tensor] = []

        def remember(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            resid[:] = [_argument(block.module, args, kwargs)]

        def change(attn_out: Tensor) -> Tensor:
            pre = resid.pop().to(attn_out.device)
            mid = pre + attn_out
            new = self.session.visit("resid_mid", layer, mid)
            return attn_out if new is mid else new - pre

        self.before(block.module, remember)
        self.after(block.attn_out, _output_hook(change))

    def _attach_head_out(self, layer: int, block: Block) -> None:
        if not self.session.plan.touches("head_out", layer):
            return
        w_o = output_weights(block.o, self.spec.head_dim)

        written: list[Tensor] = []

        def remember(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            written[:] = [_argument(block.o, args, kwargs)]

        def hook(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
            z = rearrange(written.pop(), "b t (h d) -> b t h d", d=self.spec.head_dim)
            value = einsum(z, w_o.to(z.dtype), "b t h d, h d w -> b t h w")
            new = self.session.visit("head_out", layer, value)
            return output if new is value else output + (new - value).sum(2)

        self.before(block.o, remember)
        self.after(block.o, hook)

    def _kernel_handler(self, layer: int) -> Handler:
        session = self.session

        def handler(
            kernel: Kernel, module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Any, **kwargs: Any
        ) -> tuple[Tensor, Tensor | None]:
            if session.plan.touches("q_rot", layer):
                q = session.visit("q_rot", layer, q.transpose(1, 2)).transpose(1, 2)
            if session.plan.touches("k_rot", layer):
                k = session.visit("k_rot", layer, k.transpose(1, 2), session.frame.whole).transpose(1, 2)
            scaling = kwargs.get("scaling")
            call = KernelCall(
                layer=layer,
                q=q,
                k=k,
                v=v,
                scaling=q.shape[-1] ** -0.5 if scaling is None else float(scaling),
                softcap=kwargs.get("softcap"),
                # Where a family does not pass it on (Qwen-MoE), the mask was made with the module's own.
                sliding_window=kwargs.get("sliding_window", getattr(module, "sliding_window", None)),
                sinks=kwargs.get("s_aux"),
                causal=self.parts.architecture.causal,
            )
            plan = None if is_planned(module) else session.hand_over(call)  # what others planned goes first
            session.read_rows(call, measured=plan is not None and plan.capture is not None)
            with ExitStack() as stack:
                measured = [] if plan is None else stack.enter_context(planned(module, plan))
                z, weights = kernel(module, q, k, v, mask, **kwargs)
            for stats in measured:
                session.measured(layer, stats)
            return session.force_rows(call, z), weights

        return handler

    def before(self, module: nn.Module, hook: Callable[..., Any]) -> None:
        """Call `hook(module, args, kwargs)` before the module; the pair it returns replaces them, unless None."""
        self.stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)

    def after(self, module: nn.Module, hook: Callable[..., Any]) -> None:
        """Call `hook(module, args, output)` after the module; what it returns replaces the output, unless None."""
        self.stack.callback(module.register_forward_hook(hook).remove)


def _argument(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The hidden states a module is called with: its first argument, by position or by name."""
    return args[0] if args else kwargs[_first_parameter(module, kwargs)]


def _with_argument(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], new: Tensor) -> tuple[Any, Any]:
    return ((new, *args[1:]), kwargs) if args else (args, {**kwargs, _first_parameter(module, kwargs): new})


def _first_parameter(module: nn.Module, kwargs: dict[str, Any]) -> str:
    names = inspect.signature(module.forward).parameters
    first = next((name for name in names if name != "self"), "")  # nnsight's stand-in for `forward` shows it
    for name in (first, "hidden_states"):
        if name in kwargs:
            return name
    raise SiteDidNotFire(
        f"{type(module).__name__} is called with {', '.join(kwargs)}, none of which is known to be the hidden states"
    )


def _output_hook(change: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    """A forward hook that changes a module's output, or the first element of several."""

    def hook(module: nn.Module, _args: Any, output: Any) -> Any:
        several = isinstance(output, (tuple, list))
        value = output[0] if several else output
        if not isinstance(value, Tensor):
            raise SiteDidNotFire(f"{type(module).__name__} returns a {type(output).__name__}, where a tensor is read")
        new = change(value)
        if new is value:
            return None
        if not several:
            return new
        return [new, *output[1:]] if isinstance(output, list) else (new, *output[1:])

    return hook


def output_weights(o: nn.Module, head_dim: int) -> Tensor:
    """W_O by head, `[head dim width]`, from a Linear (`[width (head dim)]`) or a GPT-2 Conv1D (its transpose)."""
    weight: Tensor = o.weight  # type: ignore[assignment]
    return rearrange(weight if isinstance(o, Conv1D) else weight.T, "(h d) w -> h d w", d=head_dim)
