"""Runs on nnsight's remote service (NDIF): the model is there, here is only its skeleton on the meta device.

A run is one request: a trace whose block is `perform`. It travels as source, with the functions that apply edits
(`interventions.edited`), the edits and positions as tensors, and modules by name; nothing of this package needs to be
installed on the server. Back come the sites the run reads and the logits it keeps; nnsight unpickles them, so the
service must be one you trust.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any

import httpx
import nnsight
import torch
import websocket
from nnsight import CONFIG, Envoy, TransformersModel
from nnsight.intervention.backends.remote import RemoteError
from nnsight.schema.config import ApiConfig
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from interp.errors import BadInput, ModelNotLoadable, RemoteUnavailable, SiteDidNotFire
from interp.tracing import interventions
from interp.tracing.architectures import Block, Parts, Refusals
from interp.tracing.backends import nnsight_server
from interp.tracing.backends.attachment import Attachment
from interp.tracing.backends.contract import Adopted
from interp.tracing.backends.nnsight import Side, check_whole
from interp.tracing.backends.nnsight_server import perform
from interp.tracing.edits import Edit
from interp.tracing.frame import gather_columns
from interp.tracing.interventions import selected
from interp.tracing.session import Session
from interp.tracing.sites import Site
from interp.tracing.spec import ModelSpec
from interp.tracing.views import IDENTITY, View

nnsight.register(interventions)
nnsight.register(nnsight_server)

KERNEL = "the attention kernel runs on the remote server, where nothing of this package is installed"
REFUSALS: Refusals = {
    **dict.fromkeys(("q_rot", "k_rot", "pattern", "attention_stats"), KERNEL),
    "head_out": "W_O is on the remote server; read z there and apply the rows of W_O here",
}


def check() -> None:
    """Raise RemoteUnavailable without a key, or when nobody answers."""
    if not CONFIG.API.APIKEY and CONFIG.API.HOST == ApiConfig().HOST:  # a service of one's own may need none
        raise RemoteUnavailable(
            f"running on {CONFIG.API.HOST} needs a key: set NDIF_API_KEY before nnsight is imported, or call "
            "nnsight.login() once"
        )
    try:
        httpx.get(f"{CONFIG.API.HOST}/status", timeout=5).raise_for_status()
    except httpx.HTTPError as error:
        raise _unreachable(error) from error


def skeleton(name: str, tokenizer: Any, options: dict[str, Any]) -> TransformersModel:
    """The model of a hub id without its weights."""
    options = {key: value for key, value in options.items() if value is not None}
    try:
        return TransformersModel(name, task="text-generation", tokenizer=tokenizer, **options)
    except Exception as error:
        raise ModelNotLoadable(f"the configuration of {name} cannot be had: {_line(error)}") from error


def adopt(obj: Any) -> Adopted:
    """Run on the service what `obj` names, a model of a hub id; its weights are not loaded here."""
    if isinstance(obj, Envoy):
        check_whole(obj)
    if not isinstance(obj, TransformersModel):
        raise BadInput(
            f"a {type(obj).__name__} has no name that a remote service knows; give an nnsight.TransformersModel of a "
            'hub id, or load(name, backend="nnsight", remote=True)'
        )
    check()
    try:
        obj.to_model_key()
    except Exception as error:
        raise RemoteUnavailable(f"{obj.repo_id} is not a model that the service could find: {_line(error)}") from error
    if not obj.dispatched:
        obj._module.eval()
    return Adopted(obj._module, obj.tokenizer, lambda parts, spec: RemoteBackend(obj, parts, spec))


def _unreachable(error: Exception) -> RemoteUnavailable:
    return RemoteUnavailable(f"the remote service at {CONFIG.API.HOST} cannot be reached: {_line(error)}")


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class RemoteBackend:
    """Runs sessions on the service that nnsight is configured for, one request a forward call."""

    name = "nnsight (remote)"
    remote = True
    refusals = REFUSALS

    def __init__(self, original: TransformersModel, parts: Parts, spec: ModelSpec) -> None:
        self.original = original
        self.parts = parts
        self.spec = spec
        self._envoys = {envoy._module: envoy for envoy in original.modules()}

    @property
    def attention(self) -> str:
        """The attention implementation that requests ask for."""
        return str(self.original.attn_implementation)

    @contextmanager
    def attached(self, session: Session) -> Iterator[None]:
        """Refuse what a request cannot carry."""
        if session.plan.grad:
            raise BadInput("a remote run sends back values, not their graph; gradients need the model here")
        yield

    def forward(self, session: Session, **inputs: Any) -> Any:
        """One request; an output with `logits`, or None when the session stops before them."""
        if "past_key_values" in inputs:
            raise BadInput(
                "keys and values stay on the remote server, so there is no prefix and no cached generation; run() the "
                "whole text, or use nnsight's own generate on model.backend_object"
            )
        program = Program(session, self.parts, self.spec, self._envoys)
        answer = self._request(program.steps, program.setting, inputs)
        session.received(program.reads(answer), program.acting)
        return SimpleNamespace(logits=answer["output"]) if "output" in answer else None

    def _request(self, steps: list[Any], setting: Any, inputs: dict[str, Any]) -> dict[str, Tensor]:
        answer: dict[str, Tensor] = {}
        try:
            with self.original.trace(**inputs, remote=True) as tracer:
                answer = nnsight.save({})
                perform(steps, setting, tracer, answer)
        except RemoteError as error:
            if "OutOfOrderError" in str(error):
                raise SiteDidNotFire(
                    f"the model on the server went another way than its family does: {error}"
                ) from error
            raise RemoteUnavailable(f"{CONFIG.API.HOST} did not run {self.original.repo_id}: {error}") from error
        except (httpx.HTTPError, websocket.WebSocketException, OSError) as error:
            raise _unreachable(error) from error
        return answer


class Program(Attachment):
    """What one session does on the server, as data: a step wherever something happens (`nnsight_server.perform`)."""

    def __init__(self, session: Session, parts: Parts, spec: ModelSpec, envoys: Mapping[nn.Module, Envoy]) -> None:
        super().__init__(session, parts, spec, ExitStack())
        self.acting: list[Edit] = []
        self._envoys = envoys
        self._steps: list[tuple[tuple[int, int], SimpleNamespace]] = []
        self.attach()
        # A trace must ask in the order of the forward pass; every family of the table goes in the order of the sites.
        self.steps = [step for _, step in sorted(self._steps, key=lambda item: item[0])]
        self.setting = SimpleNamespace(
            frame=SimpleNamespace(positions=session.frame.positions, batch=session.frame.batch),
            columns=None if session.plan.positions is None else session.columns,
            logits=session.plan.logits is not None or session.plan.touches("logits", None),
            logit_columns=session.logit_columns,
            logit_edits=self._edits(Site("logits")),
        )

    def reads(self, answer: Mapping[str, Tensor]) -> dict[Site, Tensor]:
        """The sites that the answer holds."""
        reads = {site: answer[str(site)] for site in self.session.plan.reads if str(site) in answer}
        if Site("logits") in self.session.plan.reads and self.session.columns is not None:
            reads[Site("logits")] = gather_columns(answer["output"], self.session.columns)
        return reads

    def before(self, module: nn.Module, hook: Callable[..., Any]) -> None:
        """Only the narrowing comes by here: visits become steps, and whatever else hooks is in `REFUSALS`."""
        assert hook == self._narrow, f"{hook} is a function of this package and cannot travel"
        if self.session.plan.logits is not None and self.session.logit_columns is not None:
            self._step(module, "in", Site("final_norm"), does="narrow")

    def after(self, module: nn.Module, hook: Callable[..., Any]) -> None:
        raise AssertionError(f"{hook} is a function of this package and cannot travel")

    def _on_input(
        self, module: nn.Module, name: str, layer: int | None, view: View = IDENTITY, require_grad: bool = False
    ) -> None:
        if self.session.plan.touches(name, layer):
            self._visit(module, "in", Site(name, layer), view)

    def _on_output(self, module: nn.Module, name: str, layer: int | None, view: View = IDENTITY) -> None:
        if self.session.plan.touches(name, layer):
            self._visit(module, "out", Site(name, layer), view)

    def _attach_resid_mid(self, layer: int, block: Block) -> None:
        if block.norm_after_attn is not None:
            super()._attach_resid_mid(layer, block)
        elif self.session.plan.touches("resid_mid", layer):
            site = Site("resid_mid", layer)
            self._step(block.module, "in", Site("resid_pre", layer), does="hold", site=str(site))
            self._visit(block.attn_out, "out", site, IDENTITY)

    def _visit(self, module: nn.Module, side: Side, site: Site, view: View) -> None:
        self._step(
            module,
            side,
            site,
            does="visit",
            site=str(site),
            index=_index(view, module, side),
            edits=self._edits(site),
            keep=site in self.session.plan.reads and self.session.columns is not None,
        )

    def _step(self, module: nn.Module, side: Side, when: Site, **what: Any) -> None:
        step = SimpleNamespace(envoy=self._envoys[module], side=side, **what)
        self._steps.append((when.order, step))

    def _edits(self, site: Site) -> list[tuple[Any, Tensor]]:
        """The edits of a site that act in this call, as data, with the columns where they do."""
        acting = []
        for edit in self.session.plan.edits_at(site):
            chosen = selected(edit, self.session.frame)
            if bool(chosen.any()):
                self.acting.append(edit)
                acting.append((_as_data(edit), chosen))
        return acting


def _as_data(edit: Edit) -> SimpleNamespace:
    """What `edited` needs of an edit. Tensors are cloned: a view would send all that it is a view of."""
    return SimpleNamespace(
        kind=edit.kind,
        site=SimpleNamespace(head=edit.site.head),
        tensors={name: tensor.detach().cpu().clone() for name, tensor in edit.tensors.items()},
        parameters=dict(edit.parameters),
    )


def _index(view: View, module: nn.Module, side: Side) -> Tensor | None:
    """A view as the features it selects, `[head dim]`; None where it is the whole width."""
    weight = getattr(module, "weight", None)
    if weight is None or weight.ndim != 2:
        return None
    inputs, outputs = weight.shape if isinstance(module, Conv1D) else weight.shape[::-1]
    index = view.get(torch.arange(inputs if side == "in" else outputs))
    return index if index.ndim > 1 else None
