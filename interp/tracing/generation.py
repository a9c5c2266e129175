"""Cached decoding, one token a step, with edits and reads at every step."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import DynamicCache

from interp.errors import BadInput
from interp.tracing.batch import Padded
from interp.tracing.frame import Frame
from interp.tracing.session import Session
from interp.tracing.trace import Trace

if TYPE_CHECKING:
    from interp.tracing.backends.contract import Backend


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen and when a row ends."""

    max_new_tokens: int
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.temperature < 0 or not 0 < self.top_p <= 1 or (self.top_k is not None and self.top_k < 1):
            raise BadInput(
                f"temperature={self.temperature}, top_p={self.top_p}, top_k={self.top_k}: need temperature >= 0, "
                "0 < top_p <= 1, top_k >= 1"
            )
        if self.max_new_tokens < 1:
            raise BadInput(f"max_new_tokens is {self.max_new_tokens}; give at least 1")
        if "" in self.stop:
            raise BadInput("an empty stop string would end every row at once")


@dataclass(frozen=True, eq=False)
class Generation:
    """Continuations: new `tokens` of each row, their `texts` (empty without a tokenizer) and log-probabilities."""

    texts: tuple[str, ...]
    tokens: tuple[tuple[int, ...], ...]
    log_probabilities: tuple[tuple[float, ...], ...]
    trace: Trace | None = None

    def with_trace(self, trace: Trace) -> Generation:
        return replace(self, trace=trace)


def decode(
    backend: Backend,
    session: Session,
    padded: Padded,
    sampling: Sampling,
    tokenizer: Any,
    stop_tokens: frozenset[int],
    cache: DynamicCache,
) -> Generation:
    """Run the prompt and then one token a row at a time, until every row has ended."""
    rows = _Rows(padded.frame.batch, tokenizer, sampling.stop, stop_tokens)
    generator = torch.Generator().manual_seed(sampling.seed)
    frame, inputs = padded.frame, padded.inputs()
    for step in range(sampling.max_new_tokens):
        session.begin(frame)
        logits = backend.forward(session, **inputs, past_key_values=cache).logits[:, -1].float()
        chosen = choose_tokens(logits, sampling, generator)
        rows.append(chosen, logits.log_softmax(-1))
        if rows.all_ended or step + 1 == sampling.max_new_tokens:
            break
        frame = _next_frame(frame)
        inputs = {
            "input_ids": chosen[:, None].to(padded.input_ids.device),
            "attention_mask": frame.key_mask.long(),
            "position_ids": frame.positions,
        }
    return rows.generation()


def choose_tokens(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> Tensor:
    """Next token of every row, `[batch]`, from `logits` `[batch vocab]`."""
    if sampling.temperature == 0:
        return logits.argmax(-1)
    scores = logits.cpu() / sampling.temperature
    if sampling.top_k is not None:
        floor = scores.topk(min(sampling.top_k, scores.shape[-1])).values[:, -1:]
        scores = scores.masked_fill(scores < floor, float("-inf"))
    if sampling.top_p < 1:
        ordered, order = scores.sort(descending=True)
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
        ordered = ordered.masked_fill(before >= sampling.top_p, float("-inf"))
        scores = torch.empty_like(scores).scatter(-1, order, ordered)
    return torch.multinomial(scores.softmax(-1), 1, generator=generator)[:, 0].to(logits.device)


def _next_frame(frame: Frame) -> Frame:
    real = torch.ones_like(frame.key_mask[:, :1])
    return replace(frame, start=frame.start + frame.width, width=1, key_mask=torch.cat([frame.key_mask, real], dim=1))


class _Rows:
    """New tokens of every row, and which rows have ended."""

    def __init__(self, batch: int, tokenizer: Any, stop: tuple[str, ...], stop_tokens: frozenset[int]) -> None:
        self.tokenizer = tokenizer
        self.stop = stop
        self.stop_tokens = stop_tokens
        self.tokens: list[list[int]] = [[] for _ in range(batch)]
        self.log_probabilities: list[list[float]] = [[] for _ in range(batch)]
        self.ended = [False] * batch

    @property
    def all_ended(self) -> bool:
        return all(self.ended)

    def append(self, chosen: Tensor, log_probabilities: Tensor) -> None:
        for i, token in enumerate(chosen.tolist()):
            if not self.ended[i]:
                self.tokens[i].append(token)
                self.log_probabilities[i].append(float(log_probabilities[i, token]))
                self.ended[i] = token in self.stop_tokens or self._contains_stop(self.tokens[i])

    def _contains_stop(self, tokens: list[int]) -> bool:
        return bool(self.stop) and any(word in self.tokenizer.decode(tokens) for word in self.stop)

    def generation(self) -> Generation:
        decode_text = self.tokenizer.decode if self.tokenizer is not None else None
        texts = [decode_text(t, skip_special_tokens=True) if decode_text else "" for t in self.tokens]
        return Generation(
            tuple(texts),
            tuple(map(tuple, self.tokens)),
            tuple(map(tuple, self.log_probabilities)),
        )
