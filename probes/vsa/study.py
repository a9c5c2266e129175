"""The whole study: states, encoders, decoders and baselines on held-out prompts, with intervals."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from interp.errors import BadInput, UnreadableFile, choose
from interp.heads.scores import model_record
from interp.runs import Run, load_run, save_run
from interp.stats import bootstrap_means
from interp.tables import in_notebook
from interp.tasks.analogies import ROLE, Structure, structures
from interp.tasks.prompts import PromptSet
from interp.tracing.batch import encode
from interp.tracing.model import Model
from probes.activations import collect
from probes.vsa.algebra import DIMENSIONS, MAP, Algebra
from probes.vsa.baselines import linear_probe, logit_scores, majority
from probes.vsa.codebook import ACCEPTED, Codebook, chance_cosine, ranks
from probes.vsa.decode import by_key, from_text, mentioned, oracle, unbound
from probes.vsa.encoder import STANDARD, Encoder, Examples, Training, linear_encoders, train_encoders
from probes.vsa.ingestion import ingest, upper_half
from probes.vsa.splits import By, Split, split
from probes.vsa.states import States, answer_states

if TYPE_CHECKING:
    import plotly.graph_objects as go

KIND = "hyperdimensional-probe"
Encoding = Literal["pairs", "roles"]
"""What is bound: concepts to each other, as in the paper, or each to its role, which generalises to unseen pairs."""
TOP = (1, 3, 5)
DRAWS = 5
"""Random codebooks that chance is estimated with."""
COLUMNS = frozenset(
    ("method", "moment", "ingestion", "encoder", "decoder", "needs", "subset", "metric", "value", "low", "high", "n")
)
NEEDS = {
    "oracle": "target",
    "key": "structure",
    "role": "schema",
    "uncentred": "structure",
    "last": "text",
    "new": "text",
}
"""What a decoder must be told. Only the oracle looks at the target; a schema is the same for every prompt."""


@dataclass(frozen=True, eq=False, repr=False)
class HyperdimensionalProbe:
    """Encoders with everything measured on held-out prompts.

    `frame` has a row for every method, moment, ingestion, encoder, decoder, subset (`all`, and by whether the model's
    own answer was `right` or `wrong`) and metric. The decoder `uncentred` is that of the structure on the hypervectors
    as published (`Encoder.uncentred`), of which cosine and binary accuracy are, too. `encoders` are by kind, moment and
    ingestion (`"linear/before/clusters"`). `chance` is the cosine that the best hit in a random codebook exceeds in 1 %
    of cases.
    """

    frame: pd.DataFrame
    codebook: Codebook
    encoders: Mapping[str, Encoder]
    split: Split
    chance: float
    model: Mapping[str, Any]
    parameters: Mapping[str, Any]
    seed: int = 0

    def __repr__(self) -> str:
        counts = f"{len(self.split.train)} training and {len(self.split.test)} test prompts"
        return f"HyperdimensionalProbe({self.model['name']}: {self.codebook!r}, {counts})"

    def _repr_html_(self) -> str:
        return in_notebook(self, self.summary())

    def summary(self, subset: str = "all") -> pd.DataFrame:
        """One row a method, one column a metric. Raises BadInput for a subset that is not there."""
        if subset not in set(self.frame.subset):
            raise BadInput(f"there is no subset {subset!r}; {choose(subset, self.frame.subset.unique())}")
        rows = self.frame[self.frame.subset == subset]
        names = ["method", "moment", "ingestion", "encoder", "decoder", "needs", "n"]
        return rows.pivot_table(index=names, columns="metric", values="value", sort=False).reset_index()

    def encoder(self, name: str) -> Encoder:
        """An encoder by kind, moment and ingestion; raises BadInput naming the others."""
        if name not in self.encoders:
            raise BadInput(f"there is no encoder {name!r}; {choose(name, self.encoders)}")
        return self.encoders[name]

    def keeping(self, names: Sequence[str]) -> HyperdimensionalProbe:
        """The same study with only the named encoders, to be smaller on disk. Raises BadInput as `encoder`."""
        return replace(self, encoders={name: self.encoder(name) for name in names})

    def decode(
        self, model: Model, texts: str | Sequence[str], encoder: str, queries: Sequence[str] = (), top: int = 3
    ) -> pd.DataFrame:
        """What the state of a text holds: the `top` concepts after unbinding each query, with their cosines.

        Of several texts, the column `text` numbers them. Queries are by default the roles of the codebook, or else the
        concepts that the text mentions, and nothing is unbound where it mentions none. The state is that of the text's
        last token; an encoder of the moment `after` reads the last token of what the model goes on to say. `random` is
        the cosine that the place has in random codebooks, `beyond` whether the cosine exceeds what 99 % of their best
        hits stay below. Raises BadInput for another model, an unknown encoder and no texts, and as `Model.run`.
        """
        if model.fingerprint != self.model["fingerprint"]:
            raise BadInput(
                f"this probe reads {self.model['name']} ({self.model['fingerprint']}), not {model.spec.name} "
                f"({model.fingerprint})"
            )
        fitted = self.encoder(encoder)
        _, moment, ingestion = encoder.split("/")
        given = [texts] if isinstance(texts, str) else list(texts)
        rows = [list(row) for row in encode(given, model.tokenizer).rows]
        if moment == "after":
            length = self.parameters.get("answer_tokens", 1)
            rows = [row + list(model.generate([row], max_new_tokens=length).tokens[0]) for row in rows]
        states = collect(model, rows, upper_half(model.spec))
        predicted = fitted(next(iter(ingest(states, (ingestion,), self.seed).values())))
        others = [self.codebook.random(draw) for draw in range(DRAWS)]
        roles = [name for name in self.codebook.concepts if name.startswith(ROLE)]
        found = []
        for number, (text, vector) in enumerate(zip(given, predicted, strict=True)):
            asked = queries or roles or mentioned(text, self.codebook)
            found += [{"text": number, **row} for row in self._concepts(vector, asked, top, others)]
        frame = pd.DataFrame(found)
        return frame.drop(columns="text") if isinstance(texts, str) else frame

    def _concepts(
        self, vector: Tensor, asked: Sequence[str], top: int, others: Sequence[Codebook]
    ) -> Iterator[dict[str, Any]]:
        """The rows of one hypervector `[dimensions]`; `others` are random codebooks."""
        top = min(top, len(self.codebook))
        queries: list[tuple[str, ...]] = [(name,) for name in asked] or [()]
        for query in queries:
            best = unbound(vector, query, self.codebook).topk(top)
            random = torch.stack([unbound(vector, query, other).topk(top).values for other in others]).mean(0)
            for place, (cosine, i) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True)):
                found = {"query": "".join(query), "concept": self.codebook.concepts[i], "cosine": cosine}
                yield {**found, "random": float(random[place]), "beyond": cosine > self.chance}

    def plot(self) -> go.Figure:
        """Precision at 1, 3 and 5 of every method, with intervals."""
        from interp.plots.vsa import precision_bars

        return precision_bars(self.frame, self.title)

    @property
    def title(self) -> str:
        """Model and prompts."""
        task, source = (str(self.parameters.get(name, "")) for name in ("task", "source"))
        return " ".join(filter(None, [f"{self.model['name']},", task or "prompts", source and f"({source})"]))

    def save(self, path: str | Path, started: datetime | None = None, *, half: bool = False) -> Run:
        """Write a run folder with the encoders in it; `half` keeps their weights in half precision."""
        arrays = {key: value for name, one in self.encoders.items() for key, value in one.arrays(name, half).items()}
        sides = {f"split.{side}": getattr(self.split, side) for side in ("train", "validation", "test")}
        about = {
            "concepts": list(self.codebook.concepts),
            "codebook_seed": self.codebook.seed,
            "chance_cosine": self.chance,
            "dropped": self.split.dropped,
            "encoders": {name: [one.cosine, one.epochs] for name, one in self.encoders.items()},
        }
        return save_run(
            path,
            kind=KIND,
            parameters={**self.parameters, **about},
            model=self.model,
            seed=self.seed,
            frame=self.frame,
            arrays={**arrays, **sides},
            started=started,
        )

    @classmethod
    def load(cls, path: str | Path) -> HyperdimensionalProbe:
        """Read what `save` wrote. Raises UnreadableFile, and BadInput for a run of another kind."""
        run = load_run(path, KIND)
        about = dict(run.record.parameters)
        try:
            given = (about["algebra"], about["dimensions"], about.pop("codebook_seed"))
            codebook = Codebook(tuple(about.pop("concepts")), Algebra(given[0]), *given[1:])
            fits, dropped, chance = about.pop("encoders"), about.pop("dropped"), about.pop("chance_cosine")
            encoders = {name: Encoder.from_run(name, run, codebook, *fit) for name, fit in fits.items()}
        except (KeyError, TypeError, AttributeError) as error:
            raise UnreadableFile(f"{path} does not say what its encoders and codebook are ({error!r})") from error
        if missing := sorted(COLUMNS - set(run.frame)):
            raise UnreadableFile(f"the table of {path} lacks {', '.join(missing)}")
        train, validation, test = (run.array(f"split.{side}", None) for side in ("train", "validation", "test"))
        sides = Split(train, validation, test, dropped)
        return cls(run.frame, codebook, encoders, sides, chance, run.record.model, about, run.record.seed)


def hyperdimensional_probe(
    model: Model,
    prompts: PromptSet,
    *,
    encoding: Encoding = "pairs",
    by: By = "combination",
    ingestions: Sequence[str] = ("clusters",),
    moments: Sequence[str] = ("before",),
    algebra: Algebra = MAP,
    dimensions: int = DIMENSIONS,
    training: Training | None = STANDARD,
    accepted: float = ACCEPTED,
    about: Mapping[str, Any] = MappingProxyType({}),
    seed: int = 0,
    chunk: int = 32,
    progress: Callable[[int, int], None] | None = None,
) -> HyperdimensionalProbe:
    """Fit encoders on the hidden states of prompts with a known structure, and judge them on held-out ones.

    With `training=None` only the linear encoder is fitted. `about` is kept with the parameters, such as the `task` and
    `source` of the prompts. Pairs that were bound in no training prompt (`by="pair"`)
    cannot be told by an encoder of `"pairs"`: the hypervector of such a pair is unlike all it was trained on, so only
    `"roles"` can generalise to them. Raises BadInput, before any forward pass where it can be known.
    """
    if encoding not in ("pairs", "roles"):
        raise BadInput(f"structures are encoded by 'pairs' or by 'roles', not {encoding!r}")
    said = structures(prompts)
    coded = tuple(each.by_roles for each in said) if encoding == "roles" else said
    sides = split(said, by, seed)
    codebook = Codebook.of(coded, algebra, dimensions, seed)
    targets = torch.stack([codebook.encode(each) for each in coded])
    states = answer_states(model, prompts, tuple(ingestions), tuple(moments), seed=seed, chunk=chunk, progress=progress)
    named = {"/".join(name): value for name, value in states.vectors.items()}
    data = Examples(named, targets, sides.train, sides.validation)
    encoders = {f"linear/{name}": one for name, one in linear_encoders(data, algebra).items()}
    if training is not None:
        encoders |= {f"network/{name}": one for name, one in train_encoders(data, algebra, training, progress).items()}
    judge = _Judge(model, prompts, coded, codebook, targets, sides, states, accepted)
    frame = pd.DataFrame([*judge.encoders(encoders), *judge.baselines(chunk)])
    predicted = next(iter(encoders.values()))(next(iter(named.values()))[sides.test])
    parameters = {
        "prompts": prompts.hash,
        "n": len(prompts),
        "encoding": encoding,
        "by": by,
        "ingestions": list(ingestions),
        "moments": list(moments),
        "algebra": algebra.name,
        "dimensions": dimensions,
        "accepted": accepted,
        "training": None if training is None else training.as_dict(),
        "model_right": float(states.right[sides.test].mean()),
        "targets_seen": judge.seen,
        "answer_tokens": max(map(len, prompts.answer_tokens)),
        "example": {"text": prompts.texts[sides.test[0]], **said[sides.test[0]].metadata},
        **about,
    }
    chance = chance_cosine(codebook, judge.queried(predicted))
    return HyperdimensionalProbe(frame, codebook, encoders, sides, chance, model_record(model), parameters, seed)


@dataclass(frozen=True, eq=False)
class _Judge:
    """The test prompts, and the rows that every method earns on them."""

    model: Model
    prompts: PromptSet
    structures: Sequence[Structure]
    codebook: Codebook
    targets: Tensor
    split: Split
    states: States
    accepted: float

    @property
    def asked(self) -> list[Structure]:
        return [self.structures[i] for i in self.split.test]

    @property
    def wanted(self) -> list[int]:
        """The row of each test target in the codebook."""
        return [self.codebook.index(each.target) for each in self.asked]

    @property
    def seen(self) -> float:
        """The share of test prompts whose target is a target in training too; no probe can name another."""
        known = {self.structures[i].target for i in self.split.train}
        return float(np.mean([each.target in known for each in self.asked]))

    @property
    def by_roles(self) -> bool:
        return any(name.startswith(ROLE) for name in self.codebook.concepts)

    def queried(self, predicted: Tensor) -> Tensor:
        """The predicted hypervectors with the target's key unbound."""
        unbound_rows = [
            row if each.key is None else self.codebook.algebra.unbind(row, self.codebook[each.key])
            for row, each in zip(predicted, self.asked, strict=True)
        ]
        return torch.stack(unbound_rows)

    def encoders(self, encoders: Mapping[str, Encoder]) -> Iterator[dict[str, Any]]:
        """Every encoder with every decoder that fits its encoding."""
        test = self.split.test
        truth = self.codebook.algebra.components(self.targets[test])
        for name, encoder in encoders.items():
            kind, moment, ingestion = name.split("/")
            states = self.states.vectors[moment, ingestion][test]
            predicted, published = encoder(states), encoder.uncentred(states)
            own = self.codebook.algebra.components(published)
            about = {"method": "hypervector", "moment": moment, "ingestion": ingestion, "encoder": kind}
            quality = {"cosine": torch.cosine_similarity(own, truth, dim=-1)}
            if self.codebook.algebra.binary:
                quality["binary_accuracy"] = (own == truth).float().mean(-1)
            yield from self.rows({**about, "decoder": "", "needs": ""}, quality)
            plain = ("uncentred", by_key(published, self.asked, self.codebook))
            for decoder, cosines in (*self.decoded(predicted), plain):
                reached = {"accepted": (cosines.max(-1).values >= self.accepted).float()}
                yield from self.rows(
                    {**about, "decoder": decoder, "needs": NEEDS[decoder]}, {**self.precisions(cosines), **reached}
                )
            chance = [by_key(predicted, self.asked, self.codebook.random(draw)) for draw in range(DRAWS)]
            each = [self.precisions(cosines) for cosines in chance]
            mean = {metric: torch.stack([one[metric] for one in each]).mean(0) for metric in each[0]}
            yield from self.rows({**about, "method": "random codebook", "decoder": "", "needs": ""}, mean)

    def decoded(self, predicted: Tensor) -> Iterator[tuple[str, Tensor]]:
        yield "role" if self.by_roles else "key", by_key(predicted, self.asked, self.codebook)
        if not self.by_roles:
            texts = [self.prompts.texts[i] for i in self.split.test]
            for choice in ("last", "new"):
                yield choice, from_text(predicted, texts, self.codebook, choice, self.accepted)
        yield "oracle", oracle(predicted, self.asked, self.codebook)

    def baselines(self, chunk: int) -> Iterator[dict[str, Any]]:
        """The model's own next token, direct logit attribution, a plain linear probe, the commonest target."""
        test, concepts = self.split.test, self.codebook.concepts
        targets = [each.target for each in self.structures]
        nothing = {"moment": "before", "ingestion": "", "encoder": "", "decoder": "", "needs": ""}
        own, attributed = logit_scores(self.model, self.prompts.select(test.tolist()), concepts, chunk)
        yield from self.rows({"method": "next token", **nothing}, self.precisions(own))
        yield from self.rows({"method": "DLA", **nothing}, self.precisions(attributed))
        for (moment, ingestion), vectors in self.states.vectors.items():
            about = {**nothing, "moment": moment, "ingestion": ingestion}
            scores = linear_probe(vectors, targets, self.split.train, test, concepts)
            yield from self.rows({"method": "linear probe", **about}, self.precisions(scores))
        constant = self.codebook.algebra.bundle(self.targets[self.split.train])
        same = self.codebook.algebra.components(constant)[None]
        truth = self.codebook.algebra.components(self.targets[test])
        always = {"cosine": torch.cosine_similarity(same, truth, dim=-1)}
        if self.codebook.algebra.binary:
            always["binary_accuracy"] = (same == truth).float().mean(-1)
        yield from self.rows({"method": "constant hypervector", **nothing}, always)
        often = majority(targets, self.split.train, len(test), concepts)
        yield from self.rows({"method": "commonest target", **nothing}, self.precisions(often))

    def precisions(self, scores: Tensor) -> dict[str, Tensor]:
        place = ranks(scores, self.wanted)
        return {f"precision@{k}": (place < k).float() for k in TOP}

    def rows(self, about: Mapping[str, Any], values: Mapping[str, Tensor]) -> Iterator[dict[str, Any]]:
        """A row a subset and metric, with the bootstrap interval over prompts."""
        samples = torch.stack(list(values.values()), 1).double().numpy()
        right = self.states.right[self.split.test]
        for subset, rows in (("all", np.ones_like(right)), ("right", right), ("wrong", ~right)):
            if rows.any():
                low, high = bootstrap_means(samples[rows])
                for i, metric in enumerate(values):
                    measured = {"value": samples[rows, i].mean(), "low": low[i], "high": high[i], "n": int(rows.sum())}
                    yield {**about, "subset": subset, "metric": metric, **measured}
