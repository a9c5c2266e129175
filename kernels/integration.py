"""Whole transformers models on these kernels, and plans for their layers.

    install()
    model.set_attn_implementation("workbench")
    with intervene(model, {9: LayerPlan(gates=HeadGates.zero([6], n_heads=12), capture=CaptureSpec())}) as measured:
        model(**inputs)
    measured[9].argmax

An attention function and a mask function are registered under one name: without the latter, transformers gives models
of that name no mask at all, and padding and sliding windows are lost without a word. The mask function hands a
`MaskSpec` through to the attention function, so no mask has queries times keys entries.

The first time an attention module computes, a few of its rows are compared with the eager attention of its own family.
"""

from __future__ import annotations

import inspect
import sys
import weakref
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask
from transformers.utils import output_capturing

from kernels.attention import head_attention
from kernels.errors import InvalidRequest, UnsupportedRequest
from kernels.model_masks import ModelMask, TracedMask, check_family, make_mask
from kernels.types import AttentionStats, CaptureSpec, HeadGates, HeadPlan, MaskSpec, on_device

NAME = "workbench"
"""Of the implementation. transformers treats names that contain sdpa, flash_attention or flex_attention differently."""

FOREIGN = ("position_bias", "indices", "block_indices", "sinks")
"""What some families add to scores, or leave out of them, in ways that the kernels do not know."""

CHECKED_ROWS = 8
TOLERANCE = {torch.bfloat16: 4e-2, torch.float16: 5e-3}
"""Largest difference from eager attention in float32, in units of the largest output; 1e-4 for other dtypes."""

_PLAN, _CALLS = "_workbench_plan", "_workbench_calls"


class EagerDisagreement(RuntimeError):
    """The kernels and a model's own eager attention give different numbers: the model must not run on the kernels."""


@dataclass(frozen=True, eq=False)
class LayerPlan:
    """What becomes of one layer's heads and what is measured there; None leaves that part as it is."""

    gates: HeadGates | None = None
    plan: HeadPlan | None = None
    capture: CaptureSpec | None = None


@dataclass(frozen=True, eq=False)
class Measured(Mapping[int, AttentionStats]):
    """Statistics by layer. `steps` holds those of every call: of a generation, the prompt and then a token each."""

    steps: dict[int, list[AttentionStats]] = field(default_factory=dict)

    def __getitem__(self, layer: int) -> AttentionStats:
        """Of all calls of a layer, as consecutive queries of one sequence."""
        return AttentionStats.cat(self.steps[layer])

    def __iter__(self) -> Iterator[int]:
        return iter(self.steps)

    def __len__(self) -> int:
        return len(self.steps)


class AttentionLayer(NamedTuple):
    """An attention module and its number of query heads."""

    module: nn.Module
    heads: int


class _Active(NamedTuple):
    """What holds for a module now, and where its measurements go."""

    plan: LayerPlan
    measured: list[AttentionStats] | None


_layers: WeakKeyDictionary[nn.Module, list[AttentionLayer]] = WeakKeyDictionary()
_checked: dict[int, weakref.ref[nn.Module]] = {}
"""Modules that agree with eager attention, by id, which is how a compiled graph names them."""


def install() -> None:
    """Register attention and masks as "workbench", for `set_attn_implementation` and `attn_implementation=`.

    Harmless when repeated. Raises UnsupportedRequest for a version of transformers that makes masks in other terms.
    """
    needed = {"batch_size", "q_length", "kv_length", "q_offset", "kv_offset", "mask_function", "attention_mask"}
    if missing := needed - set(inspect.signature(eager_mask).parameters):
        raise UnsupportedRequest(f"this version of transformers makes masks without {', '.join(sorted(missing))}")
    AttentionMaskInterface.register(NAME, make_mask)
    AttentionInterface.register(NAME, attend)


