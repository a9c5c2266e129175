"""Measure the bundled model and write its card: `python -m interp.pocket.card data/pocket`.

`card.json` holds the measurement, `README.md` the same for people. Every number in them comes from here.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import LlamaForCausalLM

from interp.errors import BadInput
from interp.pocket.evaluate import Claim, claims, needles
from interp.pocket.skills import SKILLS
from interp.pocket.tokenizer import load_tokenizer
from interp.runs import staged

CARD = """\
# {name}

A small Llama-style model, trained from nothing by this project on generated text, so that every analysis has
something true to find on a laptop. It is a model organism, not a language model: it knows a few narrow skills
and its small vocabulary, and nothing of the world.

| | |
| --- | --- |
| parameters | {parameters:,} |
| layers, query heads, key/value heads, head width | {layers}, {heads}, {kv_heads}, {head_width} |
| width, MLP width | {width}, {mlp_width} |
| vocabulary, context | {vocabulary:,}, {context:,} tokens |
| stored as, loaded as | float16, float32 |
| trained on | {tokens:,} tokens in {steps:,} steps |
| trained with | torch {torch} on {device}, {threads} threads, {minutes:.0f} minutes |
| seed | {seed} |

## What it was trained on

Documents made by seeded generators (`interp/pocket/skills/`), packed into sequences of {lengths} tokens:
{skills}.
A tenth of all combinations, chosen by a hash, is kept from training and makes the tests: values of needles,
pairs of names, scenes, contradictions, operands, statements. Facts are learned by heart: all cities are seen.

Where its heads look was given a start (`interp/pocket/model.py`): a pair in the first layer at the previous token, most
others at their own token; and late in the training every sequence goes without a random share of those others. So
copying becomes the work of few heads, and none of the others is needed alone. What the heads do was learned.
{early}
## What it can do

Greedy decoding must give exactly the answer. Each line: share of right answers, 95 % Wilson interval, number
of held-out items, and what was aimed at.

| skill | asks for | right | interval | items | aim |
| --- | --- | --- | --- | --- | --- |
{claims}

{missed}

## Ask it

The answer to a needle's question follows the space at its end; other answers begin with their space.

```text
{example}
```

## Make it again

`make pocket` trains it again from the seed (it goes on where it was interrupted) and measures this card anew.
Another machine or number of threads rounds differently, so the weights are alike, not the same bits.
"""


def measure(folder: Path, n: int = 400) -> dict[str, Any]:
    """All that the card says: the training's notes, the shape and every claim. Raises BadInput without a model."""
    if not (folder / "model.safetensors").is_file() or not (folder / "training.json").is_file():
        raise BadInput(f"{folder} holds no trained model: python -m interp.pocket.train --out {folder}")
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = load_tokenizer(folder)
    measured = [_row(claim) for claim in tqdm(claims(model, tokenizer, n), desc="measuring", unit="claim")]
    config = model.config
    return {
        "name": folder.name,
        "parameters": model.num_parameters(),
        "layers": config.num_hidden_layers,
        "heads": config.num_attention_heads,
        "kv_heads": config.num_key_value_heads,
        "head_width": config.head_dim,
        "width": config.hidden_size,
        "mlp_width": config.intermediate_size,
        "vocabulary": config.vocab_size,
        "context": config.max_position_embeddings,
        "training": json.loads((folder / "training.json").read_text(encoding="utf-8")),
        "example": needles(tokenizer, 128, 1, seed=0)[0].prompt,
        "claims": measured,
    }


def write_card(folder: Path, card: dict[str, Any]) -> None:
    """Write `card.json` and `README.md`."""
    with staged(folder / "card.json") as partial:
        partial.write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    with staged(folder / "README.md") as partial:
        partial.write_text(render(card), encoding="utf-8")


def render(card: dict[str, Any]) -> str:
    """The card for people."""
    training, rows = card["training"], card["claims"]
    recipe = training["recipe"]
    all_steps = sum(phase["steps"] for phase in recipe["phases"])
    early = f"\nThis is the checkpoint after {training['step'] / all_steps:.0%} of that training.\n"
    missed = [f"{row['name']} ({row['right']['estimate']:.3f}, aim {_aim(row)})" for row in rows if row["met"] is False]
    return CARD.format(
        **{key: value for key, value in card.items() if key not in ("training", "claims")},
        tokens=training["step"] * recipe["batch_tokens"],
        steps=training["step"],
        minutes=training["seconds"] / 60,
        device=training["device"],
        threads=training["threads"],
        torch=training["torch"],
        seed=recipe["seed"],
        lengths=", ".join(str(length) for length in sorted({phase["length"] for phase in recipe["phases"]})),
        skills=", ".join(name.replace("_", " ") for name in SKILLS),
        early=early if training["step"] < all_steps else "",
        claims="\n".join(map(_line, rows)),
        missed=f"Missed: {'; '.join(missed)}." if missed else "Every aim is met.",
    )


def _row(claim: Claim) -> dict[str, Any]:
    return {**asdict(claim), "met": claim.met}


def _aim(row: dict[str, Any]) -> str:
    if row["least"] is None:
        return "–"
    return f"≥ {row['least']}" if row["most"] is None else f"{row['least']} to {row['most']}"


def _line(row: dict[str, Any]) -> str:
    right = row["right"]
    interval = f"{right['low']:.3f}–{right['high']:.3f}"
    return f"| {row['name']} | {row['asks']} | {right['estimate']:.3f} | {interval} | {right['n']} | {_aim(row)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--items", type=int, default=400, help="held-out items a skill")
    arguments = parser.parse_args()
    write_card(arguments.folder, measure(arguments.folder, arguments.items))


if __name__ == "__main__":
    main()
