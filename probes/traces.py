"""Experience: responses to questions, and whether they are right."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from interp.errors import BadInput, UnreadableFile, choose
from interp.runs import Run, load_run, save_run
from interp.tables import in_notebook
from interp.tasks.labelled import read_rows
from probes.reasoning import MISSING, Missing, Reasoning, locate

if TYPE_CHECKING:
    import pandas as pd

KIND = "traces"
_COLUMNS = ("question", "prompt", "tokens", "answer", "correct", "log_probability")


@dataclass(frozen=True)
class Response:
    """One response to a question: token ids of `prompt` and response, and what is known about it.

    `correct` None means nobody checked; `answer` None means that the response holds none. `log_probability` is the mean
    log-probability of the response's tokens in nats.
    """

    question: str
    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    answer: str | None = None
    correct: bool | None = None
    log_probability: float = float("nan")

    @property
    def trace(self) -> tuple[int, ...]:
        """Prompt and response, as the model reads them."""
        return self.prompt + self.tokens


@dataclass(frozen=True, repr=False)
class Experience(Sequence[Response]):
    """Traces of one model. Raises BadInput for none, for empty responses and for one prompt under two questions.

    `delimiters` are the texts that open and close the reasoning. `model` is the record of the model that wrote the
    responses, where that is known.
    """

    responses: tuple[Response, ...]
    delimiters: tuple[str, str] | None = None
    model: Mapping[str, Any] = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.responses:
            raise BadInput("an experience needs traces, and there are none")
        if self.delimiters is not None and (len(self.delimiters) != 2 or not all(self.delimiters)):
            raise BadInput(f"delimiters are two texts that are not empty, not {self.delimiters!r}")
        asked: dict[tuple[int, ...], str] = {}
        for number, response in enumerate(self.responses):
            if not response.tokens:
                raise BadInput(f"trace {number} (question {response.question!r}) has no response")
            first = asked.setdefault(response.prompt, response.question)
            if response.prompt and first != response.question:
                raise BadInput(f"questions {first!r} and {response.question!r} are the same prompt: a split would leak")

    def __len__(self) -> int:
        return len(self.responses)

    def __getitem__(self, index: Any) -> Any:
        return self.responses[index]

    def __iter__(self) -> Iterator[Response]:
        return iter(self.responses)

    def __repr__(self) -> str:
        checked = [r.correct for r in self if r.correct is not None]
        right = f", {sum(checked) / len(checked):.0%} right" if checked else ""
        return f"Experience({len(self)} traces of {len(self.questions)} questions{right})"

    def _repr_html_(self) -> str:
        traces = self.frame.groupby("question", sort=False)
        return in_notebook(self, traces.agg(traces=("tokens", "size"), right=("correct", "mean")).reset_index())

    @property
    def questions(self) -> tuple[str, ...]:
        """Every question once, in order of appearance."""
        return tuple(dict.fromkeys(response.question for response in self))

    @property
    def frame(self) -> pd.DataFrame:
        """One row a trace; tokens as JSON."""
        import pandas as pd

        rows = [{name: getattr(response, name) for name in _COLUMNS} for response in self]
        frame = pd.DataFrame(rows, columns=list(_COLUMNS)).astype({"correct": "boolean"})
        return frame.assign(**{name: frame[name].map(json.dumps) for name in ("prompt", "tokens")})

    @classmethod
    def build(
        cls,
        tokenizer: Any,
        questions: Sequence[str],
        responses: Sequence[str | Sequence[int]],
        correct: Sequence[bool | None],
        *,
        prompts: Sequence[str | Sequence[int]] = (),
        answers: Sequence[str | None] = (),
        delimiters: tuple[str, str] | None = None,
    ) -> Experience:
        """Your own traces, as texts or token ids. Prompts and answers are one a response, or none at all.

        Raises BadInput where the columns differ in length, and for texts without a tokenizer.
        """
        n = len(responses)
        columns: dict[str, Sequence[Any]] = {"questions": questions, "correct": correct}
        columns |= {name: column for name, column in (("prompts", prompts), ("answers", answers)) if column}
        for name, column in columns.items():
            if len(column) != n:
                raise BadInput(f"there are {len(column)} {name} for {n} responses")
        built = []
        for i, response in enumerate(responses):
            prompt = _ids(tokenizer, prompts[i]) if prompts else ()
            tokens = _ids(tokenizer, response, special_tokens=not prompt)
            checked = None if correct[i] is None else bool(correct[i])
            built.append(Response(str(questions[i]), prompt, tokens, answers[i] if answers else None, checked))
        return cls(tuple(built), delimiters)

    @classmethod
    def from_jsonl(cls, path: str | Path, tokenizer: Any, delimiters: tuple[str, str] | None = None) -> Experience:
        """Read one object a line with `question`, `response` (text or token ids), `correct`, `prompt` and `answer`.

        The last three may be absent. Raises UnreadableFile naming the entry that does not fit, BadInput.
        """
        path = Path(path)
        rows = read_rows(path)
        for number, row in enumerate(rows, 1):
            if lacking := [name for name in ("question", "response") if not row.get(name)]:
                raise UnreadableFile(f"entry {number} of {path} has no {' and no '.join(lacking)}")
            if row.get("correct") not in (None, True, False):
                raise UnreadableFile(f"entry {number} of {path} is neither correct nor incorrect: {row['correct']!r}")
        prompted = [row for row in rows if row.get("prompt")]
        if prompted and len(prompted) < len(rows):
            raise UnreadableFile(f"{len(prompted)} of {len(rows)} entries of {path} have a prompt; all or none must")
        return cls.build(
            tokenizer,
            [str(row["question"]) for row in rows],
            [row["response"] for row in rows],
            [row.get("correct") for row in rows],
            prompts=[row["prompt"] for row in prompted],
            answers=[None if row.get("answer") is None else str(row["answer"]) for row in rows],
            delimiters=delimiters,
        )

    def save(self, path: str | Path, started: datetime | None = None) -> Run:
        """Write the traces as a run. Raises UnwritableOutput."""
        return save_run(
            path,
            kind=KIND,
            parameters={**self.parameters, "delimiters": self.delimiters},
            model=self.model,
            seed=self.seed,
            frame=self.frame,
            started=started,
        )

    @classmethod
    def load(cls, path: str | Path) -> Experience:
        """Read what `save` wrote. Raises UnreadableFile."""
        run = load_run(path)
        if run.record.kind != KIND:
            raise UnreadableFile(f"{path} is a run of {run.record.kind}, not of traces")
        parameters = dict(run.record.parameters)
        delimiters = parameters.pop("delimiters", None)
        responses = tuple(_response(row) for row in run.frame.to_dict("records"))
        record = run.record
        return cls(responses, delimiters and tuple(delimiters), record.model, parameters, record.seed)

    def of(self, questions: Sequence[str]) -> Experience:
        """The traces of these questions. Raises BadInput where there are none."""
        wanted = set(questions)
        return replace(self, responses=tuple(response for response in self if response.question in wanted))

    def split(self, test: float = 0.5, seed: int = 0) -> tuple[Experience, Experience]:
        """Two experiences that share no question; the second has the share `test` of all questions.

        Raises BadInput where one of them would be empty.
        """
        questions = sorted(self.questions)
        held_out = round(test * len(questions))
        if not 0 < held_out < len(questions):
            raise BadInput(f"a share of {test} of {len(questions)} questions leaves one side of the split empty")
        Random(f"split {seed}").shuffle(questions)
        return self.of(questions[held_out:]), self.of(questions[:held_out])

    def labels(self) -> list[bool]:
        """Whether each trace is right. Raises BadInput where nobody checked, and where all are alike."""
        checked = [response.correct for response in self]
        if None in checked:
            raise BadInput(f"{checked.count(None)} of {len(self)} traces are not known to be right or wrong")
        if len(set(checked)) == 1:
            kind = "right" if checked[0] else "wrong"
            raise BadInput(f"all {len(self)} traces are {kind}: what tells right from wrong needs both")
        return [bool(each) for each in checked]

    def reasoning(self, tokenizer: Any, missing: Missing = "refuse") -> list[Reasoning | None]:
        """Where each trace's reasoning begins and ends; None for a trace that is left out.

        Without delimiters it goes from the last token of the prompt to the last token of the trace. With them, from the
        final token of the first opening one to the final token of the first closing one after it, and `missing` says
        what becomes of traces that lack one. Raises BadInput for those under `"refuse"`, and for a trace shorter than
        its delimiters: one that ends where its reasoning begins.
        """
        if missing not in MISSING:
            raise BadInput(f"there is no way {missing!r} to treat missing delimiters; {choose(missing, MISSING)}")
        if self.delimiters is not None and tokenizer is None:
            raise BadInput("delimiters are texts, and finding them needs a tokenizer")
        places = [locate(response, self.delimiters, tokenizer) for response in self]
        lacking = [i for i, p in enumerate(places) if self.delimiters and not (p.start_found and p.end_found)]
        if lacking and missing == "refuse":
            raise BadInput(
                f"{len(lacking)} of {len(self)} traces, the first of them number {lacking[0]}, lack "
                f"one of the delimiters {self.delimiters}; say what to do with missing delimiters: "
                "'drop' leaves those traces out, 'ends' takes the last token of the prompt and that of the trace"
            )
        dropped = set(lacking) if missing == "drop" else set()
        if len(dropped) == len(self):
            raise BadInput(f"none of {len(self)} traces has both delimiters, {self.delimiters}")
        for i, place in enumerate(places):
            if i not in dropped and place.end <= place.start:
                raise BadInput(
                    f"trace {i} (question {self[i].question!r}) is shorter than its delimiters: the reasoning begins "
                    f"at token {place.start}, and the trace has {len(self[i].trace)} tokens"
                )
        return [None if i in dropped else place for i, place in enumerate(places)]


def _response(row: Mapping[str, Any]) -> Response:
    """A row of `Experience.frame` as read from disk, where absent values have become NaN or NA."""
    return Response(
        question=row["question"],
        prompt=tuple(json.loads(row["prompt"])),
        tokens=tuple(json.loads(row["tokens"])),
        answer=row["answer"] if isinstance(row["answer"], str) else None,
        correct=bool(row["correct"]) if row["correct"] in (True, False) else None,
        log_probability=float(row["log_probability"]),
    )


def _ids(tokenizer: Any, text: str | Sequence[int], special_tokens: bool = True) -> tuple[int, ...]:
    if not isinstance(text, str):
        return tuple(int(token) for token in text)
    if tokenizer is None:
        raise BadInput("text needs a tokenizer; give token ids")
    return tuple(tokenizer(text, add_special_tokens=special_tokens)["input_ids"])
