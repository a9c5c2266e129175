"""Fitting what edits carry: completion-only cross-entropy and DPO, with the settings LoFiT was published with.

Whatever is fitted, the weights of the model stay: gradients are taken of the fitted tensors alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from interp.errors import BadInput, PromptTooLong, choose
from interp.tasks.prompts import PromptSet
from interp.tracing.edits import Edit
from interp.tracing.model import Model

Loss = Literal["completion", "dpo"]
LOSSES: tuple[Loss, ...] = get_args(Loss)
Edits = Callable[[], Sequence[Edit]]
Tokens = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Recipe:
    """Settings of both steps of LoFiT (Yin, Ye and Durrett 2024); the defaults are those of Llama-2-7B on TruthfulQA.

    heads: how many get an offset. l1: weight of the sum of |A| while heads are selected. init: standard deviation of
    the first A and v. beta: of DPO. max_length: tokens a prompt and its completion may have together. dtype: what the
    authors trained the model in; here that is for who loads the model to choose. lora_learning_rate: of the LoRA that
    offsets are compared with. The optimiser is AdamW without weight decay, its rate falling linearly to 0.
    """

    heads: int = 32
    learning_rate: float = 1e-2
    selection_learning_rate: float = 5e-3
    l1: float = 5e-4
    loss: Loss = "completion"
    epochs: int = 5
    batch_size: int = 8
    init: float = 1e-3
    beta: float = 0.5
    max_length: int = 400
    dtype: str = "float32"
    lora_learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise BadInput(f"there is no loss {self.loss!r}; {choose(self.loss, LOSSES)}")
        numbers = ("heads", "learning_rate", "selection_learning_rate", "lora_learning_rate", "epochs", "batch_size")
        for name in (*numbers, "beta", "max_length"):
            if not getattr(self, name) > 0:
                raise BadInput(f"{name} must be positive; got {getattr(self, name)}")
        for name in ("l1", "init"):
            if not getattr(self, name) >= 0:
                raise BadInput(f"{name} cannot be negative; got {getattr(self, name)}")


PUBLISHED: Mapping[str, Recipe] = {
    "llama-2-7b/truthfulqa": Recipe(32, 1e-2, 5e-3, 5e-4, "dpo"),
    "llama-2-7b/mquake": Recipe(32, 1e-2, 5e-3, 1e-3),
    "llama-2-7b/clutrr": Recipe(32, 1e-2, 5e-4, 5e-3),
    "gemma-7b/truthfulqa": Recipe(16, 2e-2, 5e-3, 5e-4, "dpo", dtype="bfloat16"),
    "gemma-7b/mquake": Recipe(16, 8e-3, 5e-3, 5e-4, dtype="bfloat16"),
    "gemma-7b/clutrr": Recipe(16, 1e-2, 5e-4, 5e-3, dtype="bfloat16"),
    "llama-2-13b/truthfulqa": Recipe(48, 2e-2, 1e-3, 1e-3, "dpo", dtype="bfloat16"),
    "llama-2-13b/mquake": Recipe(48, 8e-3, 1e-3, 1e-3, dtype="bfloat16"),
    "llama-2-13b/clutrr": Recipe(48, 1e-2, 1e-3, 1e-3, dtype="bfloat16"),
}
"""By model and task, as the authors' scripts have them."""
POCKET = Recipe(3, 0.5, 0.1, 0.05, epochs=8, lora_learning_rate=0.1)
"""For the bundled model, whose z is larger than that of models of billions of parameters: 3 of its 32 heads."""
PUBLISHED_SEED = 42


def completion_log_probs(
    model: Model, prompts: Tokens, completions: Tokens, edits: Sequence[Edit] = (), grad: bool = False
) -> Tensor:
    """Log-probability of each completion after its prompt, summed over its tokens, `[row]` in float32 or better."""
    found: dict[int, Tensor] = {}
    for length in sorted({len(completion) for completion in completions}):
        rows = [i for i, completion in enumerate(completions) if len(completion) == length]
        tokens = [(*prompts[i], *completions[i][:-1]) for i in rows]
        logits = model.run(tokens, edits=edits, logits=tuple(range(-length, 0)), grad=grad).logits
        wanted = torch.tensor([completions[i] for i in rows], device=logits.device)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        log_probs = logits.log_softmax(-1).gather(-1, wanted[..., None])[..., 0].sum(-1)
        found.update(zip(rows, log_probs.unbind(), strict=True))
    return torch.stack([found[i] for i in range(len(completions))])


