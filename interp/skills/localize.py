"""Which few parameters hold a skill: the mask of Panigrahi et al. (2023), optimised from what moved most.

Weights in memory are those of the two models and nothing else of their size but one mask: weights between the two are
computed one module at a time, and a parameter's gradient is used up as soon as it is there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd
import torch
from torch import Tensor

from interp.errors import BadInput
from interp.runs import Run, load_run, save_run
from interp.skills.finetune import batches, task_loss
from interp.skills.mask import GraftMask
from interp.skills.pairs import check_pair, refuse_encoder, trainable
from interp.skills.relaxation import Relaxation
from interp.skills.selection import budget, largest, movement
from interp.tables import in_notebook
from interp.tasks.classification import Classification
from interp.tracing.model import Model

if TYPE_CHECKING:
    import plotly.graph_objects as go

MASK_FILE = "mask.safetensors"
"""Of a run."""
SPARSITY = 1e-4
SIGMOID_BIAS = 10.0
LEARNING_RATE = 1e7
STEPS = 100
"""The settings of Panigrahi et al. (2023)."""


@dataclass(frozen=True, eq=False, repr=False)
class Localization:
    """A `mask` and its `history`: one row a measured step, with loss and accuracy of the grafted model.

    `model` says which pre-trained model the mask is of.
    """

    mask: GraftMask
    history: pd.DataFrame
    parameters: Mapping[str, Any]
    model: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Localization({self.parameters['task']}: {self.mask!r})"

    @property
    def frame(self) -> pd.DataFrame:
        """Where the mask's entries are, one row a parameter."""
        return self.mask.breakdown()

    def plot(self, what: Literal["shares", "enrichment"] = "shares") -> go.Figure:
        """Which share of the mask each layer and module has, beside a random mask's; or a map of both at once."""
        from interp.plots.graft_masks import enrichment_map, mask_shares

        name = f"{self.parameters['task']}, {self.model.get('name')}"
        return mask_shares(self.mask, name) if what == "shares" else enrichment_map(self.mask, name)

    def save(self, path: str | Path, started: datetime | None = None) -> Run:
        """Write a run folder with the mask in it. Raises UnwritableOutput."""
        return save_run(
            path,
            kind="skill-localization",
            parameters=self.parameters,
            model=self.model,
            seed=int(self.parameters["seed"]),
            frame=self.frame,
            files={MASK_FILE: self.mask.save, "history.parquet": self.history.to_parquet},
            started=started,
        )

    @classmethod
    def load(cls, path: str | Path) -> Localization:
        """Read what `save` wrote. Raises UnreadableFile, BadInput for a run of another kind."""
        run = load_run(path, "skill-localization")
        mask = GraftMask.load(run.path / MASK_FILE)
        return cls(mask, run.table("history"), run.record.parameters, run.record.model)

    def _repr_html_(self) -> str:
        return in_notebook(self, self.history)


