"""Results on disk: a run is there whole or not at all, and a journal keeps what a long job has finished.

runs/pocket-retrieval/
    run.json              kind, parameters, model, versions, seed, times
    table.parquet         the result's tidy table
    arrays.safetensors    its arrays
    …                     further files of the analysis, such as a head mask
runs/pocket-retrieval.journal.jsonl     only while the job is unfinished
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone
from functools import cached_property
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from interp.errors import BadInput, UnreadableFile, UnwritableOutput

if TYPE_CHECKING:  # listing runs should not wait for pandas
    import numpy as np
    import pandas as pd

RUN_SCHEMA = "interp-run/1"
JOURNAL_SCHEMA = "interp-journal/1"
RECORDED_VERSIONS = ("interp-workbench", "torch", "transformers", "tokenizers", "numpy")


@dataclass(frozen=True)
class RunRecord:
    """What `run.json` says: how the numbers beside it came to be. Times are ISO 8601 in UTC."""

    schema: str
    kind: str
    parameters: Mapping[str, Any]
    model: Mapping[str, Any]
    seed: int
    versions: Mapping[str, str]
    started: str
    finished: str


@dataclass(frozen=True)
class Run:
    """A finished run; its table and arrays are read when they are asked for."""

    path: Path
    record: RunRecord

    @cached_property
    def frame(self) -> pd.DataFrame:
        """The result's tidy table. Raises UnreadableFile."""
        import pandas as pd

        return _read(self.path / "table.parquet", pd.read_parquet)

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        """The result's arrays by name. Raises UnreadableFile."""
        from safetensors.numpy import load_file

        return _read(self.path / "arrays.safetensors", load_file)

    def table(self, name: str) -> pd.DataFrame:
        """The further table NAME.parquet of the analysis. Raises UnreadableFile."""
        import pandas as pd

        return _read(self.path / f"{name}.parquet", pd.read_parquet)

    def array(self, name: str, *shape: int | None) -> np.ndarray:
        """An array of this shape, None for any length. Raises UnreadableFile where it is absent or has another."""
        found = self.arrays.get(name)
        if found is None:
            raise UnreadableFile(f"{self.path} has no array {name!r}; it has {', '.join(self.arrays) or 'none'}")
        if len(found.shape) != len(shape) or any(w not in (None, n) for n, w in zip(found.shape, shape, strict=True)):
            wanted = " ".join("n" if w is None else str(w) for w in shape)
            raise UnreadableFile(f"{self.path}: the array {name!r} has shape {found.shape}, not [{wanted}]")
        return found

    @property
    def heads(self) -> tuple[int, int]:
        """Layers and heads of the model that the run is about. Raises UnreadableFile where it does not say."""
        layers, heads = (self.record.model.get(name) for name in ("layers", "heads"))
        if not (isinstance(layers, int) and isinstance(heads, int) and layers > 0 and heads > 0):
            raise UnreadableFile(f"{self.path} does not say how many layers and heads its model has")
        return layers, heads


def save_run(
    path: str | Path,
    *,
    kind: str,
    parameters: Mapping[str, Any],
    model: Mapping[str, Any],
    seed: int,
    frame: pd.DataFrame,
    arrays: Mapping[str, np.ndarray] | None = None,
    files: Mapping[str, Callable[[Path], object]] | None = None,
    started: datetime | None = None,
) -> Run:
    """Write a run to the new folder `path`, whole or not at all.

    `model` names at least the model and its fingerprint; `files` maps further file names to functions that
    write them. Raises UnwritableOutput, also where something is already there.
    """
    import numpy as np
    from safetensors.numpy import save

    now = datetime.now(timezone.utc)
    record = RunRecord(
        schema=RUN_SCHEMA,
        kind=kind,
        parameters=dict(parameters),
        model=dict(model),
        seed=seed,
        versions=_versions(),
        started=(started or now).isoformat(timespec="seconds"),
        finished=now.isoformat(timespec="seconds"),
    )
    path = Path(path)
    require_free(path)
    with staged(path) as folder:
        folder.mkdir()
        (folder / "run.json").write_text(json.dumps(asdict(record), indent=2) + "\n", encoding="utf-8")
        frame.to_parquet(folder / "table.parquet", index=False)
        contiguous = {name: np.ascontiguousarray(array) for name, array in (arrays or {}).items()}
        (folder / "arrays.safetensors").write_bytes(save(contiguous))  # save_file would hide it from other users
        for name, write in (files or {}).items():
            write(folder / name)
    return load_run(path)


def load_run(path: str | Path, kind: str | None = None) -> Run:
    """Read a run's record; its table and arrays follow on first use.

    Raises UnreadableFile, and BadInput for a run that is not of the `kind` asked for.
    """
    path = Path(path)
    file = path / "run.json"
    if not file.is_file():
        raise UnreadableFile(f"{path} is not a run: it holds no run.json")
    record = _read(file, lambda f: json.loads(f.read_text(encoding="utf-8")))
    schema = record.get("schema") if isinstance(record, dict) else None
    if schema != RUN_SCHEMA:
        raise UnreadableFile(f"{file} has schema {schema!r}; this version reads {RUN_SCHEMA!r}")
    names = {field.name for field in fields(RunRecord)}
    if missing := sorted(names - record.keys()):
        raise UnreadableFile(f"{file} lacks {', '.join(missing)}")
    if kind not in (None, record["kind"]):
        raise BadInput(f"{path} holds a run of kind {record['kind']!r}, not {kind!r}")
    return Run(path, RunRecord(**{name: record[name] for name in names}))


