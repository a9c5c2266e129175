"""The losses against numbers worked out by hand, the gradients against a hand-written hook and finite differences."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import interp
from interp.errors import BadInput, PromptTooLong
from interp.skills.lofit_heads import all_heads, scale_edits
from interp.skills.lofit_offsets import layer_edits
from interp.skills.lofit_training import PUBLISHED, Objective, Recipe, completion_log_probs, dpo_loss, train
from interp.tasks.prompts import PromptSet
from tests.families import build

PROMPTS = PromptSet(
    texts=("a", "b", "c"),
    tokens=((5, 9, 30), (7, 8), (40, 41, 42, 43)),
    answers=("x", "y", "z"),
    answer_tokens=((11,), (12, 13), (14,)),
    distractors=("u", "v", "w"),
    distractor_tokens=((21, 22), (23,), (24,)),
)


@pytest.fixture(scope="module")
def precise() -> interp.Model:
    return interp.wrap(build("gpt2", "sdpa", torch.float64).requires_grad_(False))


def by_hand(model: interp.Model, prompt: tuple[int, ...], completion: tuple[int, ...]) -> Tensor:
    """Log-probability of a completion, token by token, from plain forward passes."""
    total = torch.zeros((), dtype=torch.float64)
    for i, token in enumerate(completion):
        ids = torch.tensor([[*prompt, *completion[:i]]])
        total = total + model.hf(ids, use_cache=False).logits[0, -1].log_softmax(-1)[token]
    return total


def hooked(model: interp.Model, A: Tensor, v: Tensor) -> list:
    """Hooks that put (1 + A) z + v into every output projection; A and v are `[layer head head_dim]`."""
    return [
        block.attn.c_proj.register_forward_pre_hook(
            lambda _, args, a=a, b=b: ((1 + a.flatten()) * args[0] + b.flatten(),)
        )
        for block, a, b in zip(model.hf.transformer.h, A, v, strict=True)
    ]


def test_a_completion_has_the_probability_of_its_tokens(precise: interp.Model) -> None:
    found = completion_log_probs(precise, PROMPTS.tokens, PROMPTS.answer_tokens)
    wanted = [by_hand(precise, p, c) for p, c in zip(PROMPTS.tokens, PROMPTS.answer_tokens, strict=True)]
    torch.testing.assert_close(found, torch.stack(wanted))


def test_only_completions_are_learned(precise: interp.Model) -> None:
    """Cross-entropy over the four answer tokens, and nothing of the prompts."""
    wanted = -sum(by_hand(precise, p, c) for p, c in zip(PROMPTS.tokens, PROMPTS.answer_tokens, strict=True)) / 4
    torch.testing.assert_close(Objective(precise, PROMPTS, Recipe())(range(3), []), wanted)


def test_dpo_equals_the_number_worked_out_by_hand() -> None:
    """Pairs -1 over -2 and -3 over -1, references 0.3 and -0.5: margins 0.7 and -1.5, halved by beta."""
    loss = dpo_loss(torch.tensor([-1.0, -3.0]), torch.tensor([-2.0, -1.0]), torch.tensor([0.3, -0.5]), beta=0.5)
    assert float(loss) == pytest.approx((math.log1p(math.exp(-0.35)) + math.log1p(math.exp(0.75))) / 2, rel=1e-6)


def test_dpo_prefers_answers_to_what_the_model_prefers_by_itself(precise: interp.Model) -> None:
    objective = Objective(precise, PROMPTS, Recipe(loss="dpo"))
    assert float(objective(range(3), []).detach()) == pytest.approx(math.log(2)), "no edit, no preference"

    v = 0.3 * torch.randn(2, 4, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    pairs = list(zip(PROMPTS.tokens, PROMPTS.answer_tokens, PROMPTS.distractor_tokens, strict=True))
    before = [by_hand(precise, p, c) - by_hand(precise, p, r) for p, c, r in pairs]
    hooks = hooked(precise, torch.zeros_like(v), v)
    after = [by_hand(precise, p, c) - by_hand(precise, p, r) for p, c, r in pairs]
    for hook in hooks:
        hook.remove()
    wanted = sum(math.log1p(math.exp(-0.5 * float(a - b))) for a, b in zip(after, before, strict=True)) / 3
    edits = layer_edits(all_heads(precise), v.flatten(0, 1), 4)
    assert float(objective(range(3), edits).detach()) == pytest.approx(wanted, rel=1e-9)
    assert abs(wanted - math.log(2)) > 1e-3


@pytest.mark.parametrize("loss", ["completion", "dpo"])
@pytest.mark.parametrize("what", ["A", "v"])
def test_gradients_equal_finite_differences_and_those_of_a_hook(precise: interp.Model, loss: str, what: str) -> None:
    objective = Objective(precise, PROMPTS, Recipe(loss=loss))
    generator = torch.Generator().manual_seed(2)
    start = 0.1 * torch.randn(2, 4, 32, dtype=torch.float64, generator=generator)
    direction = torch.randn(2, 4, 32, dtype=torch.float64, generator=generator)

    def edits(value: Tensor) -> list[interp.Edit]:
        return scale_edits(precise, value) if what == "A" else layer_edits(all_heads(precise), value.flatten(0, 1), 4)

    def of(value: Tensor) -> float:
        return float(objective(range(3), edits(value)).detach())

    leaf = start.clone().requires_grad_()
    (found,) = torch.autograd.grad(objective(range(3), edits(leaf)), leaf)
    step = 1e-5
    numeric = (of(start + step * direction) - of(start - step * direction)) / (2 * step)
    assert abs(numeric) > 1e-3
    assert float((found * direction).sum()) == pytest.approx(numeric, rel=1e-6)

    other = start.clone().requires_grad_()
    nothing = torch.zeros_like(start)
    hooks = hooked(precise, other, nothing) if what == "A" else hooked(precise, nothing, other)
    (wanted,) = torch.autograd.grad(objective(range(3), []), other)
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(found, wanted)


def test_training_lowers_the_loss_and_leaves_the_weights(precise: interp.Model) -> None:
    recipe = Recipe(epochs=10, batch_size=2)
    before = {name: weight.clone() for name, weight in precise.hf.named_parameters()}
    vectors = torch.zeros(8, 32, dtype=torch.float64, requires_grad=True)
    objective = Objective(precise, PROMPTS, recipe)
    edits = lambda: layer_edits(all_heads(precise), vectors, 4)  # noqa: E731
    losses = train(objective, [vectors], edits, learning_rate=0.3, seed=0)
    assert len(losses) == 10 * 2
    assert losses[-1] < 0.5 * losses[0]
    assert all(torch.equal(weight, before[name]) for name, weight in precise.hf.named_parameters())
    assert all(weight.grad is None for weight in precise.hf.parameters())


def test_the_settings_are_the_published_ones() -> None:
    llama = PUBLISHED["llama-2-7b/truthfulqa"]
    assert llama == Recipe(loss="dpo"), "the defaults"
    assert (llama.heads, llama.learning_rate, llama.selection_learning_rate, llama.l1) == (32, 1e-2, 5e-3, 5e-4)
    assert {(recipe.batch_size, recipe.epochs, recipe.beta, recipe.init) for recipe in PUBLISHED.values()} == {
        (8, 5, 0.5, 1e-3)
    }
    assert {name for name, recipe in PUBLISHED.items() if recipe.loss == "dpo"} == {
        "llama-2-7b/truthfulqa",
        "gemma-7b/truthfulqa",
        "llama-2-13b/truthfulqa",
    }


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"loss": "dpoo"}, "did you mean 'dpo'"),
        ({"heads": 0}, "heads must be positive; got 0"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"epochs": 0}, "epochs must be positive"),
        ({"beta": float("nan")}, "beta must be positive"),
        ({"l1": -1.0}, "l1 cannot be negative"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        Recipe(**settings)


def test_prompts_that_cannot_be_trained_on_are_refused(precise: interp.Model) -> None:
    without = replace(PROMPTS, distractors=(), distractor_tokens=())
    with pytest.raises(BadInput, match="these prompts have none; valid: completion"):
        Objective(precise, without, Recipe(loss="dpo"))
    with pytest.raises(BadInput, match="prompts with answers"):
        Objective(precise, replace(without, answers=(), answer_tokens=()), Recipe())
    with pytest.raises(PromptTooLong, match="prompt 2 and its completion are 5 tokens; max_length is 4"):
        Objective(precise, PROMPTS, Recipe(max_length=4))
