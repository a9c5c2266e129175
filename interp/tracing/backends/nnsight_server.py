"""What a run does on a remote server: these functions travel there as source and are compiled again.

So they use torch, each other and `interventions.edited` only, and receive everything as plain data.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from interp.tracing.interventions import edited


def perform(steps: list[Any], setting: Any, tracer: Any, answer: dict[str, Tensor]) -> None:
    """The block of a remote trace: take every step, which must be in execution order, and fill `answer`.

    A step has the `envoy` and `side` where it happens, the `site` it is about and what it `does`: `"visit"` it,
    `"hold"` the value there until the site is visited, or `"narrow"` what goes on to the columns whose logits are kept.
    """
    held: dict[str, Tensor] = {}
    for step in steps:
        if step.side == "in":
            value = step.envoy.input
            new = after(step, value, setting, held, answer)
            if new is not value:
                step.envoy.input = new
        else:
            output = step.envoy.output
            several = isinstance(output, (tuple, list))
            value = output[0] if several else output
            new = after(step, value, setting, held, answer)
            if new is not value:
                step.envoy.output = type(output)((new, *output[1:])) if several else new
    if not setting.logits:
        tracer.stop()
    logits = tracer.result.logits
    for edit, chosen in setting.logit_edits:
        logits = edited(edit, logits, setting.frame, chosen)
    answer["output"] = logits.detach()


def after(step: Any, whole: Tensor, setting: Any, held: dict[str, Tensor], answer: dict[str, Tensor]) -> Tensor:
    """What the model goes on with after a step; `whole` itself when nothing changes it."""
    if step.does == "narrow":
        return at_columns(whole, setting.logit_columns)
    raw = whole.unflatten(0, (setting.frame.batch, -1)) if whole.ndim == 2 else whole
    if step.does == "hold":
        held[step.site] = raw
        return whole
    base = held.pop(step.site).to(raw.device) if step.site in held else None
    value = raw if base is None else base + raw
    value = value if step.index is None else value[..., step.index]
    new = value
    for edit, chosen in step.edits:
        new = edited(edit, new, setting.frame, chosen)
    if step.keep:
        answer[step.site] = at_columns(new, setting.columns).detach().clone()
    if new is value:
        return whole
    if step.index is not None:
        new, part = raw.clone(), new
        new[..., step.index] = part
    new = new if base is None else new - base
    return new.flatten(0, 1) if whole.ndim == 2 else new


def at_columns(value: Tensor, columns: Tensor | None) -> Tensor:
    """`value` `[batch width ...]` at `columns` `[batch kept]`; None is all of them."""
    if columns is None:
        return value
    rows = torch.arange(len(columns), device=value.device)
    return value[rows[:, None], columns.to(value.device)]
