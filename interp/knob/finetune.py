"""The fine-tuned partner: a model taught, by LoRA, to answer as the prompt says.

With it the paper's three settings can be compared: zero-shot, few-shot (`PromptForm(demonstrations=…)`), fine-tuned.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from interp.errors import BadInput
from interp.heads.scores import model_record
from interp.knob.behaviour import evaluate
from interp.runs import Run, require_free, save_run, staged
from interp.tasks.context_prior import ContextItems, PromptForm, context_prompts
from interp.tasks.prompts import PromptSet
from interp.tracing.loading import wrap
from interp.tracing.model import Model


@dataclass(frozen=True)
class LoRA:
    """How the partner is trained; the defaults are Minder et al.'s, whose optimizer keeps its state in 8 bits."""

    rank: int = 64
    alpha: int = 16
    dropout: float = 0.0
    learning_rate: float = 2e-4
    warmup: int = 5
    weight_decay: float = 0.01
    batch_size: int = 16
    epochs: int = 1

    def __post_init__(self) -> None:
        if (
            min(self.rank, self.alpha, self.batch_size, self.epochs) < 1
            or self.warmup < 0
            or not self.learning_rate > 0
        ):
            raise BadInput(f"{self}: rank, alpha, batch_size, epochs and learning_rate must be positive")
        if not 0 <= self.dropout < 1 or self.weight_decay < 0:
            raise BadInput(f"{self}: dropout lies in [0, 1), weight_decay is not negative")


@dataclass(frozen=True, eq=False, repr=False)
class FineTuned:
    """The partner, `model`, with the adapter merged into its weights, and the loss of every step in nats a token."""

    model: Model
    losses: np.ndarray
    base: Mapping[str, Any]
    parameters: Mapping[str, Any]
    seed: int

    def __repr__(self) -> str:
        first, last = self.losses[0], self.losses[-1]
        return f"FineTuned({self.model.spec.name}: loss {first:.3g} to {last:.3g} in {len(self.losses)} steps)"

    @property
    def frame(self) -> pd.DataFrame:
        """One row a step: its loss."""
        return pd.DataFrame({"step": range(1, len(self.losses) + 1), "loss": self.losses})

    def save_model(self, folder: str | Path) -> None:
        """Write the weights and the tokenizer, to be loaded by `interp.load(folder)`. Raises UnwritableOutput."""
        require_free(folder)
        with staged(folder) as partial:
            self.model.hf.save_pretrained(partial)  # type: ignore[operator]
            self.model.tokenizer.save_pretrained(partial)

    def save(self, path: str | Path, started: datetime | None = None) -> Run:
        """Write a run folder with the losses. Raises UnwritableOutput."""
        return save_run(
            path,
            kind="knob-finetuning",
            parameters={**self.parameters, "base": dict(self.base)},
            model=model_record(self.model),
            seed=self.seed,
            frame=self.frame,
            started=started,
        )


def finetune(
    model: Model,
    items: ContextItems,
    *,
    form: PromptForm | None = None,
    settings: LoRA | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> FineTuned:
    """Train a copy of `model` on both intents of every item, with the loss on the answers alone.

    The adapter sits on the query, key, value and output projections of all layers, whatever the family calls them, and
    is merged at the end. `model` itself stays as it is.

    Raises BadInput without `peft` (the extra `lora`), for a model that is not the hooks backend's, and for a form that
    does not say what to follow.
    """
    form, settings = form or PromptForm(), settings or LoRA()
    peft = _peft()
    if model.backend.name != "hooks":
        raise BadInput(f"only a plain Hugging Face model can be fine-tuned, and this is one of {model.backend.name}")
    if form.intent == "none":
        raise BadInput("a prompt of form 'none' has two right answers; train with 'instruction' or 'weight'")
    prompts = context_prompts(model.tokenizer, items, form)
    base = model_record(model)
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(seed)
        adapter = peft.LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,
            lora_dropout=settings.dropout,
            target_modules=_projections(model),
            fan_in_fan_out=False,
        )
        adapted = peft.get_peft_model(copy.deepcopy(model.hf), adapter)
        losses = _train(adapted, prompts, settings, seed, model.device, progress)
        merged = adapted.merge_and_unload().eval()
    return FineTuned(
        wrap(merged, model.tokenizer),
        np.array(losses),
        base,
        {**form.as_dict(), "items": items.hash, "lora": asdict(settings)},
        seed,
    )


def compare(settings: Mapping[str, tuple[Model, PromptForm]], items: ContextItems) -> pd.DataFrame:
    """What models answer as instructed: one row a setting (such as zero-shot, few-shot, fine-tuned) and intent."""
    frames = []
    for name, (model, form) in settings.items():
        frame = evaluate(model, items, form=form).frame
        frames.append(frame[frame.setting == "instructed"].assign(setting=name))
    return pd.concat(frames, ignore_index=True)


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise BadInput(
            "fine-tuning needs the library peft; install it with: pip install 'interp-workbench[lora]'"
        ) from error
    return peft


def _projections(model: Model) -> list[str]:
    """Full names of the modules that an adapter is put on."""
    wanted = {id(part) for block in model.parts.blocks for part in (*block.projections, block.o)}
    return [name for name, module in model.hf.named_modules() if id(module) in wanted]


def _train(
    adapted: nn.Module,
    prompts: PromptSet,
    settings: LoRA,
    seed: int,
    device: torch.device,
    progress: Callable[[int, int], None] | None,
) -> list[float]:
    generator = torch.Generator().manual_seed(seed)
    parameters = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    per_epoch = -(-len(prompts) // settings.batch_size)
    steps = settings.epochs * per_epoch
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _linear(step, settings.warmup, steps))
    losses: list[float] = []
    adapted.train()
    for _ in range(settings.epochs):
        order = torch.randperm(len(prompts), generator=generator).tolist()
        for start in range(0, len(prompts), settings.batch_size):
            chosen = order[start : start + settings.batch_size]
            loss = _loss(
                adapted, [prompts.tokens[i] for i in chosen], [prompts.answer_tokens[i] for i in chosen], device
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(float(loss.detach()))
            if progress:
                progress(len(losses), steps)
    return losses


def _linear(step: int, warmup: int, steps: int) -> float:
    """Up over the first steps, then down to nothing at the last."""
    return min((step + 1) / (warmup + 1), max(steps - step, 1) / max(steps - warmup, 1))


def _loss(
    adapted: nn.Module, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], device: torch.device
) -> Tensor:
    """Mean cross-entropy of the answers' tokens. Rows are padded on the right, where nothing looks back."""
    ignored = -100
    rows = [torch.tensor([*prompt, *answer]) for prompt, answer in zip(prompts, answers, strict=True)]
    labels = [torch.tensor([ignored] * len(p) + list(a)) for p, a in zip(prompts, answers, strict=True)]
    mask = [torch.ones_like(row) for row in rows]
    pad = nn.utils.rnn.pad_sequence
    ids, attended = pad(rows, batch_first=True).to(device), pad(mask, batch_first=True).to(device)
    wanted = pad(labels, batch_first=True, padding_value=ignored).to(device)
    logits = adapted(input_ids=ids, attention_mask=attended, use_cache=False).logits
    return cross_entropy(logits[:, :-1].flatten(0, 1).float(), wanted[:, 1:].flatten(), ignore_index=ignored)
