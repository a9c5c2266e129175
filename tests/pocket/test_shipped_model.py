"""The model that ships does what its card says."""

from __future__ import annotations

import json
from functools import lru_cache

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from interp.pocket.card import render
from interp.pocket.evaluate import answered, needles
from interp.pocket.skills import SKILLS
from interp.pocket.tokenizer import load_tokenizer
from interp.shipped import data_folder

FOLDER = data_folder() / "pocket"
CARD = json.loads((FOLDER / "card.json").read_text(encoding="utf-8"))
MEASURED = {claim["name"]: claim["right"] for claim in CARD["claims"]}
SAMPLES = {"key-value": "key_value", "repetition": "repetition", "colored objects": "colored_objects",
           "analogies": "analogies", "addition, steps": "addition_steps", "inference": "inference"}  # fmt: skip


@lru_cache(maxsize=1)
def loaded() -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    return LlamaForCausalLM.from_pretrained(FOLDER, dtype=torch.float32), load_tokenizer(FOLDER)


@pytest.mark.parametrize("claim", SAMPLES)
def test_new_items_are_answered_as_often_as_the_card_says(claim: str) -> None:
    right = answered(*loaded(), SKILLS[SAMPLES[claim]].items(60, seed=77))
    slack = 4 * (0.25 / 60) ** 0.5  # four standard errors at the most
    assert MEASURED[claim]["low"] - slack <= sum(right) / 60 <= MEASURED[claim]["high"] + slack


def test_needles_are_found_at_the_length_the_card_says() -> None:
    model, tokenizer = loaded()
    right = answered(model, tokenizer, needles(tokenizer, 512, 20, seed=77))
    assert sum(right) / 20 >= MEASURED["needle 512"]["low"] - 0.2


def test_a_right_answer_is_what_greedy_generation_writes() -> None:
    model, tokenizer = loaded()
    items = SKILLS["addition_steps"].items(12, seed=77)
    for item, right in zip(items, answered(model, tokenizer, items), strict=True):
        ids = tokenizer(item.prompt, return_tensors="pt").input_ids
        wanted = tokenizer(item.answer, add_special_tokens=False).input_ids
        written = model.generate(ids, max_new_tokens=len(wanted), do_sample=False, use_cache=True)[0, ids.shape[1] :]
        assert (written.tolist() == wanted) is right


def test_the_card_for_people_is_the_measurement() -> None:
    assert (FOLDER / "README.md").read_text(encoding="utf-8") == render(CARD)


def test_both_checkpoints_together_stay_small() -> None:
    files = [*FOLDER.iterdir(), *(data_folder() / "pocket-early").iterdir()]
    assert sum(file.stat().st_size for file in files) < 16e6
