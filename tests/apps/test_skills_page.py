"""The Skills page on the sample runs: its figures are those of the library, and a damaged run says so."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from apps.explorer.settings import samples_folder
from interp.runs import load_run, run_folders
from interp.skills.evaluation import Evaluation
from interp.skills.localize import Localization
from interp.skills.lofit import Lofit
from interp.skills.multitask import Continual, Overlap, overlap
from tests.apps.reading import charts, numbers, said

SAMPLES = samples_folder()
PARTS = ("masks", "grafts", "overlap", "lofit", "learning")


@pytest.mark.parametrize("part", PARTS)
def test_every_part_draws_without_a_model_and_without_a_problem(draw, part):
    test = draw("skills", show=part, model="none")
    assert not test.exception
    assert not test.error
    assert not test.warning
    assert charts(test)
    assert "without a model" not in said(test)


def test_where_a_skill_is_stands_beside_random_masks(draw):
    test = draw("skills", mask="samples/skill-topic", model="none")
    result = Localization.load(SAMPLES / "skill-topic")
    shares, enrichment = charts(test)
    np.testing.assert_allclose(numbers(shares["data"][0]["x"]), result.mask.shares("layer").share)
    np.testing.assert_allclose(numbers(shares["data"][1]["x"]), result.mask.shares("layer").by_chance)
    assert enrichment["data"][0]["zmin"] == -enrichment["data"][0]["zmax"]
    table = result.mask.shares("layer")
    most = table.loc[(table.share - table.by_chance).idxmax()]
    assert f"Layer {most.layer:.0f} has {most.share:.1%} of the mask" in said(test)
    assert most.share > most.chance_high  # what random masks never have


def test_what_a_graft_carries_has_random_parameters_beside_it(draw):
    test = draw("skills", show="grafts", split="ood", model="none")
    result = Evaluation.load(SAMPLES / "skill-evaluation")
    shown = [figure["layout"]["title"]["text"] for figure in charts(test)]
    assert shown == [result.plot(what, "ood").layout.title.text for what in ("accuracy", "reliability")]
    assert "shares of the gain say nothing" in said(test)  # fine-tuning on one domain did not help with the other
    test = draw("skills", show="grafts", model="none")
    frame = result.frame.query("split == 'test'").set_index(["method", "budget"]).sort_index()
    graft, random = frame.loc["localized"].recovered[0.01], frame.loc["random"].recovered[0.01].mean()
    assert f"A graft of 1% of the parameters carries {graft:.0%} [" in said(test)
    assert f"as many random ones carry {random:.0%}" in said(test)
    assert graft > 0.8 > 0.1 > random
    accuracy, _, reliability = charts(test)
    assert {"localized", "random", "movement"} <= {trace.get("name") for trace in accuracy["data"]}
    assert any("(ECE " in trace["name"] for trace in reliability["data"])


def test_the_overlap_of_chosen_masks_is_that_of_the_library(draw):
    names = ("skill-scenes", "skill-sentiment")
    test = draw("skills", show="overlap", masks=[f"samples/{name}" for name in names], model="none")
    found = overlap({f"samples/{name}": Localization.load(SAMPLES / name).mask for name in names})
    chosen, saved = charts(test)
    np.testing.assert_allclose(numbers(chosen["data"][0]["z"]).ravel(), found.matrix.ravel())
    np.testing.assert_allclose(
        numbers(saved["data"][0]["z"]).ravel(), Overlap.load(SAMPLES / "skill-overlap").matrix.ravel()
    )
    test.multiselect(key="masks").set_value([f"samples/{names[0]}"]).run()
    assert "Choose two masks or more" in said(test)


def test_lofit_shows_which_heads_and_the_accuracy_beside_random_ones(draw):
    test = draw("skills", show="lofit", model="none")
    result = Lofit.load(SAMPLES / "lofit")
    accuracy, heads = charts(test)
    grid = result.by_head.pivot(index="layer", columns="head").strength
    np.testing.assert_allclose(numbers(heads["data"][0]["z"]).ravel(), grid.to_numpy().ravel())
    assert {"LoFiT: selected heads", "random heads"} <= {trace.get("name") for trace in accuracy["data"]}
    row = result.comparison().query("condition == 'random'").iloc[0]
    assert f"{row.difference:+.3f} [{row.low:+.3f}, {row.high:+.3f}]" in said(test)


def test_learning_shows_what_is_forgotten(draw):
    test = draw("skills", show="learning", model="none")
    assert "interp skill finetune" in said(test).replace("\\", "")  # no weights ship
    forgotten = Continual.load(SAMPLES / "skill-continual").forgetting
    assert test.dataframe[0].value["drop"].tolist() == pytest.approx(forgotten["drop"].tolist())


def test_a_damaged_mask_is_a_sentence_and_the_page_goes_on(draw, own):
    shutil.copytree(SAMPLES / "skill-topic", own / "broken")
    file = own / "broken" / "mask.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    test = draw("skills", mask="runs/broken", model="none")
    assert not test.exception
    assert "no graft mask" in test.error[0].value
    test.selectbox(key="mask").select("samples/skill-topic").run()
    assert not test.error
    assert charts(test)


@pytest.mark.parametrize("part", PARTS)
def test_without_such_a_run_the_command_that_makes_one_is_named(draw, part, tmp_path, monkeypatch):
    monkeypatch.setattr("apps.explorer.settings.samples_folder", lambda: tmp_path / "none")
    test = draw("skills", show=part, model="none")
    assert not test.exception
    assert not test.error
    assert "interp skill" in said(test)
    assert not charts(test)


def test_an_unknown_part_or_run_in_the_address_is_named(draw):
    test = draw("skills", show="nowhere", mask="samples/none", model="none")
    assert not test.exception
    warned = " ".join(warning.value for warning in test.warning)
    assert "nowhere" in warned
    assert "samples" in warned


def test_the_weights_that_were_fine_tuned_do_not_ship():
    skills = [path for path in run_folders(SAMPLES) if load_run(path).record.kind.startswith("skill")]
    assert len(skills) >= 6
    assert not [file for path in skills for file in path.rglob("*") if file.name.startswith("model")]
