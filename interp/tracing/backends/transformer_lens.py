"""TransformerLens: sessions carried by the hook points of a `TransformerBridge` (TransformerLens 4).

A bridge rebuilds the module tree of the model it is given and computes attention itself, always eagerly. So a Hugging
Face model gets a bridge over a module tree of its own that shares its weights, and a bridge gets, beside it, the plain
module tree that its weights belong to, for whatever reads weights. Only raw weights are traced: a bridge whose weights
were folded or centred is another parametrisation, in which the same edit means something else.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

from einops import einsum, rearrange
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from interp.errors import BadInput, UnsupportedArchitecture
from interp.tracing.architectures import Parts, Refusals
from interp.tracing.attention import KernelCall
from interp.tracing.backends.contract import Adopted
from interp.tracing.backends.hooks import output_weights, running
from interp.tracing.backends.kernel_tap import is_tapped, show
from interp.tracing.session import Session, StopForward
from interp.tracing.spec import ModelSpec

POINTS = {
    "embed": "blocks.0.hook_resid_pre",
    "resid_pre": "blocks.{}.hook_resid_pre",
    "attn_in": "blocks.{}.attn.hook_in",
    "q": "blocks.{}.attn.hook_q",
    "k": "blocks.{}.attn.hook_k",
    "v": "blocks.{}.attn.hook_v",
    "q_rot": "blocks.{}.attn.hook_rot_q",
    "k_rot": "blocks.{}.attn.hook_rot_k",
    "z": "blocks.{}.attn.hook_z",
    "head_out": "blocks.{}.attn.o.hook_out",
    "attn_out": "blocks.{}.hook_attn_out",
    "resid_mid": "blocks.{}.hook_attn_out",
    "mlp_in": "blocks.{}.mlp.hook_in",
    "mlp_post": "blocks.{}.mlp.hook_post",
    "mlp_out": "blocks.{}.hook_mlp_out",
    "resid_post": "blocks.{}.hook_resid_post",
    "final_norm": "ln_final.hook_out",
}
"""The hook point at which each site is read and edited. Rows of attention are recomputed from queries and keys."""
KERNEL_SITES = ("q_rot", "k_rot", "pattern", "attention_stats")
OLD = ("HookedTransformer", "HookedEncoder", "HookedEncoderDecoder")

Change = Callable[[Tensor], Tensor]

_plain: WeakKeyDictionary[nn.Module, nn.Module] = WeakKeyDictionary()
"""The plain module tree of each bridge, the same one every time: locks and prefixes go by it."""


def adopt(model: Any) -> Adopted:
    """Run on a TransformerBridge as it is, or on a bridge made over the weights of a Hugging Face model.

    Raises UnsupportedArchitecture for objects of TransformerLens 3, bridges without a transformers model or with
    processed weights, and models that TransformerLens has no adapter for.
    """
    kinds = {kind.__name__ for kind in type(model).__mro__}
    if old := kinds.intersection(OLD):
        raise UnsupportedArchitecture(
            f"{old.pop()} is TransformerLens 3 and does not compute what the original model computes; give the "
            "transformers model itself, or TransformerBridge.boot_transformers(…) of TransformerLens 4"
        )
    if "TransformerBridge" in kinds:
        return _adopt_bridge(model)
    if not isinstance(model, PreTrainedModel):
        raise UnsupportedArchitecture(
            f"the transformer_lens backend runs on a TransformerBridge or a transformers model, not a "
            f"{type(model).__name__}"
        )
    bridge = _boot(model)
    return Adopted(model, None, lambda parts, spec: TransformerLensBackend(bridge, model, parts, spec))


def _adopt_bridge(bridge: Any) -> Adopted:
    inside = getattr(bridge, "original_model", None)
    if not isinstance(inside, PreTrainedModel):
        raise UnsupportedArchitecture(
            f"this TransformerBridge holds a {type(inside).__name__}, not a transformers model, so its parts are unknown"
        )
    if reason := _not_raw(bridge):
        raise UnsupportedArchitecture(reason)
    if bridge not in _plain:
        _plain[bridge] = _again(inside)
    return Adopted(
        _plain[bridge], bridge.tokenizer, lambda parts, spec: TransformerLensBackend(bridge, bridge, parts, spec)
    )


def _not_raw(bridge: Any) -> str | None:
    if not bridge._weights_processed:
        return None
    return (
        "the weights of this TransformerBridge were processed (folded, centred), so its activations are not the "
        "model's and zeroing one means something else; boot it again and leave enable_compatibility_mode() out, or "
        "call it with no_processing=True"
    )


def _boot(hf: PreTrainedModel) -> Any:
    """A bridge over the weights of `hf`, which itself is left as it is."""
    from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    name = type(hf).__name__
    if name not in SUPPORTED_ARCHITECTURES:
        raise UnsupportedArchitecture(f"TransformerLens has no adapter for {name}; use the hooks backend")
    if any(hasattr(module, "_hf_hook") for module in hf.modules()):
        raise UnsupportedArchitecture(
            "this model is spread over devices by accelerate, which ties its modules to their places; boot a "
            "TransformerBridge with device_map=… and wrap that, or use the hooks backend"
        )
    own = _again(hf)
    own.set_attn_implementation("eager")  # type: ignore[operator]
    try:
        return build_bridge_from_module(own, name, hf_config=own.config).eval()
    except Exception as error:
        raise UnsupportedArchitecture(f"TransformerLens cannot bridge this {name}: {error}") from error


def _again(model: nn.Module) -> nn.Module:
    """The plain modules of a model once more, without hooks and bridge components, over the very same tensors."""
    made: dict[int, Any] = {}

    def value_of(value: Any) -> Any:
        return copy.deepcopy(value, made) if isinstance(value, PreTrainedConfig) else value

    def again(module: nn.Module) -> nn.Module:
        while "_original_component" in module._modules:
            module = module._modules["_original_component"]  # type: ignore[assignment]
        if id(module) in made:
            return made[id(module)]
        new = made[id(module)] = object.__new__(type(module))
        nn.Module.__init__(new)
        left = {*vars(new), "_output_capturing_hooks_installed"} - {"training"}
        vars(new).update({k: value_of(v) for k, v in vars(module).items() if k not in left})
        new._parameters.update(module._parameters)
        new._buffers.update(module._buffers)
        new._non_persistent_buffers_set.update(module._non_persistent_buffers_set)
        new._modules.update({k: None if m is None else again(m) for k, m in module._modules.items()})
        if isinstance(module, nn.Linear) and "bias" in new._buffers:  # a bridge gives every unembedding a bias of zeros
            del new._buffers["bias"]
            new._parameters["bias"] = None
        return new

    return again(model)


class TransformerLensBackend:
    """Runs sessions on `bridge` through its hook points; `original` is what the caller gave."""

    name = "transformer_lens"
    attention = "eager"
    """Always: a bridge computes attention itself."""

    def __init__(self, bridge: Any, original: Any, parts: Parts, spec: ModelSpec) -> None:
        self.bridge = bridge
        self.original = original
        self.parts = parts
        self.spec = spec
        self.refusals = self._refusals()
        self._cache: Any = None

    def _refusals(self) -> Refusals:
        known = set(self.bridge.hook_dict)
        refused: dict[str, str] = {}
        for name, point in POINTS.items():
            absent = {point.format(layer) for layer in range(self.spec.layers)} - known
            if absent and name not in self.parts.refusals:
                refused[name] = f"this TransformerBridge has no hook {min(absent)}"
        return refused

    @contextmanager
    def attached(self, session: Session) -> Iterator[None]:
        """Add the session's hooks to the bridge beside those that are there; only they are taken away again."""
        if reason := _not_raw(self.bridge):
            raise BadInput(reason)
        if self.bridge.training:
            raise BadInput("the TransformerBridge is in training mode, so dropout is on; call bridge.eval() first")
        with running(self.bridge), ExitStack() as stack:
            stack.callback(setattr, self, "_cache", None)
            hooks = _Attachment(session, self, stack).hooks()
            stack.enter_context(self.bridge.hooks(fwd_hooks=hooks))
            yield

    def forward(self, session: Session, **inputs: Any) -> Any:
        """One forward call inside `attached`; an output with `logits`, or None when the session stopped it early."""
        self._cache = inputs.get("past_key_values")
        try:
            logits = self.bridge(inputs.pop("input_ids"), return_type="logits", **inputs)
        except StopForward:
            return None
        if session.plan.touches("logits", None):
            logits = session.visit("logits", None, logits)
        return CausalLMOutput(logits=logits)

    def keys_and_values(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """All that the queries of this call see, `[batch kv_head key dim]`, from those of its own tokens."""
        if self._cache is None:
            return k.transpose(1, 2), v.transpose(1, 2)
        cached = self._cache.layers[layer]
        return cached.keys, cached.values


class _Attachment:
    """The hooks of one session, as `(hook point, function)`."""

    def __init__(self, session: Session, backend: TransformerLensBackend, stack: ExitStack) -> None:
        self.session = session
        self.backend = backend
        self.stack = stack
        self.found: list[tuple[str, Callable[..., Tensor | None]]] = []

    def hooks(self) -> list[tuple[str, Callable[..., Tensor | None]]]:
        if self.session.plan.grad:
            self._on("embed", None, lambda x: x if x.requires_grad else x.detach().requires_grad_())
        self._visit("embed", None)
        for layer, block in enumerate(self.backend.parts.blocks):
            for name in ("resid_pre", "attn_in", "q", "k", "v"):
                self._visit(name, layer)
            if self.session.plan.uses_kernel(layer) or is_tapped(block.attn):
                self._attach_kernel(layer)
            self._visit("z", layer)
            self._attach_head_out(layer)
            self._visit("attn_out", layer)
            self._attach_resid_mid(layer)
            for name in ("mlp_in", "mlp_post", "mlp_out", "resid_post"):
                self._visit(name, layer)
        self._visit("final_norm", None)
        self.found.append(_hook("unembed.hook_in", self.session.narrow))
        return self.found

    def _on(self, name: str, layer: int | None, change: Change) -> None:
        self.found.append(_hook(POINTS[name].format(layer), change))

    def _visit(self, name: str, layer: int | None) -> None:
        if self.session.plan.touches(name, layer):
            self._on(name, layer, lambda value: self.session.visit(name, layer, value))

    def _attach_resid_mid(self, layer: int) -> None:
        """Edit the residual stream itself: the hook point of that name lies on the MLP's branch, after the sum."""
        if not self.session.plan.touches("resid_mid", layer):
            return
        resid: dict[str, Tensor] = {}

        def change(attn_out: Tensor) -> Tensor:
            pre = resid.pop("pre").to(attn_out.device)
            mid = pre + attn_out
            new = self.session.visit("resid_mid", layer, mid)
            return attn_out if new is mid else new - pre

        self._on("resid_pre", layer, partial(_remember, resid, "pre"))
        self._on("resid_mid", layer, change)

    def _attach_head_out(self, layer: int) -> None:
        """Computed from z: the bridge's own per-head output is off unless the user turned it on."""
        if not self.session.plan.touches("head_out", layer):
            return
        w_o = output_weights(self.backend.parts.blocks[layer].o, self.backend.spec.head_dim)
        written: dict[str, Tensor] = {}

        def change(output: Tensor) -> Tensor:
            z = written.pop("z")
            value = einsum(z, w_o.to(z.dtype), "b t h d, h d w -> b t h w")
            new = self.session.visit("head_out", layer, value)
            return output if new is value else output + (new - value).sum(2)

        self._on("z", layer, partial(_remember, written, "z"))
        self._on("head_out", layer, change)

    def _attach_kernel(self, layer: int) -> None:
        """Attention rows from the queries, keys and values that the bridge used."""
        attn = self.backend.bridge.blocks[layer].attn
        seen: dict[str, Tensor] = {}

        def rotated(name: str, value: Tensor) -> Tensor:
            if self.session.plan.touches(name, layer):
                value = self.session.visit(name, layer, value)
            return _remember(seen, name[0], value)

        def rotate(bridges: Callable[..., tuple[Tensor, Tensor]], *args: Tensor) -> tuple[Tensor, Tensor]:
            q, k = (x.transpose(1, 2) for x in bridges(*args))
            return rotated("q_rot", q).transpose(1, 2), rotated("k_rot", k).transpose(1, 2)

        def attend(z: Tensor) -> Tensor:
            call = self._call(layer, **seen)
            z = show(self.backend.parts.blocks[layer].attn, call.q, call.k, call.v, z)
            self.session.read_rows(call)
            return self.session.force_rows(call, z)

        def seam(bridges: Change, flat: Tensor) -> Tensor:
            z = rearrange(flat, "b t (h d) -> b t h d", d=self.backend.spec.head_dim)
            return bridges(attend(z).flatten(2))

        if "q_rot" in self.backend.parts.refusals:
            for name in "qk":
                self._on(name, layer, partial(_remember, seen, name))
        elif hasattr(attn, "_apply_rotary_pos_emb"):  # such bridges have hook_rot_q and hook_rot_k and never call them
            self._replace(attn, "_apply_rotary_pos_emb", rotate)
        else:
            for name in ("q_rot", "k_rot"):
                self._on(name, layer, partial(rotated, name))
        self._on("v", layer, partial(_remember, seen, "v"))
        if _has_seam(attn):
            self._replace(attn, "_pre_output_projection", seam)
        else:
            self._on("z", layer, attend)

    def _call(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> KernelCall:
        inside = self.backend.bridge.blocks[layer].attn.original_component
        config = self.backend.bridge.original_model.config.get_text_config()
        k, v = self.backend.keys_and_values(layer, k, v)
        return KernelCall(
            layer=layer,
            q=q.transpose(1, 2),
            k=k,
            v=v,
            scaling=getattr(inside, "scaling", q.shape[-1] ** -0.5),
            softcap=getattr(inside, "attn_logit_softcapping", None),
            sliding_window=getattr(inside, "sliding_window", getattr(config, "sliding_window", None)),
            sinks=getattr(inside, "sinks", None),
        )

    def _replace(self, component: nn.Module, method: str, wrapper: Callable[..., Any]) -> None:
        """Put `wrapper(original, *args)` before a method of one component."""
        object.__setattr__(component, method, partial(wrapper, getattr(component, method)))
        self.stack.callback(object.__delattr__, component, method)


def _has_seam(attn: Any) -> bool:
    """Whether something (a norm of BitNet) comes between what attention returns and `hook_z`."""
    from transformer_lens.model_bridge.generalized_components import PositionEmbeddingsAttentionBridge as Usual

    return isinstance(attn, Usual) and type(attn)._pre_output_projection is not Usual._pre_output_projection


def _remember(memory: dict[str, Tensor], name: str, value: Tensor) -> Tensor:
    memory[name] = value
    return value


def _hook(point: str, change: Change) -> tuple[str, Callable[..., Tensor | None]]:
    """A hook as a bridge takes them: None leaves the value as it is."""

    def hook(value: Tensor, hook: Any) -> Tensor | None:
        new = change(value)
        return None if new is value else new

    return point, hook
