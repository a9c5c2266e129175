"""Interventions as data: what to do, at which site, at which token positions and prompts.

An `Edit` is frozen and serialises (`save_edits`, `load_edits`); what it does to a tensor is `apply_edit`. Zero ablation
depends on where a family keeps its value bias, mean ablation does not: prefer `mean`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.errors import BadInput, UnknownSite
from interp.tracing.frame import Frame, Positions, positions_of, select
from interp.tracing.sites import Site

if TYPE_CHECKING:
    from interp.tracing.trace import Trace


@dataclass(frozen=True, eq=False)
class Edit:
    """One intervention. `tensors` hold vectors, bases and donors; `parameters` plain numbers and words.

    A run with `grad=True` also reaches tensors that require a gradient, so a direction can be fitted.
    """

    kind: str
    site: Site
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)
    positions: Positions = None
    rows: tuple[int, ...] | None = None

    def at(self, positions: Positions = None, rows: int | Sequence[int] | None = None) -> Edit:
        """The same edit, only at these token positions (int, several, slice or role name) and prompts.

        What is left out stays as it was: `.at(positions=-1).at(rows=0)` selects both.
        """
        chosen = (rows,) if isinstance(rows, int) else self.rows if rows is None else tuple(map(int, rows))
        return replace(self, positions=self.positions if positions is None else positions_of(positions), rows=chosen)

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

    `reference` is the mean itself, in the site's shape without batch and tokens, or a Trace that read the site: then
    the mean over all its prompts and real tokens.
    """
    site = _editable(site)
    value = reference if isinstance(reference, Tensor) else reference.mean(site)
    return Edit("mean", site, {"value": value})


def patch(site: str | Site, donor: Tensor | Trace) -> Edit:
    """Replace by the donor's activation at the same position (activation patching).

    `donor` is a Trace that read the site at all positions, or a tensor `[batch tokens ...]`; one donor row serves every
    prompt. Without `.at(positions=…)` every position that the donor has is patched; naming one it lacks is refused.
    """
    site = _editable(site)
    return Edit("patch", site, _donor(site, donor))


def resample(site: str | Site, donors: Tensor | Trace, seed: int = 0) -> Edit:
    """Replace each prompt's activation by that of another, randomly drawn donor row (resample ablation).

    Donor rows are drawn by one seeded cycle through them, so with the run's own prompts as donors no prompt receives
    its own activation. A donor shorter than what it must replace is refused.
    """
    site = _editable(site)
    return Edit("resample", site, _donor(site, donors), {"seed": int(seed)})


def add(site: str | Site, vector: Tensor, factor: float = 1.0) -> Edit:
    """Add `factor * vector`; the vector has the site's shape without batch and tokens."""
    return Edit("add", _editable(site), {"vector": vector}, {"factor": float(factor)})


def set_coordinate(site: str | Site, direction: Tensor, value: float) -> Edit:
    """Set the coordinate along `direction` (normalised here) to `value`, leaving the orthogonal complement alone."""
    direction = _precise(direction)
    if direction.norm() == 0:
        raise BadInput("set_coordinate needs a direction that is not zero")
    unit = direction / direction.norm()
    return Edit("set_coordinate", _editable(site), {"basis": unit.flatten()[None]}, {"value": float(value)})


def project_out(site: str | Site, directions: Tensor) -> Edit:
    """Remove the component in the span of `directions` (`[dim]` or `[rank dim]`, orthonormalised here)."""
    return Edit("project_out", _editable(site), {"basis": _orthonormal(directions)})


def swap_subspace(site: str | Site, directions: Tensor, donor: Tensor | Trace) -> Edit:
    """Replace the component in the span of `directions` by the donor's (interchange intervention)."""
    site = _editable(site)
    return Edit("swap_subspace", site, {"basis": _orthonormal(directions), **_donor(site, donor)})


def attend(site: str | Site, to: Positions = "uniform") -> Edit:
    """Force the attention rows of one head (`pattern.L.h`) or a whole layer (`pattern.L`).

    `to="uniform"` spreads each row over all keys it can see (what the published retrieval-head masking does); other
    positions (int, several, slice or role name) share the row evenly, and a row that sees none of them stays as it is.
    The head's output becomes those weights times its values; no T x T matrix is built.
    """
    site = Site.parse(site)
    if site.name != "pattern" or site.layer is None:
        raise UnknownSite(f"attend() edits pattern.LAYER or pattern.LAYER.HEAD, not {site}")
    if to is None:
        raise BadInput("attend(to=None) says nothing; give 'uniform' or positions")
    return Edit("attend", site, parameters={"to": positions_of(to)})


def _editable(site: str | Site) -> Site:
    site = Site.parse(site)
    if not site.spec.editable:
        raise UnknownSite(f"{site.name} cannot be replaced; attend() forces attention rows, and z edits their result")
    if site.spec.scope == "layer" and site.layer is None:
        raise UnknownSite(f"an edit needs one layer: write {site.name}.LAYER")
    return site


def _donor(site: Site, donor: Tensor | Trace) -> dict[str, Tensor]:
    if isinstance(donor, Tensor):
        return {"donor": donor}
    return {"donor": donor.aligned(site).detach(), "donor_lengths": donor.lengths}