def dpo_loss(chosen: Tensor, rejected: Tensor, reference: Tensor, beta: float) -> Tensor:
    """Mean loss of direct preference optimisation (Rafailov et al. 2023) over pairs of completions.

    `chosen` and `rejected` `[pair]` are log-probabilities of whole completions, `reference` `[pair]` the difference of
    the two without any edit.
    """
    return -logsigmoid(beta * (chosen - rejected - reference)).mean()


@dataclass(frozen=True, eq=False)
class Objective:
    """The loss of some prompts under edits. Raises BadInput, PromptTooLong where they cannot be trained on."""

    model: Model
    prompts: PromptSet
    recipe: Recipe
    reference: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_prompts(self.prompts, self.recipe)
        object.__setattr__(self, "reference", self._reference())

    def __call__(self, rows: Sequence[int], edits: Sequence[Edit]) -> Tensor:
        """The mean loss of these prompts: over completion tokens, or over pairs."""
        answers = [self.prompts.answer_tokens[i] for i in rows]
        chosen = self._log_probs(rows, answers, edits, grad=True)
        if self.recipe.loss == "completion":
            return -chosen.sum() / sum(map(len, answers))
        rejected = self._log_probs(rows, [self.prompts.distractor_tokens[i] for i in rows], edits, grad=True)
        return dpo_loss(chosen, rejected, self.reference[list(rows)], self.recipe.beta)

    def _reference(self) -> Tensor:
        """Chosen less rejected, once for all prompts, without edits; nothing where the loss needs none."""
        if self.recipe.loss == "completion":
            return torch.zeros(0)
        batches = [
            self._log_probs(rows, [self.prompts.answer_tokens[i] for i in rows])
            - self._log_probs(rows, [self.prompts.distractor_tokens[i] for i in rows])
            for rows in torch.arange(len(self.prompts)).split(self.recipe.batch_size)
        ]
        return torch.cat(batches)

    def _log_probs(
        self, rows: Sequence[int] | Tensor, completions: Tokens, edits: Sequence[Edit] = (), grad: bool = False
    ) -> Tensor:
        prompts = [self.prompts.tokens[i] for i in rows]
        return completion_log_probs(self.model, prompts, completions, edits, grad)


def train(
    objective: Objective,
    parameters: Sequence[Tensor],
    edits: Edits,
    *,
    learning_rate: float,
    seed: int,
    penalty: Callable[[], Tensor] | None = None,
) -> list[float]:
    """Fit `parameters` in place, epochs over the shuffled prompts; returns the loss of every step, without the penalty.

    `edits` is called at every step, and says what the parameters do to the model now. The order of prompts follows
    `seed`. What is left after the last step is kept, as the authors do.
    """
    recipe, n = objective.recipe, len(objective.prompts)
    steps = recipe.epochs * -(-n // recipe.batch_size)
    optimiser = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / steps)
    generator = torch.Generator().manual_seed(seed)
    losses = []
    for _ in range(recipe.epochs):
        for rows in torch.randperm(n, generator=generator).split(recipe.batch_size):
            with torch.enable_grad():
                loss = objective(rows.tolist(), edits())
                total = loss if penalty is None else loss + penalty().to(loss.device)
                gradients = torch.autograd.grad(total, list(parameters))
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            optimiser.step()
            schedule.step()
            losses.append(float(loss.detach()))
    return losses


def normal(shape: Sequence[int], recipe: Recipe, seed: int, device: torch.device) -> Tensor:
    """First values of A or v, from N(0, init²), to be fitted."""
    generator = torch.Generator().manual_seed(seed)
    return (recipe.init * torch.randn(*shape, generator=generator)).to(device).requires_grad_()


def check_prompts(prompts: PromptSet, recipe: Recipe) -> None:
    """Raise BadInput, PromptTooLong for prompts that this recipe cannot be trained on."""
    if not len(prompts) or not prompts.answers:
        raise BadInput("there is nothing to train on: LoFiT needs prompts with answers")
    if recipe.loss == "dpo" and not prompts.distractors:
        raise BadInput("DPO prefers answers to distractors, and these prompts have none; valid: completion")
    completions = (
        prompts.answer_tokens
        if recipe.loss == "completion"
        else [max(pair, key=len) for pair in zip(prompts.answer_tokens, prompts.distractor_tokens, strict=True)]
    )
    for i, (prompt, completion) in enumerate(zip(prompts.tokens, completions, strict=True)):
        if (length := len(prompt) + len(completion)) > recipe.max_length:
            raise PromptTooLong(f"prompt {i} and its completion are {length} tokens; max_length is {recipe.max_length}")
