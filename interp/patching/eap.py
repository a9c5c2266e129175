"""Edge attribution patching: how much each edge of the computational graph matters, from gradients.

An edge u->v carries what node u writes to the residual stream into the input of node v alone. Its score estimates how
the metric changes when that is replaced by what u writes on the counterfactual prompt:

    score(u->v) = (a_u(counterfactual) - a_u(prompt)) . d metric / d input_v

summed over positions and averaged over prompts. `eap` (Syed et al. 2023) takes the gradient at the prompt. `eap-ig`
(Hanna et al. 2024) averages it over inputs whose embeddings lie on the line from the counterfactual to the prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch
from einops import einsum, repeat
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from interp.errors import BadInput, SiteUnavailable, UnsupportedArchitecture, choose
from interp.heads.scores import model_record
from interp.metrics import BoundMetric, Metric
from interp.patching.eap_graph import EdgeGraph, GraphShape
from interp.patching.pairs import batches, bound, check_pairs, corrupted, differentiable, measured
from interp.runs import Run, load_run, save_run
from interp.tables import in_notebook
from interp.tasks.prompts import PromptSet
from interp.tracing.backends.attachment import output_weights
from interp.tracing.edits import Edit, patch
from interp.tracing.model import Model
from interp.tracing.trace import Trace
from interp.tracing.views import qkv_views

if TYPE_CHECKING:
    import plotly.graph_objects as go

Method = Literal["eap", "eap-ig"]
Progress = Callable[[int, int], None] | None
METHODS: tuple[Method, ...] = ("eap", "eap-ig")
IG_STEPS = 5
"""Points on the line that EAP-IG's README and the MIB benchmark use."""


@dataclass(frozen=True, eq=False, repr=False)
class EdgeScores:
    """Estimated change of the metric when an edge is corrupted, `scores` and their `standard_errors` over prompts.

    Both are `[source destination]` in the order of `shape`; an edge that supports the behaviour is negative where the
    metric is one to keep high. `change` is what corrupting everything does to the metric of each prompt, `[prompt]`.
    `control` are the scores under the answers of other prompts, where they were asked for: how large scores are that
    have nothing to do with the behaviour.
    """

    method: Method
    metric: str
    shape: GraphShape
    scores: np.ndarray
    standard_errors: np.ndarray
    change: np.ndarray
    model: Mapping[str, Any]
    parameters: Mapping[str, Any]
    control: np.ndarray | None = None

    def __repr__(self) -> str:
        return f"EdgeScores({self.method} of {self.metric} on {self.model['name']}: {self.shape.edges.sum()} edges)"

    @property
    def n(self) -> int:
        return len(self.change)

    @property
    def frame(self) -> pd.DataFrame:
        """One row an edge, the largest first: source, destination, score, standard error, control if any, n."""
        s, d = np.nonzero(self.shape.edges)
        columns = {
            "source": np.array(self.shape.sources)[s],
            "destination": np.array(self.shape.destinations)[d],
            "score": self.scores[s, d],
            "standard_error": self.standard_errors[s, d],
            **({} if self.control is None else {"control": self.control[s, d]}),
            "n": self.n,
        }
        return pd.DataFrame(columns).sort_values("score", key=np.abs, ascending=False, kind="stable", ignore_index=True)

    def graph(self) -> EdgeGraph:
        """The graph that EAP-IG and MIB read; they score a loss, positive where corrupting an edge hurts the metric."""
        return EdgeGraph.scored(self.shape, -self.scores)

    def _repr_html_(self) -> str:
        return in_notebook(self, self.frame)

    def plot(self) -> go.Figure:
        """Heat map of the scores, sources downwards and destinations to the right."""
        from interp.plots.patching import edge_map

        return edge_map(self)

    def save(self, path: str | Path, started: datetime | None = None) -> Run:
        """Write a run folder: the frame, the scores and `importances.pt`, the graph. Raises UnwritableOutput."""
        return save_run(
            path,
            kind="edge-scores",
            parameters={
                **self.parameters,
                "method": self.method,
                "metric": self.metric,
                "parallel": self.shape.parallel,
            },
            model=self.model,
            seed=0,
            frame=self.frame,
            arrays={
                "scores": self.scores,
                "standard_errors": self.standard_errors,
                "change": self.change,
                **({} if self.control is None else {"control": self.control}),
            },
            files={"importances.pt": self.graph().to_pt},
            started=started,
        )

    @classmethod
    def load(cls, path: str | Path) -> EdgeScores:
        """Read what `save` wrote. Raises UnreadableFile, BadInput for a run of another kind."""
        run = load_run(path, "edge-scores")
        parameters = dict(run.record.parameters)
        method, metric, parallel = (parameters.pop(name) for name in ("method", "metric", "parallel"))
        shape = GraphShape(*run.heads, run.record.model["width"], parallel)
        scores, errors = (run.array(name, *shape.edges.shape) for name in ("scores", "standard_errors"))
        control = run.array("control", *shape.edges.shape) if "control" in run.arrays else None
        change = run.array("change", None)
        return cls(method, metric, shape, scores, errors, change, run.record.model, parameters, control)


