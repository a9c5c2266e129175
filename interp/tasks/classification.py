"""Classification by prompt: a template asks, and the label is the word the model would say next.

Labels are told apart by the logits of their words (verbalisers) at the last token, as in LM-BFF (Gao et al. 2021). The
bundled tasks use the words of the bundled model in forms it was not trained on; each has two domains, so that a model
taught in one can be tested in the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.errors import BadInput, UnreadableFile, choose
from interp.tables import in_notebook
from interp.tasks.classified import TASKS, Example
from interp.tasks.encoding import encode
from interp.tasks.labelled import read_rows
from interp.tasks.prompts import PromptSet

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from interp.tracing.edits import Edit
    from interp.tracing.model import Model

SIZES = {"train": 512, "validation": 128, "test": 256, "ood": 256}
"""Examples of each split of a bundled task; `ood` is the other domain."""
SHARES = {"train": 0.6, "validation": 0.15, "test": 0.25}
"""Of the examples of a file that does not say which split they belong to."""
FIELDS = frozenset({"text", "label", "pair", "split"})


@dataclass(frozen=True, repr=False)
class Examples:
    """Prompts, and for each the index of its label. The prompts' answers are the label words."""

    prompts: PromptSet
    targets: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.targets)

    def __repr__(self) -> str:
        return f"Examples({self.prompts!r})"

    def select(self, indices: Sequence[int]) -> Examples:
        """The examples at `indices`, in that order."""
        return Examples(self.prompts.select(indices), tuple(self.targets[i] for i in indices))


@dataclass(frozen=True, repr=False)
class Classification:
    """A task: `labels`, the `words` that stand for them after a prompt, each one token of `label_tokens`, and splits.

    `splits` has at least `train` and `test`; `validation` and `ood` (another domain) where there are any.
    """

    name: str
    labels: tuple[str, ...]
    words: tuple[str, ...]
    label_tokens: tuple[int, ...]
    template: str
    splits: Mapping[str, Examples]
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{len(examples)} {split}" for split, examples in self.splits.items())
        return f"Classification({self.name}: {' / '.join(self.labels)}; {sizes})"

    def _repr_html_(self) -> str:
        import pandas as pd

        first = {split: examples.prompts for split, examples in self.splits.items() if len(examples)}
        rows = [(split, len(of), of.texts[0], of.answers[0]) for split, of in first.items()]
        return in_notebook(self, pd.DataFrame(rows, columns=["split", "examples", "the first", "answer"]))

    def __getitem__(self, split: str) -> Examples:
        """The examples of a split. Raises BadInput where there is no such split."""
        if split not in self.splits:
            raise BadInput(f"{self.name} has no split {split!r}; {choose(split, self.splits)}")
        return self.splits[split]

    @classmethod
    def build(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        examples: Mapping[str, Sequence[Example]],
        *,
        name: str,
        template: str,
        words: Mapping[str, str],
        parameters: Mapping[str, Any] | None = None,
    ) -> Classification:
        """Put examples into `template` (fields `{text}` and `{pair}`); `words` maps each label to its word.

        Raises BadInput for a task with one class, a label without a word, a word that is not one token after the
        prompt or is another label's too, and a template that does not fit the examples.
        """
        labels = tuple(words)
        _check(name, template, labels, examples)
        spoken = tuple(f" {word.strip()}" for word in words.values())
        tokens = _label_tokens(tokenizer, labels, spoken, template, next(iter(examples["train"])))
        splits = {}
        for split, rows in examples.items():
            targets = tuple(labels.index(row.label) for row in rows)
            prompts = PromptSet.build(
                tokenizer,
                [_fill(template, row) for row in rows],
                [spoken[target] for target in targets],
                distractors=[spoken[(target + 1) % len(labels)] for target in targets],
            )
            for i, (answer, target) in enumerate(zip(prompts.answer_tokens, targets, strict=True)):
                if answer != (tokens[target],):
                    raise BadInput(f"the word {spoken[target]!r} is tokenised otherwise after {prompts.texts[i]!r}")
            splits[split] = Examples(prompts, targets)
        return cls(name, labels, spoken, tokens, template, splits, dict(parameters or {}))

    @classmethod
    def from_jsonl(
        cls,
        path: str | Path,
        tokenizer: PreTrainedTokenizerBase,
        *,
        template: str,
        words: Mapping[str, str],
        ood: str | Path | None = None,
        seed: int = 0,
    ) -> Classification:
        """Read one JSON object a line: `text`, `label`, and where wanted `pair` and `split`.

        Examples that do not say their split are shuffled by `seed` and dealt out by `SHARES`, every label alike. `ood`
        is another such file. Raises UnreadableFile, and BadInput as `build`.
        """
        rows = _read(Path(path))
        if all(split is None for split, _ in rows):
            splits = _deal([example for _, example in rows], seed)
        else:
            splits = {split: [e for s, e in rows if s == split] for split in dict.fromkeys(str(s) for s, _ in rows)}
        if ood is not None:
            splits["ood"] = [example for _, example in _read(Path(ood))]
        parameters = {"file": str(path), "ood": None if ood is None else str(ood), "seed": seed}
        name = Path(path).stem
        return cls.build(tokenizer, splits, name=name, template=template, words=words, parameters=parameters)

    def label_logits(
        self, model: Model, split: str | Examples = "test", edits: Edit | Sequence[Edit] = (), chunk: int = 64
    ) -> Tensor:
        """Logits of the label words after every prompt of a split, `[example label]` in float32 on the CPU."""
        prompts = (self[split] if isinstance(split, str) else split).prompts
        rows = [
            label_logits(model, self, prompts[start : start + chunk], edits) for start in range(0, len(prompts), chunk)
        ]
        return torch.cat(rows).float().cpu()

    def accuracy(self, model: Model, split: str = "test", edits: Edit | Sequence[Edit] = (), chunk: int = 64) -> float:
        """Share of examples whose label's word has the largest logit among the label words."""
        predicted = self.label_logits(model, split, edits, chunk).argmax(-1)
        return float((predicted == torch.tensor(self[split].targets)).float().mean())