@contextmanager
def intervene(model: PreTrainedModel, plans: Mapping[int, LayerPlan]) -> Iterator[Measured]:
    """Let plans hold for layers of a model, in every call within the block; what was captured is filled in as it runs.

    Layers are counted in the order in which the model computes them. Blocks nest: an inner plan replaces the parts it
    names, and an outer capture that it does not replace goes on. However a block ends, what held before holds again.
    Under gradient checkpointing the backward pass computes layers again, so it belongs inside the block.

    Raises InvalidRequest for layers and heads that the model has not, UnsupportedRequest for a model that does not run
    on these kernels now, and what `self_check` raises, which runs at the first use of a model.
    """
    _check_model(model)
    layers = _layers.get(model) or self_check(model)
    for layer, plan in plans.items():
        _check_plan(layer, plan, layers)
    measured = Measured()
    with ExitStack() as stack:
        for layer, plan in plans.items():
            kept = stack.enter_context(planned(layers[layer].module, plan))
            if plan.capture is not None:
                measured.steps[layer] = kept
        yield measured


@contextmanager
def planned(module: nn.Module, plan: LayerPlan) -> Iterator[list[AttentionStats]]:
    """Let a plan hold for one attention module, as `intervene` does for a model's; the statistics of every call."""
    kept: list[AttentionStats] = []
    device = next(module.parameters()).device
    outer = module.__dict__.get(_PLAN, _Active(LayerPlan(), None))
    named = {part.name: new for part in fields(plan) if (new := getattr(plan, part.name)) is not None}
    measured = outer.measured if plan.capture is None else kept
    with _attribute(module, _PLAN, _Active(on_device(replace(outer.plan, **named), device), measured)):
        yield kept


def is_planned(module: nn.Module) -> bool:
    """Whether a plan holds for this attention module."""
    return _PLAN in module.__dict__


@torch.no_grad()
def self_check(model: PreTrainedModel) -> list[AttentionLayer]:
    """Compare every layer with the model's own eager attention, on a few random tokens, some of them padding.

    Returns the layers in the order in which the model computes them. `intervene` does this once for a model; do it
    again when its heads have changed. Raises UnsupportedRequest for models that do not run on these kernels, with the
    reason, and EagerDisagreement where the numbers differ.
    """
    _check_model(model)
    config = model.config.get_text_config()
    length = min(12, getattr(config, "max_position_embeddings", None) or 12)
    device = next(model.parameters()).device
    ids = torch.randint(config.vocab_size, (2, length), generator=torch.Generator().manual_seed(0)).to(device)
    real = torch.ones_like(ids)
    real[1, : length // 3] = 0
    calls: list[AttentionLayer] = []
    with ExitStack() as stack:
        for module in model.modules():
            stack.enter_context(_attribute(module, _CALLS, calls))
        model(input_ids=ids, attention_mask=real)
    if not calls:
        raise UnsupportedRequest(f"{type(model).__name__} never called the attention function it was given")
    if len({layer.module for layer in calls}) < len(calls):
        raise UnsupportedRequest(
            f"{type(model).__name__} calls one attention module several times; plans could not differ"
        )
    _layers[model] = calls
    return calls


def _check_model(model: PreTrainedModel) -> None:
    config = model.config
    if config.is_encoder_decoder:
        raise UnsupportedRequest(f"{config.model_type!r} is an encoder-decoder; plans are for one stack of layers")
    check_family(config)
    current = config.get_text_config()._attn_implementation
    if current != NAME:
        raise UnsupportedRequest(
            f"the model computes attention as {current!r}: install(), then model.set_attn_implementation({NAME!r}); "
            "where transformers warns that it cannot, the family computes attention in its own code"
        )


def _check_plan(layer: int, plan: LayerPlan, layers: list[AttentionLayer]) -> None:
    if not 0 <= layer < len(layers):
        raise InvalidRequest(f"there is no layer {layer}; the model has layers 0 to {len(layers) - 1}")
    heads = layers[layer].heads
    parts = {f"HeadGates.{name}": getattr(plan.gates, name, None) for name in ("gate", "add", "logit_scale")}
    for name, value in {**parts, "HeadPlan.kind": getattr(plan.plan, "kind", None)}.items():
        if value is not None and value.shape[1] != heads:
            raise InvalidRequest(f"{name} of layer {layer} is for {value.shape[1]} heads; the layer has {heads}")


@contextmanager
def _attribute(module: nn.Module, name: str, value: Any) -> Iterator[None]:
    """Plans are attributes: a ContextVar would be invisible to other threads and to torch.compile."""
    before = module.__dict__.get(name)
    module.__dict__[name] = value
    try:
        yield
    finally:
        if before is None:
            module.__dict__.pop(name, None)
        else:
            module.__dict__[name] = before


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, AttentionStats | None]:
    """transformers' attention function: output `[batch query head dim]`, and statistics in place of weights.

    `query` `[batch head query dim]`, `key` and `value` `[batch kv_head key dim]`, `attention_mask` one of `make_mask`;
    `scaling` of the scores, `softcap` in their units, `s_aux` `[head]` logits of sinks. Raises what `call_spec` and,
    at the first call of a module, `self_check` raise.

    In a graph of torch.compile it is one operator, which looks up the plan when it runs. The graph breaks where
    statistics are returned, where gradients are asked for, and before a module has been checked.
    """
    if torch.compiler.is_compiling() and isinstance(attention_mask, TracedMask) and id(module) in _checked:
        graded = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad)
        if not graded and not _weights_are_kept(others):
            _check_others(module, dropout, others)
            return _operator(query, key, value, id(module), scaling, softcap, s_aux, *attention_mask), None
    return _attend_now(module, query, key, value, attention_mask, dropout, scaling, softcap, s_aux, others)