def edge_scores(
    model: Model,
    pairs: PromptSet,
    metric: Metric,
    *,
    method: Method = "eap",
    steps: int = IG_STEPS,
    batch_size: int = 8,
    progress: Progress = None,
) -> EdgeScores:
    """Score every edge between the input, heads, MLPs and logits; `eap-ig` takes `steps` gradients.

    Heads read through their q, k and v inputs apart; with grouped key/value heads every query head has edges of its
    own. On sandwich-norm families what a head writes passes the norm after attention to first order.
    Raises UnsupportedArchitecture for post-norm families, and what `check_pairs` and `differentiable` raise.
    """
    if method not in METHODS:
        raise BadInput(f"there is no edge attribution {method!r}; {choose(method, METHODS)}")
    if steps < 1:
        raise BadInput(f"integrated gradients need at least one step; got {steps}")
    check_edges(model)
    check_pairs(model, pairs, [differentiable(metric)])
    spec, steps = model.spec, steps if method == "eap-ig" else 0
    shape = GraphShape(spec.layers, spec.heads, spec.width, model.parts.architecture.parallel)
    total, squares = np.zeros(shape.edges.shape), np.zeros(shape.edges.shape)
    change: list[np.ndarray] = []
    for batch, (own,) in batches(pairs, [metric], batch_size):
        (metric_here,) = bound(model, batch, [own])
        scores = _batch_scores(model, batch, metric_here, shape, steps).numpy()
        total += scores.sum(0)
        squares += (scores**2).sum(0)
        change.append(np.subtract(*(measured(model, side, [metric_here])[0] for side in (corrupted(batch), batch))))
        if progress:
            progress(sum(map(len, change)), len(pairs))
    n = len(pairs)
    mean = total / n
    errors = np.sqrt(np.maximum(squares / n - mean**2, 0) / (n - 1)) if n > 1 else np.full_like(mean, np.nan)
    parameters = {"steps": steps, "prompts": pairs.hash, "batch_size": batch_size}
    record = model_record(model)
    return EdgeScores(method, str(metric), shape, mean, errors, np.concatenate(change), record, parameters)


def check_edges(model: Model) -> None:
    """Refuse models in which an edge does not carry one node's part of the stream."""
    if any(block.norm_after_attn is not None for block in model.parts.blocks):
        raise UnsupportedArchitecture(
            f"{model.spec.family} normalises the residual stream after each sum, so the stream is not a sum of what "
            "nodes write and there are no edges to score; patch nodes instead (activation_patching)"
        )
    if model.backend.name != "hooks":
        raise BadInput(f"edges are scored with backend='hooks', and this model runs on {model.backend.name}")
    if reason := model.refusals.get("head_out"):
        raise SiteUnavailable("head_out", reason)


def _batch_scores(model: Model, pairs: PromptSet, metric: BoundMetric, shape: GraphShape, steps: int) -> Tensor:
    """Scores `[prompt source destination]` of one batch; plain EAP at 0 `steps`."""
    clean, corrupt = (model.run(prompts, read=("embed", "z", "mlp_out")) for prompts in (pairs, corrupted(pairs)))
    writes = _Writes(model, clean, corrupt)
    scores = torch.zeros(len(pairs), *shape.edges.shape, dtype=torch.float64)
    for step in range(max(steps, 1)):
        line = torch.lerp(corrupt["embed"], clean["embed"], step / steps) if steps else clean["embed"]
        for column, gradient in _input_gradients(model, pairs, metric, patch("embed", line)):
            columns = slice(column, column + gradient.shape[2])
            for row, change in writes.before(shape.before(column)):
                product = einsum(change, gradient, "b t source d, b t destination d -> b source destination")
                scores[:, row : row + product.shape[1], columns] += product.double().cpu() / max(steps, 1)
    return scores


