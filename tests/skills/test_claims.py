"""What skill localization finds in pocket: minutes of work, so these run with -m slow; -s prints the tables."""

from __future__ import annotations

import pandas as pd
import pytest

from interp.skills.evaluation import Candidate, evaluate, with_baselines
from interp.skills.finetune import finetune
from interp.skills.localize import localize
from interp.skills.multitask import continual, overlap, overlap_difference
from interp.tasks.classification import bundled_task
from interp.tracing.model import Model

pytestmark = pytest.mark.slow

BUDGETS = {1e-4: 20, 1e-3: 100, 1e-2: 100, 1e-1: 0}
"""Steps of the optimisation, the published 100 where they matter; a tenth of the parameters needs none."""
RATES = {1e-4: 1e6, 1e-3: 1e6, 1e-2: 1e7, 1e-1: 1e7}


def show(title: str, table: pd.DataFrame) -> None:
    with pd.option_context("display.width", 200, "display.max_columns", 30, "display.max_rows", 200):
        print(f"\n{title}\n{table.round(3).to_string(index=False)}", flush=True)


def test_one_percent_of_the_parameters_carries_nine_tenths_of_the_skill_and_random_ones_do_not(pocket: Model) -> None:
    task = bundled_task("topic", pocket.tokenizer, sizes={"validation": 64, "test": 128, "ood": 64})
    tuned = finetune(pocket, task, optimizer="sgd", steps=150, batch=16).model
    masks = []
    for share, steps in BUDGETS.items():
        found = localize(
            pocket, tuned, task, sparsity=share, steps=steps, learning_rate=RATES[share], batch=32, measured=64
        )
        show(f"{found!r}", found.history)
        masks.append(found.mask)
    show("by module", masks[2].breakdown().nlargest(8, "enrichment"))
    result = evaluate(pocket, tuned, task, with_baselines(pocket, tuned, masks, seeds=[0, 1]))
    show("topic, SGD", result.frame)
    frame = result.frame.query("split == 'test' and budget == 0.01").set_index("method")
    assert frame.recovered["localized"] >= 0.9
    assert frame.recovered_high["localized"] > 0.9 > 0.3 > frame.recovered_high["random"].max()
    adamw = finetune(pocket, task, optimizer="adamw", steps=60, batch=16).model
    transferred = [Candidate("localized by SGD", mask, share) for share, mask in zip(BUDGETS, masks, strict=True)]
    show(
        "its masks on an AdamW model", evaluate(pocket, adamw, task, transferred, splits=["test"], transfer=True).frame
    )


def test_related_tasks_share_more_parameters_than_others(pocket: Model) -> None:
    sources = {"topic": ("topic", None), "scenes": ("topic", "scenes"), "sentiment": ("sentiment", None)}
    overlaps = []
    for seed in range(3):
        masks = {}
        for name, (source, domain) in sources.items():
            sizes = {"train": 192, "validation": 32, "test": 32, "ood": 0}
            task = bundled_task(source, pocket.tokenizer, domain=domain, seed=seed, sizes=sizes)
            tuned = finetune(pocket, task, optimizer="sgd", steps=80, batch=8, seed=seed).model
            found = localize(pocket, tuned, task, sparsity=1e-2, steps=5, batch=16, measured=32, seed=seed)
            masks[name] = found.mask
            print(seed, name, task.accuracy(pocket), task.accuracy(tuned), found.history.accuracy.tolist(), flush=True)
        overlaps.append(overlap(masks))
        show(f"seed {seed}", overlaps[-1].frame)
    table = overlap_difference(overlaps, [("topic", "scenes")]).set_index("pairs")
    show("overlap", table.reset_index())
    assert table.low["difference"] > 0


def test_grafting_forgets_less_than_plain_fine_tuning(pocket: Model) -> None:
    sizes = {"train": 256, "validation": 32, "test": 64, "ood": 0}
    tasks = [bundled_task(name, pocket.tokenizer, sizes=sizes) for name in ("topic", "sentiment")]
    tuning = {"optimizer": "sgd", "steps": 120, "batch": 12}
    result = continual(pocket, tasks, tuning=tuning, localizing={"sparsity": 1e-2, "steps": 20, "measured": 64})
    show("continual", result.frame)
    show("forgetting", result.forgetting)
    drops = result.forgetting.query("task == 'topic'").set_index("method")["drop"]
    assert drops["grafting"] <= drops["sequential"]
