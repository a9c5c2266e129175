"""The fine-tuned partner learns a way of asking that the base model does not know, and leaves the base as it was."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import interp
from interp.errors import BadInput
from interp.knob import KnobResult, evaluate
from interp.knob.finetune import FineTuned, LoRA, _loss, compare, finetune
from interp.tasks.context_prior import ContextItems, PromptForm
from tests.families import build, word_tokenizer

WEIGHT = PromptForm("weight", wording="pocket")
QUICK = LoRA(rank=16, learning_rate=5e-3, batch_size=16)


@pytest.fixture(scope="module")
def partner(pocket: interp.Model, items: ContextItems) -> FineTuned:
    return finetune(pocket, items.take(range(200)), form=WEIGHT, settings=QUICK)


@pytest.mark.slow
def test_the_three_settings_can_be_compared(
    pocket: interp.Model, partner: FineTuned, items: ContextItems, others: ContextItems
) -> None:
    before = pocket.fingerprint
    few = PromptForm("weight", "pocket", items.items[:4])
    settings = {"zero-shot": (pocket, WEIGHT), "few-shot": (pocket, few), "fine-tuned": (partner.model, WEIGHT)}
    table = compare(settings, others).groupby("setting").pair_accuracy.first()
    assert table["fine-tuned"] >= table["zero-shot"] + 0.15
    assert set(table.index) == set(settings)
    assert interp.load("pocket").fingerprint == before == partner.base["fingerprint"] != partner.model.fingerprint
    assert partner.losses[-5:].mean() < partner.losses[:5].mean() / 2


def test_a_knob_moves_from_the_base_to_its_partner(
    partner: FineTuned, fitted: KnobResult, form: PromptForm, others: ContextItems
) -> None:
    found = evaluate(partner.model, others.take(range(30)), fitted.knob, form=form)
    assert found.parameters["knob"]["fitted_on"]["fingerprint"] == fitted.model["fingerprint"]
    assert found.model["fingerprint"] == partner.model.fingerprint
    alone = found.frame.query("setting == 'silent'").context.item()
    assert found.accuracy("steered", "context").estimate >= alone
    assert found.outcomes["steered"].shape == (30, 2)


def test_the_partner_is_an_ordinary_model_on_disk(partner: FineTuned, tmp_path: Path) -> None:
    partner.save_model(tmp_path / "partner")
    assert interp.load(tmp_path / "partner").fingerprint == partner.model.fingerprint
    partner.save(tmp_path / "run")
    assert (tmp_path / "run" / "table.parquet").is_file()


def test_only_the_answers_count_in_the_loss() -> None:
    model = interp.wrap(build("llama"), word_tokenizer())
    prompts, answers = [[5, 6, 7, 8], [9, 10]], [[11, 12], [13]]
    found = _loss(model.hf, prompts, answers, model.device)
    nats = []
    for prompt, answer in zip(prompts, answers, strict=True):
        logits = model.run([prompt + answer], logits="all").logits[0].log_softmax(-1)
        nats += [-float(logits[len(prompt) - 1 + i, token]) for i, token in enumerate(answer)]
    assert float(found) == pytest.approx(sum(nats) / 3, rel=1e-4)


def test_without_peft_the_extra_is_named(
    pocket: interp.Model, items: ContextItems, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(BadInput, match=r"interp-workbench\[lora\]"):
        finetune(pocket, items, form=WEIGHT)


def test_what_cannot_be_trained_is_refused(pocket: interp.Model, items: ContextItems) -> None:
    with pytest.raises(BadInput, match="two right answers"):
        finetune(pocket, items, form=WEIGHT.silent)
    with pytest.raises(BadInput, match="must be positive"):
        LoRA(rank=0)
    with pytest.raises(BadInput, match="one of nnsight"):
        finetune(interp.load("pocket", backend="nnsight"), items, form=WEIGHT)
