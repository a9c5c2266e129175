"""The nine data sets of "Exploring Concept Depth" (Jin et al. 2024), from a user's folder, as the authors use them.

| data set | files | classes: first, second |
|---|---|---|
| cities | cities.csv | true, false |
| common_claim | common_claim.csv | true, false |
| counterfact | counterfact.csv | true, false |
| STSA | STSA.csv or stsa.binary.train | 0, 1 |
| IMDb | IMDb.csv | 0, 1 |
| sarcasm | sarcasm.csv or sarcasm.json | sarcastic, not |
| hateeval | hateeval.csv or hateeval.tsv | hateful, not |
| StrategyQA | StrategyQA.csv or StrategyQA_task.json | yes, no |
| coinflip | coinflip.csv or coin_flip.json | yes, no |

A CSV holds the text in `text`, `statement`, `examples`, `headline` or `question`, and `label` (or the authors' column).
The instructions around the texts are our wording of theirs; a `prompts.json` in the folder (`{"cities": "..."}`)
replaces them.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from interp.errors import BadInput, UnreadableFile, choose
from interp.tasks.labelled import LabelledTexts, read_rows

OVERWRITTEN = "According to the sentence, judge the emotion is Positive or Negative."
"""What a bug of the published code puts in the place of every data set's own prompt; its curves may rest on it."""
TRUTH = "Say whether this statement is true. Answer yes or no, then give the reason."
TEXT = ("text", "statement", "examples", "headline", "question", "input")
LABEL = ("label", "HS", "is_sarcastic", "answer")
FIRST = {"true", "1", "yes", "1.0"}


@dataclass(frozen=True)
class Published:
    """One data set: `each` texts of a class are used, the prompt stands before or after the text.

    `first` says which values of the label make the authors' first class; it is called "yes".
    """

    name: str
    level: str
    files: tuple[str, ...]
    each: int | None
    prompt: str
    place: Literal["before", "after", "around"]
    closing: str = ""
    first: frozenset[str] = frozenset(FIRST)

    def assembled(self, text: str, prompt: str) -> str:
        """A text with its prompt, in the authors' order."""
        if self.place == "before":
            return f"{prompt} {text}"
        return f"{text} {prompt}" if self.place == "after" else f"{prompt}{text} {self.closing}"


PUBLISHED: dict[str, Published] = {
    made.name: made
    for made in (
        Published("cities", "factual", ("cities.csv",), None, TRUTH, "before"),
        Published("common_claim", "factual", ("common_claim.csv",), 3000, TRUTH, "before"),
        Published("counterfact", "factual", ("counterfact.csv",), 2000, TRUTH, "before"),
        Published(
            "STSA",
            "emotional",
            ("STSA.csv", "stsa.binary.train"),
            None,
            "This was a film review. Is its feeling positive? Answer yes or no, then give the reason.",
            "after",
            first=frozenset({"0", "negative"}),
        ),
        Published(
            "IMDb",
            "emotional",
            ("IMDb.csv",),
            1000,
            "This was a film review. Is it positive? Answer yes or no, then give the reason.",
            "after",
            first=frozenset({"0", "negative"}),
        ),
        Published(
            "sarcasm",
            "emotional",
            ("sarcasm.csv", "sarcasm.json"),
            3000,
            "Sarcasm says the opposite of what is meant. Find out whether the next sentence is sarcastic.\n",
            "around",
            "Is it sarcastic? Answer yes or no, then give the reason.",
        ),
        Published(
            "hateeval",
            "emotional",
            ("hateeval.csv", "hateeval.tsv"),
            3000,
            "Does this comment express hate? Answer yes or no, then give the reason.",
            "after",
        ),
        Published(
            "StrategyQA",
            "inferential",
            ("StrategyQA.csv", "StrategyQA_task.json"),
            None,
            "Say whether the answer to the question is yes. Answer yes or no, then give the reason.\nQ: ",
            "around",
            "Step by step:",
        ),
        Published(
            "coinflip",
            "inferential",
            ("coinflip.csv", "coin_flip.json"),
            None,
            "After all these flips, is the coin still heads up? Answer yes or no, then give the reason.",
            "after",
        ),
    )
}


def read_published(folder: str | Path, name: str, *, overwritten_prompt: bool = False) -> LabelledTexts:
    """One of the authors' data sets with its prompts; `overwritten_prompt` repeats the bug of the published code.

    Raises BadInput for other names, UnreadableFile where the folder does not hold the data set.
    """
    if name not in PUBLISHED:
        raise BadInput(f"there is no published data set {name!r}; {choose(name, PUBLISHED)}")
    folder, data = Path(folder), PUBLISHED[name]
    found = [folder / file for file in data.files if (folder / file).is_file()]
    if not found:
        raise UnreadableFile(f"{folder} does not hold {name}: it would be {' or '.join(data.files)}")
    rows = [_example(row, found[0], data) for row in _entries(found[0])]
    prompt = OVERWRITTEN if overwritten_prompt else _own_prompts(folder).get(name, data.prompt)
    texts: list[str] = []
    labels: list[str] = []
    for label in ("yes", "no"):
        of_class = [text for text, own in rows if own == label][: data.each]
        texts += [data.assembled(text, prompt) for text in of_class]
        labels += [label] * len(of_class)
    about = {"published": name, "overwritten_prompt": overwritten_prompt, "prompt": prompt}
    return LabelledTexts(name, tuple(texts), tuple(labels), level=data.level, parameters=about)


def _own_prompts(folder: Path) -> dict[str, str]:
    file = folder / "prompts.json"
    if not file.is_file():
        return {}
    try:
        prompts = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UnreadableFile(f"{file} is not JSON: {error}") from error
    if not isinstance(prompts, dict) or not set(prompts) <= set(PUBLISHED):
        raise UnreadableFile(f"{file} must map data sets to prompts; data sets are {', '.join(PUBLISHED)}")
    return {name: str(prompt) for name, prompt in prompts.items()}


def _entries(file: Path) -> list[dict[str, Any]]:
    """The entries of a file, in whichever of the authors' formats it is."""
    if file.name == "stsa.binary.train":
        lines = [line.split(" ", 1) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        return [{"label": line[0], "text": line[1]} for line in lines if len(line) == 2]
    if file.name in ("StrategyQA_task.json", "coin_flip.json"):
        try:
            return list(json.loads(file.read_text(encoding="utf-8"))["examples"])
        except (ValueError, KeyError, TypeError) as error:
            raise UnreadableFile(f"{file} holds no list of examples: {error!r}") from error
    return read_rows(file, "\t" if file.suffix == ".tsv" else ",")


def _example(row: dict[str, Any], file: Path, data: Published) -> tuple[str, str | None]:
    """Text and label; claims that are neither true nor false have none."""
    if "target_scores" in row:  # StrategyQA: the explanation without the answer it begins with
        told = re.sub(r"^(Yes|No)\.", "", row["target"]).strip()
        return f"{row['input']} {told}", "yes" if row["target_scores"]["Yes"] == 1 else "no"
    text = next((row[column] for column in TEXT if row.get(column)), None)
    label = next((str(row[column]) for column in LABEL if row.get(column) not in (None, "")), None)
    if text is None or label is None:
        raise UnreadableFile(
            f"{file} has an entry without a text ({', '.join(TEXT)}) or a label ({', '.join(LABEL)}): {row}"
        )
    if label.lower() == "neither":
        return text, None
    return text, "yes" if label.lower() in data.first else "no"
