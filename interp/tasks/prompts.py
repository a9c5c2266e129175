"""PromptSet: prompts as the model reads them, with answers, distractors, a twin and named positions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.errors import BadInput, UnreadableFile, choose
from interp.runs import staged
from interp.tables import in_notebook
from interp.tasks.encoding import Span, encode, following

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FIELDS = frozenset(
    {"text", "tokens", "answer", "answer_tokens", "distractor", "distractor_tokens"}
    | {"spans", "metadata", "counterfactual"}
)
"""What one line of a prompt file may hold."""
SHOWN = 4
"""Prompts that a set shows of itself in a notebook."""


@dataclass(frozen=True, repr=False)
class PromptSet:
    """Prompts and what an analysis must know about them. Raises BadInput where the fields do not fit.

    `tokens` are as the model reads them, special tokens included. Answers, distractors and metadata are one a
    prompt, or empty; their tokens are those they have right after the prompt. `spans` maps a role ("needle",
    "S2") to one half-open token span a prompt. The counterfactual has as many tokens in every row.
    """

    texts: tuple[str, ...]
    tokens: tuple[tuple[int, ...], ...]
    answers: tuple[str, ...] = ()
    answer_tokens: tuple[tuple[int, ...], ...] = ()
    distractors: tuple[str, ...] = ()
    distractor_tokens: tuple[tuple[int, ...], ...] = ()
    spans: Mapping[str, tuple[Span, ...]] = field(default_factory=dict)
    counterfactual: PromptSet | None = None
    metadata: tuple[Mapping[str, Any], ...] = ()

    def __post_init__(self) -> None:
        _require_one_each(
            len(self),
            self.spans,
            answers=self.answers,
            distractors=self.distractors,
            metadata=self.metadata,
        )
        if len(self.tokens) != len(self):
            raise BadInput(f"There are {len(self.tokens)} rows of tokens for {len(self)} prompts.")
        if len(self.answers) != len(self.answer_tokens) or len(self.distractors) != len(self.distractor_tokens):
            raise BadInput("Every answer and every distractor needs its tokens; PromptSet.build finds them.")
        for role, spans in self.spans.items():
            for i, (start, end) in enumerate(spans):
                if not 0 <= start < end <= len(self.tokens[i]):
                    raise BadInput(
                        f"The span {role!r} of prompt {i} is tokens {start} to {end}; "
                        f"the prompt has tokens 0 to {len(self.tokens[i])}."
                    )
        if self.counterfactual is not None:
            _require_aligned(self, self.counterfactual)

    @classmethod
    def build(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        texts: Sequence[str],
        answers: Sequence[str] = (),
        *,
        spans: Mapping[str, Sequence[Span]] | None = None,
        distractors: Sequence[str] = (),
        counterfactual: PromptSet | None = None,
        metadata: Sequence[Mapping[str, Any]] = (),
        special_tokens: bool = True,
    ) -> PromptSet:
        """Tokenise `texts`; `spans` count characters and become the tokens that touch them.

        An answer follows its prompt character for character, so a space between the two belongs to one of
        them. Special tokens that a tokenizer puts after a text are left off. `special_tokens=False` is for
        texts that spell theirs out, such as those of a chat template.

        Raises BadInput for a slow tokenizer, an empty prompt, a span that touches no token, and an answer
        that changes how the end of its prompt is tokenised.
        """
        spans = spans or {}
        _require_one_each(len(texts), spans, answers=answers, distractors=distractors, metadata=metadata)
        tokens: list[tuple[int, ...]] = []
        answer_tokens: list[tuple[int, ...]] = []
        distractor_tokens: list[tuple[int, ...]] = []
        token_spans: dict[str, list[Span]] = {role: [] for role in spans}
        # Prompt by prompt, because the offsets of long prompts take many times the memory of their tokens.
        for i, text in enumerate(texts):
            prompt = encode(tokenizer, text, special_tokens)
            if not prompt.ids:
                raise BadInput(f"Prompt {i} is {text!r}, which has no tokens.")
            tokens.append(prompt.ids)
            for role, of_role in spans.items():
                token_spans[role].append(prompt.token_span(of_role[i], f"The span {role!r} of prompt {i}"))
            if answers:
                what = f"answer of prompt {i}"
                answer_tokens.append(following(tokenizer, prompt, answers[i], special_tokens, what))
            if distractors:
                what = f"distractor of prompt {i}"
                distractor_tokens.append(following(tokenizer, prompt, distractors[i], special_tokens, what))
        return cls(
            texts=tuple(texts),
            tokens=tuple(tokens),
            answers=tuple(answers),
            answer_tokens=tuple(answer_tokens),
            distractors=tuple(distractors),
            distractor_tokens=tuple(distractor_tokens),
            spans={role: tuple(of_role) for role, of_role in token_spans.items()},
            counterfactual=counterfactual,
            metadata=tuple(metadata),
        )

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int | slice) -> PromptSet:
        rows = range(len(self))[index]
        return self.select([rows] if isinstance(rows, int) else rows)

    def __repr__(self) -> str:
        lengths = sorted(map(len, self.tokens)) or [0]
        tokens = str(lengths[0]) if lengths[0] == lengths[-1] else f"{lengths[0]} to {lengths[-1]}"
        parts = [f"{len(self)} prompt{'s' * (len(self) != 1)} of {tokens} tokens"]
        parts += [f"spans {', '.join(self.spans)}"] if self.spans else []
        parts += ["with a counterfactual"] if self.counterfactual else []
        return f"PromptSet({'; '.join(parts)})"

    def _repr_html_(self) -> str:
        import pandas as pd

        columns: dict[str, Sequence[Any]] = {"prompt": self.texts}
        columns["tokens"] = [len(row) for row in self.tokens]
        columns |= {name: of for name, of in (("answer", self.answers), ("distractor", self.distractors)) if of}
        columns |= {role: [_place(span) for span in spans] for role, spans in self.spans.items()}
        if self.counterfactual is not None:
            columns["counterfactual"] = self.counterfactual.texts
        return in_notebook(self, pd.DataFrame(columns), most=SHOWN)

    def select(self, indices: Sequence[int]) -> PromptSet:
        """The prompts at `indices`, in that order, with everything that belongs to them. Raises BadInput."""
        n = len(self)
        if outside := [i for i in indices if not -n <= i < n]:
            raise BadInput(f"There is no prompt {outside[0]}: this set has {n}.")

        def rows(column: Sequence[Any]) -> tuple[Any, ...]:
            return tuple(column[i] for i in indices) if column else ()

        return PromptSet(
            rows(self.texts),
            rows(self.tokens),
            rows(self.answers),
            rows(self.answer_tokens),
            rows(self.distractors),
            rows(self.distractor_tokens),
            {role: rows(spans) for role, spans in self.spans.items()},
            self.counterfactual.select(indices) if self.counterfactual is not None else None,
            rows(self.metadata),
        )

    @property
    def hash(self) -> str:
        """Sixteen hex digits over the whole content, so that a run can say which prompts it used."""
        digest = hashlib.sha256()
        for line in self._lines():
            digest.update(line.encode())
        return digest.hexdigest()[:16]

    def to_jsonl(self, path: str | Path) -> None:
        """Write one JSON object a prompt, whole or not at all. Raises UnwritableOutput, BadInput."""
        lines = self._lines()
        with staged(path) as file:
            file.write_text("".join(lines), encoding="utf-8")

    @classmethod
    def from_jsonl(cls, path: str | Path, tokenizer: PreTrainedTokenizerBase | None = None) -> PromptSet:
        """Read prompts, one JSON object a line: `text`, and where wanted `answer`, `distractor`, `spans`,
        `metadata` and `counterfactual` (an object with the same fields).

        Records with `tokens`, as `to_jsonl` writes them, are taken as they are. Records without are tokenised
        with `tokenizer`, and their spans count characters. Raises UnreadableFile, BadInput.
        """
        return _from_records(_read_records(Path(path)), Path(path), tokenizer)

    def _lines(self) -> list[str]:
        try:
            return [
                json.dumps(self._record(i), ensure_ascii=False, sort_keys=True, allow_nan=False) + "\n"
                for i in range(len(self))
            ]
        except (TypeError, ValueError) as error:
            raise BadInput(f"The prompts' metadata must be plain JSON values: {error}.") from error

    def _record(self, i: int) -> dict[str, Any]:
        record: dict[str, Any] = {"text": self.texts[i], "tokens": self.tokens[i]}
        if self.answers:
            record |= {"answer": self.answers[i], "answer_tokens": self.answer_tokens[i]}
        if self.distractors:
            record |= {"distractor": self.distractors[i], "distractor_tokens": self.distractor_tokens[i]}
        if self.spans:
            record["spans"] = {role: spans[i] for role, spans in self.spans.items()}
        if self.metadata:
            record["metadata"] = dict(self.metadata[i])
        if self.counterfactual is not None:
            record["counterfactual"] = self.counterfactual._record(i)
        return record


def _place(span: Span) -> str:
    """A span as the positions it covers."""
    start, end = span
    return str(start) if end == start + 1 else f"{start}–{end - 1}"


def _require_one_each(n: int, spans: Mapping[str, Sequence[Span]], **columns: Sequence[object]) -> None:
    given = {name: column for name, column in columns.items() if column}
    for name, column in (given | {f"spans of {role!r}": of_role for role, of_role in spans.items()}).items():
        if len(column) != n:
            raise BadInput(f"There are {len(column)} {name} for {n} prompts.")


def _require_aligned(prompts: PromptSet, twin: PromptSet) -> None:
    if len(twin) != len(prompts):
        raise BadInput(f"The counterfactual has {len(twin)} prompts for {len(prompts)}.")
    for i, (a, b) in enumerate(zip(prompts.tokens, twin.tokens, strict=True)):
        if len(a) != len(b):
            raise BadInput(
                f"Prompt {i} has {len(a)} tokens and its counterfactual {len(b)}, so their positions do not "
                f"match: {prompts.texts[i]!r} / {twin.texts[i]!r}."
            )


def _read_records(path: Path) -> list[dict[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UnreadableFile(f"{path} cannot be read: {error}.") from error
    records = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                records.append(json.loads(line))
            except ValueError as error:
                raise UnreadableFile(f"Line {number} of {path} is not JSON: {error}.") from error
    if not records:
        raise UnreadableFile(f"{path} holds no prompts.")
    return records


def _from_records(records: list[Any], path: Path, tokenizer: PreTrainedTokenizerBase | None) -> PromptSet:
    for number, record in enumerate(records, 1):
        _require_record(record, records[0], f"Prompt {number} of {path}")

    def column(name: str) -> tuple[Any, ...]:
        return tuple(record[name] for record in records) if name in records[0] else ()

    def tokens(name: str) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(map(int, row)) for row in column(name))

    twin = _from_records(list(column("counterfactual")), path, tokenizer) if column("counterfactual") else None
    try:
        roles = tuple(records[0].get("spans", ()))
        spans = {role: tuple(_span(record["spans"][role]) for record in records) for role in roles}
        ids, answer_tokens, distractor_tokens = (
            tokens("tokens"),
            tokens("answer_tokens"),
            tokens("distractor_tokens"),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UnreadableFile(f"{path} holds a span or token list that is none ({error!r}).") from error
    if ids:
        return PromptSet(
            column("text"),
            ids,
            column("answer"),
            answer_tokens,
            column("distractor"),
            distractor_tokens,
            spans,
            twin,
            column("metadata"),
        )
    if tokenizer is None:
        raise BadInput(f"{path} holds texts without tokens: say which tokenizer to read it with.")
    return PromptSet.build(
        tokenizer,
        column("text"),
        column("answer"),
        spans=spans,
        distractors=column("distractor"),
        counterfactual=twin,
        metadata=column("metadata"),
    )


def _require_record(record: Any, first: Any, what: str) -> None:
    kinds = {"text": str, "answer": str, "distractor": str, "spans": dict, "metadata": dict}
    if not isinstance(record, dict) or "text" not in record:
        raise UnreadableFile(f'{what} is not an object with a "text".')
    for name, kind in kinds.items():
        if name in record and not isinstance(record[name], kind):
            raise UnreadableFile(f"{what}: {name} is {record[name]!r}, not a {kind.__name__}.")
    for name in record.keys() - _FIELDS:
        raise UnreadableFile(f"{what} has the unknown field {name!r}; {choose(name, sorted(_FIELDS))}.")
    if differing := sorted(record.keys() ^ first.keys()):
        raise UnreadableFile(f"{what} and the first one do not both have {', '.join(differing)}.")


def _span(span: Sequence[int]) -> Span:
    start, end = span
    return int(start), int(end)