def label_logits(
    model: Model, task: Classification, prompts: PromptSet, edits: Edit | Sequence[Edit] = (), grad: bool = False
) -> Tensor:
    """Logits of the label words at the last token of `prompts`, `[prompt label]`; with `grad` keeping the graph."""
    logits = model.run(prompts, edits=edits, logits="last", grad=grad).logits
    assert logits is not None
    return logits[:, list(task.label_tokens)]


def bundled_task(
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    domain: str | None = None,
    seed: int = 0,
    sizes: Mapping[str, int] | None = None,
) -> Classification:
    """A bundled task (`sentiment`, `entailment`, `topic`) in one of its two domains, the other one being `ood`.

    `sizes` overrides those of `SIZES`. No text occurs twice, every label as often as the others. Raises BadInput.
    """
    if name not in TASKS:
        raise BadInput(f"there is no task {name!r}; {choose(name, TASKS)}")
    source = TASKS[name]
    domain = source.domains[0] if domain is None else domain
    if domain not in source.domains:
        raise BadInput(f"{name} has no domain {domain!r}; {choose(domain, source.domains)}")
    counts = {**SIZES, **(sizes or {})}
    if unknown := sorted(counts.keys() - SIZES.keys()):
        raise BadInput(f"there is no split {unknown[0]!r}; {choose(unknown[0], SIZES)}")
    (elsewhere,) = (other for other in source.domains if other != domain)
    inside = _distinct(source.examples(Random(f"{name} {domain} {seed}"), domain), len(source.words))
    outside = _distinct(source.examples(Random(f"{name} {elsewhere} {seed} ood"), elsewhere), len(source.words))
    splits = {
        split: [next(outside if split == "ood" else inside) for _ in range(n)] for split, n in counts.items() if n
    }
    parameters = {"task": name, "domain": domain, "ood": elsewhere, "seed": seed, "sizes": counts}
    return Classification.build(
        tokenizer,
        splits,
        name=name if domain == source.domains[0] else f"{name}-{domain}",
        template=source.template,
        words=source.words,
        parameters=parameters,
    )


