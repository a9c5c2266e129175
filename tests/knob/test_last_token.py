"""Computing the last token again from any layer on gives what a whole forward pass gives, gradients included."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import interp
from interp.errors import BadInput, MemoryBudgetExceeded, PromptTooLong
from interp.knob.last_token import last_tokens
from tests.families import CONTEXT, VOCAB, build, word_tokenizer

FAMILIES = ("gpt2", "gpt_neox", "llama", "mistral", "qwen3", "gemma2", "cohere2", "opt")
"""With sliding windows, soft caps, parallel blocks, learned positions and logits scaled after the unembedding."""
LENGTHS = (9, 14, 5)


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, VOCAB, (length,), generator=generator).tolist() for length in LENGTHS]


def by_hand(model: interp.Model, prompt: list[int], layer: int, hidden: Tensor) -> Tensor:
    """The whole model on one prompt alone, with the block's last output replaced by a hook."""

    def replace(_module: Any, _args: Any, output: Any) -> Any:
        value = (output if isinstance(output, Tensor) else output[0]).clone()
        value[0, -1] = hidden
        return value if isinstance(output, Tensor) else (value, *output[1:])

    handle = model.parts.blocks[layer].module.register_forward_hook(replace)
    with torch.no_grad():
        logits: Tensor = model.hf(torch.tensor([prompt]), use_cache=False).logits[0, -1]
    handle.remove()
    return logits


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_token_alone_gives_the_logits_of_the_whole_prompt(family: str) -> None:
    model = interp.wrap(build(family), word_tokenizer())
    shared, _ = last_tokens(model, prompts(), executor="shared")
    layers, rows = [1, 0, 1], [torch.tensor([2, 0]), torch.tensor([0, 1, 2, 1]), torch.tensor([1])]
    generator = torch.Generator().manual_seed(1)
    width, pairs = model.spec.width, list(zip(layers, rows, strict=True))
    hidden = [shared.resid[n][r] + torch.randn(len(r), width, generator=generator) for n, r in pairs]
    with torch.no_grad():
        found = shared.logits_from(layers, hidden, rows)
    for layer, new, chosen, logits in zip(layers, hidden, rows, found, strict=True):
        for vector, row, mine in zip(new, chosen.tolist(), logits, strict=True):
            torch.testing.assert_close(mine, by_hand(model, prompts()[row], layer, vector), rtol=1e-4, atol=1e-4)
            assert (mine - shared.logits[row]).abs().max() > 1e-3


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_gradients_are_those_of_whole_forward_passes(family: str) -> None:
    model = interp.wrap(build(family), word_tokenizer())
    rows = torch.tensor([0, 2, 1])
    gradients = []
    for executor in ("shared", "plain"):
        base, _ = last_tokens(model, prompts(), executor=executor)
        hidden = [(base.resid[layer][rows].clone() + 0.1).requires_grad_() for layer in (0, 1)]
        logits = base.logits_from([0, 1], hidden, [rows, rows])
        gradients.append(torch.autograd.grad(sum(one[:, 7].sum() for one in logits), hidden))
    for shared, plain in zip(*gradients, strict=True):
        assert plain.abs().max() > 1e-3
        torch.testing.assert_close(shared, plain, rtol=1e-3, atol=1e-5)


def test_the_weights_are_left_without_gradients_and_the_model_without_hooks() -> None:
    model = interp.wrap(build("llama"), word_tokenizer())
    plain = model.run(prompts(), logits="last").logits
    base, _ = last_tokens(model, prompts())
    hidden = base.resid[0].clone().requires_grad_()
    (logits,) = base.logits_from([0], [hidden], [torch.arange(3)])
    torch.autograd.grad(logits.sum(), hidden)
    assert all(parameter.grad is None for parameter in model.hf.parameters())
    torch.testing.assert_close(model.run(prompts(), logits="last").logits, plain, rtol=0, atol=0)


def test_what_does_not_fit_runs_whole_and_says_so() -> None:
    model = interp.wrap(build("llama"), word_tokenizer())
    base, reason = last_tokens(model, prompts(), memory=10)
    assert base.name == "plain"
    assert "MiB" in reason
    with pytest.raises(MemoryBudgetExceeded, match="executor='plain'"):
        last_tokens(model, prompts(), executor="shared", memory=10)


def test_other_backends_run_whole_and_agree() -> None:
    hf = build("llama")
    base, reason = last_tokens(interp.wrap(hf, word_tokenizer(), backend="nnsight"), prompts())
    assert base.name == "plain"
    assert "nnsight" in reason
    shared, _ = last_tokens(interp.wrap(hf, word_tokenizer()), prompts())
    torch.testing.assert_close(base.resid, shared.resid, rtol=1e-4, atol=1e-5)
    with pytest.raises(BadInput, match="nnsight"):
        last_tokens(interp.wrap(hf, word_tokenizer(), backend="nnsight"), prompts(), executor="shared")


def test_requests_that_cannot_be_served_are_refused() -> None:
    model = interp.wrap(build("llama"), word_tokenizer())
    with pytest.raises(BadInput, match="auto, shared, plain"):
        last_tokens(model, prompts(), executor="fast")  # type: ignore[arg-type]
    with pytest.raises(PromptTooLong):
        last_tokens(model, [[3] * (CONTEXT + 1)])
    model.hf.train()
    with pytest.raises(BadInput, match="training mode"):
        last_tokens(model, prompts())
