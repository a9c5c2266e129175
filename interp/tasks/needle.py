"""Needle tests: a sentence hidden in a haystack at every length and depth of a grid, and a question for it.

Lengths are tokens of the whole prompt, depths percent of its haystack. A needle stands after the last sentence
that ends at or before its depth, so two prompts of one needle and length begin with the same tokens up to the
shallower of their two places: keys and values of the haystack can be computed once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from interp.errors import BadInput, PromptTooLong, UnreadableFile
from interp.tasks.bundled import Needle, bundled_needles, make_needle, needle_keys, random_needle
from interp.tasks.encoding import Span, encode
from interp.tasks.haystack import Haystack, insert
from interp.tasks.prompts import PromptSet

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BUNDLED_NEEDLES = 3
"""As many as Retrieval Head uses (Wu et al. 2024)."""

BOOK_QUESTION = "Based on the content of the book, Question: {question}\nAnswer:"
"""How Retrieval Head asks, right after the haystack."""

BOOK_TURN = "<book>{context}</book>\n{question}"
"""How Retrieval Head asks a chat model, in one user turn."""


def needle_prompts(
    tokenizer: PreTrainedTokenizerBase,
    lengths: Sequence[int],
    depths: Sequence[float],
    needles: Sequence[Needle] | None = None,
    haystack: str | Path | None = None,
    *,
    n_needles: int | None = None,
    distractors: int = 0,
    seed: int = 0,
    context: int | None = None,
    chat: bool = False,
) -> PromptSet:
    """One prompt for each needle, length and depth, in this order, none longer than asked.

    `needles` are the caller's (the first `n_needles` of them) or bundled ones. `haystack` is a text, the path of
    a `.txt` file or of a folder of them, or the bundled filler; it is never repeated to make it longer.
    `distractors` further needles with other keys stand at random depths: of the same attribute where the needles
    are bundled, drawn from the others where they are the caller's. `context` is how many tokens the model takes.
    `chat` makes the prompt a user turn in the tokenizer's chat template.

    Spans: "needle" and "distractor_1", … (whole sentences), "value" (the answer where it is last in the needle),
    "question", and "answer_query", the last token, from which the answer's first is predicted. Metadata: length, depth,
    needle (its number), key, value, attribute. The space before the answer belongs to the answer where the
    tokenizer makes it part of the answer's first token, to the prompt otherwise.

    Raises BadInput for an empty or too short haystack, a depth outside 0 to 100, a value that is not in its
    needle; PromptTooLong where needle and question exceed a length, or a length and the answer the context.
    """
    lengths, depths = _grid(lengths, depths)
    if chat and not tokenizer.chat_template:
        raise BadInput("This tokenizer has no chat template, so its model takes no chat prompts.")
    frame = _Frame(tokenizer, chat)
    tests = [
        _Test.of(frame, needle, others, Random(f"distractor depths {seed} {number}"))
        for number, (needle, others) in enumerate(_choose(needles, n_needles, distractors, seed))
    ]
    for test in tests:
        test.require_room(min(lengths), max(lengths), context)
    stack = Haystack.read(tokenizer, haystack, max(lengths), seed)
    cells = [
        (number, test, length, depth, cell)
        for number, test in enumerate(tests)
        for length in lengths
        for depth, cell in zip(depths, test.fill(stack, length, depths), strict=True)
    ]
    prompts = PromptSet.build(
        tokenizer,
        [cell.text for *_, cell in cells],
        [test.answers[0] for _, test, *_ in cells],
        spans={role: [cell.spans[role] for *_, cell in cells] for role in cells[0][-1].spans},
        distractors=[test.answers[1] for _, test, *_ in cells] if distractors else (),
        metadata=[
            {"length": length, "depth": depth, "needle": number, **test.about}
            for number, test, length, depth, _ in cells
        ],
        special_tokens=not chat,
    )
    last = tuple((len(tokens) - 1, len(tokens)) for tokens in prompts.tokens)
    return replace(prompts, spans={**prompts.spans, "answer_query": last})


def read_needles_jsonl(path: str | Path) -> list[Needle]:
    """Needles from Retrieval Head's `needles.jsonl`: objects with `needle`, `question` and `real_needle`.

    The question is put as the authors put it. Where `real_needle` differs from the needle in case ("Because" for
    "because"), the answer is the needle's own spelling. Raises UnreadableFile naming the line.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UnreadableFile(f"{path} cannot be read: {error}.") from error
    needles = [
        _needle_of_record(line, f"Line {number} of {path}") for number, line in enumerate(lines, 1) if line.strip()
    ]
    if not needles:
        raise UnreadableFile(f"{path} holds no needles.")
    return needles


