"""The checks themselves. Each tries one thing and yields its outcome; a refusal with a reason is an outcome too.

Without a reference, what a run reads and changes is held against closed forms and against itself. With one (the same
weights on another backend), every number must equal the reference's.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

import interp.tracing.edits as edits
from interp.conformance.report import Conformance, Outcome, Result
from interp.errors import BadInput
from interp.tracing.doctor import TOLERANCE, Check, diagnose, random_tokens
from interp.tracing.edits import Edit
from interp.tracing.model import Model
from interp.tracing.plan import features
from interp.tracing.sites import SITES, Site
from kernels.integration import install
from kernels.types import AttentionStats

NEW_TOKENS = 4
STEP_TOLERANCE = 0.05
"""How far a finite step may be from what the gradient predicts: curvature is no error."""


@dataclass(frozen=True)
class Trial:
    """One model on trial, with what all checks share."""

    model: Model
    reference: Model | None
    tolerance: float

    @cached_property
    def ids(self) -> Tensor:
        return random_tokens(self.model)

    @cached_property
    def layer(self) -> int:
        """The layer that edits are tried in: not the last, so that they have somewhere to go."""
        return max(0, self.model.spec.layers // 2 - 1)

    def site(self, name: str) -> str:
        return name if SITES[name].scope == "model" else f"{name}.{self.layer}"

    def vector(self, site: str, seed: int = 0) -> Tensor:
        """Standard normal numbers in the site's shape without batch and tokens."""
        shape = features(Site.parse(site), self.model.spec)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        return noise.to(_dtype(self.model))

    @cached_property
    def outcome_site(self) -> str:
        """Where effects are looked for: the logits, or the last residual stream of a model without a head."""
        last = f"resid_post.{self.model.spec.layers - 1}"
        return last if "logits" in self.model.refusals else "logits"

    def output(self, model: Model, change: Edit | Iterable[Edit] = ()) -> Tensor:
        change = [change] if isinstance(change, Edit) else list(change)
        return model.run(self.ids, read=self.outcome_site, edits=change)[self.outcome_site].detach().float().cpu()

    @cached_property
    def plain(self) -> Tensor:
        return self.output(self.model)


def conformance(model: Model, reference: Model | None = None, tolerance: float | None = None) -> Conformance:
    """Try every site, edit, gradient, generation and padding of `model`, and say what passes, is refused or fails.

    Args:
        reference: the same weights on another backend; then every number is compared with its.
        tolerance: largest error relative to the largest value; by the model's dtype otherwise.
    """
    trial = Trial(model, reference, tolerance or TOLERANCE.get(_dtype(model), 5e-2))
    groups: tuple[Callable[[Trial], Iterator[Outcome]], ...] = (
        _equations,
        _reads,
        _site_edits,
        _edit_kinds,
        _gradient,
        _generation,
    )
    outcomes = [outcome for group in groups for outcome in group(trial)]
    return Conformance(model.spec.name, model.spec.family, model.backend.name, model.attention, tuple(outcomes))


def _dtype(model: Model) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, model.spec.dtype)
    return dtype


def _tried(group: str, subject: str, check: Callable[[], float], tolerance: float) -> Outcome:
    """Run one check; its number is the relative error."""
    try:
        error = check()
    except BadInput as refusal:
        return Outcome(group, subject, "refused", note=getattr(refusal, "reason", str(refusal)))
    except Exception as failure:  # noqa: BLE001 - whatever goes wrong on somebody's model is what is reported
        return Outcome(group, subject, "fail", note=f"{type(failure).__name__}: {failure}")
    return Outcome(group, subject, "pass" if error <= tolerance else "fail", error)


def _relative(got: Tensor, wanted: Tensor) -> float:
    """The largest difference relative to the largest wanted value; raises AssertionError for what has none."""
    if got.shape != wanted.shape:
        raise AssertionError(f"shape {tuple(got.shape)} instead of {tuple(wanted.shape)}")
    if bool(got.isnan().any() | wanted.isnan().any()):
        raise AssertionError("NaN")
    scale = float(wanted.abs().max().clamp(min=1e-12))
    return float((got.double().cpu() - wanted.double().cpu()).abs().max()) / scale


def _must_change(before: Tensor, after: Tensor, tolerance: float) -> None:
    if _relative(after, before) <= tolerance:
        raise AssertionError("the edit has no effect on what the model computes")


def _equations(trial: Trial) -> Iterator[Outcome]:
    checks: list[Check] = []

    def check() -> float:
        checks.extend(diagnose(trial.model).checks)
        return 0.0

    whole = _tried("equation", "all", check, 0.0)
    if whole.result != "pass":
        yield whole
    by_layer: dict[str, list[Check]] = defaultdict(list)
    for each in checks:
        by_layer[re.sub(r" \(\d+\)$", "", each.name)].append(each)
    for name, layers in by_layer.items():
        worst = next((each for each in layers if not each.ok), max(layers, key=lambda each: each.error or 0.0))
        result: Result = "refused" if worst.error is None else "pass" if worst.ok else "fail"
        yield Outcome("equation", name, result, worst.error, worst.note)


