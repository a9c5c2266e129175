"""TransformerLens: sessions carried by the hook points of a `TransformerBridge` (TransformerLens 4).

A bridge rebuilds the module tree of the model it is given and computes attention itself, always eagerly. So a Hugging
Face model gets a bridge over a module tree of its own that shares its weights, and a bridge gets, beside it, the plain
module tree that its weights belong to, for whatever reads weights. Only raw weights are traced: a bridge whose weights
were folded or centred is another parametrisation, in which the same edit means something else.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from interp.errors import BadInput, UnsupportedArchitecture
from interp.tracing.architectures import Parts, Refusals
from interp.tracing.backends.attachment import running
from interp.tracing.backends.contract import Adopted
from interp.tracing.backends.transformer_lens_points import Attachment, points_of, shows_attention
from interp.tracing.session import Session, StopForward
from interp.tracing.spec import ModelSpec

OLD = ("HookedTransformer", "HookedEncoder", "HookedEncoderDecoder")

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
    _plain[bridge] = model
    return Adopted(model, None, lambda parts, spec: TransformerLensBackend(bridge, model, parts, spec))


def _adopt_bridge(bridge: Any) -> Adopted:
    inside = getattr(bridge, "original_model", None)
    if not isinstance(inside, PreTrainedModel):
        raise UnsupportedArchitecture(
            f"this TransformerBridge holds a {type(inside).__name__} and not a transformers model"
        )
    if reason := _not_raw(bridge):
        raise UnsupportedArchitecture(reason)
    if bridge not in _plain:
        _plain[bridge] = plain_modules(inside)
        _plain[bridge].config.output_attentions = False  # type: ignore[union-attr]  # which boot_transformers sets
    hf = _plain[bridge]
    return Adopted(hf, bridge.tokenizer, lambda parts, spec: TransformerLensBackend(bridge, hf, parts, spec))


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
    from transformer_lens.model_bridge import NormalizationBridge
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    name = type(hf).__name__
    if name not in SUPPORTED_ARCHITECTURES:
        raise UnsupportedArchitecture(f"TransformerLens has no adapter for {name}; use the hooks backend")
    if any(hasattr(module, "_hf_hook") for module in hf.modules()):
        raise UnsupportedArchitecture(
            "this model is spread over devices by accelerate, which ties its modules to their places; boot a "
            "TransformerBridge with device_map=… and wrap that, or use the hooks backend"
        )
    own = plain_modules(hf)
    own.set_attn_implementation("eager")  # type: ignore[operator]
    try:
        bridge = build_bridge_from_module(own, name, hf_config=own.config).eval()
    except Exception as error:
        raise UnsupportedArchitecture(f"TransformerLens cannot bridge this {name}: {error}") from error
    for place, part in bridge.real_components.values():
        if isinstance(part, nn.Module) and part.original_component is None:
            raise UnsupportedArchitecture(f"TransformerLens expects {place} in every {name}, and this one has none")
    for part in own.modules():
        if isinstance(part, NormalizationBridge):
            part.use_native_layernorm_autograd = True  # else a bridge norms in its own way, with another rounding
    if not any(parameter.requires_grad for parameter in hf.parameters()):
        own.requires_grad_(False)  # also the parameters that the bridge made by splitting others
    return bridge


def plain_modules(model: nn.Module) -> nn.Module:
    """The modules of a model once more, without hooks and bridge components, over the very same tensors."""
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
        # An instance's own `forward` is another library's (nnsight's, say) and is tied to the module it was put on.
        left = {*vars(new), "_output_capturing_hooks_installed", "forward", "__nnsight__"} - {"training"}
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
    """Runs sessions on the bridge `original` through its hook points; `hf` is the plain model of the same weights."""

    name = "transformer_lens"
    remote = False
    attention = "eager"

    def __init__(self, bridge: Any, hf: nn.Module, parts: Parts, spec: ModelSpec) -> None:
        self.bridge = self.original = bridge
        self.hf = hf
        self.parts = parts
        self.spec = spec
        self.points = points_of(parts)
        self.refusals = self._refusals()
        self.cache: Any = None

    def _refusals(self) -> Refusals:
        known = set(self.bridge.hook_dict)
        refused: dict[str, str] = {}
        for name, point in self.points.items():
            if absent := {point.format(layer) for layer in range(self.spec.layers)} - known:
                refused[name] = f"this TransformerBridge has no hook {min(absent)}"
        kinds = [type(block.attn) for block in self.bridge.blocks]
        if hidden := [kind for kind in kinds if not shows_attention(kind, self.parts.architecture.rotary)]:
            reason = (
                f"the {hidden[0].__name__} of TransformerLens does not show queries and keys as attention uses them"
            )
            refused |= dict.fromkeys(("q_rot", "k_rot", "pattern", "attention_stats"), reason)
        return {name: reason for name, reason in refused.items() if name not in self.parts.refusals}

    @property
    def remark(self) -> str:
        """What runs on this backend differ in."""
        shared = {parameter.untyped_storage().data_ptr() for parameter in self.hf.parameters()}
        inside = self.bridge.original_model.parameters()
        copied = sum(p.numel() for p in inside if p.untyped_storage().data_ptr() not in shared)
        split = f"; {copied:,} parameters of fused projections are held a second time, split" if copied else ""
        return f"a TransformerBridge always computes eager attention, itself{split}"

    @contextmanager
    def attached(self, session: Session) -> Iterator[None]:
        """Add the session's hooks to the bridge beside those that are there; only they are taken away again."""
        if reason := _not_raw(self.bridge):
            raise BadInput(reason)
        if self.bridge.training:
            raise BadInput("the TransformerBridge is in training mode, so dropout is on; call bridge.eval() first")
        with running(self.bridge), ExitStack() as stack:
            stack.callback(setattr, self, "cache", None)
            hooks = Attachment(session, self, stack).hooks()
            stack.enter_context(self.bridge.hooks(fwd_hooks=hooks))
            yield

    def forward(self, session: Session, **inputs: Any) -> Any:
        """One forward call inside `attached`; an output with `logits`, or None when the session stopped it early."""
        self.cache = inputs.get("past_key_values")
        try:
            logits = self.bridge(inputs.pop("input_ids"), return_type="logits", output_attentions=False, **inputs)
        except StopForward:
            return None
        if self.unembedding_is_watched:
            logits = session.narrow(logits)
        if session.plan.touches("logits", None):
            logits = session.visit("logits", None, logits)
        return CausalLMOutput(logits=logits)

    @property
    def unembedding_is_watched(self) -> bool:
        """Whether the user's own hooks are to see the logits of every position."""
        return bool(self.bridge.unembed.hook_out.has_hooks())