def _needle_of_record(line: str, where: str) -> Needle:
    try:
        record = json.loads(line)
        needle, question, wanted = record["needle"], record["question"], record["real_needle"]
        found = re.search(re.escape(wanted.strip()), needle, re.IGNORECASE)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        message = f"{where} is not an object of texts `needle`, `question` and `real_needle` ({error!r})."
        raise UnreadableFile(message) from error
    if not found or not found[0]:
        raise UnreadableFile(f"{where}: the real_needle {wanted!r} is not in the needle {needle!r}.")
    return Needle(needle, BOOK_QUESTION.format(question=question), f" {found[0]}", question, found[0], "")


@dataclass(frozen=True)
class _Prompt:
    text: str
    spans: dict[str, Span]


@dataclass(frozen=True)
class _Frame:
    """How a context and a question become a prompt of this tokenizer."""

    tokenizer: PreTrainedTokenizerBase
    chat: bool

    def prompt(self, context: str, question: str, spans: dict[str, Span]) -> _Prompt:
        """`spans` are characters of the context; the question's own is added."""
        if not self.chat:
            text, start = context + question, 0
        else:
            turn = BOOK_TURN.format(context=context, question=question)
            messages = [{"role": "user", "content": turn}]
            text = str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
            if turn not in text:
                raise BadInput("The chat template does not keep the user's turn as it is.")
            start = text.index(turn) + BOOK_TURN.index("{context}")
        asked = text.index(question, start + len(context))
        lead = len(question) - len(question.lstrip())
        question_span = (asked + lead, asked + len(question.rstrip()))
        moved = {role: (a + start, b + start) for role, (a, b) in spans.items()}
        return _Prompt(text, {**moved, "question": question_span})

    def count(self, prompt: _Prompt) -> int:
        return len(encode(self.tokenizer, prompt.text, special_tokens=not self.chat).ids)

    def split(self, question: str, answers: Sequence[str]) -> tuple[str, tuple[str, ...]]:
        """The end of the prompt and what may follow it, with the space between them on one side.

        It goes to the answers where one of them begins with a token that holds the space too.
        """
        if self.chat:
            return question.strip(), tuple(answer.strip() for answer in answers)
        asked = encode(self.tokenizer, question).ids
        if all(encode(self.tokenizer, question + answer).ids[: len(asked)] == asked for answer in answers):
            return question, tuple(answers)
        shorter = question.rstrip(" ")
        return shorter, tuple(question[len(shorter) :] + answer for answer in answers)


