"""A run is there whole or not at all, and a killed job goes on from its last finished unit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from interp.errors import BadInput, UnreadableFile, UnwritableOutput
from interp.runs import Journal, load_run, require_writable, run_folders, save_run, staged

FRAME = pd.DataFrame({"layer": [0, 1], "head": [3, 5], "score": [0.25, 0.5]})
MODEL = {"name": "tiny", "fingerprint": "abc123"}


def save(path: Path, **changes: Any) -> None:
    arguments: dict[str, Any] = {
        "kind": "retrieval-heads",
        "parameters": {"lengths": (128, 256), "method": "stepwise"},
        "model": MODEL,
        "seed": 4,
        "frame": FRAME,
        "arrays": {"scores": np.arange(6.0).reshape(2, 3)},
    }
    save_run(path, **(arguments | changes))


# --- runs


def test_a_run_reads_back_as_it_was_saved(tmp_path: Path) -> None:
    save(tmp_path / "a")
    run = load_run(tmp_path / "a")
    pd.testing.assert_frame_equal(run.frame, FRAME)
    np.testing.assert_array_equal(run.arrays["scores"], np.arange(6.0).reshape(2, 3))
    record = run.record
    assert (record.kind, record.seed, record.model) == ("retrieval-heads", 4, MODEL)
    assert record.parameters == {"lengths": [128, 256], "method": "stepwise"}
    assert {"python", "torch", "transformers", "interp-workbench"} <= set(record.versions)
    assert record.started <= record.finished


def test_a_transposed_array_keeps_its_values(tmp_path: Path) -> None:
    """safetensors writes the buffer as it lies in memory; a view must be laid out first."""
    array = np.arange(6.0).reshape(2, 3).T
    save(tmp_path / "a", arrays={"scores": array})
    np.testing.assert_array_equal(load_run(tmp_path / "a").arrays["scores"], array)


def test_who_may_read_the_table_may_read_the_arrays(tmp_path: Path) -> None:
    save(tmp_path / "a")
    modes = {file.stat().st_mode for file in (tmp_path / "a").iterdir()}
    assert len(modes) == 1


def test_further_files_arrive_with_the_run(tmp_path: Path) -> None:
    save(tmp_path / "a", files={"mask.json": lambda path: path.write_text("{}")})
    assert (tmp_path / "a" / "mask.json").read_text() == "{}"


def test_a_run_that_is_already_there_is_kept(tmp_path: Path) -> None:
    save(tmp_path / "a")
    with pytest.raises(UnwritableOutput, match="already holds a run"):
        save(tmp_path / "a", seed=5)
    assert load_run(tmp_path / "a").record.seed == 4


def test_a_failing_write_leaves_nothing(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        path.write_text("half")
        raise RuntimeError("disk on fire")

    with pytest.raises(RuntimeError, match="fire"):
        save(tmp_path / "a", files={"mask.json": fail})
    assert list(tmp_path.iterdir()) == []


def test_a_kill_in_the_middle_of_a_write_leaves_no_run_and_the_next_attempt_succeeds(tmp_path: Path) -> None:
    target = tmp_path / "runs" / "a"
    script = f"""
        import sys, time
        from pathlib import Path
        import pandas as pd
        from interp.runs import save_run

        def stall(path):
            path.write_text("half")
            print("writing", flush=True)
            time.sleep(600)

        save_run({str(target)!r}, kind="k", parameters={{}}, model={{}}, seed=0,
                 frame=pd.DataFrame({{"score": [1.0]}}), files={{"mask.json": stall}})
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"writing\n"
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not target.exists()
    assert run_folders(target.parent) == []

    save(target)
    assert load_run(target).record.kind == "retrieval-heads"
    assert list(target.parent.iterdir()) == [target]


def test_runs_are_listed_by_name_and_other_folders_are_not(tmp_path: Path) -> None:
    save(tmp_path / "b")
    save(tmp_path / "a")
    (tmp_path / "notes").mkdir()
    assert run_folders(tmp_path) == [tmp_path / "a", tmp_path / "b"]
    with pytest.raises(UnreadableFile, match="there is no folder"):
        run_folders(tmp_path / "missing")


def test_reading_a_record_loads_neither_pandas_nor_torch(tmp_path: Path) -> None:
    save(tmp_path / "a")
    script = (
        "import sys\n"
        "from interp.runs import load_run\n"
        f"load_run({str(tmp_path / 'a')!r})\n"
        "print([name for name in ('pandas', 'torch', 'numpy') if name in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", script], text=True).strip() == "[]"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "holds no run.json"),
        ("{", "cannot be read"),
        ('{"schema": "interp-run/99"}', "schema 'interp-run/99'"),
        ("[]", "schema None"),
        ('{"schema": "interp-run/1", "kind": "k"}', "lacks finished, model"),
    ],
)
def test_a_damaged_run_is_a_sentence(tmp_path: Path, content: str | None, said: str) -> None:
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(UnreadableFile, match=said):
        load_run(tmp_path)


def test_a_damaged_table_is_a_sentence(tmp_path: Path) -> None:
    save(tmp_path / "a")
    for name in ("table.parquet", "arrays.safetensors"):
        (tmp_path / "a" / name).write_bytes(b"not this")
    run = load_run(tmp_path / "a")
    with pytest.raises(UnreadableFile, match=r"table\.parquet cannot be read"):
        _ = run.frame
    with pytest.raises(UnreadableFile, match=r"arrays\.safetensors cannot be read"):
        _ = run.arrays


# --- staged writes


def test_a_staged_file_replaces_the_old_one_only_when_done(tmp_path: Path) -> None:
    target = tmp_path / "mask.json"
    target.write_text("old")
    with staged(target) as partial:
        partial.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"