def _reads(trial: Trial) -> Iterator[Outcome]:
    for name in SITES:

        def check(name: str = name) -> float:
            mine = trial.model.run(trial.ids, read=name)
            if trial.reference is None:
                return _put_back(trial, name)
            theirs = trial.reference.run(trial.ids, read=name)
            return max(
                _relative(got, wanted)
                for site in mine.activations
                for got, wanted in zip(_parts(mine[site]), _parts(theirs[site]), strict=True)
            )

        yield _tried("read", name, check, trial.tolerance)


def _put_back(trial: Trial, name: str) -> float:
    """What was read, written back at every layer, must leave the model's output as it was."""
    trace = trial.model.run(trial.ids, read=name)
    if SITES[name].editable:
        back = [edits.patch(site, trace) for site in trace.activations]
        return _relative(trial.output(trial.model, back), trial.plain)
    rows = trial.model.run(trial.ids, read=["pattern", "attention_stats"])
    pattern, stats = rows[trial.site("pattern")], rows[trial.site("attention_stats")]
    if name == "attention_stats":
        return _relative(stats.probability, pattern.gather(-1, stats.argmax[..., None])[..., 0])
    return float((pattern.sum(-1) - 1).clamp(min=0).max())  # with attention sinks a row holds less than 1


def _parts(value: Tensor | AttentionStats) -> tuple[Tensor, ...]:
    return (value,) if isinstance(value, Tensor) else tuple(part.float() for part in value.measured.values())


