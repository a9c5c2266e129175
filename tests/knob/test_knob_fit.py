"""A fit finds a planted direction, is what its definition says, and refuses what cannot be fitted."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import interp
from interp.errors import BadInput, UnknownSite, UnreadableFile
from interp.knob import Knob, KnobResult, Training, correlation, evaluate, fit_knob
from interp.knob.interchange import interchange_logits, measure_interchange
from interp.knob.pairs import intent_pairs, split_pairs
from interp.knob.separation import distance
from interp.tasks.context_prior import ContextItem, ContextItems, PromptForm, fact_items
from tests.families import build, word_tokenizer
from tests.knob.planted_direction import Planted, planted


@pytest.fixture(scope="module")
def made() -> Planted:
    return planted()


def unit(seed: int, width: int) -> torch.Tensor:
    vector = torch.randn(width, generator=torch.Generator().manual_seed(seed))
    return vector / vector.norm()


def test_a_planted_direction_is_recovered_after_every_layer(made: Planted) -> None:
    result = fit_knob(made.model, made.items, form=PromptForm(wording="paper"))
    assert result.parameters["base_accuracy"] == 1
    for basis in result.bases:
        assert float(torch.from_numpy(basis[0]) @ made.direction) > 0.99  # and context upwards
    assert (result.fitted.accuracy == 1).all()
    assert result.frame[result.frame.method == "random"].accuracy.max() < 0.5


def test_the_same_seed_gives_the_same_knob_and_both_executors_do(made: Planted) -> None:
    form, training = PromptForm(), Training(steps=12)
    first, again = (fit_knob(made.model, made.items, 1, form=form, training=training, seed=5) for _ in range(2))
    np.testing.assert_array_equal(first.bases, again.bases)
    plain = fit_knob(made.model, made.items, 1, form=form, training=training, seed=5, executor="plain")
    np.testing.assert_allclose(plain.bases, first.bases, atol=1e-4)
    other = fit_knob(made.model, made.items, 1, form=form, training=training, seed=6)
    assert np.abs(other.bases - first.bases).max() > 1e-4


def test_fitting_all_layers_at_once_is_fitting_each_alone(made: Planted) -> None:
    pairs = intent_pairs(made.model, made.items, PromptForm())
    split = split_pairs(pairs.used(), 0.2, 0.2, 0)
    bases = [unit(0, 64)[None], unit(1, 64)[None]]
    together = measure_interchange(pairs, [0, 1], bases, split.test)
    for layer, basis, found in zip((0, 1), bases, together, strict=True):
        (alone,) = measure_interchange(pairs, [layer], [basis], split.test)
        np.testing.assert_allclose(alone.loss, found.loss, atol=1e-5)


def test_interchange_of_full_rank_is_patching_the_twin(pocket: interp.Model, items: ContextItems, form) -> None:
    few = items.take(range(4))
    pairs = intent_pairs(pocket, few, form)
    rows = torch.arange(8)
    for layer in range(pocket.spec.layers):
        (logits,) = interchange_logits(pairs, [layer], [torch.eye(pocket.spec.width)], rows)
        for row in range(8):
            donor = pocket.run([list(pairs.prompts.tokens[row ^ 1])], read=f"resid_post.{layer}", positions=-1)
            tokens = [list(pairs.prompts.tokens[row])]
            value = donor[f"resid_post.{layer}"].expand(-1, len(tokens[0]), -1)
            patched = pocket.run(tokens, edits=interp.patch(f"resid_post.{layer}", value).at(positions=-1)).logits
            torch.testing.assert_close(logits[row], patched[0], rtol=1e-3, atol=1e-3)


def test_interchange_within_a_subspace_is_swap_subspace(pocket: interp.Model, items: ContextItems, form) -> None:
    pairs = intent_pairs(pocket, items.take(range(2)), form)
    basis = torch.linalg.qr(torch.randn(256, 3, generator=torch.Generator().manual_seed(0))).Q.T
    (logits,) = interchange_logits(pairs, [1], [basis], torch.arange(4))
    for row in range(4):
        tokens = [list(pairs.prompts.tokens[row])]
        donor = pairs.base.resid[1][row ^ 1].expand(1, len(tokens[0]), -1)
        edit = interp.swap_subspace("resid_post.1", basis, donor).at(positions=-1)
        edited = pocket.run(tokens, edits=edit).logits[0]
        torch.testing.assert_close(logits[row], edited, rtol=1e-3, atol=1e-3)
        assert (edited - pairs.base.logits[row]).abs().max() > 1e-3


def test_setting_the_coordinate_is_idempotent_and_leaves_the_complement() -> None:
    model = interp.wrap(build("llama"), word_tokenizer())
    direction = unit(0, model.spec.width)
    knob = Knob(0, direction[None])
    edit = knob.edit(3.0)
    prompt = "w5 w9 w77 w12"

    def last(*edits: interp.Edit) -> torch.Tensor:
        return model.run(prompt, read="resid_post.0", edits=edits)["resid_post.0"][0]

    plain, once, twice = last(), last(edit), last(edit, edit)
    torch.testing.assert_close(once, twice)
    torch.testing.assert_close(once[:-1], plain[:-1])
    assert float(once[-1] @ direction) == pytest.approx(3.0, abs=1e-5)
    assert abs(float(plain[-1] @ direction) - 3.0) > 0.1
    project = torch.eye(model.spec.width) - torch.outer(direction, direction)
    torch.testing.assert_close(once[-1] @ project, plain[-1] @ project)


def test_a_knob_survives_its_file_in_the_shape_of_the_published_ones(tmp_path: Path) -> None:
    knob = Knob(2, unit(3, 8)[None], {"context": 1.5, "prior": -2.0}, {"name": "somewhere"})
    knob.save(tmp_path / "knob.safetensors")
    assert {name: tuple(t.shape) for name, t in load_file(tmp_path / "knob.safetensors").items()} == {
        "proj.weight": (8, 1)
    }
    again = Knob.load(tmp_path / "knob.safetensors")
    torch.testing.assert_close(again.basis, knob.basis)
    assert (again.layer, again.values, again.model) == (2, knob.values, knob.model)


def test_a_published_checkpoint_is_read_with_its_sign_once_its_layer_is_said(tmp_path: Path) -> None:
    direction = unit(4, 16)
    save_file({"proj.weight": direction[:, None].clone(), "rank": torch.tensor(1)}, tmp_path / "theirs.safetensors")
    knob = Knob.load(tmp_path / "theirs.safetensors", layer=16, context=-6, prior=6)
    torch.testing.assert_close(knob.direction, direction)
    assert (knob.layer, knob.values) == (16, {"context": -6, "prior": 6})
    with pytest.raises(BadInput, match="layer="):
        Knob.load(tmp_path / "theirs.safetensors")
    save_file({"weight": direction}, tmp_path / "other.safetensors")
    with pytest.raises(UnreadableFile, match="proj.weight"):
        Knob.load(tmp_path / "other.safetensors")
    (tmp_path / "text.safetensors").write_text("no")
    with pytest.raises(UnreadableFile, match="safetensors"):
        Knob.load(tmp_path / "text.safetensors")


def test_bad_requests_are_refused_before_the_work(pocket: interp.Model, items: ContextItems, form: PromptForm) -> None:
    with pytest.raises(UnknownSite, match="layers 0 to 3"):
        fit_knob(pocket, items, 4, form=form)
    with pytest.raises(BadInput, match="between 1 and the width 256"):
        fit_knob(pocket, items, rank=257, form=form)
    with pytest.raises(BadInput, match="same for both intents"):
        fit_knob(pocket, items, form=form.silent)
    with pytest.raises(BadInput, match="together less than 1"):
        fit_knob(pocket, items.take(range(4)), 1, form=form, validation=0.5, test=0.5)
    with pytest.raises(BadInput, match="leave 2 to fit on, 0 to stop by and 0 to report on"):
        fit_knob(pocket, items.take(range(2)), 1, form=form)
    with pytest.raises(BadInput, match="8 features and pocket has width 256"):
        Knob(1, unit(0, 8)[None], {"context": 1, "prior": 0}).check(pocket)
    with pytest.raises(UnknownSite, match="no layer 9"):
        evaluate(pocket, items, Knob(9, unit(0, 256)[None], {"context": 1, "prior": 0}), form=form)
    with pytest.raises(BadInput, match="no value called 'context'"):
        evaluate(pocket, items, Knob(1, unit(0, 256)[None]), form=form)
    with pytest.raises(BadInput, match="orthonormal"):
        Knob(1, torch.ones(1, 4))
    with pytest.raises(BadInput, match="rank 2 has no one direction"):
        Knob(1, torch.eye(4)[:2]).edit(1.0)


def test_an_empty_set_says_which_filter_took_how_many(pocket: interp.Model, form: PromptForm) -> None:
    strange = ContextItems(
        tuple(
            ContextItem(f"Which color is the {word}?", f"The {word} is red.", "blue", "red") for word in ("cup", "hat")
        )
    )
    with pytest.raises(BadInput, match="0 pairs are left.*2 not answered as asked under both intents"):
        fit_knob(pocket, strange, form=form)
    alike = ContextItems(tuple(ContextItem(f"Which {w}?", "It is 12.", "13", "12") for w in ("cup", "hat", "lamp")))
    with pytest.raises(BadInput, match="no items are left: 3 same first token"):
        fit_knob(pocket, alike, form=form)


def test_pairs_that_the_model_gets_wrong_are_left_out_and_counted(pocket: interp.Model, form: PromptForm) -> None:
    wrong = ContextItem("Which country is Graz in?", "Graz lies in Japan.", "Peru", "Japan")
    mixed = ContextItems((*fact_items(30, seed=3).items, wrong))
    result = fit_knob(pocket, mixed, 1, form=form, training=Training(steps=5))
    assert result.parameters["lost"] == {"not answered as asked under both intents": 1}
    assert sum(result.parameters["pairs"].values()) == 30


def test_separation_is_the_distance_in_standard_deviations() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 2, (4000, 1)), rng.normal(6, 2, (4000, 1))
    assert distance(a, b) == pytest.approx(3.0, abs=0.1)
    turn = np.array([[1.0, 0.7], [0.0, 3.0]])
    wide = [np.concatenate([x, rng.normal(0, 1, (4000, 1))], axis=1) for x in (a, b)]
    assert distance(wide[0] @ turn, wide[1] @ turn) == pytest.approx(distance(*wide))
    assert np.isnan(distance(a[:1], b))


def test_the_correlation_is_that_of_its_points(fitted: KnobResult) -> None:
    found = correlation([fitted], over="layers")
    values = found.points[["separation", "accuracy"]].to_numpy()
    assert found.pearson.estimate == pytest.approx(np.corrcoef(values.T)[0, 1])
    assert found.spearman.estimate == pytest.approx(found.points.separation.corr(found.points.accuracy, "spearman"))
    assert found.pearson.n == 4
    with pytest.raises(BadInput, match="at least three points; 1 of 1"):
        correlation([fitted], over="models")


def test_over_models_the_best_layer_stands_for_a_model() -> None:
    import pandas as pd

    def result(name: str, separation: float, accuracy: float) -> SimpleNamespace:
        frame = pd.DataFrame({"layer": [0, 1], "separation": [9.0, separation], "accuracy": [0.0, 1.0]})
        about = {"base_accuracy": accuracy}
        return SimpleNamespace(model={"name": name}, knob=Knob(1, torch.eye(2)[:1]), fitted=frame, parameters=about)

    results = [result("a", 1.0, 0.2), result("b", 2.0, 0.4), result("c", 3.0, 0.9)]
    found = correlation(results, over="models")  # type: ignore[arg-type]
    assert found.points.accuracy.tolist() == [0.2, 0.4, 0.9]
    assert found.spearman.estimate == pytest.approx(1.0)