def run_folders(folder: str | Path) -> list[Path]:
    """The runs directly inside `folder`, by name. Raises UnreadableFile where there is no such folder."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UnreadableFile(f"there is no folder {folder}")
    return sorted(file.parent for file in folder.glob("*/run.json") if not file.parent.name.startswith("."))


class Journal:
    """The finished units of a long job, one JSON line each, on disk before the next unit starts.

    With `resume=True` the journal of a job with the same parameters is read into `done`; the half line that a
    killed process may leave at its end is dropped. Raises BadInput on other parameters and on an unfinished
    journal without `resume`, UnreadableFile on a damaged one, UnwritableOutput.
    """

    def __init__(self, path: str | Path, parameters: Mapping[str, Any], resume: bool = False) -> None:
        self.path = Path(path)
        self.done: dict[str, Any] = {}
        header = {"schema": JOURNAL_SCHEMA, "parameters": dict(parameters)}
        lines = self._whole_lines()
        if lines:
            if not resume:
                raise BadInput(
                    f"{self.path} holds {len(lines) - 1} finished units of an interrupted job: "
                    "resume it (--resume), or delete that file to start over"
                )
            self._require_same(lines[0], json.loads(json.dumps(header)))
            self.done = {line["key"]: line["value"] for line in lines[1:]}
        else:
            require_writable(self.path)
            self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("a", encoding="utf-8")
        if not lines:
            self._write(header)

    @staticmethod
    def beside(run: str | Path) -> Path:
        """Where the journal of the run to be written at `run` belongs."""
        run = Path(run)
        return run.with_name(run.name + ".journal.jsonl")

    def append(self, key: str, value: Any) -> None:
        """Keep a finished unit; it survives a kill from here on. `value` is anything JSON can hold."""
        self._write({"key": key, "value": value})
        self.done[key] = value

    def close(self) -> None:
        self._file.close()

    def discard(self) -> None:
        """Remove the journal of a job whose result is safe."""
        self.close()
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, line: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def _whole_lines(self) -> list[dict[str, Any]]:
        """Parse what is there, cutting an unfinished last line off the file."""
        if not self.path.exists():
            return []
        content = _read(self.path, Path.read_bytes)
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            os.truncate(self.path, len(whole))
        try:
            return [json.loads(line) for line in whole.splitlines()]
        except ValueError as error:
            raise UnreadableFile(f"{self.path} is damaged ({error}); delete it to start over") from error

    def _require_same(self, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
        if found.get("schema") != wanted["schema"]:
            raise UnreadableFile(
                f"{self.path} has schema {found.get('schema')!r}; this version reads {JOURNAL_SCHEMA!r}"
            )
        before, now = found["parameters"], wanted["parameters"]
        changed = [
            f"{name} was {before.get(name)!r} and is {now.get(name)!r}"
            for name in sorted(before.keys() | now.keys())
            if before.get(name) != now.get(name)
        ]
        if changed:
            raise BadInput(
                f"{self.path} belongs to another job: {'; '.join(changed)}; "
                "resume with the same parameters, or write somewhere else"
            )


@contextmanager
def staged(path: str | Path) -> Iterator[Path]:
    """A temporary sibling of `path` to write a file or folder to; it takes the name `path` only on success.

    An exception removes it; what a killed process leaves behind (`.NAME.partial`) goes with the next attempt.
    Raises UnwritableOutput.
    """
    path = Path(path)
    require_writable(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    _remove(partial)
    try:
        yield partial
        partial.replace(path)
    except OSError as error:
        _remove(partial)
        raise UnwritableOutput(f"cannot write {path}: {error.strerror or error}") from error
    except BaseException:
        _remove(partial)
        raise


def require_writable(path: str | Path) -> None:
    """Raise UnwritableOutput unless `path` could be written; called before the work, not after."""
    path = Path(path).absolute()
    ancestor = next(parent for parent in path.parents if parent.exists())
    if not ancestor.is_dir():
        raise UnwritableOutput(f"cannot write {path}: {ancestor} is a file, not a folder")
    try:
        Path(tempfile.mkdtemp(prefix=".writable.", dir=ancestor)).rmdir()
    except OSError as error:
        raise UnwritableOutput(f"cannot write {path}: {error.strerror or error} in {ancestor}") from error


def require_free(path: str | Path) -> None:
    """Raise UnwritableOutput unless a new run can be written to `path`."""
    path = Path(path)
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        what = "a run" if (path / "run.json").is_file() else "something"
        raise UnwritableOutput(f"{path} already holds {what}: name another place for the output, or remove it first")
    require_writable(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _read(path: Path, reader: Callable[[Path], Any]) -> Any:
    """Apply a reader, turning whatever a damaged file makes it raise into a sentence."""
    try:
        return reader(path)
    except Exception as error:
        raise UnreadableFile(f"{path} cannot be read: {error}") from error


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in RECORDED_VERSIONS:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # used from a tree that was never installed
            versions[name] = "not installed"
    return versions
