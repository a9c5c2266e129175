"""Question answering from files in the form of SQuAD (Rajpurkar et al. 2016, 2018)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from interp.errors import BadInput, UnreadableFile
from interp.tasks.analogies import Structure
from interp.tasks.prompts import PromptSet

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DOCUMENT = "{context}\nQ: {question}\nA:"
FUNCTION_WORDS = frozenset(
    """
    a about after also an and are as at be been before between but by can could did do does during for from had has have
    he her his how i in into is it its many more most much name not of on one or other over same she should some such
    than that the their there they this to under until up was were what when where which while who whom whose why will
    with would
    """.split()  # noqa: SIM905 - a page of quotation marks is no clearer
)
"""Words that are no concepts; lexical categories would need a parser."""


@dataclass(frozen=True)
class Question:
    """A question that its context answers."""

    context: str
    question: str
    answer: str


def read_squad(path: str | Path) -> tuple[Question, ...]:
    """The answerable questions of a SQuAD file, each with its first answer. Raises UnreadableFile."""
    path = Path(path)
    try:
        found = tuple(_questions(json.loads(path.read_text(encoding="utf-8"))["data"]))
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise UnreadableFile(f"{path} does not hold questions in the form of SQuAD: {error!r}") from error
    if not found:
        raise UnreadableFile(f"{path} holds no answerable questions")
    return found


def squad_prompts(
    tokenizer: PreTrainedTokenizerBase,
    path: str | Path,
    n: int,
    seed: int = 0,
    *,
    words: int = 3,
    context: int | None = None,
) -> PromptSet:
    """`n` questions whose answer has at most `words` words and whose prompt at most `context` tokens.

    The concepts are the content words of question and answer, lower-cased, bundled without binding; the first content
    word of the answer is the target. Raises UnreadableFile, and BadInput where there are not so many.
    """
    usable = []
    for each in read_squad(path):
        text = DOCUMENT.format(context=each.context, question=each.question)
        fits = context is None or len(tokenizer(text)["input_ids"]) <= context
        if fits and len(each.answer.split()) <= words and content_words(each.answer):
            usable.append((text, each))
    if not 1 <= n <= len(usable):
        raise BadInput(f"{path} has {len(usable)} questions of answers up to {words} words that fit; {n} were asked")
    texts, answers, rows = [], [], []
    for text, each in Random(f"squad {seed}").sample(usable, n):
        said = content_words(each.answer)
        members = dict.fromkeys((*said, *content_words(each.question)))
        texts.append(text)
        answers.append(f" {each.answer}")
        rows.append(Structure((), said[0], members=tuple(members)).metadata)
    return PromptSet.build(tokenizer, texts, answers, metadata=rows)


def content_words(text: str) -> tuple[str, ...]:
    """The different words of a text that are no function words, lower-cased, in order."""
    found = re.findall(r"\w[\w'-]*", text.lower())
    return tuple(dict.fromkeys(word for word in found if word not in FUNCTION_WORDS))


def _questions(articles: list[dict[str, Any]]) -> Iterator[Question]:
    for article in articles:
        for paragraph in article["paragraphs"]:
            for asked in paragraph["qas"]:
                if not asked.get("is_impossible", False) and asked["answers"]:
                    yield Question(paragraph["context"], asked["question"].strip(), asked["answers"][0]["text"])
