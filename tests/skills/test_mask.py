"""Graft masks: the two ends are exact, algebra is that of sets, files come back, other models are refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

import interp
from interp.errors import BadInput, MaskMismatch, UnreadableFile
from interp.skills.authors import read_list_of_s
from interp.skills.baselines import baseline_mask, everything_mask, same_matrices
from interp.skills.finetune import FineTuning
from interp.skills.mask import GraftMask, union
from interp.skills.pairs import check_pair, trainable
from interp.tracing.model import Model
from tests import families

PROMPT = "Mary saw the dog and the kitten in the morning. It is from the"


def logits(model: Model) -> torch.Tensor:
    found = model.run(PROMPT, logits="all").logits
    assert found is not None
    return found


def entries(mask: GraftMask) -> set[tuple[str, int]]:
    return {(name, int(i)) for name, indices in mask.indices.items() for i in indices}


def test_all_ones_is_the_fine_tuned_model_and_all_zeros_the_pre_trained_one_exactly(
    pocket: Model, taught: FineTuning
) -> None:
    ones = everything_mask(pocket, taught.model)
    zeros = ones.invert()
    assert (len(ones), len(zeros)) == (ones.size, 0)
    before, after = logits(pocket), logits(taught.model)
    assert not torch.allclose(before, after, atol=0.1)
    assert torch.equal(logits(ones.apply(pocket, taught.model)), after)
    assert torch.equal(logits(zeros.apply(pocket, taught.model)), before)
    with ones.applied(pocket, taught.model) as grafted:
        assert torch.equal(logits(grafted), after)
    assert torch.equal(logits(pocket), before)


def test_a_graft_has_ft_where_the_mask_is_and_pre_elsewhere_also_in_place(pocket: Model, taught: FineTuning) -> None:
    mask = baseline_mask(pocket, taught.model, "random", 0.01, seed=1)
    grafted, theirs = mask.apply(pocket, taught.model), dict(taught.model.hf.named_parameters())
    ticket = dict(mask.apply(pocket, taught.model, outside="zero").hf.named_parameters())
    moved = 0
    for (name, parameter), original in zip(grafted.hf.named_parameters(), pocket.hf.parameters(), strict=True):
        chosen = mask.dense(name) if name in mask.shapes else torch.zeros_like(parameter, dtype=torch.bool)
        assert torch.equal(parameter, torch.where(chosen, theirs[name], original))
        moved += int((parameter != original).sum())
        if name in mask.shapes:
            assert torch.equal(ticket[name], theirs[name] * chosen)
    assert moved > 0.5 * len(mask)
    with mask.applied(pocket, taught.model) as inside:
        assert torch.equal(logits(inside), logits(grafted))


def test_in_place_grafting_ends_with_the_very_weights_also_after_an_error(pocket: Model, taught: FineTuning) -> None:
    before = [parameter.clone() for parameter in pocket.hf.parameters()]
    with pytest.raises(RuntimeError, match="stop"), everything_mask(pocket, taught.model).applied(pocket, taught.model):
        raise RuntimeError("stop")
    assert all(torch.equal(a, b) for a, b in zip(before, pocket.hf.parameters(), strict=True))


def test_algebra_is_that_of_sets(pocket: Model, taught: FineTuning) -> None:
    a = baseline_mask(pocket, taught.model, "movement", 1e-3)
    b = baseline_mask(pocket, taught.model, "magnitude", 2e-3) | baseline_mask(pocket, taught.model, "movement", 5e-4)
    assert entries(a | b) == entries(a) | entries(b)
    assert entries(a & b) == entries(a) & entries(b)
    assert entries(a - b) == entries(a) - entries(b)
    assert 0 < len(a & b) < len(a) < len(a | b)
    assert entries(union([a, b, a])) == entries(a | b)
    assert len(a.invert()) == a.size - len(a)
    assert len(a.invert() & a) == 0
    assert a.invert().invert() == a
    assert (a | dataclasses.replace(b, ft="0" * 16)).ft is None


def test_a_mask_comes_back_from_its_file(pocket: Model, taught: FineTuning, tmp_path: Path) -> None:
    mask = baseline_mask(pocket, taught.model, "movement", 1e-3)
    mask.save(tmp_path / "mask.safetensors")
    again = GraftMask.load(tmp_path / "mask.safetensors")
    assert again == mask
    assert (again.shapes, again.metadata) == (mask.shapes, mask.metadata)
    (tmp_path / "broken").write_bytes((tmp_path / "mask.safetensors").read_bytes()[:-100])
    for file in (tmp_path / "broken", tmp_path / "missing"):
        with pytest.raises(UnreadableFile, match="no graft mask"):
            GraftMask.load(file)


def test_masks_of_other_models_are_refused(pocket: Model, taught: FineTuning) -> None:
    mask = baseline_mask(pocket, taught.model, "movement", 1e-3)
    with pytest.raises(MaskMismatch, match="fine-tuned model"):
        mask.apply(pocket, pocket)
    assert mask.apply(pocket, pocket, transfer=True).fingerprint == pocket.fingerprint
    with pytest.raises(MaskMismatch, match="pre-trained model"):
        mask.apply(taught.model, taught.model)
    tiny = interp.wrap(families.build("llama"), name="tiny")
    with pytest.raises(MaskMismatch, match="another model"):
        mask.check(tiny)
    with pytest.raises(MaskMismatch, match="union of masks needs one pre-trained model"):
        mask | dataclasses.replace(mask, pre="0" * 16)


def test_models_that_are_no_pair_are_refused(pocket: Model, taught: FineTuning) -> None:
    tiny, other = (interp.wrap(families.build(family), name=family) for family in ("llama", "gpt2"))
    with pytest.raises(BadInput, match="no pair: only"):
        check_pair(tiny, other)
    wide = interp.wrap(families.build("llama", intermediate_size=128), name="wide")
    with pytest.raises(BadInput, match=r"no pair: .* is \[96, 64\]"):
        check_pair(tiny, wide)
    changed = interp.wrap(families.build("llama"), name="changed")
    with torch.no_grad():
        changed.hf.get_input_embeddings().weight[0] += 1  # type: ignore[operator]
    with pytest.raises(BadInput, match="everything=True"):
        check_pair(tiny, changed)
    check_pair(tiny, changed, everything=True)


@pytest.mark.parametrize("indices", [[3, 1], [1, 1], [-1], [10_000]])
def test_indices_that_are_no_set_are_refused(indices: list[int]) -> None:
    with pytest.raises(BadInput, match="ascending"):
        GraftMask({"w": torch.tensor(indices)}, {"w": (10, 10)}, "a", "b")


def test_baselines_keep_the_budget_and_mean_what_they_say(pocket: Model, taught: FineTuning) -> None:
    k = int(1e-3 * everything_mask(pocket, taught.model).size)
    ours, theirs = trainable(pocket), trainable(taught.model)
    for rule in ("random", "magnitude", "movement", "bias"):
        mask = baseline_mask(pocket, taught.model, rule, 1e-3)
        assert len(mask) == k
        assert rule != "bias" or all(name.endswith("bias") for name in mask.indices)
    scores = {name: (theirs[name] - ours[name]).abs().flatten() for name in ours}
    least = torch.cat(list(scores.values())).sort(descending=True).values[k - 1]
    moved = baseline_mask(pocket, taught.model, "movement", 1e-3)
    assert all(bool((scores[name][indices] >= least).all()) for name, indices in moved.indices.items())
    assert baseline_mask(pocket, taught.model, "random", 1e-3, seed=1) != baseline_mask(
        pocket, taught.model, "random", 1e-3, seed=2
    )
    assert len(baseline_mask(pocket, taught.model, "bias", 0.5)) == sum(
        parameter.numel() for name, parameter in ours.items() if name.endswith("bias")
    )


def test_random_weights_of_the_same_matrices_are_as_many_in_each_and_others(pocket: Model, taught: FineTuning) -> None:
    mask = baseline_mask(pocket, taught.model, "movement", 1e-3)
    drawn = same_matrices(mask, seed=1)
    assert drawn.breakdown().chosen.tolist() == mask.breakdown().chosen.tolist()
    assert len(drawn & mask) < 0.05 * len(mask)
    assert drawn == same_matrices(mask, seed=1) != same_matrices(mask, seed=2)
    assert (drawn.pre, drawn.ft) == (mask.pre, mask.ft)


def test_the_breakdown_counts_every_entry_where_it_is(pocket: Model, taught: FineTuning) -> None:
    mask = baseline_mask(pocket, taught.model, "bias", 1e-4)
    frame = mask.breakdown()
    assert frame.chosen.sum() == len(mask)
    assert frame["size"].sum() == mask.size
    assert set(frame.layer) == {0, 1, 2, 3}
    assert set(frame[frame.chosen > 0].module) <= {f"self_attn.{p}_proj.bias" for p in "qkvo"}
    assert frame.enrichment[frame.chosen > 0].min() > 1
    assert frame.share.sum() == pytest.approx(1)


def test_the_authors_list_of_s_is_rounded_against_what_moved_strictly_more(
    pocket: Model, planted: tuple[Model, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    model, planted_entries = planted
    parameters = trainable(pocket)
    size = sum(parameter.numel() for parameter in parameters.values())
    moved = {name: (trainable(model)[name] - parameter).abs() for name, parameter in parameters.items()}
    ranked = torch.cat([moved[name].flatten()[indices] for name, indices in planted_entries.items()]).sort().values
    s = [torch.zeros_like(parameter) for parameter in parameters.values()]
    s[0].view(-1)[0] = 30.0  # γ crosses one half: enters, though it never moved
    torch.save(s, tmp_path / "S.bin")
    mask = read_list_of_s(tmp_path / "S.bin", pocket, model, 21 / size)
    expected = {
        (name, int(i)) for name, indices in planted_entries.items() for i in indices
        if moved[name].flatten()[i] > ranked[-21]
    } | {(next(iter(parameters)), 0)}  # fmt: skip
    assert entries(mask) == expected
    assert len(expected) <= 21
    torch.save(s[:-1], tmp_path / "short.bin")
    with pytest.raises(BadInput, match="trainable parameters"):
        read_list_of_s(tmp_path / "short.bin", pocket, model, 0.1)
    torch.save([tensor.flatten() for tensor in s], tmp_path / "flat.bin")
    with pytest.raises(BadInput, match=r"where .* is \["):
        read_list_of_s(tmp_path / "flat.bin", pocket, model, 0.1)
    torch.save({"code": Path("x")}, tmp_path / "code.bin")
    with pytest.raises(UnreadableFile, match="no list of S"):
        read_list_of_s(tmp_path / "code.bin", pocket, model, 0.1)