def _site_edits(trial: Trial) -> Iterator[Outcome]:
    """A vector added to half of the tokens (to all keys alike it would change nothing), at every site."""
    some = slice(0, trial.ids.shape[1] // 2)
    for name in (name for name, site in SITES.items() if site.editable):

        def check(name: str = name) -> float:
            site = trial.site(name)
            change = edits.add(site, trial.vector(site)).at(positions=some)
            edited = trial.output(trial.model, change)
            _must_change(trial.plain, edited, trial.tolerance)
            if trial.reference is not None:
                return _relative(edited, trial.output(trial.reference, change))
            wanted = trial.model.run(trial.ids, read=site)[site].clone()
            wanted[:, some] += trial.vector(site).to(wanted)
            return _relative(trial.model.run(trial.ids, read=site, edits=change)[site], wanted)

        yield _tried("edit at", name, check, trial.tolerance)


def _edit_kinds(trial: Trial) -> Iterator[Outcome]:
    """Every kind of edit of the residual stream (and of one head's attention row), against its closed form."""
    site = trial.site("resid_post")
    basis, other = trial.vector(site).float(), trial.vector(site, seed=1)
    unit = basis / basis.norm()

    def along(x: Tensor) -> Tensor:
        return (x.float() @ unit)[..., None] * unit

    kinds: dict[str, Callable[[Tensor], tuple[Edit, Tensor]]] = {
        "zero": lambda x: (edits.zero(site), torch.zeros_like(x)),
        "scale": lambda x: (edits.scale(site, 0.5), 0.5 * x),
        "mean": lambda x: (edits.mean(site, other), other.expand_as(x)),
        "patch": lambda x: (edits.patch(site, x.flip(0)), x.flip(0)),
        "resample": lambda x: (edits.resample(site, x), x.flip(0)),
        "add": lambda x: (edits.add(site, other, 2.0), x + 2 * other),
        "set_coordinate": lambda x: (edits.set_coordinate(site, basis, 3.0), x - along(x) + 3 * unit),
        "project_out": lambda x: (edits.project_out(site, basis), x - along(x)),
        "swap_subspace": lambda x: (edits.swap_subspace(site, basis, x.flip(0)), x + along(x.flip(0) - x)),
    }
    for kind, make in kinds.items():

        def check(make: Callable[[Tensor], tuple[Edit, Tensor]] = make) -> float:
            change, wanted = make(trial.model.run(trial.ids, read=site)[site].cpu())
            got = trial.model.run(trial.ids, read=site, edits=change)[site]
            error = _relative(got, wanted.to(got.dtype))
            edited = trial.output(trial.model, change)
            _must_change(trial.plain, edited, trial.tolerance)
            if trial.reference is None:
                return error
            return max(error, _relative(edited, trial.output(trial.reference, change)))

        yield _tried("edit kind", kind, check, trial.tolerance)
    yield _tried("edit kind", "attend", lambda: _attend(trial), trial.tolerance)


def _attend(trial: Trial) -> float:
    """Rows forced onto the first token give what that token's own row gives."""
    z = trial.site("z")
    change = edits.attend(trial.site("pattern"), to=0)
    _must_change(trial.plain, trial.output(trial.model, change), trial.tolerance)
    forced = trial.model.run(trial.ids, read=z, edits=change)[z][:, : trial.model.sliding_window or None]
    return _relative(forced, forced[:, :1].expand_as(forced))


def _gradient(trial: Trial) -> Iterator[Outcome]:
    """The gradient equals the reference's; without one, it predicts what a small step along it does."""
    site = trial.site("resid_post")
    if trial.reference is None:
        yield _tried("gradient", "predicts a small step", lambda: _small_step(trial, site), STEP_TOLERANCE)
        return
    other = trial.reference
    yield _tried(
        "gradient",
        "resid_post",
        lambda: _relative(_gradient_at(trial, trial.model, site), _gradient_at(trial, other, site)),
        trial.tolerance,
    )


def _small_step(trial: Trial, site: str) -> float:
    gradient = _gradient_at(trial, trial.model, site)
    direction = gradient / gradient.norm()
    x = trial.model.run(trial.ids, read=site)[site].cpu()
    size = 2e-3 * float(x.norm()) / x[0, 0].numel() ** 0.5
    up, down = (
        _score(trial.output(trial.model, edits.patch(site, x + sign * size * direction.to(x)))) for sign in (1, -1)
    )
    predicted = 2 * size * float((gradient * direction).sum())
    return abs(float(up - down) - predicted) / abs(predicted)


def _score(output: Tensor) -> Tensor:
    """A smooth number of the output that depends on all of it."""
    weights = torch.linspace(-1, 1, output.shape[-1], device=output.device)
    return (torch.tanh(output.float()) * weights).sum()


def _gradient_at(trial: Trial, model: Model, site: str) -> Tensor:
    with torch.enable_grad():
        trace = model.run(trial.ids, read=[site, trial.outcome_site], grad=True)
        _score(trace[trial.outcome_site]).backward()
    return trace.grad(site).float().cpu()


def _generation(trial: Trial) -> Iterator[Outcome]:
    """Cached decoding under an edit gives the tokens and values of the whole text run at once; and the reference's."""

    def check() -> float:
        site = trial.site("resid_post")
        change = edits.add(site, trial.vector(site)).at(positions=slice(4, None))
        made = trial.model.generate(trial.ids, max_new_tokens=NEW_TOKENS, edits=change, read=site)
        if max(map(len, made.tokens)) < 2:
            raise BadInput("every text ended at its first new token, so no cached decoding was seen")
        if trial.reference is not None:
            theirs = trial.reference.generate(trial.ids, max_new_tokens=NEW_TOKENS, edits=change).tokens
            if theirs != made.tokens:
                raise AssertionError(f"decoding gives {made.tokens}, the reference {theirs}")
        assert made.trace is not None
        errors = []
        for row, (prompt, new) in enumerate(zip(trial.ids.tolist(), made.tokens, strict=True)):
            whole = trial.model.run([prompt + list(new[:-1])], read=[site, "logits"], edits=change)
            greedy = whole["logits"][0, len(prompt) - 1 :].argmax(-1).tolist()
            if greedy != list(new):
                raise AssertionError(f"decoding gives {list(new)}, the whole text at once {greedy}")
            errors.append(_relative(made.trace[site][row, : len(whole[site][0])], whole[site][0]))
        return max(errors)

    yield _tried("generation", "with an edit", check, trial.tolerance)


def kernels(model: Model, names: Iterable[str]) -> Iterator[Outcome]:
    """The same numbers under other attention implementations of transformers; the model's own is put back.

    `model` is on the hooks backend. What transformers or an implementation refuses is refused with its reason, and so
    is every other implementation for families that compute attention in their own code, which would not change it.
    """
    install()
    trial = Trial(model, None, TOLERANCE.get(_dtype(model), 5e-2))
    own, plain = model.attention, trial.plain
    site = trial.site("z")
    z = model.run(trial.ids, read=site)[site]
    for name in names:

        def check(name: str = name) -> float:
            if name != own and "pattern" in model.refusals:
                raise BadInput(model.refusals["pattern"])
            try:
                model.hf.set_attn_implementation(name)  # type: ignore[operator]
                read = model.run(trial.ids, read=site)[site]
                output = trial.output(model)
            except (ValueError, ImportError) as refusal:
                raise BadInput(str(refusal).splitlines()[0]) from refusal
            return max(_relative(output, plain), _relative(read, z))

        try:
            yield _tried("kernel", name, check, trial.tolerance)
        finally:
            model.hf.set_attn_implementation(own)  # type: ignore[operator]