@torch.compiler.disable(reason="a call that checks a module, keeps statistics or takes gradients is no operator yet")
def _attend_now(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    dropout: float,
    scaling: float | None,
    softcap: float | None,
    s_aux: Tensor | None,
    others: dict[str, Any],
) -> tuple[Tensor, AttentionStats | None]:
    mask = _model_mask(module, attention_mask)
    spec = call_spec(module, query, key.shape[2], mask, dropout, scaling, softcap, s_aux, **others)
    calls = module.__dict__.get(_CALLS)
    if calls is not None or id(module) not in _checked:
        options = {"scaling": scaling, "softcap": softcap, "s_aux": s_aux, **others}
        _compare(module, query, key, value, mask, spec, options)
    if calls is not None:
        calls.append(AttentionLayer(module, query.shape[1]))
    return _compute(module, query, key, value, spec, _weights_are_kept(others))


@torch.library.custom_op(f"{NAME}::attend", mutates_args=())
def _operator(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    module: int,
    scaling: float | None,
    softcap: float | None,
    s_aux: Tensor | None,
    starts: Tensor,
    holds: Tensor,
    padding: Tensor | None,
    queries: int,
    keys: int,
    q_offset: int,
    kv_offset: int,
    window: int | None,
    causal: bool,
) -> Tensor:
    """`attend` of the module of this id, with the parts of its `TracedMask`."""
    layer = _checked[module]()
    assert layer is not None
    mask = TracedMask(starts, holds, padding, queries, keys, q_offset, kv_offset, window, causal).decided()
    spec = call_spec(layer, query, key.shape[2], mask, scaling=scaling, softcap=softcap, s_aux=s_aux)
    out, _ = _compute(layer, query, key, value, spec)
    return out.contiguous()


@_operator.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> Tensor:
    return query.new_empty(query.shape[0], query.shape[2], query.shape[1], value.shape[3])


def call_spec(
    module: nn.Module,
    query: Tensor,
    keys: int,
    attention_mask: Any,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **others: Any,
) -> MaskSpec:
    """How scores of so many keys are made in a call of an attention function, from what transformers hands to it.

    Raises UnsupportedRequest for what the kernels do not compute, InvalidRequest for the mask of another call.
    """
    mask = _model_mask(module, attention_mask)
    _check_others(module, dropout, others)
    if isinstance(mask.spec, InvalidRequest):
        raise mask.spec
    if (query.shape[2], keys) != (mask.queries, mask.keys):
        raise InvalidRequest(
            f"{_name(module)} has {query.shape[2]} queries and {keys} keys, its mask was made for "
            f"{mask.queries} and {mask.keys}"
        )
    return replace(on_device(mask.spec, query.device), scale=scaling, softcap=softcap, sinks=s_aux)


