"""Activations reach the disk whole, in order and once, whatever interrupts their collection."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import interp
from interp.errors import BadInput, PromptTooLong, UnknownSite, UnreadableFile
from probes.activations import Activations, collect
from tests import families

ROWS = families.ragged((12, 7, 10, 3, 9, 12, 5))
SITES = ["resid_post", "mlp_in.1", "z.0", "z.1.2"]


@pytest.fixture(scope="module")
def model() -> interp.Model:
    return interp.wrap(families.build("llama"), tokenizer=families.word_tokenizer())


def one_by_one(model: interp.Model, site: str, at: str) -> np.ndarray:
    """Each text run alone, read whole."""
    values = [model.run([row], read=site)[site][0].flatten(1) for row in ROWS]
    return np.stack([(value[-1] if at == "last" else value.mean(0)).numpy() for value in values])


@pytest.mark.parametrize("at", ["last", "mean"])
def test_a_batch_of_unequal_texts_has_the_activations_of_each_text_alone(
    model: interp.Model, tmp_path: Path, at: str
) -> None:
    found = collect(model, ROWS, SITES, at=at, chunk=3, path=tmp_path / "run")  # type: ignore[arg-type]
    assert list(found) == ["resid_post.0", "resid_post.1", "mlp_in.1", "z.0", "z.1.2"]
    kept = collect(model, ROWS, SITES, at=at)  # type: ignore[arg-type]
    for site in found:
        expected = one_by_one(model, site, at)
        np.testing.assert_allclose(found[site], expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(kept[site], expected, rtol=1e-4, atol=1e-5)
        assert np.abs(expected).max() > 0.01
    assert found["z.1.2"].shape == (len(ROWS), 32)
    assert found["z.0"].shape == (len(ROWS), 128)


def test_a_run_of_activations_is_a_safetensors_file_read_through_a_memory_map(
    model: interp.Model, tmp_path: Path
) -> None:
    found = collect(model, ROWS, "resid_post", path=tmp_path / "run")
    assert all(isinstance(array, np.memmap) for array in found.values())
    theirs = load_file(tmp_path / "run" / "activations.safetensors")
    again = Activations.load(tmp_path / "run").require(model, ROWS)
    for site, array in theirs.items():
        np.testing.assert_array_equal(array, again[site])
    assert again.tokens == tuple(map(tuple, ROWS))
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    with pytest.raises(UnknownSite, match="did you mean 'resid_post.1'"):
        again["resid_post.3"]


def test_another_models_or_other_texts_activations_are_refused(model: interp.Model, tmp_path: Path) -> None:
    found = collect(model, ROWS, "resid_post", path=tmp_path / "run")
    with pytest.raises(BadInput, match="of other texts"):
        found.require(model, ROWS[::-1])
    other = families.build("llama")
    families.randomise(other, seed=9)
    with pytest.raises(BadInput, match="collect them again"):
        found.require(interp.wrap(other), ROWS)
    (tmp_path / "run" / "activations.safetensors").write_bytes(b"\x08")
    with pytest.raises(UnreadableFile, match="activations.safetensors"):
        Activations.load(tmp_path / "run")


SLOWLY = """
    import sys, time
    from pathlib import Path
    import interp
    from probes import activations
    from tests import families
    from tests.probes.test_activations import ROWS, SITES

    model = interp.wrap(families.build("llama"), tokenizer=families.word_tokenizer())
    fill = activations._fill
    def slow(*arguments):
        fill(*arguments)
        time.sleep(0.3)
    activations._fill = slow
    print("begun", flush=True)
    activations.collect(model, ROWS, SITES, path=Path(sys.argv[1]), chunk=1)
"""


def test_a_killed_collection_goes_on_with_the_chunks_that_are_missing(
    model: interp.Model, tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, journal = tmp_path / "run", tmp_path / "run.journal.jsonl"
    script = [sys.executable, "-c", textwrap.dedent(SLOWLY), str(run)]
    with subprocess.Popen(script, cwd=root, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(root)}) as job:
        while not journal.exists() or journal.read_text().count("\n") < 4:
            assert job.poll() is None, "the job ended before it was killed"
            time.sleep(0.02)
        job.send_signal(signal.SIGKILL)
    finished = [json.loads(line)["key"] for line in journal.read_text().splitlines()[1:] if line.endswith("}")]
    assert 3 <= len(finished) < len(ROWS)
    assert not run.exists()
    with pytest.raises(BadInput, match="--resume"):
        collect(model, ROWS, SITES, path=run, chunk=1)
    with pytest.raises(BadInput, match="texts was"):
        collect(model, ROWS[::-1], SITES, path=run, chunk=1, resume=True)

    from probes import activations

    filled: list[int] = []
    fill = activations._fill
    monkeypatch.setattr(activations, "_fill", lambda *a: (filled.append(a[1]), fill(*a))[1])
    found = collect(model, ROWS, SITES, path=run, chunk=1, resume=True)
    assert filled == [start for start in range(len(ROWS)) if str(start) not in finished]
    for site in found:
        np.testing.assert_allclose(found[site], one_by_one(model, site, "last"), rtol=1e-4, atol=1e-5)
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_a_lost_file_starts_over_although_the_journal_is_there(model: interp.Model, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise Stop

    with pytest.raises(Stop):
        collect(model, ROWS, "resid_post", path=tmp_path / "run", chunk=2, progress=stop)
    (tmp_path / "run.activations.safetensors").unlink()
    found = collect(model, ROWS, "resid_post", path=tmp_path / "run", chunk=2, resume=True)
    np.testing.assert_allclose(found["resid_post.1"], one_by_one(model, "resid_post.1", "last"), rtol=1e-4, atol=1e-5)


def test_what_cannot_be_collected_is_refused_before_anything_is_written(model: interp.Model, tmp_path: Path) -> None:
    long = [*ROWS, list(torch.randint(3, families.VOCAB, (families.CONTEXT + 1,)))]
    for texts, sites, at, error in (
        (long, "resid_post", "last", PromptTooLong),
        (ROWS, "resid_past", "last", UnknownSite),
        (ROWS, "pattern", "last", BadInput),
        (ROWS, "resid_post", "first", BadInput),
        ([], "resid_post", "last", BadInput),
    ):
        with pytest.raises(error):
            collect(model, texts, sites, at=at, path=tmp_path / "run")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
