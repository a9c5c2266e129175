"""Prompts in the CSV layout of EAP-IG: `clean`, `corrupted`, `correct_idx`, `incorrect_idx`."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from interp.errors import BadInput, UnreadableFile
from interp.tasks.prompts import PromptSet

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

COLUMNS = ("clean", "corrupted", "correct_idx", "incorrect_idx")


def read_csv_pairs(path: str | Path, tokenizer: PreTrainedTokenizerBase) -> PromptSet:
    """Clean prompts with their counterfactuals; answers and distractors are the token ids that the file names.

    Those ids belong to one tokenizer, so an id that this one does not have is refused. Raises UnreadableFile, BadInput.
    """
    try:
        with Path(path).open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UnreadableFile(f"{path} cannot be read: {error}") from error
    if not rows or (missing := [column for column in COLUMNS if rows[0].get(column) is None]):
        what = f"lacks {', '.join(missing)}" if rows else "holds no prompts"
        raise UnreadableFile(f"{path} {what}; the columns are {', '.join(COLUMNS)}")
    answers, distractors = (_ids(path, rows, column, len(tokenizer)) for column in COLUMNS[2:])
    clean, twin = (PromptSet.build(tokenizer, [row[column] for row in rows]) for column in COLUMNS[:2])
    return replace(
        clean,
        answers=tuple(tokenizer.decode(ids) for ids in answers),
        answer_tokens=answers,
        distractors=tuple(tokenizer.decode(ids) for ids in distractors),
        distractor_tokens=distractors,
        counterfactual=twin,
    )


def _ids(path: str | Path, rows: list[dict[str, str]], column: str, vocab: int) -> tuple[tuple[int], ...]:
    try:
        ids = [int(row[column]) for row in rows]
    except (TypeError, ValueError) as error:
        raise UnreadableFile(f"{path}: {column} must be one token id a row ({error})") from error
    for number, token in enumerate(ids, 1):
        if not 0 <= token < vocab:
            raise BadInput(
                f"{path}, prompt {number}: {column} is {token}, and this tokenizer has {vocab} tokens; the file was "
                "made for another one"
            )
    return tuple((token,) for token in ids)