def _precise(tensor: Tensor) -> Tensor:
    """In float32 or better: directions keep their angle in half precision."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _orthonormal(directions: Tensor) -> Tensor:
    """`[rank dim]` with orthonormal rows; raises BadInput when the directions are linearly dependent."""
    matrix = _precise(directions)
    matrix = matrix[None] if matrix.ndim == 1 else matrix
    singular = torch.linalg.svdvals(matrix.detach())
    if singular[-1] <= 1e-6 * singular[0] or len(matrix) > matrix.shape[1]:
        raise BadInput(f"the {len(matrix)} directions are linearly dependent (or zero)")
    return torch.linalg.qr(matrix.T).Q.T.contiguous()


def apply_edit(edit: Edit, value: Tensor, frame: Frame) -> tuple[Tensor, bool]:
    """The edited `value` `[batch width ...]` and whether anything was selected in this call."""
    chosen = select(edit.positions, edit.rows, frame)
    if "donor" in edit.tensors:
        chosen &= frame.positions < donor_lengths(edit, frame.batch).to(chosen.device)[:, None]
    if not bool(chosen.any()):
        return value, False
    head = edit.site.head
    target = value if head is None else value[:, :, head]
    chosen = chosen.to(value.device).reshape(*chosen.shape, *([1] * (target.ndim - 2)))
    new = torch.where(chosen, KINDS[edit.kind](edit, target, frame).to(value.dtype), target)
    if head is not None:
        new = torch.cat([value[:, :, :head], new[:, :, None], value[:, :, head + 1 :]], dim=2)
    return new, True


def _here(edit: Edit, name: str, value: Tensor) -> Tensor:
    return edit.tensors[name].to(device=value.device, dtype=value.dtype)


def donor_rows(edit: Edit, batch: int) -> Tensor:
    """Which donor row each prompt receives, `[batch]`."""
    donors = len(edit.tensors["donor"])
    if edit.kind != "resample":
        return torch.arange(batch) if donors > 1 else torch.zeros(batch, dtype=torch.long)
    generator = torch.Generator().manual_seed(edit.parameters["seed"])
    order = torch.randperm(donors, generator=generator)
    successor = torch.empty_like(order)
    successor[order] = order.roll(-1)
    return successor[torch.arange(batch) % donors]


def donor_lengths(edit: Edit, batch: int) -> Tensor:
    """How many positions each prompt's donor has, `[batch]`."""
    donor = edit.tensors["donor"]
    lengths = edit.tensors.get("donor_lengths", torch.full((len(donor),), donor.shape[1]))
    return lengths.cpu()[donor_rows(edit, batch)]


def _donor_here(edit: Edit, value: Tensor, frame: Frame) -> Tensor:
    """The donor's activation for every column of the call, `[batch width ...]`."""
    donor = _here(edit, "donor", value)
    rows = donor_rows(edit, frame.batch).to(value.device)
    return donor[rows[:, None], frame.positions.to(value.device).clamp(0, donor.shape[1] - 1)]


def _along(edit: Edit, value: Tensor) -> Tensor:
    """The component of `value` in the span of the edit's orthonormal basis `[rank dim]`, features flattened."""
    basis = edit.tensors["basis"].to(value.device)
    flat = value.flatten(2).to(torch.promote_types(value.dtype, basis.dtype))
    basis = basis.to(flat.dtype)
    return ((flat @ basis.T) @ basis).reshape(value.shape)


def _zero(_edit: Edit, value: Tensor, _frame: Frame) -> Tensor:
    return torch.zeros_like(value)


def _scale(edit: Edit, value: Tensor, _frame: Frame) -> Tensor:
    return value * edit.parameters["factor"]


def _mean(edit: Edit, value: Tensor, _frame: Frame) -> Tensor:
    return _here(edit, "value", value).expand_as(value)


def _patch(edit: Edit, value: Tensor, frame: Frame) -> Tensor:
    return _donor_here(edit, value, frame)


def _add(edit: Edit, value: Tensor, _frame: Frame) -> Tensor:
    return value + edit.parameters["factor"] * _here(edit, "vector", value)


def _set_coordinate(edit: Edit, value: Tensor, _frame: Frame) -> Tensor:
    unit = edit.tensors["basis"][0].to(value.device).reshape(value.shape[2:])
    return value - _along(edit, value) + edit.parameters["value"] * unit


def _project_out(edit: Edit, value: Tensor, _frame: Frame) -> Tensor:
    return value - _along(edit, value)


def _swap_subspace(edit: Edit, value: Tensor, frame: Frame) -> Tensor:
    return value + _along(edit, _donor_here(edit, value, frame) - value)


KINDS: dict[str, Callable[[Edit, Tensor, Frame], Tensor]] = {
    "zero": _zero,
    "scale": _scale,
    "mean": _mean,
    "patch": _patch,
    "resample": _patch,
    "add": _add,
    "set_coordinate": _set_coordinate,
    "project_out": _project_out,
    "swap_subspace": _swap_subspace,
}


def check_shapes(edit: Edit, features: tuple[int, ...], batch: int) -> None:
    """Refuse tensors that do not fit the site; `features` is the site's shape without batch and tokens."""
    features = features[1:] if edit.site.head is not None else features
    width = prod(features)

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


def check_donor(edit: Edit, frame: Frame) -> None:
    """Refuse donors that lack a position they are to replace.

    An open selection (none, or a slice) of a patch takes what the donor has; resampling replaces everything selected.
    """
    if edit.kind != "resample" and (edit.positions is None or isinstance(edit.positions, slice)):
        return
    lengths = donor_lengths(edit, frame.batch).to(frame.positions.device)
    missing = select(edit.positions, edit.rows, frame) & (frame.positions >= lengths[:, None])
    if bool(missing.any()):
        row, column = missing.nonzero()[0].tolist()
        raise BadInput(
            f"{edit}: the donor of prompt {row} has {int(lengths[row])} tokens, so nothing for position "
            f"{int(frame.positions[row, column])}"
        )