def _distinct(examples: Iterator[Example], labels: int, patience: int = 1_000) -> Iterator[Example]:
    """Examples whose labels take turns and none of which was seen before."""
    seen: set[Example] = set()
    turn: list[str] = []
    misses = 0
    for example in examples:
        if example in seen or example.label in turn:
            if (misses := misses + 1) > patience:
                raise BadInput(f"there are no more than {len(seen)} different examples; ask for fewer")
            continue
        seen.add(example)
        turn = [] if len(turn) == labels - 1 else [*turn, example.label]
        misses = 0
        yield example


def _check(name: str, template: str, labels: Sequence[str], examples: Mapping[str, Sequence[Example]]) -> None:
    if len(labels) < 2:
        raise BadInput(f"{name} has one class ({', '.join(labels) or 'none'}); there must be two to tell apart")
    if missing := [split for split in ("train", "test") if not examples.get(split)]:
        raise BadInput(f"{name} has no examples to {missing[0]} with; splits: {', '.join(examples) or 'none'}")
    if "{text}" not in template:
        raise BadInput(f"the template {template!r} has no {{text}}")
    for split, rows in examples.items():
        for number, row in enumerate(rows, 1):
            where = f"example {number} of {name} ({split})"
            if row.label not in labels:
                raise BadInput(f"{where} has the label {row.label!r}, which has no word; {choose(row.label, labels)}")
            if ("{pair}" in template) != (row.pair is not None):
                has = "no pair" if row.pair is None else "a pair"
                raise BadInput(f"{where} has {has}, which the template {template!r} does not fit")
    if len(present := {row.label for row in examples["train"]}) < 2:
        raise BadInput(f"every training example of {name} is {next(iter(present))!r}; there must be two classes")


def _fill(template: str, example: Example) -> str:
    return template.replace("{text}", example.text).replace("{pair}", example.pair or "")


def _label_tokens(
    tokenizer: PreTrainedTokenizerBase, labels: Sequence[str], words: Sequence[str], template: str, example: Example
) -> tuple[int, ...]:
    """The token of each label's word after a prompt."""
    before = encode(tokenizer, _fill(template, example)).ids
    tokens: list[int] = []
    for label, word in zip(labels, words, strict=True):
        after = encode(tokenizer, _fill(template, example) + word).ids
        if len(after) != len(before) + 1 or after[:-1] != before or after[-1] == tokenizer.unk_token_id:
            pieces = [tokenizer.decode([i]) for i in after[len(before) :]]
            raise BadInput(f"the word {word.strip()!r} of {label!r} is not one token ({pieces}): choose another")
        if after[-1] in tokens:
            raise BadInput(f"{label!r} and {labels[tokens.index(after[-1])]!r} have the same word {word.strip()!r}")
        tokens.append(after[-1])
    return tuple(tokens)


def _read(path: Path) -> list[tuple[str | None, Example]]:
    rows = []
    for number, row in enumerate(read_rows(path), 1):
        if unknown := sorted(row.keys() - FIELDS):
            raise UnreadableFile(
                f"entry {number} of {path} has the unknown field {unknown[0]!r}; {choose(unknown[0], sorted(FIELDS))}"
            )
        if not isinstance(row.get("text"), str) or row.get("label") in (None, ""):
            raise UnreadableFile(f"entry {number} of {path} has no text or no label; each needs both")
        if not isinstance(row.get("pair"), (str, type(None))):
            raise UnreadableFile(f"entry {number} of {path} has the pair {row['pair']!r}, which is no text")
        rows.append((row.get("split"), Example(row["text"], str(row["label"]), row.get("pair"))))
    if len({split is None for split, _ in rows}) > 1:
        raise UnreadableFile(f"some entries of {path} say their split and others do not; all or none must")
    return rows


def _deal(examples: Sequence[Example], seed: int) -> dict[str, list[Example]]:
    """Shuffled examples by split, each label's in the same shares."""
    rng = Random(f"deal {seed}")
    splits: dict[str, list[Example]] = {split: [] for split in SHARES}
    for label in dict.fromkeys(example.label for example in examples):
        of_label = [example for example in examples if example.label == label]
        rng.shuffle(of_label)
        start, share = 0, 0.0
        for split in SHARES:
            share += SHARES[split]
            end = round(share * len(of_label))
            splits[split] += of_label[start:end]
            start = end
    return {split: rng.sample(rows, len(rows)) for split, rows in splits.items() if rows}
