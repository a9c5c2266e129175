"""Metrics of what a model would say next: logit difference, probability, KL, accuracy, each at one position a prompt.

A `Metric` is data; `bind` checks it against prompts and a model before anything runs, and the bound metric computes
`[row]` values from logits, differentiably.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from interp.errors import BadInput, choose
from interp.tracing.frame import check_positions, role_spans

if TYPE_CHECKING:
    from interp.tracing.batch import Encoded

Tokens = int | Sequence[int] | None
"""One token for all prompts, one a prompt, or None: those of the PromptSet."""


@dataclass(frozen=True)
class Metric:
    """One number a prompt, of the logits at `position`: an int (negative from the end) or a role (its last token).

    `answers` and `distractors` are token ids, one for all prompts or one a prompt; None takes the first token of the
    PromptSet's own. `reference` `[prompt vocab]` are the logits that `kl` measures from; None takes the base run's.
    """

    kind: str
    answers: tuple[int, ...] | None = None
    distractors: tuple[int, ...] | None = None
    position: int | str = -1
    reference: Tensor | None = field(default=None, compare=False, repr=False)
    name: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise BadInput(f"there is no metric {self.kind!r}; {choose(self.kind, KINDS)}")
        if isinstance(self.position, bool) or not isinstance(self.position, (int, str)):
            raise BadInput(f"a metric is computed at one position, an int or a role name, not {self.position!r}")
        if not self.name:
            object.__setattr__(self, "name", self.kind if self.position == -1 else f"{self.kind}@{self.position}")

    def __str__(self) -> str:
        return self.name


def logit_difference(
    answers: Tokens = None, distractors: Tokens = None, *, position: int | str = -1, name: str = ""
) -> Metric:
    """Logit of the answer minus logit of the distractor."""
    return Metric("logit_difference", _tokens(answers), _tokens(distractors), position, name=name)


def logit(answers: Tokens = None, *, position: int | str = -1, name: str = "") -> Metric:
    """Logit of the answer."""
    return Metric("logit", _tokens(answers), position=position, name=name)


def log_probability(answers: Tokens = None, *, position: int | str = -1, name: str = "") -> Metric:
    """Log-probability of the answer, in nats."""
    return Metric("log_probability", _tokens(answers), position=position, name=name)


def probability(answers: Tokens = None, *, position: int | str = -1, name: str = "") -> Metric:
    """Probability of the answer."""
    return Metric("probability", _tokens(answers), position=position, name=name)


def accuracy(answers: Tokens = None, *, position: int | str = -1, name: str = "") -> Metric:
    """1 where the answer is the most probable of all tokens, else 0."""
    return Metric("accuracy", _tokens(answers), position=position, name=name)


def kl(reference: Tensor | None = None, *, position: int | str = -1, name: str = "") -> Metric:
    """KL divergence, in nats, from the prediction under `reference` `[prompt vocab]` logits to the edited one.

    Without a reference, from the prediction of the base run: KL(base || edited).
    """
    return Metric("kl", position=position, reference=reference, name=name)


class _Logits(NamedTuple):
    """What the kinds compute from: `tokens` `[row k]` ids, their logits `picked`, all logits `whole` `[row vocab]`."""

    tokens: Tensor
    picked: Tensor
    whole: Tensor | None
    reference: Tensor | None

    @property
    def all(self) -> Tensor:
        assert self.whole is not None
        return self.whole


def _log_probability(x: _Logits) -> Tensor:
    return x.picked[:, 0] - x.all.logsumexp(-1)


def _kl(x: _Logits) -> Tensor:
    assert x.reference is not None
    before = x.reference.log_softmax(-1)
    return (before.exp() * (before - x.all.log_softmax(-1))).sum(-1)


class _Kind(NamedTuple):
    """`roles`: which tokens it needs; `whole`: whether it needs the logits of the whole vocabulary."""

    roles: tuple[str, ...]
    whole: bool
    compute: Callable[[_Logits], Tensor]


KINDS: dict[str, _Kind] = {
    "logit_difference": _Kind(("answer", "distractor"), False, lambda x: x.picked[:, 0] - x.picked[:, 1]),
    "logit": _Kind(("answer",), False, lambda x: x.picked[:, 0]),
    "log_probability": _Kind(("answer",), True, _log_probability),
    "probability": _Kind(("answer",), True, lambda x: _log_probability(x).exp()),
    "accuracy": _Kind(("answer",), True, lambda x: (x.all.argmax(-1) == x.tokens[:, 0]).float()),
    "kl": _Kind((), True, _kl),
}


@dataclass(frozen=True, eq=False)
class BoundMetric:
    """A metric on given prompts: `positions` `[prompt]` counted from the start, `tokens` `[prompt k]`."""

    metric: Metric
    positions: Tensor
    tokens: Tensor

    @property
    def whole(self) -> bool:
        """Whether it needs the logits of the whole vocabulary, and not only of its tokens."""
        return KINDS[self.metric.kind].whole

    @property
    def needs_base(self) -> bool:
        """Whether it compares with the logits of the base run."""
        return self.metric.kind == "kl" and self.metric.reference is None

    def __call__(
        self, logits: Tensor, prompts: Tensor | None = None, base: Tensor | None = None, picked: Tensor | None = None
    ) -> Tensor:
        """Values `[row]`, in float32 or better, of `logits` `[row vocab]` at this metric's position.

        `prompts` `[row]` says which prompt each row is; None: row i is prompt i. `base` `[prompt vocab]` are the logits
        of the base run. `picked` `[row k]`, the logits of the metric's own tokens, stands in for `logits` `[row 0]`
        where the metric needs no others.
        """
        device = logits.device
        rows = torch.arange(len(logits)) if prompts is None else prompts.cpu()
        tokens = self.tokens[rows].to(device)
        if picked is None:
            picked = logits.gather(-1, tokens)
        reference = self.metric.reference if self.metric.reference is not None else base
        if self.metric.kind != "kl":
            reference = None
        elif reference is None:
            raise BadInput(f"{self.metric}: pass the logits of the base run, or a reference")
        else:
            reference = _precise(reference[rows.to(reference.device)].to(device))
        whole = _precise(logits) if self.whole else None
        return KINDS[self.metric.kind].compute(_Logits(tokens, _precise(picked), whole, reference))


def bind(metrics: Metric | Sequence[Metric], encoded: Encoded, prompts: object, vocab: int) -> tuple[BoundMetric, ...]:
    """Metrics with their positions and tokens; `prompts` is what was encoded, whose answers are the default.

    Raises BadInput for no metric or two of one name, positions outside a prompt, tokens outside the vocabulary or not
    one a prompt, and logit differences between a token and itself (answers that share their first token).
    """
    chosen = (metrics,) if isinstance(metrics, Metric) else tuple(metrics)
    for metric in chosen:
        if not isinstance(metric, Metric):
            raise BadInput(f"{metric!r} is not a metric; make one with interp.metrics.logit_difference, …")
    names = [metric.name for metric in chosen]
    if not chosen or len(set(names)) < len(names):
        raise BadInput(f"a sweep needs one metric or several of different names, not {names}; give them a name=")
    return tuple(_bind(metric, encoded, prompts, vocab) for metric in chosen)


def _bind(metric: Metric, encoded: Encoded, prompts: object, vocab: int) -> BoundMetric:
    lengths = encoded.lengths
    check_positions(metric.position, None, lengths, encoded.spans)
    if isinstance(metric.position, str):
        positions = [end - 1 for _, end in role_spans(metric.position, encoded.spans, len(lengths))]
    else:
        positions = [metric.position % length for length in lengths]
    given = {"answer": metric.answers, "distractor": metric.distractors}
    roles = KINDS[metric.kind].roles
    columns = [_column(metric, role, given[role], prompts, len(lengths), vocab) for role in roles]
    if roles == ("answer", "distractor"):
        for i, (answer, distractor) in enumerate(zip(*columns, strict=True)):
            if answer == distractor:
                raise BadInput(
                    f"{metric}: answer and distractor of prompt {i} are (or begin with) the same token {answer}, so "
                    "their difference says nothing; choose answers whose first tokens differ"
                )
    if metric.reference is not None and tuple(metric.reference.shape) != (len(lengths), vocab):
        raise BadInput(
            f"{metric}: the reference has shape {tuple(metric.reference.shape)}, not {(len(lengths), vocab)}"
        )
    tokens = torch.tensor(columns, dtype=torch.long).T if columns else torch.zeros(len(lengths), 0, dtype=torch.long)
    return BoundMetric(metric, torch.tensor(positions), tokens)


def _column(
    metric: Metric, role: str, given: tuple[int, ...] | None, prompts: object, count: int, vocab: int
) -> list[int]:
    if given is None:
        own = getattr(prompts, f"{role}_tokens", ())
        if not own:
            raise BadInput(f"{metric} needs {role}s: give the tokens, or prompts that have {role}s")
        given = tuple(row[0] for row in own)
    if len(given) not in (1, count):
        raise BadInput(f"{metric}: there are {len(given)} {role} tokens for {count} prompts; give one, or one a prompt")
    for token in given:
        if not 0 <= token < vocab:
            raise BadInput(f"{metric}: the {role} token {token} does not exist; the vocabulary has {vocab} entries")
    return list(given if len(given) == count else given * count)


def _tokens(tokens: Tokens) -> tuple[int, ...] | None:
    if tokens is None:
        return None
    return (int(tokens),) if isinstance(tokens, int) else tuple(map(int, tokens))


def _precise(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
