"""Fine-tuning on classification by prompt: SGD, AdamW, or AdamW that pays for every parameter it moves.

The loss is the cross-entropy between the words of the labels, at the last token of the prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Literal, get_args

import pandas as pd
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from interp.errors import BadInput, UnreadableFile, choose
from interp.runs import Run, load_run, require_writable, save_run, staged
from interp.skills.pairs import independent_copy, refuse_encoder, trainable, write_model
from interp.stats import wilson_interval
from interp.tables import in_notebook
from interp.tasks.classification import Classification, Examples, label_logits
from interp.tracing.loading import load
from interp.tracing.model import Model

if TYPE_CHECKING:
    import plotly.graph_objects as go

MODEL_FOLDER = "model"
"""Of a run: the fine-tuned model, which `interp.load` reads."""

Optimizer = Literal["sgd", "adamw", "adamw-l1"]
LEARNING_RATES: dict[Optimizer, float] = {"sgd": 0.3, "adamw": 1e-3, "adamw-l1": 1e-3}
"""What suits the bundled model; larger models want less."""
WEIGHT_DECAY = 1e-4
GRADIENT_NORM = 1.0
"""At most; without it the first steps, when no label word is likely, can throw the model far off."""
MOVEMENT_PENALTY = 1e-3
"""Of the L1 norm of the movement, which AdamW needs for its skills to be local (Panigrahi et al. 2023)."""


@dataclass(frozen=True, eq=False, repr=False)
class FineTuning:
    """A fine-tuning: the model it made, or the folder that holds it, and `losses`, a row a step: step, task, loss.

    `scores` has a row a task and split: the accuracy before and after, n; none where it was not measured. `pre` says
    which model was fine-tuned.
    """

    tuned: Model | Path
    losses: pd.DataFrame
    parameters: Mapping[str, Any]
    pre: Mapping[str, Any] = field(default_factory=dict)
    scores: pd.DataFrame = field(default_factory=pd.DataFrame)

    def __repr__(self) -> str:
        tasks = ", ".join(self.parameters["tasks"])
        return f"FineTuning({self.pre.get('name')}: {self.parameters['steps']} steps on {tasks})"

    @cached_property
    def model(self) -> Model:
        """The fine-tuned model; one on disk is loaded when it is first asked for. Raises as `interp.load` does."""
        return load(str(self.tuned)) if isinstance(self.tuned, Path) else self.tuned

    @property
    def frame(self) -> pd.DataFrame:
        return self.losses

    def plot(self) -> go.Figure:
        """Loss against step, a colour a task."""
        from interp.plots.skills import loss_curves

        return loss_curves(self.losses, title=f"{self.pre.get('name')} taught {', '.join(self.parameters['tasks'])}")

    def save(self, path: str | Path, started: datetime | None = None) -> Run:
        """Write a run folder with the fine-tuned model in it. Raises UnwritableOutput."""
        return save_run(
            path,
            kind="skill-fine-tuning",
            parameters=self.parameters,
            model=self.pre,
            seed=int(self.parameters["seed"]),
            frame=self.losses,
            files={"scores.parquet": self.scores.to_parquet, MODEL_FOLDER: lambda to: write_model(self.model, to)},
            started=started,
        )

    @classmethod
    def load(cls, path: str | Path) -> FineTuning:
        """Read what `save` wrote, but for the model. Raises UnreadableFile, BadInput for a run of another kind."""
        run = load_run(path, "skill-fine-tuning")
        record = run.record
        return cls(run.path / MODEL_FOLDER, run.frame, record.parameters, record.model, run.table("scores"))

    def _repr_html_(self) -> str:
        return in_notebook(self, self.scores)


def finetune(
    model: Model,
    tasks: Classification | Sequence[Classification],
    *,
    optimizer: Optimizer = "sgd",
    learning_rate: float | None = None,
    steps: int = 200,
    batch: int = 32,
    penalty: float = MOVEMENT_PENALTY,
    everything: bool = False,
    seed: int = 0,
    checkpoints: str | Path | None = None,
    checkpoint_every: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> FineTuning:
    """Fine-tune a copy of `model`; of several tasks one a step, in turn. The model given is not changed.

    Embeddings and head stay frozen unless `everything`. `penalty` times the L1 norm of the movement is what
    `adamw-l1` adds to the loss. With `checkpoint_every` the moved parameters are written to `checkpoints` as
    `step-000100.safetensors`. Dropout is off. Raises BadInput, UnwritableOutput.
    """
    tasks = (tasks,) if isinstance(tasks, Classification) else tuple(tasks)
    _check(model, tasks, optimizer, steps, batch, checkpoints, checkpoint_every)
    rate = LEARNING_RATES[optimizer] if learning_rate is None else learning_rate
    name = f"{model.spec.name}+{'+'.join(task.name for task in tasks)}"
    tuned = independent_copy(model, name)
    before, moving = trainable(model, everything), trainable(tuned, everything)
    tuned.hf.requires_grad_(False)
    for parameter in moving.values():
        parameter.requires_grad_(True)
    optimise = _optimizer(optimizer, list(moving.values()), rate)
    drawn = [batches(task["train"], batch, seed) for task in tasks]
    rows = []
    for step in range(steps):
        which = step % len(tasks)
        examples = next(drawn[which])
        loss = task_loss(tuned, tasks[which], examples)
        loss.backward()
        nn.utils.clip_grad_norm_(moving.values(), GRADIENT_NORM)
        if optimizer == "adamw-l1":
            _add_penalty(moving, before, penalty)
        optimise.step()
        optimise.zero_grad()
        rows.append({"step": step + 1, "task": tasks[which].name, "loss": loss.item()})
        if checkpoints is not None and checkpoint_every and (step + 1) % checkpoint_every == 0:
            write_checkpoint(tuned, moving, Path(checkpoints) / f"step-{step + 1:06}.safetensors")
        progress(step + 1, steps)
    tuned.hf.requires_grad_(False)
    parameters = {
        "tasks": [task.name for task in tasks],
        "task_parameters": [dict(task.parameters) for task in tasks],
        "optimizer": optimizer,
        "learning_rate": rate,
        "weight_decay": WEIGHT_DECAY,
        "gradient_norm": GRADIENT_NORM,
        "penalty": penalty if optimizer == "adamw-l1" else None,
        "steps": steps,
        "batch": batch,
        "everything": everything,
        "seed": seed,
    }
    return FineTuning(tuned, pd.DataFrame(rows), parameters, {**model.spec.as_dict(), "fingerprint": model.fingerprint})


def accuracies(pre: Model, ft: Model, tasks: Sequence[Classification]) -> pd.DataFrame:
    """Accuracy of both models on the test and out-of-domain examples of each task, with Wilson's intervals (95 %).

    Columns: task, split, before, before_low, before_high, after, after_low, after_high, n.
    """
    rows = []
    for task in tasks:
        for split in (split for split in ("test", "ood") if split in task.splits):
            row: dict[str, Any] = {"task": task.name, "split": split}
            for when, model in (("before", pre), ("after", ft)):
                n = len(task[split])
                right = wilson_interval(round(task.accuracy(model, split) * n), n)
                row |= {when: right.estimate, f"{when}_low": right.low, f"{when}_high": right.high, "n": n}
            rows.append(row)
    return pd.DataFrame(rows)


def task_loss(model: Model, task: Classification, examples: Examples) -> Tensor:
    """Mean cross-entropy of the right label word among the label words, a scalar with its graph."""
    logits = label_logits(model, task, examples.prompts, grad=True)
    return nn.functional.cross_entropy(logits.float(), torch.tensor(examples.targets, device=logits.device))


def batches(examples: Examples, size: int, seed: int) -> Iterator[Examples]:
    """Batches without end: every example once an epoch, in an order of the epoch's own."""
    rng = Random(f"batches {seed}")
    waiting: list[int] = []
    while True:
        while len(waiting) < min(size, len(examples)):
            waiting += rng.sample(range(len(examples)), len(examples))
        yield examples.select(waiting[:size])
        waiting = waiting[size:]


