"""Every family on every backend; and conformance itself notices what is wrong."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import interp
from interp.conformance import Conformance, conformance
from interp.conformance.checks import kernels
from interp.tracing.loading import BACKENDS
from tests.conformance.table import HEAD, PAGE, TOLERANCE, hooked, line, outcome
from tests.families import FAMILIES, build

EVERYTHING = {"equation", "read", "edit at", "edit kind", "gradient", "generation"}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_backend_gives_the_same_numbers(family: str, backend: str) -> None:
    found = outcome(family, backend)
    if isinstance(found, Conformance):
        assert found.failures == ()
        assert {each.group for each in found.outcomes} == EVERYTHING
        assert sum(each.result == "pass" for each in found.outcomes) > 25
    assert line(family, backend) in PAGE.read_text(encoding="utf-8").splitlines()


def test_the_page_lists_nothing_else() -> None:
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(HEAD.splitlines()) + len(FAMILIES) * len(BACKENDS)


def test_a_wrong_table_row_fails() -> None:
    model = hooked("llama")
    broken = dataclasses.replace(model.parts.blocks[0], attn_out=model.parts.blocks[0].mlp_out)
    parts = dataclasses.replace(model.parts, blocks=(broken, *model.parts.blocks[1:]))
    backend = type(model.backend)(model.hf, parts, model.spec)  # type: ignore[call-arg]
    wrong = interp.Model(model.hf, parts, model.spec, None, backend)
    failed = {f"{each.group}: {each.subject}" for each in conformance(wrong, tolerance=TOLERANCE).failures}
    assert "equation: resid_pre + attn_out + mlp_out = resid_post" in failed
    failed = {f"{each.group}: {each.subject}" for each in conformance(wrong, model, TOLERANCE).failures}
    assert {"read: attn_out", "read: resid_mid", "edit at: resid_mid"} <= failed


def test_other_weights_than_the_reference_fail() -> None:
    model = interp.wrap(build("llama"))
    with torch.no_grad():
        model.parts.blocks[1].o.weight.mul_(1.01)  # type: ignore[union-attr, operator]
    failures = conformance(model, hooked("llama"), TOLERANCE).failures
    assert {each.subject for each in failures if each.group == "read"} == {
        "head_out",
        "attn_out",
        "resid_mid",
        "mlp_in",
        "mlp_post",
        "mlp_out",
        "resid_post",
        "final_norm",
        "logits",
    }


def test_kernels_agree_and_the_models_own_is_put_back() -> None:
    model = interp.wrap(build("mistral", attention="sdpa"))
    outcomes = list(kernels(model, ["eager", "sdpa", "no_such_kernel"]))
    assert [each.result for each in outcomes] == ["pass", "pass", "refused"]
    assert "no_such_kernel" in outcomes[-1].note
    assert model.attention == "sdpa"


def test_kernels_that_a_family_or_transformers_cannot_use_are_refused() -> None:
    gemma, bloom = hooked("gemma2"), hooked("bloom")
    assert [each.result for each in kernels(gemma, ["sdpa", "workbench"])] == ["refused", "pass"]
    assert [each.result for each in kernels(bloom, ["eager", "sdpa", "workbench"])] == ["pass", "refused", "refused"]
    assert [each.result for each in kernels(hooked("modernbert"), ["workbench"])] == ["refused"]


def test_nan_passes_nothing_that_it_reaches() -> None:
    model = interp.wrap(build("llama"))
    with torch.no_grad():
        model.hf.model.layers[0].mlp.down_proj.weight[0, 0] = torch.nan  # type: ignore[union-attr, index]
    passed = {f"{each.group} {each.subject}" for each in conformance(model).outcomes if each.result == "pass"}
    reached = {"read mlp_out", "read resid_post", "read logits", "generation with an edit", "gradient resid_post"}
    reached |= {"equation resid_pre + attn_out + mlp_out = resid_post", "equation resid_post = next resid_pre"}
    assert not passed & reached
    assert not {name for name in passed if name.startswith("edit kind")}
