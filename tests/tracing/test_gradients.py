"""`grad=True` gives the gradient at a site; nothing else keeps a graph."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import interp
from interp.errors import BadInput
from tests.families import prompts, ragged
from tests.tracing.handwritten import HandModel

SITES = ["embed", "resid_pre.0", "resid_pre.1", "resid_mid.0", "z.0", "z.1", "q.0", "k.1", "v.0", "attn_out.0"]
SITES += ["attn_in.0", "head_out.0", "mlp_in.1", "mlp_post.1", "mlp_out.0", "resid_post.1", "final_norm"]


@pytest.fixture(scope="module")
def precise(model_of: Callable[..., interp.Model]) -> Callable[..., interp.Model]:
    def get(family: str, attention: str = "eager") -> interp.Model:
        model = model_of(family, attention, torch.float64)
        model.hf.requires_grad_(False)
        return model

    return get


def score(logits: Tensor) -> Tensor:
    """Something that is not linear in the logits."""
    return (logits[:, -1, 3:9].tanh() * torch.arange(6.0, dtype=logits.dtype)).sum()


@pytest.mark.parametrize(
    "family",
    ["llama", "gpt2", "gpt_neox_sequential", "gemma2", "olmo2", "gpt_oss", "qwen3_moe", "falcon", "bloom", "bert"],
)
def test_gradients_equal_those_through_the_hand_written_model(precise: Callable, family: str) -> None:
    """On a model whose parameters require no gradient, as `load` leaves them."""
    model, ids = precise(family), prompts()
    sites = [site for site in SITES if site.split(".")[0] not in model.refusals]
    trace = model.run(ids, read=sites, logits="all", grad=True)
    score(trace.logits).backward()
    for site in sites:
        leaf: list[Tensor] = []

        def keep(value: Tensor, leaf: list[Tensor] = leaf) -> Tensor:
            leaf.append(value.detach().requires_grad_())
            return leaf[0]

        score(HandModel(model.hf).run(ids, {site: keep})["logits"]).backward()
        wanted = leaf[0].grad
        assert wanted is not None
        # HF computes eager softmax in float32 whatever the model's type.
        torch.testing.assert_close(trace.grad(site), wanted, rtol=1e-4, atol=1e-6 * float(wanted.abs().max()))
        assert trace.grad(site).abs().max() > 0


def slope(model: interp.Model, ids: Tensor, site: str, value: Tensor, direction: Tensor, edits: list) -> Tensor:
    """Change of the score along `direction` at a site, by central differences."""
    up, down = (
        score(model.run(ids, edits=[interp.patch(site, value + step * direction), *edits], logits="all").logits)
        for step in (1e-5, -1e-5)
    )
    return (up - down) / 2e-5


# GPT-2 under SDPA is the family that computes in float64 from end to end.
@pytest.mark.parametrize("edited", [False, True])
@pytest.mark.parametrize("site", ["embed", "resid_pre.0", "resid_mid.0", "q.0", "z.0", "attn_out.0", "head_out.0"])
def test_gradients_equal_finite_differences_with_and_without_edits(precise: Callable, site: str, edited: bool) -> None:
    model, ids = precise("gpt2", "sdpa"), prompts()
    edits = [interp.zero("z.1.1"), interp.scale("resid_mid.1", 2.0), interp.attend("pattern.1.0", "uniform")]
    edits = edits if edited else []
    trace = model.run(ids, read=site, edits=edits, logits="all", grad=True)
    score(trace.logits).backward()
    value = trace[site].detach()
    direction = torch.randn(value.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wanted = slope(model, ids, site, value, direction, edits)
    torch.testing.assert_close((trace.grad(site) * direction).sum(), wanted, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_gradient_lies_where_its_activation_lies(precise: Callable, side: str) -> None:
    model, rows = precise("llama", "sdpa"), ragged()
    read = ["resid_pre.1", "k_rot.0"]
    wanted = []
    for row in rows:
        alone = model.run([row], read=read, logits="last", grad=True)
        score(alone.logits[:, None]).backward()
        wanted.append({site: alone.grad(site)[0] for site in read})
    together = model.run(rows, read=read, logits="last", grad=True, padding_side=side)
    score(together.logits[:, None]).backward()
    some = model.run(rows, read=read, logits="last", grad=True, padding_side=side, positions=[1, -1])
    score(some.logits[:, None]).backward()
    for i, row in enumerate(rows):
        for site in read:
            torch.testing.assert_close(together.grad(site)[i, : len(row)], wanted[i][site], rtol=1e-4, atol=1e-7)
            torch.testing.assert_close(some.grad(site)[i], wanted[i][site][[1, -1]], rtol=1e-4, atol=1e-7)
    assert torch.equal(together.grad("k_rot.0.1"), together.grad("k_rot.0")[:, :, 1])


def test_gradients_after_a_prefix_are_those_of_the_computed_tokens(precise: Callable) -> None:
    model, ids = precise("llama"), prompts(1)
    whole = model.run(ids, read=["resid_post.0", "k_rot.1"], logits="last", grad=True)
    score(whole.logits[:, None]).backward()
    after = model.run(
        ids, read=["resid_post.0", "k_rot.1"], logits="last", grad=True, prefix=model.prefill(ids).crop(5)
    )
    score(after.logits[:, None]).backward()
    for site in ("resid_post.0", "k_rot.1"):
        torch.testing.assert_close(after.grad(site), whole.grad(site)[:, 5:], rtol=1e-4, atol=1e-7)


def test_reads_of_a_gradient_run_can_themselves_be_differentiated(precise: Callable) -> None:
    model, ids = precise("llama"), prompts()
    trace = model.run(ids, read=["embed", "resid_post.0", "pattern.0"], grad=True)
    (trace["resid_post.0"][:, 4].sum() + trace["pattern.0"][:, 1, 5, 2].sum()).backward()
    got = trace.grad("embed")
    assert got[:, :6].abs().max() > 0
    assert (got[:, 6:] == 0).all()


def test_only_a_gradient_run_keeps_a_graph(precise: Callable) -> None:
    model, ids = precise("llama"), prompts()
    model.hf.requires_grad_(True)
    try:
        plain = model.run(ids, read=["resid_post", "pattern", "attention_stats"], logits="all")
        assert not any(t.requires_grad for t in (plain.logits, plain["resid_post.0"], plain["pattern.0"]))
        assert not model.generate(ids, max_new_tokens=2, read="z.0").trace["z.0"].requires_grad  # type: ignore[index]
        assert torch.is_grad_enabled()
        with_grad = model.run(ids, read="resid_post", logits="all", grad=True)
        assert with_grad.logits.requires_grad
        score(with_grad.logits).backward()
        assert model.hf.lm_head.weight.grad is not None
    finally:
        model.hf.zero_grad()
        model.hf.requires_grad_(False)


def test_asking_for_a_gradient_that_is_not_there_says_how_to_get_it(precise: Callable) -> None:
    trace = precise("llama").run(prompts(), read="z.0", logits="last")
    with pytest.raises(BadInput, match="run with grad=True"):
        trace.grad("z.0")
    trace = precise("llama").run(prompts(), read="z.0", logits="last", grad=True)
    with pytest.raises(BadInput, match="call backward"):
        trace.grad("z.0")
