"""One object over a language model: read it, edit it, generate with it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal
from weakref import WeakKeyDictionary

import psutil
import torch
from torch import Tensor, nn

from interp.errors import BadInput, SiteUnavailable
from interp.tracing.architectures import Parts
from interp.tracing.backends.hooks import HooksBackend
from interp.tracing.batch import (
    Encoded,
    Padded,
    Prompts,
    Side,
    check_length,
    encode,
    in_position_order,
    pad,
    right_padded,
)
from interp.tracing.describe import Description, describe
from interp.tracing.doctor import Diagnosis, diagnose
from interp.tracing.edits import Edit
from interp.tracing.frame import Positions, check_positions, select
from interp.tracing.generation import Generation, Sampling, decode
from interp.tracing.plan import Plan, Read, check_memory, make_plan
from interp.tracing.prefix import Prefix
from interp.tracing.session import Session
from interp.tracing.spec import ModelSpec, fingerprint
from interp.tracing.trace import Trace

Logits = Literal["auto", "last", "all"] | int | Sequence[int] | None

_locks: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()
"""One lock per loaded model, shared by everything that wraps it: hooks are shared state."""


class Model:
    """A language model whose activations can be read and edited; made by `interp.load` and `interp.wrap`.

    `spec` holds its shape, `hf` the Hugging Face module, `tokenizer` may be None (then prompts are token ids).
    """

    def __init__(self, hf: nn.Module, parts: Parts, spec: ModelSpec, tokenizer: Any = None) -> None:
        self.hf = hf
        self.parts = parts
        self.spec = spec
        self.tokenizer = tokenizer
        self.backend = HooksBackend(hf, parts, spec)
        self.lock = _locks.setdefault(hf, threading.RLock())

    def __repr__(self) -> str:
        s = self.spec
        return f"Model({s.name}: {s.family}, {s.layers} layers x {s.heads} heads, width {s.width}, {s.dtype})"

    @cached_property
    def fingerprint(self) -> str:
        """Identifies configuration and weights; computed from all weights at first use."""
        return fingerprint(self.hf, self.hf.config)

    @property
    def device(self) -> torch.device:
        """Where the token embedding is, so where inputs go."""
        return next(self.hf.parameters()).device

    @property
    def sliding_window(self) -> int | None:
        """Tokens some or all layers see back, None when every layer sees everything."""
        config: Any = self.hf.config
        return getattr(config.get_text_config(), "sliding_window", None)

    @property
    def attention(self) -> str:
        """The attention implementation the model runs with; tracing never changes it."""
        return self.backend.attention

    def run(
        self,
        prompts: Prompts,
        read: Read | Sequence[Read] = (),
        edits: Edit | Sequence[Edit] = (),
        *,
        logits: Logits = "auto",
        positions: Positions = None,
        prefix: Prefix | None = None,
        grad: bool = False,
        padding_side: Side = "right",
        materialize: bool = False,
        memory_budget: int | None = None,
    ) -> Trace:
        """One forward pass that keeps what `read` names and applies `edits`.

        Args:
            prompts: text, several texts, token ids, or a PromptSet (whose role names then serve as positions).
            read: sites (`"resid_post"` all layers, `"z.2-5"`, `"pattern.3"`) or RowFolds. Nothing else is kept.
            edits: applied in the order given; a read returns the value after the edits of its site.
            logits: `"last"` `[batch vocab]`, `"all"` or chosen positions `[batch positions vocab]`, None. `"auto"` is
                `"last"` when nothing is read, else None: then the pass stops after the last layer needed.
            positions: keep reads only there: int (negative from each prompt's end), several, slice or role name.
            prefix: keys and values that all prompts begin with (`prefill`); reads cover the tokens after it.
            grad: keep the graph; after `backward()`, `trace.grad(site)` is the gradient at a site that was read.
            padding_side: where unequal prompts are padded; results do not depend on it.
            materialize: allow a `pattern` of more than `DENSE_PATTERN_LIMIT` elements a layer.
            memory_budget: bytes of activations the run may keep; half of the free memory by default.

        Raises:
            UnknownSite, SiteUnavailable, BadInput, PromptTooLong, MemoryBudgetExceeded: before anything runs.
            SiteDidNotFire: a planned read or edit was never reached.
        """
        edits = (edits,) if isinstance(edits, Edit) else tuple(edits)
        encoded, padded = self._prepare(prompts, prefix, edits, padding_side)
        keep = ("last" if not _any(read) else None) if logits == "auto" else logits
        plan = make_plan(
            self.spec,
            self.parts.refusals,
            read,
            edits,
            positions,
            batch=len(encoded.rows),
            grad=grad,
            keep_logits=keep is not None,
        )
        check_positions(positions, None, encoded.lengths, encoded.spans)
        self._check_memory(plan, padded, memory_budget, materialize)
        session = Session(plan)
        session.frame = padded.frame
        extra: dict[str, Any] = {"past_key_values": prefix.cache(len(encoded.rows))} if prefix else {"use_cache": False}
        columns = _logit_columns(keep, padded, encoded)
        if columns is not None and not plan.touches("logits", None):
            extra["logits_to_keep"] = columns
        with self.lock, torch.set_grad_enabled(grad), self.backend.attached(session):
            output = self.backend.forward(session, **padded.inputs(), **extra)
        session.check()
        kept = None if keep is None else self._kept_logits(output.logits, keep, columns, padded, plan)
        return self._trace(session, encoded, padded, kept)

    def generate(
        self,
        prompts: Prompts,
        *,
        max_new_tokens: int = 40,
        edits: Edit | Sequence[Edit] = (),
        read: Read | Sequence[Read] = (),
        positions: Positions = None,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        seed: int = 0,
        stop: Sequence[str] = (),
        prefix: Prefix | None = None,
    ) -> Generation:
        """Continue each prompt with cached decoding, under edits at the prompt and at every new token.

        Greedy at `temperature=0`, else seeded sampling. Positions are absolute: `slice(-1, None)` is the last prompt token and
        everything generated. A row ends at an end-of-text token or once its text contains one of `stop` (kept in the text).
        Reads cover the prompt and every new token that was fed back (all but the last).

        Raises: as `run`; PromptTooLong also counts `max_new_tokens`.
        """
        edits = (edits,) if isinstance(edits, Edit) else tuple(edits)
        if max_new_tokens < 1:
            raise BadInput(f"max_new_tokens is {max_new_tokens}; give at least 1")
        if stop and self.tokenizer is None:
            raise BadInput("stop strings need a tokenizer")
        sampling = Sampling(max_new_tokens, temperature, top_k, top_p, seed, tuple(stop))
        encoded, padded = self._prepare(prompts, prefix, edits, "left", max_new_tokens)
        if prefix and self.sliding_window is not None and bool(padded.frame.offsets.any()):
            raise BadInput(
                "prompts of unequal length after a prefix would shift this model's sliding window; run them apart"
            )
        plan = make_plan(
            self.spec, self.parts.refusals, read, edits, positions, batch=len(encoded.rows), keep_logits=True
        )
        if any(site.name == "pattern" for site in plan.reads):
            raise SiteUnavailable(
                "pattern", "its rows grow during generation; read attention_stats, or run() the full text"
            )
        check_positions(positions, None, encoded.lengths, encoded.spans, max_new_tokens)
        self._check_memory(plan, padded, None, False, max_new_tokens)
        session = Session(plan)
        with self.lock, torch.no_grad(), self.backend.attached(session):
            cache = prefix.cache(len(encoded.rows)) if prefix else None
            result = decode(self.backend, session, padded, sampling, self.tokenizer, self._stop_tokens(), cache)
        session.check()
        full = Encoded(
            tuple(row + new[:-1] for row, new in zip(encoded.rows, result.tokens, strict=True)), encoded.spans
        )
        return result.with_trace(self._trace(session, full, padded, None))

    def prefill(self, prompt: Prompts, edits: Edit | Sequence[Edit] = ()) -> Prefix:
        """Keys and values of one prompt, to share between runs whose prompts begin with its tokens.

        `edits` may select only positions counted from the start, since those are what later runs share.
        """
        edits = (edits,) if isinstance(edits, Edit) else tuple(edits)
        for edit in edits:
            _refuse_relative(edit)
        encoded, padded = self._prepare(prompt, None, edits, "right")
        if len(encoded.rows) != 1:
            raise BadInput(f"a prefix is one token sequence, not {len(encoded.rows)}")
        session = Session(make_plan(self.spec, self.parts.refusals, (), edits))
        session.frame = padded.frame
        cache = Prefix((), (), ()).cache(1)
        with self.lock, torch.no_grad(), self.backend.attached(session):
            self.backend.forward(session, **padded.inputs(), past_key_values=cache, logits_to_keep=1)
        session.check()
        layers = cache.layers
        return Prefix(encoded.rows[0], tuple(la.keys for la in layers), tuple(la.values for la in layers), edits)

    def tokens(self, text: str) -> list[str]:
        """The tokens of a text as strings, in the order of their positions."""
        ids = encode(text, self.tokenizer).rows[0]
        return [self.tokenizer.decode([i]) for i in ids]

    def describe(self) -> Description:
        """Every site of this model: its shape, the module it lives in, or the reason it is refused."""
        return describe(self)

    def doctor(self, prompts: Prompts | None = None) -> Diagnosis:
        """Check this model against itself: parity with a plain forward pass, site equations, attention rows, padding."""
        return diagnose(self, prompts)

    def _prepare(
        self, prompts: Prompts, prefix: Prefix | None, edits: Sequence[Edit], side: Side, new_tokens: int = 0
    ) -> tuple[Encoded, Padded]:
        if self.hf.training:
            raise BadInput("the model is in training mode, so dropout is on; call model.hf.eval() first")
        encoded = encode(prompts, self.tokenizer)
        highest = max(max(row) for row in encoded.rows)
        if highest >= self.spec.vocab:
            raise BadInput(f"token id {highest} does not exist; the vocabulary has {self.spec.vocab} entries")
        check_length(encoded, self.spec.context, new_tokens)
        for edit in edits:
            check_positions(edit.positions, edit.rows, encoded.lengths, encoded.spans, new_tokens)
        padded = pad(encoded, len(prefix) if prefix else 0, side, self._pad_id(), self.device)
        if prefix:
            prefix.check(encoded, edits, padded.frame)
        return encoded, padded

    def _check_memory(
        self, plan: Plan, padded: Padded, budget: int | None, materialize: bool, new_tokens: int = 0
    ) -> None:
        if not plan.reads:
            return
        width = padded.frame.width + new_tokens
        kept = width if plan.positions is None else _selected(plan.positions, padded) + new_tokens
        tokens = padded.frame.start + width
        budget = psutil.virtual_memory().available // 2 if budget is None else budget
        itemsize = next(self.hf.parameters()).element_size()
        check_memory(plan, self.spec, padded.frame.batch, tokens, kept, itemsize, budget, materialize)

    def _trace(self, session: Session, encoded: Encoded, padded: Padded, logits: Tensor | None) -> Trace:
        first = padded.frame.start

        def order(tensor: Tensor, start: int | None) -> Tensor:
            return in_position_order(tensor, padded.frame, first if start is None else start)

        return Trace(
            tokens=right_padded(encoded.rows, self._pad_id()),
            lengths=torch.tensor(encoded.lengths),
            activations=session.collected(order),
            folds=session.folded(),
            kept_logits=logits,
            positions=session.plan.positions,
            stopped_after=session.plan.stop_after,
            start=first,
            leaves=session.leaves,
        )

    def _kept_logits(
        self, logits: Tensor, keep: Logits, columns: Tensor | int | None, padded: Padded, plan: Plan
    ) -> Tensor:
        """`[batch vocab]` or `[batch positions vocab]`, in position order."""
        if keep == "all" or columns is None:
            return in_position_order(logits, padded.frame, padded.frame.start)
        if plan.touches("logits", None):
            wanted = torch.full((len(logits), 1), -1) if isinstance(columns, int) else columns
            wanted = wanted % logits.shape[1]
            logits = torch.take_along_dim(logits, wanted.to(logits.device)[..., None], dim=1)
        return logits[:, -1] if keep == "last" else logits

    def _stop_tokens(self) -> frozenset[int]:
        config = getattr(self.hf, "generation_config", None)
        ends = getattr(config, "eos_token_id", None)
        ends = getattr(self.hf.config, "eos_token_id", None) if ends is None else ends
        return frozenset(ends if isinstance(ends, (list, tuple)) else () if ends is None else (ends,))

    def _pad_id(self) -> int:
        pad_id = getattr(self.tokenizer, "pad_token_id", None)
        return 0 if pad_id is None else int(pad_id)


def _any(read: Read | Sequence[Read]) -> bool:
    return not isinstance(read, (list, tuple)) or len(read) > 0


def _selected(positions: Positions, padded: Padded) -> int:
    return int(select(positions, None, padded.frame).sum(1).max())


def _logit_columns(keep: Logits, padded: Padded, encoded: Encoded) -> Tensor | int | None:
    """`logits_to_keep` of the forward call: columns relative to the first computed one."""
    if keep is None:
        return 1
    if keep == "all":
        return None
    frame = padded.frame
    if keep == "last":
        if len(set(encoded.lengths)) == 1 or bool(frame.offsets.any()):
            return 1
        keep = -1
    wanted = [keep] if isinstance(keep, int) else [int(p) for p in keep]
    check_positions(tuple(wanted), None, encoded.lengths, encoded.spans)
    lengths = frame.lengths[:, None]
    positions = torch.tensor(wanted, device=lengths.device)[None].expand(frame.batch, -1)
    positions = torch.where(positions < 0, lengths + positions, positions)
    if bool((positions < frame.start).any()):
        raise BadInput("logits were asked for at a position inside the prefix, where nothing is computed")
    return positions + frame.offsets[:, None] - frame.start


def _refuse_relative(edit: Edit) -> None:
    where = edit.positions
    ends = [where] if isinstance(where, int) else [where.start, where.stop] if isinstance(where, slice) else where
    if isinstance(ends, str) or any(end is not None and end < 0 for end in ends or ()):
        raise BadInput(f"{edit}: in a prefix, positions count from the start; {where!r} depends on the prompt")
