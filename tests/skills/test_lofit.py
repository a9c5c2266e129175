"""The study: selected heads teach what random ones do not, and every condition says what it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import interp
from interp.errors import BadInput
from interp.runs import load_run
from interp.skills import lofit_baselines
from interp.skills.lofit import Lofit, lofit, two_way_interval
from interp.skills.lofit_baselines import Adapters, fit_lora, iti_offsets, matched_adapters
from interp.skills.lofit_folding import fold
from interp.skills.lofit_heads import random_heads
from interp.skills.lofit_offsets import HeadOffsets
from interp.skills.lofit_skill import Skill, memory_skill
from interp.skills.lofit_training import POCKET, Recipe
from interp.tasks.classification import Classification
from interp.tasks.classified import Example
from tests.families import build
from tests.skills.lofit_planted import PLANTED, RECIPE, WANTED, one_head_reaches_the_answer, task

SKILL = Skill("constant", task(WANTED), task(WANTED, n=40, seed=1))
COPY = Skill("copy", task(None), task(None, n=40, seed=1))
WITHOUT_DISTRACTORS = replace(SKILL.train, distractors=(), distractor_tokens=())
SEEDS = (1, 4, 6)
"""None of which draws the planted head."""


@pytest.fixture(scope="module")
def model() -> interp.Model:
    return interp.wrap(one_head_reaches_the_answer(), name="planted")


@pytest.fixture(scope="module")
def study(model: interp.Model) -> Lofit:
    return lofit(model, SKILL, replace(RECIPE, l1=0.02), seeds=SEEDS, other=COPY)


def rows(study: Lofit, condition: str) -> np.ndarray:
    return study.right[study.frame.condition == condition]


def test_selected_heads_teach_the_skill_and_random_heads_do_not(study: Lofit) -> None:
    lofit_rows = study.frame[study.frame.condition == "lofit"]
    assert set(lofit_rows.which) == {f"{PLANTED[0]}-{PLANTED[1]}"}
    assert (lofit_rows.accuracy == 1).all()
    drawn = study.frame[study.frame.condition == "random"]
    assert not set(drawn.which) & set(lofit_rows.which)
    assert (drawn.accuracy == study.frame.accuracy[0]).all()
    against = study.comparison().set_index("condition")
    assert against.low["random"] > 0
    assert against.difference["all"] <= 0.03, "one head is as good as all of them"
    assert against.difference["none"] == 1.0 - rows(study, "none").mean()


def test_every_row_says_what_was_trained_on_how_many(study: Lofit) -> None:
    frame = study.frame
    assert list(frame.condition.unique()) == ["none", "lofit", "random", "lora", "iti", "other", "all"]
    assert frame.parameters[frame.condition == "lofit"].unique().tolist() == [16]
    assert frame.parameters[frame.condition == "all"].unique().tolist() == [8 * 16]
    assert (frame.parameters[frame.condition == "lora"] >= 16).all()
    assert (frame.n == 40).all()
    assert ((frame.low <= frame.accuracy) & (frame.accuracy <= frame.high)).all()
    np.testing.assert_allclose(study.right.mean(1), frame.accuracy)
    assert study.model["fingerprint"]
    assert study.parameters["recipe"]["l1"] == 0.02


def test_lora_learns_it_where_it_reaches_the_head_and_leaves_the_model(model: interp.Model) -> None:
    before = model.fingerprint
    adapted, adapters = fit_lora(model, SKILL.train, 2 * (64 + 3 * 64), RECIPE)
    assert adapters == Adapters(("transformer.h.0.attn.c_attn", "transformer.h.1.attn.c_attn"), 1, 512)
    assert SKILL.right(adapted).mean() > 0.9 > SKILL.right(model).mean()
    assert not any("lora" in name for name, _ in model.hf.named_modules())
    assert interp.wrap(model.hf).fingerprint == before


def test_the_mean_difference_moves_the_planted_head_towards_the_answer(model: interp.Model) -> None:
    offsets = iti_offsets(model, SKILL, 8)
    vector = offsets.vectors[offsets.heads.index(PLANTED)]
    assert int(vector.argmax()) == WANTED
    right = SKILL.right(model, edits=offsets.edits(model))
    assert right.mean() > SKILL.right(model).mean()


def test_a_study_is_a_run_whose_offsets_act_again(study: Lofit, model: interp.Model, tmp_path: Path) -> None:
    run = study.save(tmp_path / "run")
    assert load_run(tmp_path / "run").record.kind == "lofit"
    assert run.frame.equals(study.frame)
    offsets = HeadOffsets.load(tmp_path / "run" / "offsets-1.safetensors")
    first = study.right[(study.frame.condition == "lofit") & (study.frame.seed == SEEDS[0])][0]
    assert np.array_equal(SKILL.right(model, edits=offsets.edits(model)), first)
    assert "accuracy" in study._repr_html_()
    again = Lofit.load(tmp_path / "run")
    assert again.frame.equals(study.frame)
    assert again.by_head.equals(study.by_head)
    assert dict(again.parameters).items() >= {"skill": "constant", "counts": [1]}.items()
    assert np.array_equal(again.offsets[1].vectors, study.offsets[1].vectors)
    assert again.comparison().equals(study.comparison())
    for what in ("accuracy", "heads"):
        assert again.plot(what).to_json() == study.plot(what).to_json()


def test_the_strength_of_a_head_is_the_mean_norm_of_its_scale_over_seeds(study: Lofit) -> None:
    best = study.by_head.iloc[0]
    assert (best.layer, best["head"]) == PLANTED
    scores = np.array([mask.scores[PLANTED] for mask in study.selections.values()])
    assert best.strength == pytest.approx(scores.mean())
    assert (best.low, best.high, best.n) == (scores.min(), scores.max(), 3)
    assert study.by_head.selected.tolist() == [1.0] + [0.0] * 7


def test_the_interval_of_two_ways_covers_seeds_and_prompts() -> None:
    rng = np.random.default_rng(0)
    same = np.tile(rng.integers(0, 2, 100), (3, 1)).astype(float)
    apart = same + np.array([[-0.5], [0.0], [0.5]])
    narrow, wide = two_way_interval(same), two_way_interval(apart)
    assert narrow[0] < same.mean() < narrow[1]
    assert narrow[1] - narrow[0] == pytest.approx(2 * 1.96 * same[0].std() / 10, rel=0.15)
    assert wide[1] - wide[0] > 2 * (narrow[1] - narrow[0])
    assert two_way_interval(np.ones((3, 10))) == (1.0, 1.0)


@pytest.mark.parametrize("budget", [1, 500, 2_000, 100_000])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_lora_is_given_no_fewer_parameters_and_few_more(family: str, budget: int) -> None:
    model = interp.wrap(build(family))
    adapters = matched_adapters(model, budget)
    fused = 128 + 3 * 128  # GPT-2's one map for queries, keys and values
    sizes = (fused,) if family == "gpt2" else (64 + 4 * 32, 64 + 2 * 32)
    per_rank = sum(sizes) * 2
    assert adapters.parameters >= budget
    assert adapters.parameters - budget <= (max(sizes) if budget <= per_rank else adapters.rank * max(sizes))


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"counts": (0,)}, "0 heads cannot be chosen: planted has 8, so 1 to 8"),
        ({"counts": (1, 9)}, "9 heads cannot be chosen"),
        ({"seeds": ()}, "seeds .* are none"),
        ({"baselines": ("radnom",)}, "did you mean 'random'"),
        ({"baselines": ("other",)}, "say which"),
        ({"skill": replace(SKILL, train=WITHOUT_DISTRACTORS), "baselines": ("iti",)}, "no distractors"),
        ({"recipe": Recipe(heads=1, max_length=2)}, "max_length is 2"),
    ],
)
def test_what_cannot_be_studied_is_refused_before_anything_is_trained(
    model: interp.Model, monkeypatch: pytest.MonkeyPatch, asked: dict, said: str
) -> None:
    def never(*_args: object, **_kwargs: object) -> None:
        raise AssertionError("trained")

    monkeypatch.setattr("interp.skills.lofit.select_heads", never)
    monkeypatch.setattr("interp.skills.lofit.fit_offsets", never)
    request = {"skill": SKILL, "recipe": RECIPE, **asked}
    with pytest.raises(BadInput, match=said):
        lofit(model, **request)


def test_without_peft_the_extra_is_named(model: interp.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lofit_baselines, "find_spec", lambda name: None)
    with pytest.raises(BadInput, match=r"interp-workbench\[lora\]"):
        lofit(model, SKILL, RECIPE, baselines=("lora",))


def test_answers_outside_the_label_words_and_one_class_are_refused() -> None:
    with pytest.raises(BadInput, match="none of its label words"):
        replace(COPY, choices=(0, 1))
    with pytest.raises(BadInput, match="there must be two classes"):
        replace(SKILL, choices=(WANTED, 0))
    with pytest.raises(BadInput, match="no prompts with answers to test with"):
        replace(SKILL, test=replace(SKILL.test, answers=(), answer_tokens=(), distractors=(), distractor_tokens=()))


@pytest.fixture(scope="module")
def bundled() -> interp.Model:
    return interp.load("pocket")


def test_a_classification_is_a_skill_told_apart_by_its_words(bundled: interp.Model) -> None:
    examples = [Example(f"The meal was {word}.", label) for word, label in (("good", "p"), ("bad", "n"))] * 3
    built = {"name": "tiny", "template": "{text} It was", "words": {"p": "great", "n": "terrible"}}
    splits = {"train": examples, "test": examples}
    tiny = Classification.build(bundled.tokenizer, splits, **built)
    skill = Skill.of(tiny)
    assert skill.choices == tiny.label_tokens
    assert skill.right(bundled).mean() == pytest.approx(tiny.accuracy(bundled))
    with pytest.raises(BadInput, match="has the label 'x'"):
        Classification.build(bundled.tokenizer, {**splits, "test": [Example("So.", "x")]}, **built)
    with pytest.raises(BadInput, match="two classes"):
        Classification.build(bundled.tokenizer, {**splits, "train": examples[:1]}, **built)


def test_the_bundled_model_does_the_opposite_of_the_memory_skill_until_taught(bundled: interp.Model) -> None:
    skill = memory_skill(bundled.tokenizer, n=8, n_test=40)
    assert skill.right(bundled).mean() < 0.1
    obedient = replace(skill, test=replace(skill.test, answers=skill.test.distractors,
                                           answer_tokens=skill.test.distractor_tokens))  # fmt: skip
    assert obedient.right(bundled).mean() > 0.9
    assert not set(skill.train.texts) & set(skill.test.texts)


def test_folded_offsets_of_the_bundled_model_equal_hooked_ones(bundled: interp.Model) -> None:
    heads = random_heads(bundled, 3, seed=1)
    vectors = torch.randn(3, bundled.spec.head_dim, generator=torch.Generator().manual_seed(0))
    offsets = HeadOffsets(heads, vectors, bundled.spec.name, bundled.fingerprint)
    prompts = memory_skill(bundled.tokenizer, n=8, n_test=8).test
    hooked = bundled.run(prompts, edits=offsets.edits(bundled)).logits
    torch.testing.assert_close(fold(bundled, offsets).run(prompts).logits, hooked, rtol=1e-5, atol=1e-5)
    assert (bundled.run(prompts).logits - hooked).abs().max() > 0.1


@pytest.mark.slow
def test_three_heads_of_32_teach_the_bundled_model_as_much_as_all_and_random_ones_do_not(bundled: interp.Model) -> None:
    study = lofit(bundled, memory_skill(bundled.tokenizer), POCKET, baselines=("random", "all"))
    against = study.comparison().set_index("condition")
    assert against.low["none"] > 0.8
    assert against.low["random"] > 0
    assert against.difference["all"] > -0.03
