"""Responses sampled from a model, many to each question, whole or resumed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
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


@dataclass(frozen=True)
class _Batch:
    """Samples `first` to `first + count` of the problem `number`."""

    number: int
    first: int
    count: int

    @property
    def key(self) -> str:
        return f"{self.number}/{self.first}"


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
    sampling = Sampling(max_new_tokens, temperature, top_k, top_p, seed, task.stop)
    prompts = _prompts(model, task, max_new_tokens)
    if path is not None:
        require_free(path)
    record, started = model_record(model), datetime.now(timezone.utc)
    settings = {name: value for name, value in asdict(sampling).items() if name not in ("seed", "stop")}
    parameters = {
        "task": task.name,
        "problems": task.hash,
        "n_samples": n_samples,
        "batch_size": batch_size,
        **settings,
    }
    batches = [
        _Batch(number, first, min(batch_size, n_samples - first))
        for number in range(len(task))
        for first in range(0, n_samples, batch_size)
    ]
    identity = {**parameters, "model": record["fingerprint"], "seed": seed}
    with nullcontext() if path is None else Journal(Journal.beside(path), identity, resume) as journal:
        done: dict[str, Any] = {} if journal is None else journal.done
        responses: list[Response] = []
        for batch in batches:
            if batch.key not in done:
                sampled = _sample(model, task, prompts[batch.number], batch, sampling)
                done[batch.key] = sampled
                if journal is not None:
                    journal.append(batch.key, sampled)
            responses += _checked(model, task, prompts[batch.number], batch, done[batch.key])
            if progress:
                progress(len(responses), len(task) * n_samples)
    experience = Experience(tuple(responses), task.delimiters, record, parameters, seed)
    if path is not None and journal is not None:
        experience.save(path, started)
        journal.discard()
    return experience


def _prompts(model: Model, task: Problems, max_new_tokens: int) -> tuple[tuple[int, ...], ...]:
    """The tokens of every prompt, or the reason why this model cannot answer them."""
    if model.tokenizer is None:
        raise BadInput("prompts and answers are texts, and this model has no tokenizer")
    if not model.parts.architecture.causal:
        raise BadInput(f"{model.spec.name} is an encoder and cannot generate")
    encoded = encode(list(task.prompts), model.tokenizer)
    check_length(encoded, model.spec.context, max_new_tokens)
    return encoded.rows


def _sample(model: Model, task: Problems, prompt: tuple[int, ...], batch: _Batch, sampling: Sampling) -> dict[str, Any]:
    """Tokens and mean log-probability of each sample of a batch, as plain data."""
    drawn = batch_seed(sampling.seed, task.questions[batch.number], batch.first)
    generation = model.generate([list(prompt)] * batch.count, **{**asdict(sampling), "seed": drawn})
    means = [float(np.mean(each)) for each in generation.log_probabilities]
    return {"tokens": generation.tokens, "log_probability": means}


def _checked(
    model: Model, task: Problems, prompt: tuple[int, ...], batch: _Batch, sampled: Mapping[str, Any]
) -> Iterator[Response]:
    """The samples of a batch with their answers, right or wrong."""
    for tokens, log_probability in zip(sampled["tokens"], sampled["log_probability"], strict=True):
        answer = task.answer(model.tokenizer.decode(tokens, skip_special_tokens=True))
        right = task.is_right(batch.number, answer)
        yield Response(task.questions[batch.number], prompt, tuple(tokens), answer, right, log_probability)


def batch_seed(seed: int, question: str, first: int) -> int:
    """The seed of the batch of a question's samples from number `first` on."""
    return int.from_bytes(hashlib.sha256(f"{seed}|{question}|{first}".encode()).digest()[:4], "little")
