"""Attribution patching: what every patch would do, estimated from gradients instead of run.

To first order, putting the donor's activation in the place of the base run's changes the metric by

    (a_donor - a_base) . d metric / d a_base

so two forward passes and one backward pass estimate every patch at once (Nanda 2023; Syed et al. 2023). The integrated
form averages the gradient along the straight line between the two activations of a layer (Sundararajan et al. 2017;
Marks et al. 2024): then the features of a layer account for the whole effect of patching it, as steps grow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from interp.errors import BadInput, choose
from interp.heads.scores import model_record
from interp.metrics import BoundMetric, Metric, log_probability, logit_difference
from interp.patching.activation import PatchingResult
from interp.patching.pairs import batches, bound, check_pairs, corrupted, differentiable
from interp.patching.units import By, Direction, Unit, check_choices, patching_units, position_labels
from interp.tasks.prompts import PromptSet
from interp.tracing.edits import Edit, patch
from interp.tracing.model import Model
from interp.tracing.sites import Site
from interp.tracing.trace import Trace

Estimate = Literal["attribution", "ig"]
ESTIMATES: tuple[Estimate, ...] = ("attribution", "ig")
IG_STEPS = 10
Gradients = Mapping[Site, Tensor]
"""By site, `[metric batch tokens ...]`."""


def attribution_patching(
    model: Model,
    pairs: PromptSet,
    site: str,
    by: By = "layer",
    direction: Direction = "denoise",
    *,
    method: Estimate = "attribution",
    steps: int = IG_STEPS,
    metrics: Sequence[Metric] = (),
    positions: Sequence[int | str] = (),
    neurons: Sequence[int] = (),
    seed: int = 0,
    batch_size: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> PatchingResult:
    """Estimate what `activation_patching` with the same arguments would measure.

    `method="ig"` takes `steps` gradients for every layer, at the middle of equal parts of the line. `metrics` must have
    gradients and share a position; by default logit difference and log-probability.
    Raises BadInput, UnknownSite, SiteUnavailable, PromptTooLong before any forward pass.
    """
    check_choices(by, direction)
    if method not in ESTIMATES:
        raise BadInput(f"there is no estimate {method!r}; {choose(method, ESTIMATES)}")
    if steps < 1:
        raise BadInput(f"integrated gradients need at least one step; got {steps}")
    metrics = tuple(metrics) or ((logit_difference(),) if pairs.distractor_tokens else ()) + (log_probability(),)
    check_pairs(model, pairs, [differentiable(metric) for metric in metrics])
    if len({metric.position for metric in metrics}) > 1:
        raise BadInput("metrics at several positions need gradients of several logits; attribute them one by one")
    units = patching_units(model, pairs, site, by, positions, neurons)
    together = tuple(positions) if by in ("layer", "head", "neuron") else ()
    values, clean, corrupt = [], [], []
    done = 0
    for batch, own in batches(pairs, metrics, batch_size):
        sides = (batch, corrupted(batch))
        base, donor = sides[::-1] if direction == "denoise" else sides
        estimate = _Estimate(model, base, donor, bound(model, batch, own), units, together)
        changes = estimate.first_order() if method == "attribution" else estimate.integrated(steps)
        here, there = estimate.metrics
        values.append(here[None] + changes)
        clean.append(there if direction == "denoise" else here)
        corrupt.append(here if direction == "denoise" else there)
        done += len(batch)
        if progress:
            progress(done, len(pairs))
    return PatchingResult(
        method=method,
        site=site,
        by=by,
        direction=direction,
        units=units,
        metrics=tuple(metric.name for metric in metrics),
        values=np.concatenate(values, axis=2),
        clean=np.concatenate(clean, axis=1),
        corrupted=np.concatenate(corrupt, axis=1),
        labels=position_labels(model, pairs, units, together),
        model=model_record(model),
        parameters={
            "prompts": pairs.hash,
            "positions": list(positions),
            "steps": steps if method == "ig" else 1,
        },
        seed=seed,
    )


class _Estimate:
    """Estimates on one batch, from the activations of the base and of the donor run."""

    def __init__(
        self,
        model: Model,
        base: PromptSet,
        donor: PromptSet,
        metrics: Sequence[BoundMetric],
        units: Sequence[Unit],
        together: Sequence[int | str],
    ) -> None:
        self.model = model
        self.prompts = base
        self.bound = metrics
        self.units = units
        self.sites = tuple(dict.fromkeys(Site(unit.site, unit.layer) for unit in units))
        self.position = metrics[0].metric.position
        self.base = model.run(base, read=self.sites, grad=True, logits=self.position)
        self.donor = model.run(donor, read=self.sites, logits=self.position)
        self.selected = {place: self._columns(place) for place in {unit.position for unit in units} - {None}}
        self.selected[None] = torch.stack([self._columns(place) for place in together or (slice(None),)]).any(0)

    @property
    def metrics(self) -> tuple[np.ndarray, np.ndarray]:
        """Values `[metric prompt]` of the base and of the donor run."""
        traces = (self.base, self.donor)
        here, there = (torch.stack([m(t.logits[:, -1]) for m in self.bound]).detach().cpu().numpy() for t in traces)
        return here, there

    def first_order(self) -> np.ndarray:
        """Change of every metric by every unit, `[unit metric prompt]`."""
        return self._shares(self._gradients(self.base, self.sites))

    def integrated(self, steps: int) -> np.ndarray:
        """The same with gradients averaged along the line from base to donor, one layer at a time."""
        gradients: dict[Site, Tensor] = {}
        for site in self.sites:
            start = self.base[site].detach()
            chosen = self.selected[None].to(start.device)
            way = torch.where(chosen.reshape(*chosen.shape, *[1] * (start.ndim - 2)), self.donor[site] - start, 0.0)
            points = (patch(site, start + (k + 0.5) / steps * way) for k in range(steps))
            gradients[site] = sum(self._at(point, site) for point in points) / steps  # type: ignore[assignment]
        return self._shares(gradients)

    def _at(self, point: Edit, site: Site) -> Tensor:
        trace = self.model.run(self.prompts, read=site, edits=point, grad=True, logits=self.position)
        return self._gradients(trace, (site,))[site]

    def _gradients(self, trace: Trace, sites: Sequence[Site]) -> Gradients:
        """Gradients of the metrics; parameters are left out of the backward pass."""
        leaves = [trace.leaves[site].value for site in sites]
        last = trace.logits[:, -1]
        found = [torch.autograd.grad(m(last).sum(), leaves, retain_graph=True) for m in self.bound]
        return {site: torch.stack(of_site) for site, of_site in zip(sites, zip(*found, strict=True), strict=True)}

    def _shares(self, gradients: Gradients) -> np.ndarray:
        """What every unit adds to the inner products, `[unit metric prompt]`."""
        products: dict[Site, Tensor] = {}
        for site, gradient in gradients.items():
            products[site] = gradient * (self.donor[site] - self.base[site].detach())
        by_token: dict[tuple[Site, int | None, int | None], Tensor] = {}
        shares = []
        for unit in self.units:
            site = Site(unit.site, unit.layer)
            key = (site, unit.head, unit.neuron)
            if key not in by_token:
                by_token[key] = _features(products[site], unit)
            chosen = self.selected[unit.position].to(by_token[key].device)
            shares.append(torch.where(chosen, by_token[key], 0.0).sum(-1).cpu())
        return torch.stack(shares).double().numpy()

    def _columns(self, place: int | str | slice | None) -> Tensor:
        """Tokens at a position of each prompt, `[batch tokens]` bool; padding never."""
        lengths, here = self.base.lengths[:, None], self.base.positions
        real = here < lengths
        if isinstance(place, str):
            start, end = torch.tensor(self.prompts.spans[place]).T[..., None]
            return real & (here >= start) & (here < end)
        return real & (here == place % lengths) if isinstance(place, int) else real


def _features(product: Tensor, unit: Unit) -> Tensor:
    """The part of `[metric batch tokens ...]` that belongs to a unit, summed over its features."""
    if unit.head is not None:
        return product[:, :, :, unit.head].sum(-1)
    flat = product.flatten(3)
    return flat.sum(-1) if unit.neuron is None else flat[..., unit.neuron]
