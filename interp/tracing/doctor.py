"""A model checked against itself: what every family must satisfy before its numbers can be trusted.

The same checks prove a family that is not in the table (`structure.py`) and answer `Model.doctor()`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import Tensor, nn

from interp.errors import SiteDidNotFire
from interp.tables import in_notebook
from interp.tracing.architectures import Block
from interp.tracing.backends.kernel_tap import Kernel, kernel_tap
from interp.tracing.batch import Prompts
from interp.tracing.trace import Trace
from kernels.rows import gather_values

if TYPE_CHECKING:
    from interp.tracing.model import Model

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8}
"""Largest relative error accepted; half precision gets 5e-2."""


@dataclass(frozen=True)
class Check:
    """One equation: the largest error relative to the largest value, and whether it is within tolerance.

    An equation that the model refuses a part of has no error and no tolerance; `note` is the reason.
    """

    name: str
    error: float | None
    tolerance: float = 0.0
    note: str = ""

    @property
    def ok(self) -> bool:
        return self.error is None or self.error <= self.tolerance

    @property
    def result(self) -> str:
        return "refused" if self.error is None else "pass" if self.ok else "FAIL"


@dataclass(frozen=True, repr=False)
class Diagnosis:
    """Result of `Model.doctor()`."""

    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        return all(check.ok for check in self.checks)

    @property
    def frame(self) -> pd.DataFrame:
        rows = [(c.name, c.error, c.tolerance, c.result, c.note) for c in self.checks]
        return pd.DataFrame(rows, columns=["check", "relative error", "tolerance", "result", "note"])

    def __str__(self) -> str:
        return self.frame.to_string(index=False)

    def __repr__(self) -> str:
        failed = sum(not check.ok for check in self.checks)
        return f"Diagnosis({len(self.checks)} checks, {failed} failed)"

    def _repr_html_(self) -> str:
        return in_notebook(self, self.frame)


def diagnose(model: Model, prompts: Prompts | None = None) -> Diagnosis:
    """Every check on `prompts`, or on seeded random tokens."""
    ids = random_tokens(model) if prompts is None else prompts
    with torch.no_grad():
        return Diagnosis((*_parity(model, ids), *site_equations(model, ids), *_padding(model)))


def random_tokens(model: Model, length: int = 24) -> Tensor:
    """Two seeded rows of token ids, `[2 length]`, without the padding token: RoBERTa gives it no position."""
    length = min(length, model.spec.context or length)
    generator = torch.Generator().manual_seed(0)
    padding = getattr(model.hf.config, "pad_token_id", None)
    ids = torch.randint(0, model.spec.vocab, (2, length), generator=generator)
    return ids if padding is None else torch.where(ids == padding, (padding + 1) % model.spec.vocab, ids)


def _check(name: str, got: Tensor, wanted: Tensor, note: str = "") -> Check:
    scale = float(wanted.abs().max().clamp(min=1e-12))
    error = float((got.double() - wanted.double()).abs().max()) / scale
    return Check(name, error, TOLERANCE.get(got.dtype, 5e-2), note)


def _outcome(model: Model) -> str:
    """The last thing the model computes: its logits or, without a head, its hidden states."""
    last = ("logits", "final_norm", f"resid_post.{model.spec.layers - 1}")
    return next(site for site in last if site not in model.refusals)


def _parity(model: Model, ids: Prompts) -> Iterator[Check]:
    end = _outcome(model)
    traced = model.run(ids, read=end)
    if len(set(traced.lengths.tolist())) == 1:
        tokens = traced.tokens.to(model.device)
        if end == "logits":
            yield _check("logits equal a plain forward pass", traced[end], model.hf(tokens).logits)
        else:
            plain = model.hf.base_model(tokens).last_hidden_state  # type: ignore[operator]
            yield _check("hidden states equal a plain forward pass", traced[end], plain)


def site_equations(model: Model, ids: Prompts) -> Iterator[Check]:
    """The equations that define the sites, at every layer."""
    read = ["resid_pre", "attn_in", "attn_out", "resid_mid", "mlp_in", "mlp_out", "resid_post", "final_norm", "z"]
    trace = model.run(ids, read=[name for name in read if name not in model.refusals])
    last = model.spec.layers - 1
    for layer, block in enumerate(model.parts.blocks):
        yield from _block(model, trace, layer, block)
        if layer < last:
            yield _check(
                f"resid_post = next resid_pre ({layer})", trace[f"resid_post.{layer}"], trace[f"resid_pre.{layer + 1}"]
            )
    if model.parts.final_norm is not None:
        normed = model.parts.final_norm(trace[f"resid_post.{last}"])
        yield _check("final_norm(resid_post) = final_norm", normed, trace["final_norm"])
    yield from _heads(model, ids, trace)
    yield from _rows(model, ids)


def _block(model: Model, trace: Trace, layer: int, block: Block) -> Iterator[Check]:
    """What is added up, and what attention and MLP are given: this separates sequential from parallel blocks."""
    pre, attn, mlp, post = (trace[f"{name}.{layer}"] for name in ("resid_pre", "attn_out", "mlp_out", "resid_post"))
    middle = pre
    if "resid_mid" not in model.refusals:
        middle = trace[f"resid_mid.{layer}"]
        equation = f"{'resid_pre + attn_out' if block.norm_after_attn is None else 'norm(resid_pre + attn_out)'}"
        yield _check(f"{equation} = resid_mid ({layer})", _normed(block.norm_after_attn, pre + attn), middle)
    if block.norm_after_mlp is not None:
        yield _check(f"norm(resid_mid + mlp_out) = resid_post ({layer})", block.norm_after_mlp(middle + mlp), post)
    else:
        yield _check(f"resid_pre + attn_out + mlp_out = resid_post ({layer})", pre + attn + mlp, post)
    yield _check(f"norm(resid_pre) = attn_in ({layer})", _normed(block.attn_norm, pre), trace[f"attn_in.{layer}"])
    name = "resid_pre" if middle is pre else "resid_mid"
    yield _check(f"norm({name}) = mlp_in ({layer})", _normed(block.mlp_norm, middle), trace[f"mlp_in.{layer}"])


def _normed(norm: nn.Module | None, stream: Tensor) -> Tensor:
    return stream if norm is None else norm(stream)


def _heads(model: Model, ids: Prompts, trace: Trace) -> Iterator[Check]:
    if "head_out" in model.refusals:
        yield Check("sum of head_out + bias = W_O z", None, note=model.refusals["head_out"])
        return
    for layer, block in enumerate(model.parts.blocks):
        total = model.run(ids, read=f"head_out.{layer}")[f"head_out.{layer}"].sum(2)
        if getattr(block.o, "bias", None) is not None:
            total = total + block.o.bias
        whole = block.o(trace[f"z.{layer}"].flatten(2))
        yield _check(f"sum of head_out + bias = W_O z ({layer})", total, whole)


def _rows(model: Model, ids: Prompts) -> Iterator[Check]:
    """Recomputed attention rows times values must give what the model's own kernel gives."""
    if "pattern" in model.refusals:
        yield Check("pattern v = kernel output", None, note=model.refusals["pattern"])
        return
    outputs: dict[nn.Module, Tensor] = {}

    def record(kernel: Kernel, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        result = kernel(module, *args, **kwargs)
        outputs[module] = result[0]
        return result

    with model.lock, kernel_tap(model.attention, {block.attn: record for block in model.parts.blocks}):
        model.run(ids)
    rows = model.run(ids, read=["pattern", "v", _outcome(model)])
    for layer, block in enumerate(model.parts.blocks):
        mine = gather_values(rows[f"pattern.{layer}"], rows[f"v.{layer}"].transpose(1, 2))
        if block.attn not in outputs:
            raise SiteDidNotFire(f"attention of layer {layer} does not go through transformers' attention functions")
        real = torch.arange(mine.shape[1])[None] < rows.lengths[:, None]
        yield _check(f"pattern v = kernel output ({layer})", mine[real], outputs[block.attn][real])


def _padding(model: Model) -> Iterator[Check]:
    ids = random_tokens(model)
    rows = [ids[0].tolist(), ids[1, : ids.shape[1] // 2].tolist()]
    end = _outcome(model)
    alone = model.run([rows[1]], read=end)[end][0]
    for side in ("left", "right"):
        padded = model.run(rows, read=end, padding_side=side)[end][1, : len(alone)]
        yield _check(f"{side}-padded = unpadded", padded, alone)


def first_failure(checks: Callable[[], Iterator[Check]]) -> Check | None:
    """The first equation that does not hold, or that could not be evaluated because a site never fired."""
    try:
        with torch.no_grad():
            return next((check for check in checks() if not check.ok), None)
    except SiteDidNotFire as error:
        return Check("every site fires", float("inf"), 0.0, str(error))