def test_an_interrupted_staged_write_keeps_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "mask.json"
    target.write_text("old")
    with pytest.raises(KeyboardInterrupt), staged(target) as partial:
        partial.write_text("ne")
        raise KeyboardInterrupt
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_an_output_below_a_file_is_refused_and_nothing_is_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UnwritableOutput, match="is a file, not a folder"):
        require_writable(tmp_path / "file" / "runs" / "a")
    require_writable(tmp_path / "new" / "runs" / "a")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UnwritableOutput, match="Permission denied"):
        require_writable(tmp_path / "a")


# --- journals


def test_a_journal_gives_back_what_was_finished(tmp_path: Path) -> None:
    with Journal(tmp_path / "j.jsonl", {"method": "chunk", "lengths": (128,)}) as journal:
        journal.append("0", {"scores": [0.5, 1.0]})
        journal.append("1", None)
    with Journal(tmp_path / "j.jsonl", {"method": "chunk", "lengths": (128,)}, resume=True) as journal:
        assert journal.done == {"0": {"scores": [0.5, 1.0]}, "1": None}
        journal.append("2", 3)
    with Journal(tmp_path / "j.jsonl", {"method": "chunk", "lengths": (128,)}, resume=True) as journal:
        assert list(journal.done) == ["0", "1", "2"]


def test_a_unit_is_on_disk_once_append_returns(tmp_path: Path) -> None:
    script = f"""
        import os, signal
        from interp.runs import Journal
        journal = Journal({str(tmp_path / "j.jsonl")!r}, {{}})
        for unit in range(3):
            journal.append(str(unit), unit)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert Journal(tmp_path / "j.jsonl", {}, resume=True).done == {"0": 0, "1": 1, "2": 2}


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_half_written_last_line_is_dropped_and_written_again(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "j.jsonl"
    with Journal(path, {}) as journal:
        journal.append("0", [1, 2])
        journal.append("1", [3, 4])
    os.truncate(path, path.stat().st_size - cut)
    with Journal(path, {}, resume=True) as journal:
        assert journal.done == {"0": [1, 2]}
        journal.append("1", [3, 4])
    assert [json.loads(line).get("key") for line in path.read_text().splitlines()] == [None, "0", "1"]


def test_a_journal_cut_inside_its_first_line_starts_anew(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    Journal(path, {"seed": 1}).close()
    os.truncate(path, 10)
    with Journal(path, {"seed": 2}, resume=True) as journal:
        assert journal.done == {}
    with Journal(path, {"seed": 2}, resume=True) as journal:
        assert journal.done == {}


def test_a_journal_of_other_parameters_is_refused(tmp_path: Path) -> None:
    Journal(tmp_path / "j.jsonl", {"method": "chunk", "seed": 1}).close()
    with pytest.raises(BadInput, match="seed was 1 and is 2"):
        Journal(tmp_path / "j.jsonl", {"method": "chunk", "seed": 2}, resume=True)


def test_an_unfinished_journal_is_not_overwritten_by_accident(tmp_path: Path) -> None:
    with Journal(tmp_path / "j.jsonl", {}) as journal:
        journal.append("0", 1)
    with pytest.raises(BadInput, match="1 finished units .* resume it"):
        Journal(tmp_path / "j.jsonl", {})


def test_a_damaged_journal_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "j.jsonl").write_text("not json\n")
    with pytest.raises(UnreadableFile, match="delete it to start over"):
        Journal(tmp_path / "j.jsonl", {}, resume=True)


def test_the_journal_of_a_finished_job_goes(tmp_path: Path) -> None:
    path = Journal.beside(tmp_path / "pocket-retrieval")
    assert path == tmp_path / "pocket-retrieval.journal.jsonl"
    journal = Journal(path, {})
    journal.discard()
    assert list(tmp_path.iterdir()) == []


# --- what a result reads back


def test_an_array_is_given_in_the_shape_asked_for_and_refused_in_any_other(tmp_path: Path) -> None:
    save(tmp_path / "a")
    run = load_run(tmp_path / "a")
    assert run.array("scores", None, 3) is run.arrays["scores"]
    with pytest.raises(UnreadableFile, match=r"'scores' has shape \(2, 3\), not \[n 4\]"):
        run.array("scores", None, 4)
    with pytest.raises(UnreadableFile, match="no array 'score'; it has scores"):
        run.array("score", 2, 3)


def test_a_run_of_another_kind_is_refused_by_name(tmp_path: Path) -> None:
    save(tmp_path / "a")
    assert load_run(tmp_path / "a", "retrieval-heads").record.kind == "retrieval-heads"
    with pytest.raises(BadInput, match="holds a run of kind 'retrieval-heads', not 'patching'"):
        load_run(tmp_path / "a", "patching")


def test_a_run_says_how_many_heads_its_model_has(tmp_path: Path) -> None:
    save(tmp_path / "a", model={**MODEL, "layers": 2, "heads": 8})
    save(tmp_path / "b")
    assert load_run(tmp_path / "a").heads == (2, 8)
    with pytest.raises(UnreadableFile, match="does not say how many layers and heads"):
        _ = load_run(tmp_path / "b").heads


def test_a_further_table_is_read_by_name(tmp_path: Path) -> None:
    save(tmp_path / "a", files={"tests.parquet": FRAME.to_parquet})
    pd.testing.assert_frame_equal(load_run(tmp_path / "a").table("tests"), FRAME)
    with pytest.raises(UnreadableFile, match="other.parquet"):
        load_run(tmp_path / "a").table("other")
