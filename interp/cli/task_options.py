"""The options that say which classification task a command is about."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from interp.errors import BadInput

if TYPE_CHECKING:
    from interp.tasks.classification import Classification
    from interp.tracing.model import Model

TaskName = Annotated[
    str,
    typer.Option("--task", help="sentiment, entailment, topic, another domain of one (topic:scenes), or a JSONL file."),
]
Template = Annotated[str, typer.Option(help="Prompt of a JSONL task, with {text} and {pair}.", show_default=False)]
Words = Annotated[
    str, typer.Option(help="Words of a JSONL task's labels: positive=great,negative=terrible.", show_default=False)
]
Ood = Annotated[
    Path | None, typer.Option(help="JSONL of another domain for a JSONL task.", show_default=False, exists=True)
]
Sizes = Annotated[str, typer.Option(help="Examples of a bundled task, such as train=512,test=256.", show_default=False)]

FILES = (".jsonl", ".csv", ".json")


@dataclass(frozen=True)
class TaskOptions:
    """Which task, as the options say it."""

    name: str
    template: str
    words: str
    ood: Path | None
    sizes: str

    @property
    def label(self) -> str:
        """The tasks in the name of a run: topic-scenes+reviews of topic:scenes+texts/reviews.jsonl."""
        names = self.name.split("+")
        return "+".join(Path(name).stem if name.endswith(FILES) else name.replace(":", "-") for name in names)

    def build(self, model: Model, seed: int) -> list[Classification]:
        """The tasks; several are given by a plus sign. Raises BadInput."""
        from interp.tasks.classification import Classification, bundled_task

        tasks = []
        for name in self.name.split("+"):
            if name.endswith(FILES):
                if not self.template or not self.words:
                    raise BadInput(f"--task {name} is a file: say how to ask with --template and --words")
                words = _pairs("--words", self.words)
                loaded = Classification.from_jsonl(
                    name, model.tokenizer, template=self.template, words=words, ood=self.ood, seed=seed
                )
            else:
                task, _, domain = name.partition(":")
                sizes = {split: int(n) for split, n in _pairs("--sizes", self.sizes, number=True).items()}
                loaded = bundled_task(task, model.tokenizer, domain=domain or None, seed=seed, sizes=sizes)
            tasks.append(loaded)
        return tasks

    def build_one(self, model: Model, seed: int) -> Classification:
        """The only task. Raises BadInput."""
        tasks = self.build(model, seed)
        if len(tasks) > 1:
            raise BadInput(f"--task {self.name} names {len(tasks)} tasks, and this is done for one")
        return tasks[0]


def _pairs(option: str, text: str, number: bool = False) -> dict[str, str]:
    """`"a=1,b=2"` as a mapping. Raises BadInput naming the option."""
    pairs = {}
    for part in filter(None, map(str.strip, text.split(","))):
        key, equals, value = part.partition("=")
        if not equals or not value or (number and not value.isdigit()):
            raise BadInput(f"{option} {text!r} is not a list such as {'train=512,test=256' if number else 'yes=true'}")
        pairs[key.strip()] = value.strip()
    return pairs
