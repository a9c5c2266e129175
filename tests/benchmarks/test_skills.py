"""A step of the mask beside a plain training step of the same model, in time and in memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import interp
from interp.skills.finetune import batches, task_loss
from interp.skills.localize import SIGMOID_BIAS, mask_step
from interp.skills.pairs import independent_copy, trainable
from interp.skills.relaxation import Relaxation
from interp.skills.selection import largest, movement
from interp.tasks.classification import bundled_task
from tests.benchmarks.measure import Target, compare, report

pytestmark = pytest.mark.bench

SLOWER = 1.3
"""How many times as long as a training step a step of the mask may take."""
BATCH = 32


def test_a_mask_step_beside_a_training_step() -> None:
    pre = interp.load("pocket")
    task = bundled_task("entailment", pre.tokenizer, sizes={"train": BATCH, "test": 2, "validation": 0, "ood": 0})
    examples = next(batches(task["train"], BATCH, 0))
    ft = independent_copy(pre, "trained")
    moving = trainable(ft)
    for parameter in moving.values():
        parameter.requires_grad_(True)
    optimizers = {
        "SGD": torch.optim.SGD(moving.values(), lr=1e-3, weight_decay=1e-4),
        "AdamW": torch.optim.AdamW(moving.values(), lr=1e-4),
    }

    def train(name: str) -> None:
        task_loss(ft, task, examples).backward()
        optimizers[name].step()
        optimizers[name].zero_grad()

    for name in optimizers:
        train(name)
    relaxed = Relaxation(pre, ft, largest(movement(trainable(pre), moving), 27_000), SIGMOID_BIAS, False, seed=0)
    comparison = compare(
        "skills-mask-step",
        f"pocket, {BATCH} entailment prompts of {max(map(len, examples.prompts.tokens))} tokens",
        {
            "SGD step": lambda: train("SGD"),
            "AdamW step": lambda: train("AdamW"),
            "mask step": lambda: mask_step(relaxed, task, [examples], 1e7),
        },
        rounds=5,
        targets=(Target("mask step", SLOWER),),
    )
    report(comparison)


SCRIPT = """
import copy, json, sys
import torch, interp
from interp.skills.baselines import baseline_mask
from interp.skills.localize import mask_step
from interp.skills.pairs import independent_copy, trainable
from interp.skills.relaxation import Relaxation
from interp.tasks.classification import bundled_task
from interp.skills.finetune import task_loss
from tests.peak_memory import peak_memory
from transformers import AutoConfig, AutoModelForCausalLM
torch.manual_seed(0)
words = interp.load("pocket").tokenizer
config = AutoConfig.for_model("llama", vocab_size=2048, hidden_size=768, intermediate_size=2048, num_hidden_layers=8,
                              num_attention_heads=12, num_key_value_heads=12)
pre = interp.wrap(AutoModelForCausalLM.from_config(config).eval().requires_grad_(False), words)
ft = independent_copy(pre, "ft")
task = bundled_task("topic", words, sizes={"train": 8, "test": 4, "validation": 0, "ood": 0})
weights = sum(p.numel() * p.element_size() for p in trainable(pre).values()) / 2**20
task.accuracy(pre, "train")
before = peak_memory()
if sys.argv[1] == "mask":
    relaxed = Relaxation(pre, ft, baseline_mask(pre, ft, "random", 1e-3).indices, 10.0, False, 0)
    for _ in range(3):
        mask_step(relaxed, task, [task["train"]], 1e7)
else:
    ft.hf.requires_grad_(True)
    optimizer = torch.optim.AdamW(ft.hf.parameters())
    for _ in range(3):
        task_loss(ft, task, task["train"]).backward()
        optimizer.step()
        optimizer.zero_grad()
print(json.dumps([weights, before, peak_memory()]))
"""


@pytest.mark.parametrize("what", ["mask", "training"])
def test_memory_of_a_mask_step_beside_a_training_step(root: Path, what: str) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT, what], capture_output=True, text=True, cwd=root, check=True)
    weights, before, peak = json.loads(done.stdout.splitlines()[-1])
    print(
        f"\n{what}: {peak - before:,.0f} MiB beyond both models, {(peak - before) / weights:.2f} times their trainable "
        f"weights of {weights:,.0f} MiB"
    )