def _compute(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, spec: MaskSpec, measure: bool = False
) -> tuple[Tensor, AttentionStats | None]:
    """Attention under the plan that holds for the module now."""
    plan, measured = module.__dict__.get(_PLAN, _Active(LayerPlan(), None))
    capture = plan.capture or (CaptureSpec() if measure else None)
    out, stats = head_attention(query, key, value, mask=spec, gates=plan.gates, plan=plan.plan, capture=capture)
    if measured is not None and stats is not None:
        measured.append(stats)
    return out, stats


def _model_mask(module: nn.Module, mask: Any) -> ModelMask:
    """The mask that this call was given, if it is one of `make_mask`."""
    if isinstance(mask, TracedMask):
        return mask.decided()
    if isinstance(mask, Tensor):
        raise UnsupportedRequest(
            f"a mask of shape {list(mask.shape)} was given; the kernels take the two dimensions of a padding mask, "
            "[batch, keys], or none"
        )
    if not isinstance(mask, ModelMask):
        raise UnsupportedRequest(
            f"{_name(module)} was called without a mask of {NAME!r}: padding and windows would be lost. Either the "
            "module was called outside of its model, or install() was not called"
        )
    return mask


def _check_others(module: nn.Module, dropout: float, others: Mapping[str, Any]) -> None:
    if dropout:
        raise UnsupportedRequest(f"{_name(module)} drops attention out ({dropout}); call eval(), or set it to 0")
    if given := [name for name in FOREIGN if others.get(name) is not None]:
        raise UnsupportedRequest(f"{_name(module)} computes attention with {given[0]}, which the kernels do not know")


def _weights_are_kept(others: Mapping[str, Any]) -> bool:
    """Whether `output_attentions` was asked for; most models keep the word from their layers."""
    collector = getattr(output_capturing, "_active_collector", None)
    kept = None if collector is None else collector.get()
    return bool(others.get("output_attentions")) or "attentions" in (kept or ())


@torch.no_grad()
def _compare(
    module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: ModelMask, spec: MaskSpec, options: dict[str, Any]
) -> None:
    """Raise EagerDisagreement unless the last rows of the first prompts are what the family's eager attention gives."""
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    if eager is None:
        raise UnsupportedRequest(f"{_name(module)} has no eager attention that the kernels could be checked against")
    batch, rows = min(2, len(q)), min(CHECKED_ROWS, q.shape[2])
    q, k, v = q[:batch, :, -rows:], k[:batch], v[:batch]
    starts = None if spec.starts is None else spec.starts[:batch]
    starts = starts if starts is None or starts.ndim == 1 else starts[:, -rows:]
    key_mask = None if spec.key_mask is None else spec.key_mask[:batch]
    assert spec.q_offset is not None
    few = replace(spec, starts=starts, key_mask=key_mask, q_offset=spec.q_offset + mask.queries - rows)
    ours = head_attention(q, k, v, mask=few)[0]
    precise = torch.promote_types(q.dtype, torch.float32)
    dense = mask.dense(batch, rows, precise).to(q.device)
    theirs = eager(module, *(x.to(precise) for x in (q, k, v)), dense, dropout=0.0, **options)[0]
    live = (dense == 0).any(-1)[:, 0]  # rows that see nothing are 0 here and noise there
    ours, theirs = ours[live], theirs[live]
    if not bool(theirs.isfinite().all()):
        return  # weights that overflow prove nothing
    if theirs.numel():
        error, allowed = float((ours - theirs).abs().max()), float(theirs.abs().max()) * TOLERANCE.get(q.dtype, 1e-4)
        if not error <= allowed:
            raise EagerDisagreement(
                f"{_name(module)} differs from the eager attention of its family by {error:.2g}, where {allowed:.2g} "
                f"is allowed in {q.dtype}; load the model with another attention implementation"
            )
    key = id(module)
    _checked[key] = weakref.ref(module, lambda _: _checked.pop(key, None))


def _name(module: nn.Module) -> str:
    layer = getattr(module, "layer_idx", None)
    return type(module).__name__ + ("" if layer is None else f" of layer {layer}")
