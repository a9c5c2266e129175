"""Code that a person gives: its recovered tree beside the true one, and what the controls recover of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from interp.errors import BadInput
from interp.tables import in_notebook
from interp.tracing.model import Model
from probes.ast.corpus import Snippet
from probes.ast.decode import recovered, shaped
from probes.ast.leaves import EMBEDDING, LeafStates, leaf_states
from probes.ast.metrics import METRICS, membership
from probes.ast.probe import AstProbe
from probes.ast.result import FOLLOWING, PROBE, SHAPES, SHIFTED, UNTRAINED, WORDS, AstStudy
from probes.ast.tree import Constituent, TreeTuple
from probes.controls import untrained

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True, eq=False, repr=False)
class ReadCode:
    """One piece of code with the trees that a study's probe and its controls find in it.

    Attributes:
        snippet: the code and its true tree.
        predicted: the tree of each reader as vectors, of the probe (`"probe"`) first.
        sites: where each reader reads.
    """

    snippet: Snippet
    predicted: Mapping[str, TreeTuple]
    sites: Mapping[str, str]
    model: Mapping[str, Any]

    def __repr__(self) -> str:
        score = membership(self.recovered, self.true)
        return f"ReadCode({self.model['name']} at {self.sites[PROBE]}: F1 {score.f1:.3f} of {len(self.true)} nodes)"

    @property
    def true(self) -> list[Constituent]:
        return self.snippet.constituents

    @property
    def recovered(self) -> list[Constituent]:
        """What the probe recovers."""
        return recovered(self.predicted[PROBE])

    @property
    def words(self) -> list[str]:
        """The code of every leaf."""
        return [self.snippet.code[slice(*leaf.span)] for leaf in self.snippet.leaves]

    @property
    def frame(self) -> pd.DataFrame:
        """A row a reader: where it reads, precision, recall and F1 of its nodes, and F1 without labels."""
        rows = []
        for reader, vectors in self.predicted.items():
            said = recovered(vectors)
            score = membership(said, self.true)
            numbers = {"precision": score.precision, "recall": score.recall, "f1": score.f1}
            others = {name.replace(" ", "_"): METRICS[name](said, self.true).f1 for name in METRICS if name != "f1"}
            rows.append({"reader": reader, "site": self.sites[reader], **numbers, **others, "nodes": len(said)})
        return pd.DataFrame(rows)

    def plot(self, reader: str = PROBE) -> go.Figure:
        """The true tree beside the recovered one, line by line. Raises BadInput for a reader that is not there."""
        from interp.plots.syntax import trees

        if reader not in self.predicted:
            raise BadInput(f"{reader!r} read nothing here; valid: {', '.join(self.predicted)}")
        return trees(self.snippet, self.predicted[reader])

    def _repr_html_(self) -> str:
        return in_notebook(self, self.frame)


def read_code(
    model: Model, study: AstStudy, snippets: Sequence[Snippet], *, site: str | None = None, fresh: Model | None = None
) -> list[ReadCode]:
    """Recover the trees of some pieces of code with the probe of a site, by default the study's best.

    Beside it read the probe of the embedding, the study's controls, and the fixed shapes under the probe's labels. The
    control without training reads `fresh`, the untrained model of the study (`fresh_model`), and is left out without.
    Raises BadInput for another model than the study's and an unknown site, PromptTooLong as `leaf_states`.
    """
    require_same(model, study)
    chosen = study.probe(site or study.best)
    alignment = study.parameters["alignment"]
    states = leaf_states(model, snippets, alignment=alignment)
    read: dict[str, tuple[AstProbe, LeafStates]] = {PROBE: (chosen, states)}
    if EMBEDDING in study.probes and chosen.site != EMBEDDING:
        read[WORDS] = (study.probe(EMBEDDING), states)
    if UNTRAINED in study.controls and fresh is not None:
        read[UNTRAINED] = (study.controls[UNTRAINED], leaf_states(fresh, snippets, alignment=alignment))
    if SHIFTED in study.controls:
        read[SHIFTED] = (study.controls[SHIFTED], states.shifted())
    if FOLLOWING in study.controls:
        read[FOLLOWING] = (study.controls[FOLLOWING], leaf_states(model, snippets, alignment=alignment, following=True))
    trees = {name: probe.predict(own.of(probe.site), own.lengths) for name, (probe, own) in read.items()}
    trees |= {name: shaped(trees[PROBE], shape) for name, shape in SHAPES.items()}
    sites = {name: probe.site for name, (probe, _) in read.items()} | dict.fromkeys(SHAPES, chosen.site)
    return [
        ReadCode(each, {name: found[i] for name, found in trees.items()}, sites, study.model)
        for i, each in enumerate(snippets)
    ]


def fresh_model(model: Model, study: AstStudy) -> Model | None:
    """The untrained model that the study's control read, made again; None where it had none, or it cannot be made.

    Another version of torch may draw other weights from the same seed, in which the control's probe would find nothing.
    """
    if UNTRAINED not in study.controls:
        return None
    fresh = untrained(model, study.parameters["seed"])
    return fresh if fresh.fingerprint == study.parameters.get("untrained") else None


def require_same(model: Model, study: AstStudy) -> None:
    """Raises BadInput for another model than the one whose states the study's probes were fitted to."""
    if model.fingerprint != study.model["fingerprint"]:
        raise BadInput(
            f"the probes of this study read {study.model['name']} ({study.model['fingerprint']}), not "
            f"{model.spec.name} ({model.fingerprint})"
        )
