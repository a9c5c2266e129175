"""Interventions as data: what to do, at which site, at which token positions and prompts.

An `Edit` is frozen and serialises (`save_edits`, `load_edits`); what it does to a tensor is in `interventions.py`.
Zero ablation depends on where a family keeps its value bias, mean ablation does not: prefer `mean`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.errors import BadInput, UnknownSite
from interp.tracing.frame import Positions, positions_of
from interp.tracing.sites import Site

if TYPE_CHECKING:
    from interp.tracing.trace import Trace


@dataclass(frozen=True, eq=False, repr=False)
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

    def __repr__(self) -> str:
        prompts = "" if self.rows is None else f", prompts {', '.join(map(str, self.rows))}"
        return f"Edit({self}{prompts})"


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
