"""Query-focused retrieval heads (Zhang et al. 2025, "Query-Focused Retrieval Heads Improve Long-Context Reasoning and
Re-ranking").

A head scores by how much attention the query pays to the documents that answer it, over what an empty query ("N/A")
pays to the same documents. The documents' keys and values are computed once for both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from interp.errors import BadInput
from interp.heads.scores import HeadScores, model_record
from interp.tasks.bundled import bundled_needles, filler_sentence
from interp.tasks.prompts import PromptSet
from interp.tracing.model import Model
from interp.tracing.plan import RowFold
from interp.tracing.prefix import Prefix
from kernels.rows import AttentionRows

INTRODUCTION = "Here are some paragraphs:\n\n"
INSTRUCTION = "Please find information that are relevant to the following query in the paragraphs above.\n\nQuery: "
NO_QUERY = "N/A"


@dataclass(frozen=True)
class Instance:
    """A query, documents to find its answer in, and the indices of those that hold it."""

    query: str
    documents: tuple[str, ...]
    gold: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.gold or not all(0 <= g < len(self.documents) for g in self.gold):
            raise BadInput(f"gold documents {self.gold} are not among the {len(self.documents)} documents")


def qrhead_scores(
    model: Model,
    instances: Sequence[Instance],
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> HeadScores:
    """QRScore of every head: calibrated attention of the query on the gold documents of each instance."""
    if not instances:
        raise BadInput("QRHead needs at least one instance")
    samples, rows = [], []
    for i, instance in enumerate(instances):
        by_document = document_scores(model, instance)
        samples.append(by_document[list(instance.gold)].sum(0))
        best = by_document.sum((1, 2)).argmax()
        rows.append({"query": instance.query, "gold": list(instance.gold), "best": int(best), "passed": True})
        if progress:
            progress(i + 1, len(instances))
    return HeadScores(
        method="qrhead",
        samples=np.stack(samples),
        tests=pd.DataFrame(rows),
        model=model_record(model),
        parameters={"instances": len(instances)},
        seed=seed,
    )


def document_scores(model: Model, instance: Instance) -> np.ndarray:
    """Calibrated attention mass on each document, `[document layer head]`.

    Tokens whose calibrated attention lies two standard deviations below their document's mean are left out, as
    published.
    """
    asked, empty = (_prompt(model, instance, query) for query in (instance.query, NO_QUERY))
    shared = _shared(asked.tokens[0], empty.tokens[0])
    prefix = model.prefill(list(asked.tokens[0][:shared]))
    attention = _query_attention(model, asked, prefix) - _query_attention(model, empty, prefix)
    scores = []
    for i in range(len(instance.documents)):
        start, end = asked.spans[f"document {i}"][0]
        part = attention[:, :, start:end]
        floor = part.mean(-1, keepdim=True) - 2 * part.std(-1, correction=0, keepdim=True)
        scores.append(torch.where(part > floor, part, 0.0).sum(-1))
    return torch.stack(scores).double().numpy()


def rank_documents(model: Model, instance: Instance, heads: Sequence[tuple[int, int]]) -> list[int]:
    """Documents by the calibrated attention of `heads`, most relevant first (QRRetriever)."""
    layers, in_layer = zip(*heads, strict=True)
    relevance = document_scores(model, instance)[:, list(layers), list(in_layer)].sum(-1)
    return [int(i) for i in np.argsort(-relevance, kind="stable")]


def bundled_instances(n: int, documents: int = 6, sentences: int = 4, seed: int = 0) -> list[Instance]:
    """Queries over bundled filler: each document hides one needle, one of them the needle that is asked for."""
    rng = Random(f"qrhead {seed}")
    instances = []
    for i in range(n):
        needles = bundled_needles(seed=rng.randrange(2**31), n=documents)
        texts = []
        for needle in needles:
            lines = [filler_sentence(rng) for _ in range(sentences)]
            lines.insert(rng.randrange(sentences + 1), needle.needle)
            texts.append(" ".join(lines))
        gold = i % documents
        asked = needles[gold]
        instances.append(Instance(f"What is the {asked.attribute} of {asked.key}?", tuple(texts), (gold,)))
    return instances


def _prompt(model: Model, instance: Instance, query: str) -> PromptSet:
    text = INTRODUCTION
    spans: dict[str, list[tuple[int, int]]] = {}
    for i, document in enumerate(instance.documents):
        text += f"[{i + 1}] "
        spans[f"document {i}"] = [(len(text), len(text) + len(document))]
        text += f"{document}\n\n"
    spans["query"] = [(len(text), len(text) + len(INSTRUCTION) + len(query))]
    return PromptSet.build(model.tokenizer, [f"{text}{INSTRUCTION}{query}"], spans=spans)


def _shared(a: Sequence[int], b: Sequence[int]) -> int:
    """Common leading tokens, leaving at least one to compute in each."""
    limit = min(len(a), len(b)) - 1
    return next((i for i in range(limit) if a[i] != b[i]), limit)


def _query_attention(model: Model, prompt: PromptSet, prefix: Prefix) -> Tensor:
    """Attention of the query's tokens on what comes before the query, averaged over them, `[layer head key]`."""
    start, end = prompt.spans["query"][0]
    own = prefix.crop(min(len(prefix), start))
    fold = RowFold("mass", _mass)
    trace = model.run(list(prompt.tokens[0]), read=fold, positions=slice(start, end), prefix=own)
    layers = range(model.spec.layers)
    return torch.stack([trace.folds["mass"][layer] for layer in layers])[..., :start].cpu() / (end - start)


def _mass(rows: AttentionRows, _positions: Tensor, _layer: int) -> Tensor:
    return rows.pattern[0].sum(1)