def write_checkpoint(model: Model, parameters: Mapping[str, Tensor], path: Path) -> None:
    """Write these parameters to a safetensors file, whole or not at all. Raises UnwritableOutput."""
    tensors = {name: parameter.detach().cpu().contiguous() for name, parameter in parameters.items()}
    with staged(path) as file:
        file.write_bytes(save(tensors, {"checkpoint_of": model.spec.name}))


def load_checkpoint(model: Model, path: str | Path) -> Model:
    """A copy of `model` with the parameters of a checkpoint. Raises UnreadableFile, BadInput where they do not fit."""
    restored = independent_copy(model, f"{model.spec.name}+{Path(path).stem}")
    own = dict(restored.hf.named_parameters())
    try:
        with safe_open(str(path), "pt") as file:
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:
        raise UnreadableFile(f"{path} is no checkpoint: {error}") from error
    for name, tensor in stored.items():
        if name not in own or own[name].shape != tensor.shape:
            raise BadInput(f"{path} is a checkpoint of another model: {model.spec.name} has no such {name}")
    with torch.no_grad():
        for name, tensor in stored.items():
            own[name].copy_(tensor)
    return restored


def _optimizer(name: Optimizer, parameters: list[nn.Parameter], rate: float) -> torch.optim.Optimizer:
    if name == "sgd":
        return torch.optim.SGD(parameters, lr=rate, weight_decay=WEIGHT_DECAY)
    return torch.optim.AdamW(parameters, lr=rate, weight_decay=WEIGHT_DECAY)


@torch.no_grad()
def _add_penalty(moving: Mapping[str, nn.Parameter], before: Mapping[str, Tensor], penalty: float) -> None:
    """The (sub)gradient of the L1 norm of the movement."""
    for name, parameter in moving.items():
        assert parameter.grad is not None
        parameter.grad.add_(torch.sign(parameter - before[name]), alpha=penalty)


def _check(
    model: Model,
    tasks: Sequence[Classification],
    optimizer: str,
    steps: int,
    batch: int,
    checkpoints: str | Path | None,
    checkpoint_every: int,
) -> None:
    refuse_encoder(model)
    if not tasks:
        raise BadInput("there is no task to fine-tune on")
    if optimizer not in get_args(Optimizer):
        raise BadInput(f"there is no optimizer {optimizer!r}; {choose(optimizer, get_args(Optimizer))}")
    if steps < 1 or batch < 1:
        raise BadInput(f"fine-tuning takes at least one step of one example, not {steps} steps of {batch}")
    if checkpoint_every < 0 or (checkpoint_every and checkpoints is None):
        raise BadInput(f"checkpoints every {checkpoint_every} steps need a folder to be written to")
    if checkpoints is not None:
        require_writable(checkpoints)