@dataclass(frozen=True)
class _Test:
    """One needle, its distractors and its question: all of a prompt but the haystack."""

    frame: _Frame
    sentences: tuple[str, ...]
    """The needle and its distractors."""
    answers: tuple[str, ...]
    """Theirs."""
    depths: tuple[float, ...]
    """Of the distractors."""
    question: str
    about: dict[str, str]

    @classmethod
    def of(cls, frame: _Frame, needle: Needle, others: Sequence[Needle], rng: Random) -> _Test:
        value = needle.answer.strip()
        if not value or value not in needle.needle:
            raise BadInput(f"The answer {value!r} is not in its needle {needle.needle!r}.")
        together = (needle, *others)
        question, answers = frame.split(needle.question, [each.answer for each in together])
        return cls(
            frame,
            tuple(each.needle for each in together),
            answers,
            tuple(rng.uniform(0, 100) for _ in others),
            question,
            {"key": needle.key, "value": value, "attribute": needle.attribute},
        )

    def require_room(self, shortest: int, longest: int, context: int | None) -> None:
        """Raise PromptTooLong unless needle and question fit the length, and prompt and answer the context."""
        bare = self.frame.count(self.prompt("", [0] * len(self.sentences)))
        if bare >= shortest:
            raise PromptTooLong(
                f"The needle {self.sentences[0]!r} and its question take {bare} tokens, "
                f"which leaves no room for a haystack in a prompt of {shortest}."
            )
        answer = len(encode(self.frame.tokenizer, self.answers[0], special_tokens=False).ids)
        if context is not None and longest + answer > context:
            raise PromptTooLong(
                f"A prompt of {longest} tokens and its answer of {answer} exceed the model's context of "
                f"{context}: the longest prompt that fits has {context - answer}."
            )

    def prompt(self, haystack: str, places: Sequence[int]) -> _Prompt:
        """The prompt with each sentence at its character of the haystack."""
        context, (needle, *others) = insert(haystack, list(zip(places, self.sentences, strict=True)))
        value = needle[0] + self.sentences[0].rindex(self.about["value"])
        spans = {"needle": needle, "value": (value, value + len(self.about["value"]))}
        spans |= {f"distractor_{i}": span for i, span in enumerate(others, 1)}
        return self.frame.prompt(context, self.question, spans)

    def fill(self, stack: Haystack, length: int, depths: Sequence[float]) -> list[_Prompt]:
        """The prompts of one length: as many sentences of the haystack as leave none longer than it."""
        room = length - self.frame.count(self.prompt("", [0] * len(self.sentences)))
        if room > len(stack.token_ends):
            raise BadInput(
                f"The haystack {stack.text[:40]!r}… has {len(stack.token_ends)} tokens; a prompt of {length} "
                f"needs {room} besides its needle and question."
            )
        end = stack.sentence_end(room)
        while end:
            at = [stack.place(end, depth) for depth in self.depths]
            prompts = [self.prompt(stack.text[:end], [stack.place(end, depth), *at]) for depth in depths]
            if all(self.frame.count(prompt) <= length for prompt in prompts):
                return prompts
            end = stack.sentence_end_before(end)
        raise BadInput(
            f"No sentence of the haystack {stack.text[:40]!r}… ends within the {room} tokens that a prompt of "
            f"{length} has for it: sentences end at . ! ? or a line break."
        )


def _grid(lengths: Sequence[int], depths: Sequence[float]) -> tuple[list[int], list[float]]:
    """The same as plain numbers, so that NumPy's can be given. Raises BadInput for those that make no test."""
    if not len(lengths) or not len(depths):
        raise BadInput("A needle test needs at least one length and one depth.")
    for length in lengths:
        if length < 1 or int(length) != length:
            raise BadInput(f"A prompt of {length} tokens cannot be made: lengths are whole numbers from 1.")
    for depth in depths:
        if not 0 <= depth <= 100:
            raise BadInput(f"Depth {depth} is not a percentage of the haystack: depths go from 0 to 100.")
    return [int(length) for length in lengths], [float(depth) for depth in depths]


def _choose(
    needles: Sequence[Needle] | None, n: int | None, distractors: int, seed: int
) -> list[tuple[Needle, list[Needle]]]:
    """Each needle to ask for, with its distractors."""
    rng = Random(f"distractors {seed}")
    available = len(needle_keys()) if needles is None else len(needles)
    n = n if n is not None else BUNDLED_NEEDLES if needles is None else available
    if not 1 <= n <= available:
        raise BadInput(f"{n} needles were asked for; there are {available}.")
    if not 0 <= distractors < available:
        raise BadInput(f"{distractors} distractors beside a needle need {distractors + 1} needles of {available}.")
    if needles is not None:
        others = [[other for other in needles if other is not needle] for needle in needles[:n]]
        return [(needle, rng.sample(rest, distractors)) for needle, rest in zip(needles, others, strict=False)]
    return [(needle, _rivals(rng, needle, distractors)) for needle in bundled_needles(seed, n)]


def _rivals(rng: Random, needle: Needle, n: int) -> list[Needle]:
    """Bundled needles of the same attribute with other keys and values."""
    keys = rng.sample([key for key in needle_keys() if key != needle.key], n)
    drawn = [random_needle(rng, key) for key in keys]
    while any(rival.value == needle.value for rival in drawn):
        drawn = [random_needle(rng, key) for key in keys]
    return [make_needle(rival.key, needle.attribute, rival.value) for rival in drawn]
