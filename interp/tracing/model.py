"""One object over a language model: read it, edit it, generate with it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import psutil
import torch
from torch import Tensor, nn
from transformers import DynamicCache

from interp.errors import BadInput, SiteUnavailable
from interp.tracing.architectures import Parts, Refusals
from interp.tracing.backends.contract import Backend
from interp.tracing.batch import (
    Encoded,
    Padded,
    Prompts,
    Side,
    check_length,
    check_tokens,
    encode,
    in_position_order,
    pad,
    right_padded,
    with_token_types,
)
from interp.tracing.describe import Description, card, describe
from interp.tracing.doctor import Diagnosis, diagnose
from interp.tracing.edits import Edit
from interp.tracing.frame import Positions, check_computed, check_positions, select
from interp.tracing.generation import Generation, Sampling, decode
from interp.tracing.interventions import check_donor
from interp.tracing.plan import Logits, Plan, Read, check_memory, make_plan
from interp.tracing.prefix import Prefix, refuse_relative
from interp.tracing.session import Session
from interp.tracing.spec import ModelSpec, fingerprint
from interp.tracing.trace import Trace

_locks: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()
"""One lock per loaded model, shared by everything that wraps it: hooks are shared state."""


class Model:
    """A language model whose activations can be read and edited; made by `interp.load` and `interp.wrap`.

    `spec` holds its shape, `hf` the Hugging Face module, `tokenizer` may be None (then prompts are token ids),
    `backend` the library whose hooks carry the runs.
    """

    def __init__(self, hf: nn.Module, parts: Parts, spec: ModelSpec, tokenizer: Any, backend: Backend) -> None:
        self.hf = hf
        self.parts = parts
        self.spec = spec
        self.tokenizer = tokenizer
        self.backend = backend
        self.lock = _locks.setdefault(hf, threading.RLock())

    def __repr__(self) -> str:
        s = self.spec
        return f"Model({s.name}: {s.family}, {s.layers} layers x {s.heads} heads, width {s.width}, {s.dtype})"

    def _repr_html_(self) -> str:
        return card(self)

    @cached_property
    def fingerprint(self) -> str:
        """Identifies configuration and weights; computed from all weights at first use."""
        return fingerprint(self.hf, self.hf.config)

    @property
    def backend_object(self) -> Any:
        """The object that runs are carried by: the one that was wrapped, or the one its backend made around it."""
        return self.backend.original

    @property
    def refusals(self) -> Refusals:
        """Sites that cannot be read or edited here, with the reasons."""
        return {**self.parts.refusals, **self.backend.refusals}

    @property
    def remote(self) -> bool:
        """Whether the weights are on a remote service, and here is only the shape of the model."""
        return self.backend.remote

    @property
    def device(self) -> torch.device:
        """Where the first weights are, so where inputs go; raises BadInput when there are no weights at all."""
        if self.remote:
            return torch.device("cpu")
        for parameter in self.hf.parameters():
            if not parameter.is_meta:
                return parameter.device
        raise BadInput(f"{self.spec.name} is on the meta device: it has shapes and no weights, so nothing can be run")

    @property
    def sliding_window(self) -> int | None:
        """Tokens some or all layers see back, None when every layer sees everything."""
        config: Any = self.hf.config
        return getattr(config.get_text_config(), self.parts.architecture.window, None) or None

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
        token_types: Sequence[Sequence[int]] | None = None,
        materialize: bool = False,
        memory_budget: int | None = None,
    ) -> Trace:
        """One forward pass that keeps what `read` names and applies `edits`.

        Args:
            prompts: text, several texts, token ids, or a PromptSet (whose role names then serve as positions).
            read: sites (`"resid_post"` all layers, `"z.2-5"`, `"pattern.3"`) or RowFolds. Nothing else is kept.
            edits: applied in the order given; a read returns the value after the edits of its site.
            logits: `"last"` `[batch vocab]`, `"all"` or chosen positions `[batch positions vocab]` in the order of the
                text, or None. `"auto"` is `"last"` when nothing is read and the model has a head, else None: then the
                pass stops after the last site needed.
            positions: keep reads only there: int (negative from each prompt's end), several, slice or role name.
            prefix: keys and values that all prompts begin with (`prefill`); reads cover the tokens after it.
            grad: keep the graph; after `backward()`, `trace.grad(site)` is the gradient at a site that was read.
            padding_side: where unequal prompts are padded; results do not depend on it.
            token_types: the segment of every token of every prompt (BERT's pairs of sentences); 0 by default.
            materialize: allow a `pattern` of more than `DENSE_PATTERN_LIMIT` elements a layer.
            memory_budget: bytes of activations the run may keep; half of the free memory by default.

        Raises:
            UnknownSite, SiteUnavailable, BadInput, PromptTooLong, MemoryBudgetExceeded: before anything runs.
            SiteDidNotFire: a planned read or edit was never reached.
        """
        edits = _edits(edits)
        if prefix is not None:
            self._refuse_encoder("take a prefix")
        encoded, padded = self._prepare(prompts, prefix, edits, padding_side, token_types=token_types)
        plan = self._plan(encoded, padded, read, edits, positions, logits=logits, grad=grad)
        self._check_memory(plan, padded, memory_budget, materialize)
        session = Session(plan, acted=prefix.edits if prefix else ())
        session.begin(padded.frame)
        cache: dict[str, Any] = {"use_cache": False} if self.parts.architecture.causal else {}
        if prefix:
            cache = {"past_key_values": prefix.cache(padded.frame.batch)}
        with self.lock, torch.set_grad_enabled(grad), self.backend.attached(session):
            output = self.backend.forward(session, **padded.inputs(), **cache)
        session.check()
        return self._trace(session, encoded, padded, None if plan.logits is None else output.logits)

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

        Greedy at `temperature=0`, else seeded sampling. Positions are absolute: `slice(-1, None)` is the last prompt
        token and everything generated. A row ends at an end-of-text token or once its text contains one of `stop` (kept
        in the text). Reads cover the prompt and every new token that was fed back (all but the last).

        Raises: as `run`; PromptTooLong also counts `max_new_tokens`.
        """
        self._refuse_encoder("generate")
        edits = _edits(edits)
        stop = (stop,) if isinstance(stop, str) else tuple(stop)
        if stop and self.tokenizer is None:
            raise BadInput("stop strings need a tokenizer")
        sampling = Sampling(max_new_tokens, temperature, top_k, top_p, seed, stop)
        encoded, padded = self._prepare(prompts, prefix, edits, "left", max_new_tokens)
        plan = self._plan(encoded, padded, read, edits, positions, logits="last", computed=max_new_tokens - 1)
        if any(site.name == "pattern" for site in plan.reads):
            raise SiteUnavailable(
                "pattern", "its rows grow during generation; read attention_stats, or run() the full text"
            )
        self._check_memory(plan, padded, None, False, max_new_tokens - 1)
        session = Session(plan, acted=prefix.edits if prefix else ())
        with self.lock, torch.no_grad(), self.backend.attached(session):
            cache = prefix.cache(len(encoded.rows)) if prefix else DynamicCache()
            result = decode(self.backend, session, padded, sampling, self.tokenizer, self._stop_tokens(), cache)
        session.check()
        rows = (row + new[:-1] for row, new in zip(encoded.rows, result.tokens, strict=True))
        return result.with_trace(self._trace(session, Encoded(tuple(rows), encoded.spans), padded))

    def prefill(self, prompt: Prompts, edits: Edit | Sequence[Edit] = ()) -> Prefix:
        """Keys and values of one prompt, to share between runs whose prompts begin with its tokens.

        `edits` may select only positions counted from the start, since those are what later runs share; the same Edit
        objects are given again to those runs.
        """
        self._refuse_encoder("compute a prefix")
        edits = _edits(edits)
        for edit in edits:
            refuse_relative(edit)
        encoded, padded = self._prepare(prompt, None, edits, "right")
        if len(encoded.rows) != 1:
            raise BadInput(f"a prefix is one token sequence, not {len(encoded.rows)}")
        session = Session(self._plan(encoded, padded, (), edits, logits="auto"))
        session.begin(padded.frame)
        cache = DynamicCache()
        with self.lock, torch.no_grad(), self.backend.attached(session):
            self.backend.forward(session, **padded.inputs(), past_key_values=cache)
        session.check()
        return Prefix.of(self.hf, encoded.rows[0], cache, edits)

    def tokens(self, text: str) -> list[str]:
        """The tokens of a text as strings, in the order of their positions."""
        ids = encode(text, self.tokenizer).rows[0]
        return [self.tokenizer.decode([i]) for i in ids]

    def describe(self) -> Description:
        """Every site of this model: its shape, the module it lives in, or the reason it is refused."""
        return describe(self)

    def doctor(self, prompts: Prompts | None = None) -> Diagnosis:
        """Check this model against itself: parity with a plain pass, site equations, attention rows, padding."""
        if self.remote:
            raise BadInput("the weights are on a remote service, so the model cannot be checked against itself here")
        return diagnose(self, prompts)

    def _refuse_encoder(self, what: str) -> None:
        if not self.parts.architecture.causal:
            raise BadInput(
                f"{self.spec.name} cannot {what}: it is an encoder ({self.spec.family}), whose tokens see both what "
                "comes before and after them; run() reads and edits it"
            )

    def _prepare(
        self,
        prompts: Prompts,
        prefix: Prefix | None,
        edits: Sequence[Edit],
        side: Side,
        new_tokens: int = 0,
        token_types: Sequence[Sequence[int]] | None = None,
    ) -> tuple[Encoded, Padded]:
        if self.hf.training:
            raise BadInput("the model is in training mode, so dropout is on; call model.hf.eval() first")
        encoded = encode(prompts, self.tokenizer)
        if token_types is not None:
            encoded = with_token_types(encoded, token_types, getattr(self.hf.config, "type_vocab_size", None))
        check_tokens(encoded, self.spec.vocab)
        check_length(encoded, self.spec.context, new_tokens)
        if prefix is not None:
            prefix.check(self.hf, encoded)
        first = self.parts.architecture.first_position
        padded = pad(encoded, len(prefix) if prefix else 0, side, self._pad_id(), self.device, first)
        if prefix:
            prefix.check_edits(edits, padded.frame)
            if self.sliding_window is not None and bool(padded.frame.offsets.any()):
                raise BadInput(
                    "padding between a prefix and prompts of unequal length would shift this model's sliding window; "
                    "run them apart, or padded on the right"
                )
        return encoded, padded

    def _plan(
        self,
        encoded: Encoded,
        padded: Padded,
        read: Read | Sequence[Read],
        edits: Sequence[Edit],
        positions: Positions = None,
        *,
        logits: Logits = "last",
        grad: bool = False,
        computed: int = 0,
    ) -> Plan:
        """Everything about a request that can be refused before it runs; `computed` tokens follow the prompts."""
        if "logits" in self.refusals:
            if logits is not None and logits != "auto":
                raise SiteUnavailable("logits", self.refusals["logits"])
            logits = None
        plan = make_plan(
            self.spec,
            self.refusals,
            read,
            edits,
            positions,
            logits=logits,
            batch=len(encoded.rows),
            grad=grad,
        )
        if plan.folds and "pattern" in self.refusals:
            raise SiteUnavailable(plan.folds[0].name, self.refusals["pattern"])
        for edit in edits:
            check_positions(edit.positions, edit.rows, encoded.lengths, encoded.spans, computed)
            if "donor" in edit.tensors:
                check_donor(edit, padded.frame)
            if edit.kind == "attend" and edit.parameters["to"] != "uniform":
                check_positions(edit.parameters["to"], edit.rows, encoded.lengths, encoded.spans, computed)
        for wanted in (plan.positions, plan.logits):
            if wanted not in ("last", "all"):
                check_positions(wanted, None, encoded.lengths, encoded.spans, computed)
                check_computed(wanted, padded.frame)
        return plan

    def _check_memory(
        self, plan: Plan, padded: Padded, budget: int | None, materialize: bool, computed: int = 0
    ) -> None:
        if not plan.reads and plan.logits in (None, "last"):
            return
        frame, width = padded.frame, padded.frame.width + computed

        def count(positions: Positions) -> int:
            if positions is None or positions == "all":
                return width
            return 1 if positions == "last" else int(select(positions, None, frame).sum(1).max()) + computed

        check_memory(
            plan,
            self.spec,
            batch=frame.batch,
            tokens=frame.start + width,
            kept=count(plan.positions),
            kept_logits=0 if plan.logits is None else count(plan.logits),
            itemsize=next(self.hf.parameters()).element_size(),
            budget=_free_memory(self.device) // 2 if budget is None else budget,
            materialize=materialize,
        )

    def _trace(self, session: Session, encoded: Encoded, padded: Padded, logits: Tensor | None = None) -> Trace:
        longest = max(encoded.lengths)

        def order(tensor: Tensor) -> Tensor:
            return in_position_order(tensor, padded.frame, longest)

        plan = session.plan
        every = torch.arange(padded.frame.start, longest).expand(len(encoded.rows), -1)
        return Trace(
            tokens=right_padded(encoded.rows, self._pad_id()),
            lengths=torch.tensor(encoded.lengths),
            positions=every if plan.positions is None else session.positions(),
            activations=session.collected(order),
            folds=session.folded(),
            kept_logits=None if logits is None else session.kept_logits(logits, order),
            stopped_after=plan.stop_after,
            leaves=session.leaves() if plan.grad else {},
        )

    def _stop_tokens(self) -> frozenset[int]:
        ends = getattr(getattr(self.hf, "generation_config", self.hf.config), "eos_token_id", None)
        return frozenset(ends if isinstance(ends, (list, tuple)) else () if ends is None else (ends,))

    def _pad_id(self) -> int:
        """Any token will do, since nothing attends to padding."""
        pad_id = getattr(self.tokenizer, "pad_token_id", None)
        return pad_id if pad_id is not None and pad_id < self.spec.vocab else 0


def _edits(edits: Edit | Sequence[Edit]) -> tuple[Edit, ...]:
    edits = (edits,) if isinstance(edits, Edit) else tuple(edits)
    for edit in edits:
        if not isinstance(edit, Edit):
            raise BadInput(f"{edit!r} is not an edit; make one with interp.zero, interp.patch, …")
    return edits


def _free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)
