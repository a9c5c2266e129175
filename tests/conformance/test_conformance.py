"""Every family on every backend; and conformance itself notices what is wrong."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import interp
from interp.conformance import Conformance, conformance
from interp.conformance.__main__ import app
from interp.conformance.checks import kernels
from interp.tracing.loading import BACKENDS
from tests.conformance.table import HEAD, PAGE, TOLERANCE, hooked, line, outcome
from tests.families import FAMILIES, build, word_tokenizer

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


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    build("qwen3").save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


def test_the_command_prints_a_table(folder: Path) -> None:
    done = CliRunner().invoke(app, [str(folder), "--backend", "hooks"])
    assert done.exit_code == 0, done.output
    assert "hooks backend" in done.output
    assert "swap_subspace" in done.output
    assert "FAIL" not in done.output


def test_the_command_prints_records(folder: Path) -> None:
    done = CliRunner().invoke(app, [str(folder), "--backend", "hooks", "--kernel", "sdpa", "--json"])
    records = [json.loads(text) for text in done.stdout.splitlines()]
    assert {record["group"] for record in records} == {*EVERYTHING, "kernel"}
    assert {record["result"] for record in records} == {"pass"}


@pytest.mark.parametrize(
    ("arguments", "said"), [(["no/such/folder"], "no folder"), (["pocket", "--backend", "hook"], "there is no backend")]
)
def test_the_command_refuses_with_a_sentence(arguments: list[str], said: str) -> None:
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2
    assert said in done.output
