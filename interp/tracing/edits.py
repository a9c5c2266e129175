"""Interventions as data: what to do, at which site, at which token positions and prompts.

An `Edit` is frozen and serialises (`save_edits`, `load_edits`); what it does to a tensor is `apply_edit`. Zero ablation
depends on where a family keeps its value bias, mean ablation does not: prefer `mean`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.errors import BadInput, UnknownSite
from interp.tracing.frame import Frame, Positions, select
from interp.tracing.sites import Site

if TYPE_CHECKING:
    from interp.tracing.trace import Trace

Reference = Tensor | float


@dataclass(frozen=True, eq=False)
class Edit:
    """One intervention. `tensors` hold vectors, bases and donors; `parameters` plain numbers and words."""

    kind: str
    site: Site
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)
    positions: Positions = None
    rows: tuple[int, ...] | None = None

    def at(self, positions: Positions = None, rows: int | Sequence[int] | None = None) -> Edit:
        """The same edit, only at these token positions (int, several, slice or role name) and prompts."""
        if isinstance(positions, (list, range)):
            positions = tuple(positions)
        chosen = (rows,) if isinstance(rows, int) else None if rows is None else tuple(rows)
        return replace(self, positions=positions, rows=chosen)

    def __str__(self) -> str:
        where = "" if self.positions is None else f" at {self.positions}"
        return f"{self.kind}({self.site}){where}"


def zero(site: str | Site) -> Edit:
    """Replace by 0 (zero ablation)."""
    return Edit("zero", _editable(site))


def scale(site: str | Site, factor: float) -> Edit:
    """Multiply by `factor`."""
    return Edit("scale", _editable(site), parameters={"factor": float(factor)})


def mean(site: str | Site, reference: Tensor | Trace) -> Edit:
    """Replace by a mean (mean ablation).

    `reference` is the mean itself, in the site's shape without batch and tokens, or a Trace that read the site: then the
    mean over all its prompts and real tokens.
    """
    site = _editable(site)
    value = reference if isinstance(reference, Tensor) else reference.mean(site)
    return Edit("mean", site, {"value": value.detach()})


def patch(site: str | Site, donor: Tensor | Trace) -> Edit:
    """Replace by the donor's activation at the same position (activation patching).

    `donor` is a Trace that read the site at all positions, or a tensor `[batch tokens ...]`; one donor row serves every
    prompt. Without `.at(positions=…)` every position the donor has is patched.
    """
    site = _editable(site)
    return Edit("patch", site, _donor(site, donor))


def resample(site: str | Site, donors: Tensor | Trace, seed: int = 0) -> Edit:
    """Replace each prompt's activation by that of another, randomly drawn donor row (resample ablation).

    Donor rows are drawn by one seeded cycle through them, so with the run's own prompts as donors no prompt receives its
    own activation.
    """
    site = _editable(site)
    return Edit("resample", site, _donor(site, donors), {"seed": int(seed)})


def add(site: str | Site, vector: Tensor, factor: float = 1.0) -> Edit:
    """Add `factor * vector`; the vector has the site's shape without batch and tokens."""
    return Edit("add", _editable(site), {"vector": vector.detach()}, {"factor": float(factor)})


def set_coordinate(site: str | Site, direction: Tensor, value: float) -> Edit:
    """Set the coordinate along `direction` (normalised here) to `value`, leaving the orthogonal complement alone."""
    unit = direction.detach().float()
    if unit.norm() == 0:
        raise BadInput("set_coordinate needs a direction that is not zero")
    return Edit("set_coordinate", _editable(site), {"basis": (unit / unit.norm())[None]}, {"value": float(value)})


def project_out(site: str | Site, directions: Tensor) -> Edit:
    """Remove the component in the span of `directions` (`[dim]` or `[rank dim]`, orthonormalised here)."""
    return Edit("project_out", _editable(site), {"basis": _orthonormal(directions)})


