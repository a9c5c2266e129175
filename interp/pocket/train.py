"""Train the bundled model: `python -m interp.pocket.train --out data/pocket`.

Interrupted, the same command goes on from the last checkpoint. Everything random follows from the seed and
the step number, so a checkpoint holds weights, optimiser state and the step, and going on gives the weights
that an uninterrupted training would have given.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from interp.errors import BadInput
from interp.pocket.batches import PHASES, Batches, Phase, phase_at
from interp.pocket.checkpoint import export, load_state, read_notes, save_state
from interp.pocket.evaluate import quick_accuracies
from interp.pocket.model import WIDTH, build_model, dropped_heads, hidden_states
from interp.pocket.tokenizer import build_tokenizer
from interp.runs import require_writable

CHECKPOINT_SECONDS = 240


@dataclass(frozen=True)
class Recipe:
    """All that decides the final weights. `rates` are (step, factor of the learning rates), straight in between."""

    seed: int = 0
    batch_tokens: int = 8192
    phases: tuple[Phase, ...] = PHASES
    width: int = WIDTH
    muon_lr: float = 0.02
    adam_lr: float = 3e-3
    weight_decay: float = 0.02
    rates: tuple[tuple[int, float], ...] = (
        (-1, 0.0),
        (20, 1.0),
        (600, 1.0),
        (660, 0.6),
        (1764, 0.122),
        (1774, 0.3),
        (2154, 0.02),
    )
    early: int = 1100  # the step after which the earlier checkpoint that ships is taken

    @property
    def steps(self) -> int:
        return sum(phase.steps for phase in self.phases)

    def lr_factor(self, step: int) -> float:
        """What the learning rates are multiplied with at a step."""
        steps, factors = zip(*self.rates, strict=True)
        return float(np.interp(step, steps, factors))


class Training:
    """A model in training: matrices learn by Muon, embeddings and norms by AdamW."""

    def __init__(self, recipe: Recipe, tokenizer: PreTrainedTokenizerFast, device: str = "cpu") -> None:
        if not hasattr(torch.optim, "Muon"):
            raise BadInput(f"training needs torch 2.9 or later for torch.optim.Muon; this is {torch.__version__}")
        self.recipe, self.device = recipe, device
        self.step, self.seconds = 0, 0.0
        self.model = build_model(tokenizer, recipe.seed, recipe.width).to(device)
        matrices = [p for p in self.model.model.layers.parameters() if p.ndim == 2]
        others = [p for p in self.model.parameters() if all(p is not matrix for matrix in matrices)]
        self.optimisers: tuple[torch.optim.Optimizer, ...] = (
            torch.optim.Muon(matrices, lr=recipe.muon_lr, weight_decay=recipe.weight_decay),
            torch.optim.AdamW(others, lr=recipe.adam_lr, betas=(0.9, 0.98), weight_decay=0.0),
        )

    def learn(self, ids: Tensor, positions: Tensor, index: Tensor, weight: Tensor) -> float:
        """One step on one batch (see `Batches`); the weighted mean loss before it, in nats a token."""
        generator = torch.Generator().manual_seed(self.recipe.seed + self.step)
        share = phase_at(self.recipe.phases, self.step).dropped_heads
        with torch.autocast(self.device, torch.bfloat16), dropped_heads(self.model, share, generator):
            hidden = hidden_states(self.model, ids, positions)
            logits = self.model.lm_head(hidden.flatten(0, 1)[index])
        losses = nn.functional.cross_entropy(logits.float(), ids.flatten().roll(-1)[index], reduction="none")
        loss = (losses * weight).sum() / weight.sum()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimiser, rate in zip(self.optimisers, (self.recipe.muon_lr, self.recipe.adam_lr), strict=True):
            for group in optimiser.param_groups:
                group["lr"] = rate * self.recipe.lr_factor(self.step)
            optimiser.step()
            optimiser.zero_grad()
        self.step += 1
        return loss.item()

    def save(self, path: Path) -> None:
        """Write a checkpoint."""
        save_state(path, self.model, self.optimisers, self.notes())

    def notes(self) -> dict[str, Any]:
        """What a card must say of how the weights came about."""
        recipe = json.loads(json.dumps(asdict(self.recipe)))
        made_with = {"device": self.device, "threads": torch.get_num_threads(), "torch": torch.__version__}
        return {"step": self.step, "seconds": round(self.seconds), "recipe": recipe, **made_with}

    def restore(self, path: Path) -> None:
        """Go on from a checkpoint. Raises BadInput when it was made with another recipe."""
        notes = read_notes(path)
        if notes["recipe"] != self.notes()["recipe"]:
            raise BadInput(f"{path} was made with another recipe: {notes['recipe']}; remove it or name another folder")
        load_state(path, self.model, self.optimisers)
        self.step, self.seconds = notes["step"], notes["seconds"]


def train(recipe: Recipe, work: Path, device: str = "cpu", stop_at: int | None = None) -> Training:
    """Train to the end, or to step `stop_at`, with checkpoints in `work`: `last` every few minutes, and `early`."""
    tokenizer = build_tokenizer()
    training = Training(recipe, tokenizer, device)
    last = work / "last.safetensors"
    if last.exists():
        training.restore(last)
    stop = min(recipe.steps, stop_at or recipe.steps)
    batches = Batches(tokenizer, recipe.seed, recipe.batch_tokens, recipe.phases)
    remaining = range(training.step, stop)
    loader = DataLoader(batches, batch_size=None, sampler=remaining, num_workers=1, prefetch_factor=8)
    bar = tqdm(loader, initial=training.step, total=recipe.steps, unit="step", mininterval=5)
    before, started = training.seconds, time.monotonic()
    saved = started
    for batch in bar:
        loss = training.learn(*(part.to(device) for part in batch))
        training.seconds = before + time.monotonic() - started
        if training.step == recipe.early:
            training.save(work / "early.safetensors")
        if time.monotonic() - saved > CHECKPOINT_SECONDS:
            training.save(last)
            read_out = " ".join(
                f"{skill} {right:.2f}" for skill, right in quick_accuracies(training.model, tokenizer).items()
            )
            bar.write(f"step {training.step} loss {loss:.3f} {read_out}")
            saved = time.monotonic()
    training.save(last)
    return training


def finish(training: Training, work: Path, out: Path) -> None:
    """Export the trained model to `out`, and the earlier checkpoint to `<out>-early`."""
    tokenizer, early = build_tokenizer(), work / "early.safetensors"
    export(training.model, tokenizer, out, training.notes())
    load_state(early, training.model)
    export(training.model, tokenizer, out.with_name(f"{out.name}-early"), read_notes(early))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of the model; the earlier checkpoint's: OUT-early"
    )
    parser.add_argument("--work", type=Path, default=Path("runs/pocket-training"), help="where checkpoints are kept")
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    require_writable(arguments.out)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(arguments.threads)
    recipe = Recipe(seed=arguments.seed)
    finish(train(recipe, arguments.work, arguments.device), arguments.work, arguments.out)


if __name__ == "__main__":
    main()
