"""Responses sampled from a model, many to each question, whole or resumed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from interp.errors import BadInput
from interp.heads.scores import model_record
from interp.runs import Journal, require_free
from interp.tasks.problems import Problems
from interp.tracing.batch import check_length, encode
from interp.tracing.generation import Sampling
from interp.tracing.model import Model
from probes.traces import Experience, Response


def collect(
    model: Model,
    task: Problems,
    n_samples: int = 16,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    max_new_tokens: int = 256,
    batch_size: int = 32,
    seed: int = 0,
    path: str | Path | None = None,
    resume: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Experience:
    """Sample `n_samples` responses to every question, and find and check their answers.

    A batch holds samples of one question, and its seed follows from `seed`, the question and the number of its first
    sample: neither other questions, nor their order, nor an interruption changes a response. With `path` the traces
    become a run there, and `resume=True` goes on where an interrupted one stopped. `progress` is called with (responses
    there, responses in all). Raises BadInput, PromptTooLong, UnwritableOutput: before the first response.
    """
    if n_samples < 1 or batch_size < 1:
        raise BadInput(f"n_samples={n_samples}, batch_size={batch_size}: both must be at least 1")
    if temperature == 0 and n_samples > 1:
        raise BadInput("at temperature 0 all samples of a question are the same; give a temperature above 0")
    Sampling(max_new_tokens, temperature, top_k, top_p, seed, task.stop)
    if model.tokenizer is None:
        raise BadInput("prompts and answers are texts, and this model has no tokenizer")
    if not model.parts.architecture.causal:
        raise BadInput(f"{model.spec.name} is an encoder and cannot generate")
    prompts = encode(list(task.prompts), model.tokenizer)
    check_length(prompts, model.spec.context, max_new_tokens)
    record, started = model_record(model), datetime.now(timezone.utc)
    parameters = {
        "task": task.name,
        "problems": task.hash,
        "n_samples": n_samples,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "max_new_tokens": max_new_tokens,
        "batch_size": batch_size,
    }
    about: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "stop": task.stop}
    batches = [
        (number, first, min(batch_size, n_samples - first))
        for number in range(len(task))
        for first in range(0, n_samples, batch_size)
    ]

    def sample(number: int, first: int, count: int) -> dict[str, Any]:
        rows = [list(prompts.rows[number])] * count
        drawn = batch_seed(seed, task.questions[number], first)
        generation = model.generate(rows, max_new_tokens=max_new_tokens, seed=drawn, **about)
        means = [float(np.mean(each)) for each in generation.log_probabilities]
        return {"tokens": generation.tokens, "log_probability": means}

    def sampled(journal: Journal | None) -> Iterator[Response]:
        done: Mapping[str, Any] = journal.done if journal else {}
        finished = 0
        for number, first, count in batches:
            key = f"{number}/{first}"
            batch = done[key] if key in done else sample(number, first, count)
            if journal is not None and key not in done:
                journal.append(key, batch)
            finished += count
            if progress:
                progress(finished, len(task) * n_samples)
            for tokens, log_probability in zip(batch["tokens"], batch["log_probability"], strict=True):
                answer = task.answer(model.tokenizer.decode(tokens, skip_special_tokens=True))
                yield Response(
                    task.questions[number],
                    tuple(prompts.rows[number]),
                    tuple(tokens),
                    answer,
                    task.is_right(number, answer),
                    log_probability,
                )

    def experience(journal: Journal | None) -> Experience:
        return Experience(tuple(sampled(journal)), task.delimiters, record, parameters, seed)

    if path is None:
        return experience(None)
    require_free(path)
    with Journal(Journal.beside(path), {**parameters, "model": record["fingerprint"], "seed": seed}, resume) as journal:
        found = experience(journal)
    found.save(path, started)
    journal.discard()
    return found


def batch_seed(seed: int, question: str, first: int) -> int:
    """The seed of the batch of a question's samples from number `first` on."""
    return int.from_bytes(hashlib.sha256(f"{seed}|{question}|{first}".encode()).digest()[:4], "little")
