"""Every site that is read equals the same quantity computed by hand from the model's weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import interp
from interp.errors import SiteUnavailable
from interp.tracing.sites import SITES
from kernels.types import AttentionStats
from tests.families import FAMILIES, OWN_ATTENTION, SDPA, prompts
from tests.tracing.handwritten import HandModel

NO_ROTARY = frozenset({"q_rot", "k_rot"})
NO_KERNEL = frozenset({"q_rot", "k_rot", "pattern", "attention_stats"})
PARALLEL, EXPERTS, POST_NORM = frozenset({"resid_mid"}), frozenset({"mlp_post"}), frozenset({"final_norm"})
REFUSED: dict[str, frozenset[str]] = {
    **dict.fromkeys(("gpt2", "opt"), NO_ROTARY),
    **dict.fromkeys(("gpt_neox", "cohere", "cohere2", "phi", "stablelm_parallel"), PARALLEL),
    **dict.fromkeys(("mixtral", "qwen2_moe", "qwen3_moe", "gpt_oss"), EXPERTS),
    **dict.fromkeys(("gpt_neo", "bloom", "falcon_alibi"), NO_KERNEL),
    **dict.fromkeys(("gptj", "falcon", "falcon_grouped"), NO_KERNEL | PARALLEL),
    **dict.fromkeys(("opt_post_norm", "bert", "roberta", "xlm-roberta", "distilbert"), NO_ROTARY | POST_NORM),
}


@torch.no_grad()
def test_the_hand_written_model_computes_what_the_model_computes(model: interp.Model) -> None:
    ids = prompts()
    output = model.hf(ids, output_hidden_states=True, output_attentions=True)
    sites = HandModel(model.hf).run(ids)
    close(sites["logits"], output.logits)
    for layer in range(model.spec.layers):
        close(sites[f"resid_pre.{layer}"], output.hidden_states[layer])
        close(sites[f"pattern.{layer}"], output.attentions[layer])
    if "final_norm" in sites:
        close(sites["final_norm"], output.hidden_states[-1])


@torch.no_grad()
def test_every_site_equals_its_hand_computation(model: interp.Model, family: str) -> None:
    ids = prompts()
    expected = HandModel(model.hf).run(ids)
    names = [n for n in SITES if n != "attention_stats" and n not in REFUSED.get(family, ())]
    trace = model.run(ids, read=names, logits="all")
    # The hand-written model also has the attention rows of kernels that cannot be observed.
    assert {str(site) for site in trace} == {s for s in expected if s.split(".")[0] not in REFUSED.get(family, ())}
    for site in trace:
        close(trace[site], expected[str(site)], site)
    close(trace.logits, expected["logits"])


def test_a_family_refuses_what_it_does_not_have_and_says_why(model: interp.Model, family: str) -> None:
    refused = REFUSED.get(family, set())
    assert set(model.parts.refusals) == refused
    for name in refused:
        site = name if SITES[name].scope == "model" else f"{name}.0"
        with pytest.raises(SiteUnavailable, match=r"rotary|parallel|experts|inside its (own module|blocks)"):
            model.run(prompts(), read=site)


def test_what_needs_the_kernel_is_refused_where_it_cannot_be_observed(model_of: Callable[..., interp.Model]) -> None:
    for family in OWN_ATTENTION:
        model = model_of(family)
        fold = interp.RowFold("mass", lambda rows, _positions, _layer: rows.pattern.sum(2))
        for ask in ({"edits": interp.attend("pattern.0.1", "uniform")}, {"read": fold}):
            with pytest.raises(SiteUnavailable, match="not through transformers' attention functions"):
                model.run(prompts(), **ask)  # type: ignore[arg-type]


@pytest.mark.parametrize("family", [f for f in FAMILIES if "pattern" not in REFUSED.get(f, ())], indirect=True)
@torch.no_grad()
def test_attention_statistics_summarise_the_pattern(model: interp.Model) -> None:
    ids = prompts()
    expected = HandModel(model.hf).run(ids)
    trace = model.run(ids, read="attention_stats")
    for layer in range(model.spec.layers):
        pattern, stats = expected[f"pattern.{layer}"], trace[f"attention_stats.{layer}"]
        probability, argmax = pattern.max(-1)
        assert torch.equal(stats.argmax, argmax)
        close(stats.probability, probability)
        close(stats.entropy, torch.special.entr(pattern).sum(-1))


def test_the_model_passes_its_own_check(model: interp.Model, family: str) -> None:
    diagnosis = model.doctor()
    assert diagnosis.ok, str(diagnosis)
    refused = diagnosis.frame[diagnosis.frame["result"] == "refused"]
    assert list(refused["check"]) == (["pattern v = kernel output"] if family in OWN_ATTENTION else [])
    assert refused["note"].str.contains("inside its own module").all()


# Falcon's eager attention adds ALiBi twice (transformers 5.23), so it differs from SDPA before anything is traced.
@pytest.mark.parametrize("family", [f for f in SDPA if f != "falcon_alibi"], indirect=True)
def test_sdpa_reads_what_eager_reads(model: interp.Model, family: str, model_of: Callable[..., interp.Model]) -> None:
    ids = prompts()
    names = [n for n in SITES if n not in REFUSED.get(family, ())]
    eager, sdpa = (m.run(ids, read=names, logits="all") for m in (model, model_of(family, attention="sdpa")))
    assert sdpa.keys() == eager.keys()
    for site in eager:
        for a, b in zip(tensors(eager[site]), tensors(sdpa[site]), strict=True):
            close(a, b, site)


def test_a_bfloat16_model_reads_and_edits_in_its_own_precision(model_of: Callable[..., interp.Model]) -> None:
    exact, rough = model_of("llama"), model_of("llama", dtype=torch.bfloat16)
    ids = prompts()
    unit = torch.nn.functional.normalize(torch.randn(64, generator=torch.Generator().manual_seed(0)), dim=0)
    for edits in ([], [interp.set_coordinate("resid_mid.0", unit, 3.0)]):
        a, b = (m.run(ids, read=["resid_mid", "pattern"], edits=edits) for m in (exact, rough))
        assert b["resid_mid.0"].dtype == torch.bfloat16
        for site in ("resid_mid.0", "pattern.0"):
            assert (b[site].float() - a[site]).norm() < 0.02 * a[site].norm()
    coordinate = b["resid_mid.0"].float() @ unit
    torch.testing.assert_close(coordinate, torch.full_like(coordinate, 3.0), rtol=0.0, atol=0.03)


def test_a_float64_model_keeps_float64_precision(model_of: Callable[..., interp.Model]) -> None:
    model = model_of("llama", attention="sdpa", dtype=torch.float64)
    ids = prompts()
    expected = HandModel(model.hf)
    with torch.no_grad():
        unit = torch.randn(64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        unit = unit / unit.norm()
        sites = expected.run(ids, {"resid_post.0": lambda x: x - (x @ unit)[..., None] * unit})
    trace = model.run(ids, read="pattern.1", edits=interp.project_out("resid_post.0", unit), logits="all")
    torch.testing.assert_close(trace["pattern.1"], sites["pattern.1"], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(trace.logits, sites["logits"], rtol=1e-6, atol=1e-6)


def close(a: Tensor, b: Tensor, what: object = "") -> None:
    scale = 1.0 if b.numel() == 0 else max(1.0, float(b.abs().max()))
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * scale, msg=lambda message: f"{what}: {message}")


def tensors(value: Tensor | AttentionStats) -> tuple[Tensor, ...]:
    return tuple(value.measured.values()) if isinstance(value, AttentionStats) else (value,)