def swap_subspace(site: str | Site, directions: Tensor, donor: Tensor | Trace) -> Edit:
    """Replace the component in the span of `directions` by the donor's (interchange intervention)."""
    site = _editable(site)
    return Edit("swap_subspace", site, {"basis": _orthonormal(directions), **_donor(site, donor)})


def attend(site: str | Site, to: str | int | Sequence[int]) -> Edit:
    """Force the attention rows of one head (`pattern.L.h`) or a whole layer (`pattern.L`).

    `to="uniform"` spreads each row over all keys it can see (what the published retrieval-head masking does); a position or
    several share the row evenly. The head's output becomes those weights times its values; no T x T matrix is built.
    """
    site = Site.parse(site)
    if site.name != "pattern" or site.layer is None:
        raise UnknownSite(f"attend() edits pattern.LAYER or pattern.LAYER.HEAD, not {site}")
    if isinstance(to, str) and to != "uniform":
        raise BadInput(f"attend(to={to!r}) is unknown; give 'uniform', a position or several positions")
    target = to if isinstance(to, str) else [to] if isinstance(to, int) else list(to)
    return Edit("attend", site, parameters={"to": target})


def _editable(site: str | Site) -> Site:
    site = Site.parse(site)
    if not site.spec.editable:
        raise UnknownSite(f"{site.name} cannot be replaced; attend() forces attention rows, and z edits their result")
    if site.spec.scope == "layer" and site.layer is None:
        raise UnknownSite(f"an edit needs one layer: write {site.name}.LAYER")
    return site


def _donor(site: Site, donor: Tensor | Trace) -> dict[str, Tensor]:
    if isinstance(donor, Tensor):
        return {"donor": donor.detach()}
    return {"donor": donor.aligned(site).detach(), "donor_lengths": donor.lengths}


def _orthonormal(directions: Tensor) -> Tensor:
    """`[rank dim]` with orthonormal rows; raises BadInput when the directions are linearly dependent."""
    matrix = directions.detach().float()
    matrix = matrix[None] if matrix.ndim == 1 else matrix
    singular = torch.linalg.svdvals(matrix)
    if singular[-1] <= 1e-6 * singular[0] or len(matrix) > matrix.shape[1]:
        raise BadInput(f"the {len(matrix)} directions are linearly dependent (or zero)")
    return torch.linalg.qr(matrix.T).Q.T.contiguous()


def apply_edit(edit: Edit, value: Tensor, frame: Frame) -> tuple[Tensor, bool]:
    """The edited `value` `[batch width ...]` and whether anything was selected in this call."""
    chosen = select(edit.positions, edit.rows, frame).to(value.device)
    if "donor" in edit.tensors:
        chosen = chosen & (frame.positions().to(value.device) < edit.tensors["donor"].shape[1])
    if not bool(chosen.any()):
        return value, False
    target = value if edit.site.head is None else value[:, :, edit.site.head]
    new = KINDS[edit.kind](edit, target, frame)
    new = torch.where(chosen.reshape(*chosen.shape, *([1] * (target.ndim - 2))), new.to(value.dtype), target)
    if edit.site.head is None:
        return new, True
    heads = list(value.unbind(2))
    heads[edit.site.head] = new
    return torch.stack(heads, dim=2), True


def _here(edit: Edit, name: str, value: Tensor) -> Tensor:
    return edit.tensors[name].to(device=value.device, dtype=value.dtype)


def _donor_here(edit: Edit, value: Tensor, frame: Frame, rows: Tensor | None = None) -> Tensor:
    """The donor's activation for every column of the call, `[batch width ...]`."""
    donor = _here(edit, "donor", value)
    positions = frame.positions().to(value.device).clamp(0, donor.shape[1] - 1)
    if rows is None:
        rows = torch.arange(frame.batch) if len(donor) > 1 else torch.zeros(frame.batch, dtype=torch.long)
    return donor[rows.to(value.device)[:, None], positions]


