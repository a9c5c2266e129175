"""Probes fitted to all examples and kept in a run: directions to look at, to steer along, and to read a text with.

They are small beside the activations they were fitted to: one vector a site for two classes, else one a class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from interp.errors import UnreadableFile
from interp.runs import Run
from probes.cross_validation import CrossValidation
from probes.linear import LinearProbe, fit_probes


@dataclass(frozen=True, eq=False)
class Directions:
    """The probes of one data set's labels on one model, by site; `series` says which labels: "probe", or "control"."""

    model: str
    dataset: str
    series: str
    probes: Mapping[str, LinearProbe]


def fit_directions(
    features: Mapping[str, np.ndarray],
    labels: Sequence[Any] | np.ndarray,
    judged: CrossValidation,
    name: str,
) -> dict[str, LinearProbe]:
    """One probe a site on all examples, each as strong as most folds of the label set `name` of `judged` chose.

    Empty for a given estimator, which need not be linear. Weights are float32.
    """
    if judged.spec.estimator is not None:
        return {}
    found = {}
    for site in judged.sites:
        probe = fit_probes({site: features[site]}, labels, judged.strength(name, site), judged.spec)[site]
        weight, bias = probe.weight.astype(np.float32), probe.bias.astype(np.float32)
        found[site] = LinearProbe(site, weight, bias, np.array([str(each) for each in probe.classes]), probe.strength)
    return found


def packed(directions: Sequence[Directions]) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """What a run's parameters and its arrays hold of directions: `weight.NUMBER.SITE` `[output feature]`, `bias…`."""
    records: list[dict[str, Any]] = []
    arrays: dict[str, np.ndarray] = {}
    for number, each in enumerate(directions):
        about: dict[str, Any] = {"model": each.model, "dataset": each.dataset, "series": each.series}
        about["strengths"] = {site: probe.strength for site, probe in each.probes.items()}
        about["classes"] = [str(label) for label in next(iter(each.probes.values())).classes]
        records.append(about)
        for site, probe in each.probes.items():
            arrays |= {f"weight.{number}.{site}": probe.weight, f"bias.{number}.{site}": probe.bias}
    return records, arrays


def unpacked(run: Run) -> tuple[Directions, ...]:
    """The directions of a run, none where it keeps none. Raises UnreadableFile."""
    found = []
    try:
        for number, about in enumerate(run.record.parameters.get("directions", ())):
            classes = np.array([str(label) for label in about["classes"]])
            outputs = 1 if len(classes) == 2 else len(classes)
            probes = {
                site: LinearProbe(
                    site,
                    run.array(f"weight.{number}.{site}", outputs, None),
                    run.array(f"bias.{number}.{site}", outputs),
                    classes,
                    float(strength),
                )
                for site, strength in about["strengths"].items()
            }
            found.append(Directions(str(about["model"]), str(about["dataset"]), str(about["series"]), probes))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UnreadableFile(f"{run.path} does not say which probes it keeps: {error!r}") from error
    return tuple(found)
