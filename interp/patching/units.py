"""What is patched: the layers, positions, heads or neurons of a site, as data, checked against model and prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from math import prod
from typing import Literal, NamedTuple, get_args

from interp.errors import BadInput, UnknownSite, choose
from interp.tasks.prompts import PromptSet
from interp.tracing.frame import check_positions
from interp.tracing.model import Model
from interp.tracing.plan import check_site, features
from interp.tracing.sites import SITES, Site, expand

By = Literal["layer", "position", "head", "head_position", "neuron"]
Direction = Literal["denoise", "noise"]


class Unit(NamedTuple):
    """One thing to patch; None where it is not told apart."""

    site: str
    layer: int
    head: int | None = None
    position: int | str | None = None
    neuron: int | None = None


def check_choices(by: str, direction: str) -> None:
    """Raise BadInput for an axis or a direction that does not exist."""
    for value, what, valid in ((by, "by", get_args(By)), (direction, "direction", get_args(Direction))):
        if value not in valid:
            raise BadInput(f"{what}={value!r} does not exist; {choose(value, valid)}")


def patching_units(
    model: Model, pairs: PromptSet, site: str, by: By, positions: Sequence[int | str], neurons: Sequence[int]
) -> tuple[Unit, ...]:
    """Every unit in layer order; raises UnknownSite, SiteUnavailable and BadInput for what is not there."""
    sites = expand(site, model.spec.layers)
    for each in sites:
        _check(model, each, by)
    if isinstance(positions, (int, str)):
        raise BadInput(f"positions={positions!r}: give a list of token positions or role names")
    for position in positions:
        check_positions(position, None, [len(row) for row in pairs.tokens], pairs.spans)
    if neurons and by != "neuron":
        raise BadInput(f"neurons={list(neurons)} can be chosen when patching by='neuron', not by={by!r}")
    return tuple(unit for each in sites for unit in _units(model, each, by, positions or _all(pairs, by), neurons))


def _check(model: Model, site: Site, by: By) -> None:
    if site.layer is None or not site.spec.editable:
        valid = [spec.name for spec in SITES.values() if spec.scope == "layer" and spec.editable]
        hint = "; the embedding is resid_pre.0" if site.name == "embed" else ""
        raise UnknownSite(f"{site} cannot be patched by layer; {choose(site.name, valid)}{hint}")
    check_site(site, model.spec, model.refusals)
    if by in ("head", "head_position") and site.spec.heads is None:
        valid = [spec.name for spec in SITES.values() if spec.heads and spec.editable]
        raise BadInput(
            f"{site.name} is not split by head, so it cannot be patched by={by!r}; {choose(site.name, valid)}"
        )
    if site.head is not None and by not in ("head", "head_position"):
        raise BadInput(f"{site} is one head; patch it by='head' or 'head_position', or name the site without the head")


def _all(pairs: PromptSet, by: By) -> Sequence[int]:
    """Every token position, where positions are told apart."""
    if by not in ("position", "head_position"):
        return ()
    lengths = {len(row) for row in pairs.tokens}
    if len(lengths) > 1:
        roles = f"; their roles are {', '.join(pairs.spans)}" if pairs.spans else ""
        raise BadInput(
            f"the prompts have {min(lengths)} to {max(lengths)} tokens, so token positions do not correspond: name "
            f"the positions to patch, by role or from the end{roles}"
        )
    return range(lengths.pop())


def _units(model: Model, site: Site, by: By, positions: Sequence[int | str], neurons: Sequence[int]) -> Iterator[Unit]:
    assert site.layer is not None
    count = model.spec.kv_heads if site.spec.heads == "kv" else model.spec.heads
    heads: Sequence[int] = range(count) if site.head is None else (site.head,)
    if by == "layer":
        yield Unit(site.name, site.layer)
    elif by == "position":
        yield from (Unit(site.name, site.layer, position=position) for position in positions)
    elif by == "head":
        yield from (Unit(site.name, site.layer, head) for head in heads)
    elif by == "head_position":
        yield from (Unit(site.name, site.layer, head, position) for head, position in product(heads, positions))
    else:
        width = prod(features(site, model.spec))
        for neuron in neurons:
            if not 0 <= neuron < width:
                raise BadInput(f"neuron {neuron} of {site} does not exist; it has neurons 0 to {width - 1}")
        yield from (Unit(site.name, site.layer, neuron=neuron) for neuron in neurons or range(width))


def position_labels(
    model: Model, pairs: PromptSet, units: Sequence[Unit], together: Sequence[int | str]
) -> tuple[str, ...]:
    """The positions that were patched, in order: a role's name, or a position with the token all prompts have there."""
    places = list(dict.fromkeys(unit.position for unit in units if unit.position is not None)) or list(together)
    return tuple(place if isinstance(place, str) else _label(model, pairs, place) for place in places)


def _label(model: Model, pairs: PromptSet, position: int) -> str:
    tokens = {row[position] for row in pairs.tokens}
    if len(tokens) > 1 or model.tokenizer is None:
        return str(position)
    return f"{position} {model.tokenizer.decode([tokens.pop()])!r}"