def _along(basis: Tensor, value: Tensor) -> Tensor:
    """The component of `value` in the span of orthonormal `basis` `[rank dim]`, features flattened."""
    return ((value.flatten(2) @ basis.T) @ basis).reshape(value.shape)


def _zero(_edit: Edit, value: Tensor, _frame: Frame) -> Tensor:
    return torch.zeros_like(value)


def _scale(edit: Edit, value: Tensor, _frame: Frame) -> Tensor:
    return value * edit.parameters["factor"]


def _mean(edit: Edit, value: Tensor, _frame: Frame) -> Tensor:
    return _here(edit, "value", value).expand_as(value)


def _patch(edit: Edit, value: Tensor, frame: Frame) -> Tensor:
    return _donor_here(edit, value, frame)


def _resample(edit: Edit, value: Tensor, frame: Frame) -> Tensor:
    return _donor_here(edit, value, frame, resample_rows(edit, frame.batch))


def resample_rows(edit: Edit, batch: int) -> Tensor:
    """Which donor row each prompt receives: a seeded cyclic order of the donors, so never row i for prompt i."""
    donors = len(edit.tensors["donor"])
    generator = torch.Generator().manual_seed(edit.parameters["seed"])
    order = torch.randperm(donors, generator=generator)
    successor = torch.empty_like(order)
    successor[order] = order.roll(-1)
    return successor[torch.arange(batch) % donors]


def _add(edit: Edit, value: Tensor, _frame: Frame) -> Tensor:
    return value + edit.parameters["factor"] * _here(edit, "vector", value)


def _set_coordinate(edit: Edit, value: Tensor, _frame: Frame) -> Tensor:
    basis = _here(edit, "basis", value).flatten(1)
    target = (edit.parameters["value"] * basis[0]).reshape(value.shape[2:])
    return value - _along(basis, value) + target


def _project_out(edit: Edit, value: Tensor, _frame: Frame) -> Tensor:
    return value - _along(_here(edit, "basis", value), value)


def _swap_subspace(edit: Edit, value: Tensor, frame: Frame) -> Tensor:
    return value + _along(_here(edit, "basis", value), _donor_here(edit, value, frame) - value)


KINDS: dict[str, Callable[[Edit, Tensor, Frame], Tensor]] = {
    "zero": _zero,
    "scale": _scale,
    "mean": _mean,
    "patch": _patch,
    "resample": _resample,
    "add": _add,
    "set_coordinate": _set_coordinate,
    "project_out": _project_out,
    "swap_subspace": _swap_subspace,
}


def check_shapes(edit: Edit, features: tuple[int, ...], batch: int) -> None:
    """Refuse tensors that do not fit the site; `features` is the site's shape without batch and tokens."""
    features = features[1:] if edit.site.head is not None else features
    width = 1
    for size in features:
        width *= size

    def refuse(what: str, tensor: Tensor, wanted: str) -> None:
        raise BadInput(f"{edit}: the {what} has shape {tuple(tensor.shape)}, the site needs {wanted}")

    for name in ("value", "vector"):
        tensor = edit.tensors.get(name)
        if tensor is not None and tuple(tensor.shape) != features:
            refuse(name, tensor, str(features))
    basis = edit.tensors.get("basis")
    if basis is not None and basis.flatten(1).shape[1] != width:
        refuse("direction", basis, f"{width} features")
    donor = edit.tensors.get("donor")
    if donor is not None:
        if tuple(donor.shape[2:]) != features:
            refuse("donor", donor, f"[batch tokens {' '.join(map(str, features))}]")
        if edit.kind != "resample" and len(donor) not in (1, batch):
            refuse("donor", donor, f"1 or {batch} rows")
        if edit.kind == "resample" and len(donor) < 2:
            refuse("donor", donor, "at least two rows to draw from")
