"""Where the sites are among the hook points of a TransformerBridge, and what is done there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

from einops import einsum, rearrange
from torch import Tensor, nn

from interp.tracing.architectures import Parts
from interp.tracing.attention import KernelCall
from interp.tracing.backends.attachment import output_weights
from interp.tracing.backends.kernel_tap import is_tapped, show
from interp.tracing.session import Session

if TYPE_CHECKING:
    from interp.tracing.backends.transformer_lens import TransformerLensBackend

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
    "head_out": "blocks.{}.attn.hook_out",
    "attn_out": "blocks.{}.hook_attn_out",
    "resid_mid": "blocks.{}.hook_attn_out",
    "mlp_in": "blocks.{}.mlp.hook_in",
    "mlp_post": "blocks.{}.mlp.hook_post",
    "mlp_out": "blocks.{}.hook_mlp_out",
    "resid_post": "blocks.{}.hook_resid_post",
    "final_norm": "ln_final.hook_out",
}
"""The hook point at which each site is read and edited. Rows of attention are recomputed from queries and keys."""
POST_NORM = {
    "attn_in": "blocks.{}.attn.q.hook_in",
    "head_out": "blocks.{}.attn.o.hook_out",
    "attn_out": "blocks.{}.attn.o.hook_out",
    "resid_mid": "blocks.{}.ln1.hook_out",
}
"""The same where norms follow the sums (BERT): there `attn` contains the sum and its norm."""

Change = Callable[[Tensor], Tensor]


def points_of(parts: Parts) -> Mapping[str, str]:
    """The hook point of every site, with `{}` for the layer."""
    return {**POINTS, **POST_NORM} if after_sums(parts) else POINTS


def after_sums(parts: Parts) -> bool:
    """Whether the norms of this family follow the sums."""
    return parts.blocks[0].norm_after_attn is not None


def shows_attention(kind: type, rotary: bool) -> bool:
    """Whether queries and keys can be seen as attention uses them, in a bridge component of this class."""
    from transformer_lens.model_bridge.generalized_components import (
        AttentionBridge,
        JointQKVAttentionBridge,
        PositionEmbeddingsAttentionBridge,
    )

    if rotary:
        return issubclass(kind, PositionEmbeddingsAttentionBridge) or hasattr(kind, "_apply_rotary_pos_emb")
    return kind in (AttentionBridge, JointQKVAttentionBridge)


class Attachment:
    """The hooks of one session, as `(hook point, function)`."""

    def __init__(self, session: Session, backend: TransformerLensBackend, stack: ExitStack) -> None:
        self.session = session
        self.backend = backend
        self.stack = stack
        self.post_norm = after_sums(backend.parts)
        self.found: list[tuple[str, Callable[..., Tensor | None]]] = []

    def hooks(self) -> list[tuple[str, Callable[..., Tensor | None]]]:
        if self.session.plan.grad:
            self._on("embed", None, lambda x: x if x.requires_grad else x.detach().requires_grad_())
        self._visit("embed", None)
        for layer, block in enumerate(self.backend.parts.blocks):
            self._visit("resid_pre", layer)
            self._attach_attn_in(layer)
            for name in "qkv":
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
        if not self.backend.unembedding_is_watched:
            self.found.append(_hook("unembed.hook_in", self.session.narrow))
        return self.found

    def _on(self, name: str, layer: int | None, change: Change) -> None:
        self.found.append(_hook(self.backend.points[name].format(layer), change))

    def _visit(self, name: str, layer: int | None) -> None:
        if self.session.plan.touches(name, layer):
            self._on(name, layer, lambda value: self.session.visit(name, layer, value))

    def _attach_attn_in(self, layer: int) -> None:
        self._visit("attn_in", layer)
        if self.post_norm and self.session.plan.touches("attn_in", layer):
            read_by: dict[str, Tensor] = {}
            self._on("attn_in", layer, partial(_remember, read_by, "q"))
            self.found.append(_hook(f"blocks.{layer}.attn.k.hook_in", lambda _: read_by["q"]))
            self.found.append(_hook(f"blocks.{layer}.attn.v.hook_in", lambda _: read_by.pop("q")))

    def _attach_resid_mid(self, layer: int) -> None:
        """Edit the residual stream itself: the hook point of that name lies on the MLP's branch, after the sum."""
        if self.post_norm:
            self._visit("resid_mid", layer)
        if self.post_norm or not self.session.plan.touches("resid_mid", layer):
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
            call = self._call(layer, seen.pop("q"), seen.pop("k"), seen.pop("v"))
            z = show(self.backend.parts.blocks[layer].attn, call.q, call.k, call.v, z)
            self.session.read_rows(call)
            return self.session.force_rows(call, z)

        def seam(bridges: Change, flat: Tensor) -> Tensor:
            z = rearrange(flat, "b t (h d) -> b t h d", d=self.backend.spec.head_dim)
            return bridges(attend(z).flatten(2))

        if not self.backend.parts.architecture.rotary:
            for name in "qk":
                self._on(name, layer, partial(_remember, seen, name))
        elif hasattr(
            type(attn), "_apply_rotary_pos_emb"
        ):  # such bridges have hook_rot_q and hook_rot_k and never call them
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
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        if self.backend.cache is not None:
            k, v = self.backend.cache.layers[layer].keys, self.backend.cache.layers[layer].values
        return KernelCall(
            layer=layer,
            q=q,
            k=k,
            v=v,
            scaling=getattr(inside, "scaling", q.shape[-1] ** -0.5),
            softcap=getattr(inside, "attn_logit_softcapping", None),
            sliding_window=self._window(layer, inside),
            sinks=getattr(inside, "sinks", None),
            causal=self.backend.parts.architecture.causal,
        )

    def _window(self, layer: int, inside: nn.Module) -> int | None:
        """Some modules know their window, some look it up in the configuration, which may have it for some layers."""
        config = self.backend.bridge.original_model.config.get_text_config()
        kinds = getattr(config, "layer_types", None)
        if kinds is not None and kinds[layer] != "sliding_attention":
            return None
        return getattr(inside, "sliding_window", getattr(config, "sliding_window", None)) or None

    def _replace(self, component: nn.Module, method: str, wrapper: Callable[..., Any]) -> None:
        """Put `wrapper(original, *args)` before a method of one component."""
        own = {method: vars(component)[method]} if method in vars(component) else {}
        self.stack.callback(vars(component).update, own)
        self.stack.callback(vars(component).pop, method)
        vars(component)[method] = partial(wrapper, getattr(component, method))


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
