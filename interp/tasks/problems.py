"""Problems: questions whose answers can be checked, for analyses that sample many responses to each."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path

from interp.errors import BadInput, UnreadableFile, choose
from interp.tasks.labelled import read_rows

Delimiters = tuple[str, str]
"""What opens and what closes the reasoning in prompt and response, such as `("<think>", "</think>")`."""
LAST_NUMBER = r"(-?[\d,]*\.?\d+(?:/\d+)?)"


@dataclass(frozen=True, repr=False)
class Problems:
    """Prompts, their right answers, and how an answer is found in a response and compared.

    `questions` identify the problems and differ from each other; all splits are between them. `pattern` is a regular
    expression whose last match, or the last match's first group, is the answer. `compare` is `"exact"` (after trimming)
    or `"numeric"` (equal as rational numbers: 1,000 is 1000.0, 1/2 is 0.5). `delimiters` mark the reasoning where there
    are any; a response ends at one of `stop`. Raises BadInput where the fields do not fit.
    """

    name: str
    questions: tuple[str, ...]
    prompts: tuple[str, ...]
    answers: tuple[str, ...]
    pattern: str = LAST_NUMBER
    compare: str = "numeric"
    delimiters: Delimiters | None = None
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.questions:
            raise BadInput(f"{self.name} holds no problems")
        for what, column in (("prompts", self.prompts), ("answers", self.answers)):
            if len(column) != len(self.questions):
                raise BadInput(f"{self.name} has {len(column)} {what} for {len(self.questions)} questions")
        for what, column in (("question", self.questions), ("prompt", self.prompts)):
            entry, times = Counter(column).most_common(1)[0]
            if times > 1:
                raise BadInput(f"{self.name} holds the {what} {entry!r} {times} times, so that a split would leak it")
        if self.compare not in COMPARED:
            raise BadInput(f"answers cannot be compared as {self.compare!r}; {choose(self.compare, COMPARED)}")
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise BadInput(f"the pattern {self.pattern!r} is no regular expression: {error}") from error
        for question, answer in zip(self.questions, self.answers, strict=True):
            if COMPARED[self.compare](answer) is None:
                raise BadInput(f"the answer {answer!r} of question {question!r} is no number; compare as 'exact'")

    def __len__(self) -> int:
        return len(self.questions)

    def __repr__(self) -> str:
        return f"Problems({self.name}: {len(self)} questions, {self.compare} answers)"

    @cached_property
    def hash(self) -> str:
        """Sixteen hex digits that identify everything about the problems but their name."""
        about = {field: value for field, value in asdict(self).items() if field != "name"}
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]

    def answer(self, response: str) -> str | None:
        """The answer in a response, in the form that equal answers share; None where there is none."""
        found = list(re.finditer(self.pattern, response))
        if not found:
            return None
        last = found[-1]
        return COMPARED[self.compare]((last[1] if last.re.groups else last[0]) or "")

    def is_right(self, number: int, answer: str | None) -> bool:
        """Whether an answer, as `answer` returns it, is that of problem `number`."""
        return answer is not None and answer == COMPARED[self.compare](self.answers[number])

    @classmethod
    def from_jsonl(
        cls,
        path: str | Path,
        *,
        template: str = "{question}",
        pattern: str = LAST_NUMBER,
        compare: str = "numeric",
        delimiters: Delimiters | None = None,
        stop: tuple[str, ...] = (),
    ) -> Problems:
        """Read a file of one object a line with `question` and `answer`, and where wanted an `id`.

        `template` makes the prompt of a question. Raises UnreadableFile naming the entry that does not fit, BadInput.
        """
        path = Path(path)
        if "{question}" not in template:
            raise BadInput(f"the template {template!r} has no place for the {{question}}")
        rows = read_rows(path)
        for number, row in enumerate(rows, 1):
            if lacking := [column for column in ("question", "answer") if row.get(column) in (None, "")]:
                raise UnreadableFile(f"entry {number} of {path} has no {' and no '.join(lacking)}")
        texts = [str(row["question"]) for row in rows]
        return cls(
            path.stem,
            tuple(str(row.get("id") or text) for row, text in zip(rows, texts, strict=True)),
            tuple(template.replace("{question}", text) for text in texts),
            tuple(str(row["answer"]) for row in rows),
            pattern,
            compare,
            delimiters,
            stop,
        )


def _exact(text: str) -> str | None:
    return text.strip() or None


def _number(text: str) -> str | None:
    try:
        return str(Fraction(text.replace(",", "").strip().lstrip("$")))
    except (ValueError, ZeroDivisionError):
        return None


COMPARED: Mapping[str, Callable[[str], str | None]] = {"exact": _exact, "numeric": _number}
"""How a text becomes the form in which equal answers are equal; None where it is no answer."""