class _Writes:
    """What every node writes to the residual stream on the counterfactual, less what it writes on the prompt."""

    def __init__(self, model: Model, clean: Trace, corrupt: Trace) -> None:
        self.model = model
        self.clean = clean
        self.corrupt = corrupt
        self.real = clean.positions < clean.lengths[:, None]

    def before(self, sources: int) -> Iterator[tuple[int, Tensor]]:
        """The first `sources` nodes in blocks: the first of each and `[batch tokens node width]`."""
        spec = self.model.spec
        yield 0, self._change("embed")[:, :, None]
        for layer in range(spec.layers):
            first = 1 + layer * (spec.heads + 1)
            if first < sources:
                yield first, self._heads(layer)
            if first + spec.heads < sources:
                yield first + spec.heads, self._change(f"mlp_out.{layer}")[:, :, None]

    def _change(self, site: str) -> Tensor:
        change: Tensor = self.corrupt[site] - self.clean[site]
        real = self.real.to(change.device)
        return torch.where(real.reshape(*real.shape, *[1] * (change.ndim - 2)), change, 0.0)

    def _heads(self, layer: int) -> Tensor:
        """`[batch tokens head width]`; through a norm after attention where there is one, linearised at the prompt."""
        block = self.model.parts.blocks[layer]
        w_o = output_weights(block.o, self.model.spec.head_dim).detach()
        change = einsum(self._change(f"z.{layer}"), w_o, "b t h d, h d w -> b t h w")
        if block.attn_out in (block.attn, block.o):
            return change
        with self.model.lock, torch.no_grad():
            summed = block.o(self.clean[f"z.{layer}"].flatten(-2))[:, :, None].expand_as(change).contiguous()
            written: Tensor = torch.func.jvp(block.attn_out, (summed,), (change,))[1]
            return written


def _input_gradients(
    model: Model, pairs: PromptSet, metric: BoundMetric, embeddings: Edit
) -> Iterator[tuple[int, Tensor]]:
    """Gradient of the metric at the input of every node, in blocks: the first destination, `[batch tokens node width]`.

    Parameters are left out of the backward pass, so nothing is added to their own gradients.
    """
    spec, parallel = model.spec, model.parts.architecture.parallel
    last = f"resid_post.{spec.layers - 1}"
    read = ("q", "k", "v", "z", "mlp_in", "resid_pre", "attn_out", last)
    trace = model.run(pairs, read=read, edits=embeddings, grad=True, logits=metric.metric.position)
    leaves = {str(site): leaf.value for site, leaf in trace.leaves.items()}
    wanted = [last, *(f"{name}.{layer}" for layer in range(spec.layers) for name in ("z", "mlp_in"))]
    total = metric(trace.logits[:, -1]).sum()
    found = torch.autograd.grad(total, [leaves[site] for site in wanted], retain_graph=True)
    gradients = dict(zip(wanted, found, strict=True))
    for layer, block in enumerate(model.parts.blocks):
        first = layer * (3 * spec.heads + 1)
        pre: Tensor = trace[f"resid_pre.{layer}"].detach()
        mid = pre if parallel else pre + trace[f"attn_out.{layer}"].detach()
        with model.lock:
            inputs = _head_gradients(model, layer, leaves, gradients[f"z.{layer}"])
            inputs = _through(block.attn_norm, pre, inputs)
            into_mlp = _through(block.mlp_norm, mid, gradients[f"mlp_in.{layer}"][:, :, None])
        yield first, inputs
        yield first + 3 * spec.heads, into_mlp
    yield spec.layers * (3 * spec.heads + 1), gradients[last][:, :, None]


def _head_gradients(model: Model, layer: int, leaves: Mapping[str, Tensor], z_gradient: Tensor) -> Tensor:
    """Gradient at the normalised q, k and v inputs of every query head, `[batch tokens (3 heads) width]`.

    Query heads that share a key/value head are taken one at a time, so that each has its own part.
    """
    spec, block = model.spec, model.parts.blocks[layer]
    group = spec.heads // spec.kv_heads
    views = qkv_views(model.parts.architecture.qkv, spec.heads, spec.kv_heads, spec.head_dim)
    at = [leaves[f"{name}.{layer}"] for name, _, _ in views]
    parts = [z_gradient.new_zeros(z_gradient.shape) for _ in views]
    for member in range(group):
        heads = slice(member, None, group)
        only = torch.zeros_like(z_gradient)
        only[:, :, heads] = z_gradient[:, :, heads]
        q, k, v = torch.autograd.grad(leaves[f"z.{layer}"], at, only, retain_graph=True)
        parts[0] += q
        parts[1][:, :, heads], parts[2][:, :, heads] = k, v
    weights = [view.get(_input_output(block.projections[index])) for _, index, view in views]
    weights[1:] = [repeat(weight, "w k d -> w (k g) d", g=group) for weight in weights[1:]]
    inputs = [einsum(part, weight, "b t h d, w h d -> b t h w") for part, weight in zip(parts, weights, strict=True)]
    return torch.cat(inputs, dim=2)


def _input_output(projection: nn.Module) -> Tensor:
    """The weights of a projection as `[input output]`."""
    weight: Tensor = projection.weight  # type: ignore[assignment]
    return (weight if isinstance(projection, Conv1D) else weight.T).detach()


def _through(norm: nn.Module | None, point: Tensor, gradient: Tensor) -> Tensor:
    """Gradient `[batch tokens node width]` at the input of a norm applied to `point` `[batch tokens width]`."""
    if norm is None:
        return gradient
    with torch.enable_grad():
        copies = point[:, :, None].expand_as(gradient).clone().requires_grad_()
        return torch.autograd.grad(norm(copies), copies, gradient)[0]
