"""Doing a sweep's work in chunks: to a memory budget, reporting progress, keeping what is finished in a journal."""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from interp.errors import MemoryBudgetExceeded
from interp.patching.request import Pair, Request
from interp.runs import Journal


class Executor(Protocol):
    """How values come about. `base` takes up some prompts, after which `values` are asked for pairs of these."""

    name: str
    flops: int
    """Spent so far."""

    def fitting(self, budget: int) -> int:
        """How many prompts to take up at a time, so that what is kept of them fits the budget in bytes."""
        ...

    def base(self, prompts: range) -> Tensor:
        """Values `[metric prompt]` without edits."""
        ...

    def order(self, pairs: Sequence[Pair]) -> list[Pair]:
        """The pairs so that neighbours go well together."""
        ...

    def cost(self, pairs: Sequence[Pair]) -> int:
        """Bytes that computing these pairs together takes."""
        ...

    def take(self, pairs: Sequence[Pair], at: int, budget: int) -> int:
        """How many of the pairs from `at` on to compute together, at least one."""
        ...

    def values(self, pairs: Sequence[Pair]) -> Tensor:
        """Values `[metric pair]`."""
        ...


class Work:
    """One sweep on its way: `run` returns values `[edit metric prompt]` and base values `[metric prompt]`."""

    def __init__(
        self,
        request: Request,
        executor: Executor,
        journal: Journal | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.request = request
        self.executor = executor
        self.journal = journal
        self.progress = progress
        self.key = "" if journal is None else identity(request, executor.name)
        self.taken_up: range | None = None
        metrics = len(request.metrics)
        self.base = np.full((metrics, request.count), np.nan)
        self.values = np.full((len(request.groups), metrics, request.count), np.nan)

    def run(self, budget: int) -> tuple[np.ndarray, np.ndarray]:
        """Raises MemoryBudgetExceeded where one prompt, or one edit of it, is too much."""
        pairs = self.request.pairs
        left = np.bincount([pair.group for pair in pairs], minlength=len(self.request.groups))
        start = 0
        while start < self.request.count:
            prompts = self._base(start, budget)
            self.values[:, :, prompts] = self.base[None, :, prompts]
            mine = self.executor.order([pair for pair in pairs if pair.prompt in prompts])
            at = 0
            while at < len(mine):
                done, budget = self._chunk(prompts, mine, at, budget)
                at += len(done)
                left -= np.bincount([pair.group for pair in done], minlength=len(left))
                if self.progress:
                    self.progress(int((left == 0).sum()), len(left))
            start = prompts.stop
        return self.values, self.base

    def _base(self, start: int, budget: int) -> range:
        """Base values of some prompts from `start` on."""
        key = f"{self.key}/base/{start}"
        record = self._recall(key)
        if record is None:
            count = min(self.executor.fitting(budget), self.request.count - start)
            while True:
                prompts = range(start, start + count)
                values = _unless_out_of_memory(partial(self.executor.base, prompts))
                if values is not None:
                    break
                if count == 1:
                    raise MemoryBudgetExceeded(f"prompt {start} alone does not fit into memory; shorten it")
                count //= 2
            self.taken_up = prompts
            record = self._keep(key, {"prompts": count, "values": values.tolist()})
        prompts = range(start, start + record["prompts"])
        self.base[:, prompts] = record["values"]
        return prompts

    def _chunk(self, prompts: range, pairs: Sequence[Pair], at: int, budget: int) -> tuple[Sequence[Pair], int]:
        """The pairs that were done, and the budget that turned out to fit."""
        key = f"{self.key}/{prompts.start}/{at}"
        record = self._recall(key)
        if record is None:
            if self.taken_up != prompts:  # resumed in the middle of them
                self.executor.base(prompts)
                self.taken_up = prompts
            while True:
                count = self.executor.take(pairs, at, budget)
                chunk = pairs[at : at + count]
                values = _unless_out_of_memory(partial(self.executor.values, chunk))
                if values is not None:
                    break
                if count == 1:
                    edits = self.request.groups[chunk[0].group]
                    raise MemoryBudgetExceeded(f"{', '.join(map(str, edits))} of one prompt does not fit into memory")
                budget = self.executor.cost(chunk) // 2
            record = self._keep(key, {"pairs": count, "budget": budget, "values": values.tolist()})
        chunk = pairs[at : at + record["pairs"]]
        self.values[[p.group for p in chunk], :, [p.prompt for p in chunk]] = np.array(record["values"]).T
        return chunk, record["budget"]

    def _recall(self, key: str) -> Any:
        return None if self.journal is None else self.journal.done.get(key)

    def _keep(self, key: str, record: Mapping[str, Any]) -> Mapping[str, Any]:
        if self.journal is not None:
            self.journal.append(key, record)
        return record


def identity(request: Request, executor: str) -> str:
    """Eight hex digits over all that values depend on, so that no other sweep's chunks are taken for this one's."""
    digest = hashlib.sha256(f"{request.model.fingerprint} {executor} {request.encoded.rows}".encode())
    seen: dict[int, str] = {}

    def content(tensor: Tensor) -> str:
        if id(tensor) not in seen:
            raw = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
            seen[id(tensor)] = hashlib.sha256(raw.numpy().tobytes()).hexdigest()
        return seen[id(tensor)]

    for group in request.groups:
        for edit in group:
            tensors = {name: content(tensor) for name, tensor in edit.tensors.items()}
            where = request.selection(edit).numpy().tobytes()
            digest.update(f"{edit.kind} {edit.site} {edit.rows} {dict(edit.parameters)} {tensors}".encode() + where)
        digest.update(b"|")
    for bound in request.metrics:
        reference = bound.metric.reference
        told = None if reference is None else content(reference)
        digest.update(f"{bound.metric.kind} {bound.positions.tolist()} {bound.tokens.tolist()} {told}".encode())
    return digest.hexdigest()[:8]


def _unless_out_of_memory(compute: Callable[[], Tensor]) -> Tensor | None:
    """What `compute` returns, or None when memory ran out on the way."""
    try:
        return compute()
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


def _out_of_memory(error: BaseException) -> bool:
    told = str(error).lower()
    return (
        isinstance(error, (MemoryError, torch.OutOfMemoryError))
        or "can't allocate memory" in told
        or "out of memory" in told
    )
