"""Edits on disk are the edits that were saved, and files that do not hold edits say so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import interp
from interp.errors import UnreadableFile, UnwritableOutput
from interp.tracing.interventions import KINDS
from tests.families import prompts


def every_kind(model: interp.Model) -> list[interp.Edit]:
    donor = model.run(prompts(seed=9), read=["z.0", "resid_mid.0"])
    vector = torch.randn(64, generator=torch.Generator().manual_seed(0))
    return [
        interp.zero("z.0.1").at(positions=[1, -2]),
        interp.scale("resid_pre.1", 1.3).at(rows=1),
        interp.mean("z.1.2", donor.mean("z.0.2")).at(positions=slice(-4, None)),
        interp.patch("resid_mid.0", donor).at(positions=3, rows=[0]),
        interp.resample("z.0", donor, seed=4).at(positions=slice(2, 5)),
        interp.add("resid_post.0", vector, 0.5),
        interp.set_coordinate("resid_post.0", vector, 2.0).at(positions=-1),
        interp.project_out("resid_post.0", vector),
        interp.swap_subspace("resid_mid.0", vector, donor).at(positions=slice(None, -2)),
        interp.attend("pattern.1.0", "uniform"),
        interp.attend("pattern.1.3", slice(2, 5)).at(positions=(8, -1)),
        interp.attend("pattern.0.3", [1, -7]).at(positions=slice(6, None)),
    ]


def test_saved_edits_of_every_kind_give_the_same_logits(llama: interp.Model, tmp_path: Path) -> None:
    edits = every_kind(llama)
    assert {edit.kind for edit in edits} == {*KINDS, "attend"}
    wanted = llama.run(prompts(), edits=edits).logits
    interp.save_edits(tmp_path / "edits.json", edits)
    loaded = interp.load_edits(tmp_path / "edits.json")
    assert [str(edit) for edit in loaded] == [str(edit) for edit in edits]
    assert [(edit.positions, edit.rows) for edit in loaded] == [(edit.positions, edit.rows) for edit in edits]
    assert torch.equal(llama.run(prompts(), edits=loaded).logits, wanted)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["edits.json", "edits.safetensors"]


def test_edits_may_share_a_tensor_and_one_that_is_being_fitted(tmp_path: Path) -> None:
    vector = torch.randn(64, requires_grad=True)
    interp.save_edits(tmp_path / "e.json", [interp.add("resid_post.0", vector), interp.add("resid_post.1", vector[:])])
    first, second = interp.load_edits(tmp_path / "e.json")
    assert torch.equal(first.tensors["vector"], vector.detach())
    assert torch.equal(second.tensors["vector"], vector.detach())


def test_edits_without_tensors_need_one_file(tmp_path: Path) -> None:
    interp.save_edits(tmp_path / "e.json", [interp.zero("z.0")])
    assert [path.name for path in tmp_path.iterdir()] == ["e.json"]
    assert str(interp.load_edits(tmp_path / "e.json")[0]) == "zero(z.0)"


def _saved(tmp_path: Path) -> Path:
    path = tmp_path / "edits.json"
    interp.save_edits(path, [interp.add("resid_post.0", torch.ones(4))])
    return path


def _corrupt(path: Path, **changes: object) -> None:
    document = json.loads(path.read_text())
    record = document["edits"][0]
    for key, value in changes.items():
        target = document if key in document else record
        if value is None:
            del target[key]
        else:
            target[key] = value
    path.write_text(json.dumps(document))


DAMAGE = {
    "missing": (lambda p: p.unlink(), "No such file"),
    "tensors missing": (lambda p: p.with_suffix(".safetensors").unlink(), "No such file"),
    "tensors cut short": (lambda p: p.with_suffix(".safetensors").write_bytes(b"\x10\0\0\0"), "does not hold edits"),
    "not JSON": (lambda p: p.write_text("{"), "does not hold edits"),
    "not text": (lambda p: p.write_bytes(b"\xff\xfe\x80"), "does not hold edits"),
    "another document": (lambda p: p.write_text("[1]"), "does not hold edits"),
    "another schema": (lambda p: _corrupt(p, schema=99), "schema 99, this version reads 1"),
    "no schema": (lambda p: _corrupt(p, schema=None), "lacks 'schema'"),
    "no site": (lambda p: _corrupt(p, site=None), "lacks 'site'"),
    "unknown kind": (lambda p: _corrupt(p, kind="zeor"), "did you mean 'zero'"),
    "unknown site": (lambda p: _corrupt(p, site="resid_psot.1"), "did you mean 'resid_post'"),
    "dangling tensor": (lambda p: _corrupt(p, tensors={"vector": "7.vector"}), "tensors 7.vector of"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_file_that_does_not_hold_edits_says_what_is_wrong(tmp_path: Path, damage: str) -> None:
    path = _saved(tmp_path)
    break_it, message = DAMAGE[damage]
    break_it(path)
    with pytest.raises(UnreadableFile, match=message):
        interp.load_edits(path)


def test_edits_that_cannot_be_written_leave_nothing(tmp_path: Path) -> None:
    with pytest.raises(UnwritableOutput, match="cannot be written"):
        interp.save_edits(tmp_path / "nowhere" / "edits.json", [interp.zero("z.0")])
    with pytest.raises(UnwritableOutput, match=r"edits\.json"):
        interp.save_edits(tmp_path / "edits.safetensors", [interp.add("resid_post.0", torch.ones(4))])
    assert list(tmp_path.iterdir()) == []
