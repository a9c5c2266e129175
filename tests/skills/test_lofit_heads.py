"""The head that can help is found, its offset teaches the task, and the authors' files come and go."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import interp
from interp.errors import BadInput, MaskMismatch, UnreadableFile
from interp.heads.mask import HeadMask
from interp.skills.lofit_heads import (
    fit_offsets,
    random_heads,
    read_top_heads,
    scale_edits,
    select_heads,
    top_heads_name,
    write_top_heads,
)
from interp.skills.lofit_training import Recipe, completion_log_probs
from interp.tasks.prompts import PromptSet
from kernels.integration import install
from tests.families import build
from tests.skills.lofit_planted import PLANTED, RECIPE, VOCAB, WANTED, one_head_reaches_the_answer, task


@pytest.fixture(scope="module")
def model() -> interp.Model:
    return interp.wrap(one_head_reaches_the_answer(), name="planted")


def right(model: interp.Model, prompts: PromptSet, edits: list[interp.Edit] | None = None) -> float:
    said = model.run(prompts, edits=edits or []).logits.argmax(-1)
    return float((said == torch.tensor([answer for (answer,) in prompts.answer_tokens])).float().mean())


def test_the_planted_head_is_selected_and_no_other_scale_moves(model: interp.Model) -> None:
    mask = select_heads(model, task(None), RECIPE, seed=3)
    assert mask.heads == [PLANTED]
    others = np.delete(mask.scores.flatten(), PLANTED[0] * 4 + PLANTED[1])
    assert mask.scores[PLANTED] > 10 * others.max()
    assert (mask.kind, mask.method, mask.fingerprint) == ("query", "lofit", model.fingerprint)


def test_the_penalty_keeps_scales_at_nothing(model: interp.Model) -> None:
    strong = select_heads(model, task(None), Recipe(**{**vars(RECIPE), "l1": 100.0}), seed=3)
    weak = select_heads(model, task(None), RECIPE, seed=3)
    assert strong.scores[PLANTED] < 0.2 * weak.scores[PLANTED]


def test_an_offset_of_the_planted_head_teaches_the_task_and_one_of_another_does_not(model: interp.Model) -> None:
    prompts = task(WANTED)
    assert right(model, prompts) < 0.5
    taught = fit_offsets(model, prompts, [PLANTED], RECIPE)
    assert right(model, prompts, taught.edits(model)) == 1.0
    assert int(taught.vectors[0, :VOCAB].argmax()) == WANTED
    elsewhere = fit_offsets(model, prompts, [(1, 1)], RECIPE)
    assert right(model, prompts, elsewhere.edits(model)) == right(model, prompts)


def test_dpo_teaches_it_too(model: interp.Model) -> None:
    pairs = task(WANTED)
    taught = fit_offsets(model, pairs, [PLANTED], Recipe(**{**vars(RECIPE), "loss": "dpo"}))
    chosen = completion_log_probs(model, pairs.tokens, pairs.answer_tokens, taught.edits(model))
    other = completion_log_probs(model, pairs.tokens, pairs.distractor_tokens, taught.edits(model))
    assert bool((chosen > other).all())


def test_the_same_seed_gives_the_same_numbers(model: interp.Model) -> None:
    first, again, other = (fit_offsets(model, task(WANTED), [PLANTED], RECIPE, seed=seed).vectors for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("count", [0, 9])
def test_more_heads_than_there_are_and_none_are_refused(model: interp.Model, count: int) -> None:
    with pytest.raises(BadInput, match=rf"{count} heads cannot be chosen: planted has 8, so 1 to 8"):
        random_heads(model, count, seed=0)
    with pytest.raises(BadInput, match="cannot be chosen|heads must be positive"):
        select_heads(model, task(None), Recipe(**{**vars(RECIPE), "heads": count}))
    with pytest.raises(BadInput, match="cannot be chosen"):
        fit_offsets(model, task(None), [(0, i) for i in range(count)], RECIPE)


def test_a_head_the_model_lacks_is_refused(model: interp.Model) -> None:
    with pytest.raises(BadInput, match="planted has no head 2-0: it has 2 layers of 4"):
        fit_offsets(model, task(None), [(2, 0)], RECIPE)


def test_random_heads_are_distinct_and_follow_their_seed(model: interp.Model) -> None:
    assert random_heads(model, 3, 1) == random_heads(model, 3, 1)
    assert len({random_heads(model, 3, seed) for seed in range(8)}) > 3
    assert len(set(random_heads(model, 8, 0))) == 8


def test_top_heads_go_to_a_file_of_the_authors_and_come_back(tmp_path: Path) -> None:
    scores = np.array([[0.1, 0.9], [0.5, 0.2]])
    spec = interp.wrap(build("gpt2")).spec
    file = tmp_path / top_heads_name("llama2_7B", "truthfulqa", 3)
    assert file.name == "llama2_7B_truthfulqa_Aonly_top3heads_42.npy"
    write_top_heads(HeadMask(scores), file, count=3)
    raw = np.load(file, allow_pickle=False)
    assert raw.dtype.kind == "i"
    assert raw.tolist() == [[0, 1], [1, 0], [1, 1]]
    assert read_top_heads(file, spec) == ((0, 1), (1, 0), (1, 1))
    assert read_top_heads(file, spec, count=1) == ((0, 1),)
    with pytest.raises(BadInput, match="4 heads cannot be taken"):
        read_top_heads(file, spec, count=4)


@pytest.mark.parametrize(
    ("array", "error"),
    [
        (np.zeros((3, 2)), UnreadableFile),
        (np.zeros((3, 3), dtype=int), UnreadableFile),
        (np.zeros((0, 2), dtype=int), UnreadableFile),
        (np.zeros((2, 2), dtype=int), UnreadableFile),
        (np.array([[0, 1], [7, 0]]), MaskMismatch),
        (np.array([[0, 1], [0, -1]]), MaskMismatch),
    ],
    ids=["floats", "three columns", "none", "a head twice", "no such layer", "negative"],
)
def test_what_is_no_list_of_this_models_heads_is_refused(tmp_path: Path, array: np.ndarray, error: type) -> None:
    np.save(tmp_path / "heads.npy", array)
    with pytest.raises(error, match="heads.npy"):
        read_top_heads(tmp_path / "heads.npy", interp.wrap(build("gpt2")).spec)


def test_pickles_are_not_opened(tmp_path: Path) -> None:
    np.save(tmp_path / "heads.npy", np.array([(0, 1), "x"], dtype=object), allow_pickle=True)
    with pytest.raises(UnreadableFile, match="heads.npy"):
        read_top_heads(tmp_path / "heads.npy", interp.wrap(build("gpt2")).spec)


@pytest.mark.parametrize("attention", ["sdpa", "workbench"])
@pytest.mark.parametrize("grad", [False, True])
def test_a_scale_a_feature_is_the_same_on_every_attention_with_gradients_and_without(
    attention: str, grad: bool
) -> None:
    install()
    hf = build("llama", attention)
    model, ids = interp.wrap(hf), torch.arange(12)[None]
    spec = model.spec
    scales = torch.randn(spec.layers, spec.heads, spec.head_dim, generator=torch.Generator().manual_seed(0))

    def by_hand(layer: int) -> Callable[..., tuple[torch.Tensor]]:
        return lambda _module, args: (args[0] * (1 + scales[layer]).flatten(),)

    handles = [block.o.register_forward_pre_hook(by_hand(n)) for n, block in enumerate(model.parts.blocks)]
    wanted = hf(ids).logits.detach()
    for handle in handles:
        handle.remove()
    found = model.run(ids, edits=scale_edits(model, scales), logits="all", grad=grad).logits
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