def localize(
    pre: Model,
    ft: Model,
    task: Classification,
    *,
    sparsity: float = SPARSITY,
    steps: int = STEPS,
    learning_rate: float = LEARNING_RATE,
    sigmoid_bias: float = SIGMOID_BIAS,
    batch: int = 32,
    accumulate: int = 1,
    measure_every: int = 10,
    measured: int = 128,
    everything: bool = False,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Localization:
    """The mask of exactly ⌊sparsity·N⌋ of the N trainable parameters that best carries a task from `ft` to `pre`.

    Starts from the parameters that moved most and takes `steps` gradient steps on the task's loss at the relaxed mask,
    each over `accumulate` batches. Every `measure_every` steps the parameters with the largest γ are grafted and tried
    on `measured` training and all validation examples; the best such mask is returned. A smaller `sigmoid_bias` lets
    parameters enter and leave the mask sooner. Raises BadInput before anything runs.
    """
    refuse_encoder(pre)
    if steps < 0 or batch < 1 or accumulate < 1 or measure_every < 1:
        raise BadInput("localize takes 0 or more steps of at least one batch of one example, and measures after one")
    check_pair(pre, ft, everything)
    ours, theirs = trainable(pre, everything), trainable(ft, everything)
    size = sum(parameter.numel() for parameter in ours.values())
    k = budget(sparsity, size)
    if all(torch.equal(parameter, theirs[name]) for name, parameter in ours.items()):
        raise BadInput(f"{ft.spec.name} has the same parameters as {pre.spec.name}, so there is no skill to localize")
    parameters = {
        "task": task.name,
        "task_parameters": dict(task.parameters),
        "fine_tuned": ft.spec.name,
        "sparsity": sparsity,
        "budget": k,
        "steps": steps,
        "learning_rate": learning_rate,
        "sigmoid_bias": sigmoid_bias,
        "batch": batch,
        "accumulate": accumulate,
        "everything": everything,
        "seed": seed,
    }

    of = {"model": pre.spec.name}

    def masked(indices: Mapping[str, Tensor], step: int) -> GraftMask:
        shapes = {name: tuple(parameter.shape) for name, parameter in ours.items()}
        return GraftMask(indices, shapes, pre.fingerprint, ft.fingerprint, {**parameters, **of, "step": step})

    base = largest(movement(ours, theirs), k)
    best = masked(base, 0)
    history = [{"step": 0, **_measure(pre, ft, best, task, measured), "kept": 1.0}]
    relaxed = Relaxation(pre, ft, base, sigmoid_bias, everything, seed) if steps else None
    drawn = batches(task["train"], batch, seed)
    for step in range(1, steps + 1):
        assert relaxed is not None
        mask_step(relaxed, task, [next(drawn) for _ in range(accumulate)], learning_rate)
        if step % measure_every == 0 or step == steps:
            now = masked(largest(relaxed.scores, k), step)
            history.append({"step": step, **_measure(pre, ft, now, task, measured), "kept": _shared(now, base) / k})
            if _better(history):
                best = now
        progress(step, steps)
    about = {**pre.spec.as_dict(), "fingerprint": pre.fingerprint}
    return Localization(best, pd.DataFrame(history), parameters, about)


def mask_step(relaxed: Relaxation, task: Classification, drawn: list[Any], rate: float) -> float:
    """One update of the mask by the mean gradient over `drawn` batches; their mean loss.

    With the last batch every parameter's mask moves as soon as its gradient is whole, and the gradient is dropped.
    """
    total = 0.0
    handles = []
    for number, examples in enumerate(drawn, 1):
        if number == len(drawn):
            handles = [_use_up(relaxed, name, rate) for name in relaxed.places]
        try:
            with relaxed.recomputing():
                loss = task_loss(relaxed.model, task, examples) / len(drawn)
            loss.backward()
        finally:
            for handle in handles:
                handle.remove()
        total += loss.item()
    return total


def _use_up(relaxed: Relaxation, name: str, rate: float) -> Any:
    distance = relaxed.places[name].distance

    def move(parameter: Tensor) -> None:
        assert parameter.grad is not None
        relaxed.step(name, parameter.grad, rate)
        parameter.grad = None

    return distance.register_post_accumulate_grad_hook(move)


def _measure(pre: Model, ft: Model, mask: GraftMask, task: Classification, measured: int) -> dict[str, float]:
    """Loss and accuracy of the grafted model on training and validation examples."""
    parts = [("train", measured), ("validation", len(task["validation"]) if "validation" in task.splits else 0)]
    logits, targets = [], []
    with mask.applied(pre, ft) as model:
        for split, n in parts:
            if n:
                examples = task[split].select(range(min(n, len(task[split]))))
                logits.append(task.label_logits(model, examples))
                targets.append(torch.tensor(examples.targets))
    answers, right = torch.cat(logits), torch.cat(targets)
    loss = torch.nn.functional.cross_entropy(answers, right).item()
    return {"loss": loss, "accuracy": (answers.argmax(-1) == right).double().mean().item()}


def _better(history: list[dict[str, Any]]) -> bool:
    """Whether the last mask is more accurate than all before, or as accurate at a smaller loss."""
    *before, last = history
    return all((last["accuracy"], -last["loss"]) > (row["accuracy"], -row["loss"]) for row in before)


def _shared(mask: GraftMask, base: Mapping[str, Tensor]) -> int:
    return sum(int(torch.isin(indices, base[name]).sum()) for name, indices in mask.indices.items() if name in base)
