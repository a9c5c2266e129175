"""What an `Edit` does to the activation at its site, and whether its tensors fit there."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import torch
from torch import Tensor

from interp.errors import BadInput
from interp.tracing.edits import Edit
from interp.tracing.frame import Frame, select


def apply_edit(edit: Edit, value: Tensor, frame: Frame) -> tuple[Tensor, bool]:
    """The edited `value` `[batch width ...]` and whether anything was selected in this call."""
    chosen = selected(edit, frame)
    hit = bool(chosen.any())
    return (edited(edit, value, frame, chosen) if hit else value), hit


def selected(edit: Edit, frame: Frame) -> Tensor:
    """Columns of the call where the edit acts, `[batch width]` bool."""
    chosen = select(edit.positions, edit.rows, frame)
    if "donor" in edit.tensors:
        chosen &= frame.positions < donor_lengths(edit, frame.batch).to(chosen.device)[:, None]
    return chosen


def edited(edit: Edit, value: Tensor, frame: Frame, chosen: Tensor) -> Tensor:
    """`value` `[batch width ...]` with the edit made at the `chosen` columns.

    What it uses travels to remote servers as source (`backends/nnsight_remote.py`), so it is plain functions of torch.
    """
    head = edit.site.head
    target = value if head is None else value[:, :, head]
    chosen = chosen.to(value.device).reshape(*chosen.shape, *([1] * (target.ndim - 2)))
    new = torch.where(chosen, KINDS[edit.kind](edit, target, frame).to(value.dtype), target)
    if head is not None:
        new = torch.cat([value[:, :, :head], new[:, :, None], value[:, :, head + 1 :]], dim=2)
    return new


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
