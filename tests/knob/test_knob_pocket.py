"""The bundled model arbitrates in one direction: it is found, better than by any baseline, and it can be turned."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import interp
from interp.errors import BadInput
from interp.knob import Behaviour, KnobResult, evaluate, search_exhaustively, search_layers, side_effects
from interp.knob.behaviour import outcome, responses
from interp.knob.search_result import SETTINGS
from interp.pocket.documents import is_held_out
from interp.pocket.prompts import skill_prompts
from interp.stats import wilson_interval
from interp.tasks.context_prior import ContextItem, ContextItems, PromptForm, context_prompts, fact_items


def test_without_steering_it_follows_the_instruction_and_alone_its_memory(fitted: KnobResult) -> None:
    assert fitted.behaviour is not None
    assert fitted.behaviour.pair_accuracy("instructed").estimate >= 0.9
    silent = fitted.behaviour.frame.query("setting == 'silent'").iloc[0]
    assert silent.prior >= 0.8
    assert silent.memory_ratio >= 0.8


def test_one_direction_decides_and_neither_random_nor_simpler_ones_do(fitted: KnobResult) -> None:
    best = fitted.frame[fitted.frame.layer == fitted.layer].set_index("method").accuracy
    assert best.interchange >= 0.9
    assert best.interchange >= best.random + 0.3
    assert best.interchange >= best.drop("interchange").max()
    assert set(best.index) == {"interchange", "difference of means", "PCA", "logistic regression", "random"}
    assert fitted.neighbours.layer.tolist() == [fitted.layer - 1, fitted.layer, fitted.layer + 1]
    assert fitted.neighbours.accuracy.max() == best.interchange


def test_the_coordinate_tells_the_intents_apart(fitted: KnobResult) -> None:
    context, prior = fitted.coordinates[:, :, 0].T
    assert context.min() > prior.max()
    assert fitted.knob.values["context"] > fitted.knob.values["prior"]


def test_turning_it_without_instruction_chooses_the_answer(
    pocket: interp.Model, fitted: KnobResult, form: PromptForm, others: ContextItems
) -> None:
    found = evaluate(pocket, others, fitted.knob, form=form, values=[fitted.knob.values["prior"], 40, 80])
    for intent in ("context", "prior"):
        assert found.accuracy("steered", intent).estimate >= 0.8
    assert found.pair_accuracy("steered").estimate >= 0.8
    assert found.curve.context.is_monotonic_increasing
    assert found.curve.prior.iloc[0] == found.accuracy("steered", "prior").estimate
    rates = found.frame[["context", "prior", "other"]].sum(axis=1)
    np.testing.assert_allclose(rates, 1)


def test_it_also_turns_contradictions_that_the_model_never_saw(
    pocket: interp.Model, fitted: KnobResult, form: PromptForm
) -> None:
    unseen = [
        item
        for item in fact_items(1000, seed=8)
        if is_held_out(item.query.removeprefix("Which country is ").removesuffix(" in?"), item.context_answer)
    ]
    found = evaluate(pocket, ContextItems(tuple(unseen[:40])), fitted.knob, form=form)
    assert len(unseen) >= 40
    assert found.pair_accuracy("steered").estimate >= 0.8


def test_a_random_direction_at_the_same_values_chooses_nothing(
    pocket: interp.Model, fitted: KnobResult, form: PromptForm, others: ContextItems
) -> None:
    random = torch.linalg.qr(torch.randn(256, 1, generator=torch.Generator().manual_seed(0))).Q.T
    control = type(fitted.knob)(fitted.layer, random, fitted.knob.values)
    found = evaluate(pocket, others, control, form=form)
    assert found.accuracy("steered", "context").estimate <= 0.3


def test_unrelated_skills_do_not_notice(pocket: interp.Model, fitted: KnobResult) -> None:
    tasks = {name: skill_prompts(pocket.tokenizer, name, 40) for name in ("ioi", "needle")}
    tasks["needle"] = tasks["needle"][:12]
    costs = side_effects(pocket, fitted.knob, tasks).frame
    assert (costs[costs.setting == "none"].right >= 0.9).all()
    assert (costs[costs.task == "ioi"].change.abs() <= 0.03).all()
    assert (costs.change_high >= -0.03).all()  # a dozen needles bound a loss no closer than that
    assert costs.setting.tolist() == ["none", "context", "prior"] * 2


def test_an_effect_would_be_noticed(pocket: interp.Model, fitted: KnobResult) -> None:
    far = fitted.knob.with_values(context=20_000, prior=-20_000)
    costs = side_effects(pocket, far, {"ioi": skill_prompts(pocket.tokenizer, "ioi", 12)}).frame
    assert costs.change.min() < -0.5


def test_the_layer_search_names_what_the_exhaustive_one_ranks_first(
    pocket: interp.Model, items: ContextItems, form: PromptForm
) -> None:
    few = items.take(range(24))
    found = search_layers(pocket, few, form=form)
    every = search_exhaustively(pocket, few, form=form)
    layers = pocket.spec.layers
    for setting in SETTINGS:
        assert every.single(setting)[0] in found.found[setting].layers
        chosen = found.found[setting].layers
        start, stop = min(chosen), max(chosen) + 1
        mine = every.frame[every.frame.setting == setting].set_index(["start", "stop"])
        here = mine.loc[(start, stop)]
        assert here.p_source == pytest.approx(found.found[setting].last.source[-1], abs=1e-3)
        assert here.p_source > 0.88 > here.p_unpatched
        assert len(found.found[setting].evaluations) <= 1 + 2 * np.ceil(np.log2(layers)) + layers
    assert len(every.frame) == len(SETTINGS) * layers * (layers + 1) / 2
    assert found.evaluations == sum(found.summary.evaluations)


def test_batches_padding_and_caches_do_not_change_answers(
    pocket: interp.Model, fitted: KnobResult, form: PromptForm, others: ContextItems
) -> None:
    some = others.take(range(12))
    silent = context_prompts(pocket.tokenizer, some, form.silent, ("context",))
    assert len(set(map(len, silent.tokens))) > 1
    for setting in ("context", "prior"):
        edit = fitted.edit(setting)
        together = responses(pocket, silent, edit, 32)
        assert responses(pocket, silent, edit, 1) == together
        firsts = [pocket.run(silent, edits=edit, padding_side=side).logits.argmax(-1) for side in ("left", "right")]
        assert torch.equal(*firsts)
        for text, tokens in zip(together[:4], silent.tokens[:4], strict=True):
            slowly = without_cache(pocket, list(tokens), fitted, setting, 2)
            assert text == pocket.tokenizer.decode(slowly, skip_special_tokens=True)
    assert responses(pocket, silent, fitted.edit("context"), 32) != responses(pocket, silent, fitted.edit("prior"), 32)


def without_cache(model: interp.Model, tokens: list[int], fitted: KnobResult, setting: str, count: int) -> list[int]:
    """Greedy decoding that runs the whole text for every token, with the coordinate set by a hook."""
    direction, value = fitted.knob.direction, fitted.knob.value(setting)
    first = len(tokens) - 1

    def turn(_module: object, _args: object, output: torch.Tensor) -> torch.Tensor:
        new = output.clone()
        new[:, first:] += (value - output[:, first:] @ direction)[..., None] * direction
        return new

    handle = model.parts.blocks[fitted.layer].module.register_forward_hook(turn)
    whole = list(tokens)
    for _ in range(count):
        with torch.no_grad():
            whole.append(int(model.hf(torch.tensor([whole]), use_cache=False).logits[0, -1].argmax()))
    handle.remove()
    return whole[len(tokens) :]


def test_a_result_survives_its_run(fitted: KnobResult, tmp_path: Path) -> None:
    fitted.save(tmp_path / "run")
    again = KnobResult.load(tmp_path / "run")
    assert repr(again) == repr(fitted)
    np.testing.assert_allclose(again.bases, fitted.bases)
    assert fitted.behaviour is not None
    assert again.behaviour is not None
    assert again.behaviour.frame.equals(fitted.behaviour.frame)
    assert again.behaviour.parameters == fitted.behaviour.parameters
    assert again.parameters == fitted.parameters
    assert (again.form, {part: items.items for part, items in again.items.items()}) == (
        fitted.form,
        {part: items.items for part, items in fitted.items.items()},
    )
    for figure in ("layers", "coordinates"):
        assert again.plot(figure).to_json() == fitted.plot(figure).to_json()


def test_a_knob_knows_what_it_was_fitted_on(fitted: KnobResult, items: ContextItems, others: ContextItems) -> None:
    assert sum(map(len, fitted.items.values())) == len(items)
    assert fitted.unseen(items).items == tuple(item for item in items if item in set(fitted.items["test"]))
    assert len(fitted.unseen(items)) == fitted.parameters["pairs"]["test"]
    assert fitted.unseen(others).items == others.items
    reworded = [replace(item, context=f"They say: {item.context}") for item in fitted.items["train"]]
    kept = fitted.unseen(ContextItems((*reworded, *others)))
    assert kept.items == others.items
    assert kept.lost == {"the knob was fitted on": len(reworded)}


def test_interchange_without_a_failure_still_has_an_interval(fitted: KnobResult) -> None:
    best = fitted.fitted.set_index("layer").loc[fitted.layer]
    assert (best.accuracy, best.accuracy_high) == pytest.approx((1, 1))
    assert best.accuracy_low == pytest.approx(wilson_interval(60, 60).low)
    assert 0.9 < best.accuracy_low < 1


def test_answers_searches_and_side_effects_survive_their_runs(
    pocket: interp.Model, fitted: KnobResult, form: PromptForm, others: ContextItems, tmp_path: Path
) -> None:
    few = others.take(range(6))
    results = (
        evaluate(pocket, few, fitted.knob, form=form, values=[-10, 40]),
        evaluate(pocket, few, form=form),
        search_layers(pocket, few, ["CP", "PRI"], form=form),
        search_exhaustively(pocket, few, ["PC"], form=form),
        side_effects(pocket, fitted.knob, {"ioi": skill_prompts(pocket.tokenizer, "ioi", 3)}),
    )
    for number, result in enumerate(results):
        result.save(tmp_path / str(number))
        again = type(result).load(tmp_path / str(number))
        assert again.frame.equals(result.frame)
        assert again.plot().to_json() == result.plot().to_json()
        assert (repr(again), again.parameters) == (repr(result), result.parameters)
        with pytest.raises(BadInput, match="not 'knob'"):
            KnobResult.load(tmp_path / str(number))
    with pytest.raises(BadInput, match="'knob-search'"):
        Behaviour.load(tmp_path / "2")


def test_an_answer_is_its_whole_word_and_the_longer_one_wins() -> None:
    item = ContextItem("q", "it is 12", "1", "12")
    assert [outcome(text, item) for text in ("12.", " 1", "13", "1 2", "", "twelve")] == [
        "context",
        "prior",
        "other",
        "prior",
        "other",
        "other",
    ]


def test_figures_show_the_frame(
    fitted: KnobResult, pocket: interp.Model, form: PromptForm, others: ContextItems
) -> None:
    lines = fitted.plot("layers").data
    assert lines[0].name == "the knob (fitted)"
    assert list(lines[0].y) == fitted.fitted.accuracy.tolist()
    bars = fitted.plot("coordinates")
    assert [bar.name for bar in bars.data] == ["asked for context", "asked for prior"]
    np.testing.assert_allclose(bars.data[1].x, fitted.coordinates[:, 1, 0])
    assert len(bars.layout.shapes) == 2
    found = evaluate(pocket, others.take(range(4)), fitted.knob, form=form, values=[80, -10])
    rates = [trace for trace in found.plot().data if trace.name]
    assert [trace.name for trace in rates] == ["context", "prior", "other"]
    assert list(rates[0].x) == [-10, 80]
    assert fitted.behaviour is not None
    stacked = fitted.behaviour.plot().data
    assert [list(bar.x) for bar in stacked] == [fitted.behaviour.frame[bar.name].tolist() for bar in stacked]
    np.testing.assert_allclose(np.sum([bar.x for bar in stacked], axis=0), 1)
    with pytest.raises(BadInput, match="valid: layers, coordinates"):
        fitted.plot("layer")  # type: ignore[arg-type]
